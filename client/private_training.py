"""Local training under noise: DP-SGD at a site, with Opacus' gradients by row and its optimiser.

A step takes patients by Poisson sampling, clips the gradient of each of their rows (images), averages a patient's rows,
rounds, adds the patients up as integers, adds noise of the query's own plan, and divides by the expected number of
patients (Abadi et al. 2016, arXiv:1607.00133; Opacus: Yousefpour et al. 2021, arXiv:2109.12298). The patients' scores
ride along in their cell, as in the whitened rounds (`equipoise.common.private_step`).

From Opacus come the hooks that leave each row's gradient and the course of a step. What a guarantee rests on is our
own: coins and noise from the site's cryptographic generator (Opacus draws them from torch's), a bound for each patient
and not for each row, and integers in the place of floating-point sums.

Importing this module loads Opacus, which takes seconds: a site does so when it is first asked.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from equipoise.client.alike import alike_places, batches
from equipoise.client.descent import MaskedDescent, like
from equipoise.client.workbench import View
from equipoise.common.errors import RefusedError
from equipoise.common.layout import Layout
from equipoise.common.losses import row_losses
from equipoise.common.privacy.plan import ReleasePlan
from equipoise.common.privacy.randomness import bernoulli, poisson_sample, secret_generator
from equipoise.common.privacy.rounding import ROUNDING, clip_and_round
from equipoise.common.private_step import SCORE_BOUND
from equipoise.common.study import ImageInputs

Points = NDArray[np.int64]
Vector = NDArray[np.float64]
# What frozen layers before the trained ones, and inputs, are for; torch says it at every step.
warnings.filterwarnings("ignore", message="Full backward hook is firing")
PROBES = 3  # sets of made-up rows, of which one has to agree
PROBE_ROWS = 3
PROBE_TOLERANCE = 1e3  # machine epsilons of a row's gradient, by which two ways to sum it up may differ


class LatticeOptimizer(DPOptimizer):
    """Opacus' DP-SGD with a patient as the unit, integer sums, and the noise of a release plan.

    Args:
        descent: what moves the weights by a noised mean gradient.
        plan: of kind `dp_sgd`, in units of `clip`; its dimensions are those of the trained weights and of the cells.
        clip: C, the L2 bound of a row's gradient.
        cells: number of cells, in which scores are summed.
        expected: expected patients of a step, public: what the noised sum is divided by.

    Attributes:
        score_points: noised sums of 0.4 (p - 1/2) by cell over all steps so far, in lattice steps, int64 (cells,).
    """

    def __init__(self, descent: MaskedDescent, plan: ReleasePlan, clip: float, cells: int, expected: float) -> None:
        super().__init__(
            descent,
            noise_multiplier=plan.noise / plan.clip,
            max_grad_norm=clip,
            expected_batch_size=expected,
            loss_reduction="mean",
        )
        self.score_points: Points = np.zeros(cells, dtype=np.int64)
        self._plan, self._cells = plan, cells
        self._size = sum(parameter.numel() for parameter in self.params)
        self._points = self._nothing()

    @property
    def points(self) -> Points:
        """The un-noised sum of the step that is under way: weights, then cells, in lattice steps."""
        return self._points

    @property
    def accumulated_iterations(self) -> int:
        """All pieces of a step's patients are one batch."""
        return 1

    def clip_and_accumulate(self, owner: Tensor, real: Tensor, cell: Tensor, scores: Tensor) -> None:
        """Add the patients of the rows whose gradients the hooks have just left.

        Args:
            owner: (m,) int64 in 0..n-1, non-decreasing: the patient of each row; all rows of each patient are there.
            real: (k,) int64: which of the n are patients of the site.
            cell: (n,) int64.
            scores: (m,) p of each row.

        Formal guarantee:
            Unit: patient; relation: add or remove one. A patient's integers depend on that patient's rows and cell and
            on public values alone, and have a norm of at most the plan's sensitivity in lattice steps: each row's
            gradient is clipped to C and its score to 0.2 C, their mean is no longer, and `clip_and_round` bounds
            whatever arrives.

        Edge cases:
            A row whose score or gradient is NaN or infinite adds 0 and still counts as one of the patient's rows.

        Raises:
            RefusedError: the hooks left gradients of other rows than these; for all patients alike.
        """
        samples = self.grad_samples
        if any(len(sample) < len(owner) for sample in samples):
            raise RefusedError("Opacus left gradients of fewer rows than there are; this network cannot be trained")
        vector = torch.zeros(self._size + self._cells, dtype=torch.float64)
        parts = torch.split(vector[: self._size], [parameter.numel() for parameter in self.params])
        counts = torch.unique_consecutive(owner, return_counts=True)[1].tolist()
        whose = torch.split(torch.arange(len(owner)), counts)
        for patient in real.tolist():
            rows = whose[patient]
            vector.zero_()
            for row in rows.tolist():
                gradients = [sample[row].reshape(-1).cpu() for sample in samples]
                lengths = [float(torch.linalg.vector_norm(g, dtype=torch.float64)) for g in gradients]
                length, score = math.hypot(*lengths), float(scores[row])
                if math.isfinite(length) and math.isfinite(score):
                    shrunk = ROUNDING / max(length, self.max_grad_norm) / len(rows)
                    for part, gradient in zip(parts, gradients, strict=True):
                        part.add_(gradient, alpha=shrunk)
                    vector[self._size + int(cell[patient])] += ROUNDING * 2 * SCORE_BOUND * (score - 0.5) / len(rows)
            self._points += clip_and_round(vector.numpy()[None], self._plan.clip, self._plan.step)[0]

    def add_noise(self) -> None:
        """The sum with noise of the plan's own mechanism as `grad`, also where no patient was taken."""
        noised = self._points + self._plan.sampler.noise(self._points.shape)
        self._points = self._nothing()
        self.score_points += noised[self._size :]
        mean = torch.from_numpy(noised[: self._size] * (self._plan.step * self.max_grad_norm))
        for parameter, part in zip(self.params, torch.split(mean, [p.numel() for p in self.params]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.device, parameter.dtype)

    def step(self, closure: None = None) -> None:
        """Noise, division by the expected patients, descent; the patients were added before."""
        self.add_noise()
        self.scale_grad()
        self.original_optimizer.step([parameter.grad for parameter in self.params])

    def _nothing(self) -> Points:
        return np.zeros(self._size + self._cells, dtype=np.int64)


def train_privately(
    view: View,
    layout: Layout,
    parameters: Mapping[str, Any],
    plan: ReleasePlan,
    clip: float,
    weights: Mapping[str, Vector],
    mask: Mapping[str, NDArray[np.floating]] | None,
    expected: float,
) -> tuple[Vector, Vector]:
    """The change of the trained tensors after the plan's steps of DP-SGD, and the noised sums of scores by cell.

    The mask multiplies each step after the noise, as without privacy it multiplies each gradient.

    Args:
        layout: tensors that are trained; all others stay as they are.
        parameters: beta, lr, momentum, weight_decay, flips.
        plan: sampling rate, steps, bound and noise, in units of `clip`.
        clip: C, public.
        weights: `task` and `bias`, (G + 1, 2) float64 by cell, public.
        mask: factor of each trained tensor's update, released before; None for 1.
        expected: patients that a step takes by the declared number, public.

    Returns:
        (change, scores): float64 (layout.size,); float64 (G + 1, 2), the sum over all steps of the noised sums over the
        patients taken of 0.4 (p - 1/2).

    Formal guarantee:
        Unit: patient, with all rows; relation: add or remove one. Each step is the Poisson-sampled Gaussian mechanism
        of the plan (`LatticeOptimizer.clip_and_accumulate` bounds the sum, `RoundedGaussian` noises it), adaptively
        composed; all else is a function of noised sums and public values. The event is the plan's event. Mirroring
        (`flips`) draws from the site's secret generator, each row's coins independent of who else is there.

    Edge cases:
        A step that takes nobody, or a site without patients, moves by noise alone.

    Raises:
        RefusedError: Opacus' gradients of this network are not those of autograd. Depends on public values alone.
    """
    study, model, split = view.study, view.model, view.split
    names = list(layout.shapes)
    trained = [model.get_parameter(name) for name in names]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in layout)
    descent = MaskedDescent(
        trained,
        None if mask is None else [like(mask[name], p) for name, p in zip(names, trained, strict=True)],
        [None] * len(trained),
        lr=parameters["lr"],
        momentum=parameters["momentum"],
        decay=parameters["weight_decay"],
        proximal=0.0,
    )
    start = layout.flatten({name: p.detach().clone() for name, p in zip(names, trained, strict=True)})
    task, bias = (torch.from_numpy(weights[key].reshape(-1)) for key in ("task", "bias"))
    flips = parameters["flips"] and isinstance(study.inputs, ImageInputs)
    optimizer = LatticeOptimizer(descent, plan, clip, len(task), expected)
    with hooked(model) as rowwise:

        def gradients(x: Tensor) -> list[Tensor]:
            logits = rowwise(x)
            torch.autograd.backward(logits.sum())
            samples = [logits, *(vars(parameter)["grad_sample"] for parameter in trained)]
            forget(trained)
            return samples

        check_rows(rowwise, trained, view.rows(slice(0)))
        places = alike_places(view, ("DP-SGD", *names), gradients)
        for _ in range(plan.releases):
            taken = torch.zeros(split.patients, dtype=torch.bool)
            taken[torch.from_numpy(poisson_sample(plan.rate, split.patients))] = True
            rows = torch.nonzero(taken[split.patient]).flatten()
            for batch in batches(view, places, rows):
                logits = rowwise(flipped_secretly(batch.x) if flips else batch.x)
                label, cell = batch.label[batch.owner], batch.cell[batch.owner]
                torch.autograd.backward(row_losses(logits, label, cell, task, bias, parameters["beta"]).sum())
                scores = torch.sigmoid(logits.detach().double())
                optimizer.clip_and_accumulate(batch.owner, batch.real, batch.cell, scores)
                forget(trained)
            optimizer.step()
    change = layout.flatten({name: p.detach() for name, p in zip(names, trained, strict=True)}) - start
    model.requires_grad_(True)
    return change, optimizer.score_points.astype(np.float64).reshape(weights["task"].shape) * plan.step


@contextmanager
def hooked(model: nn.Module) -> Iterator[Any]:
    """The network as it leaves the gradient of each row in `grad_sample` of what is trained; then as it was.

    Hooks work in train mode alone. Those of a convolution misread inputs whose channels come last in memory, as a site
    holds images and filters: it is given them the other way.
    """
    try:
        rowwise = GradSampleModule(model, loss_reduction="sum")
    except NotImplementedError as error:
        raise RefusedError(f"Opacus cannot train this network: {error}") from None
    for module in model.modules():
        # Not the others: dropout stays off.
        module.training = any(True for _ in module.parameters(recurse=False))
    layouts = [m.register_forward_pre_hook(_channels_first) for m in model.modules() if isinstance(m, nn.Conv2d)]
    try:
        yield rowwise
    finally:
        for layout in layouts:
            layout.remove()
        rowwise.to_standard_module().eval()
        for parameter in model.parameters():
            parameter.grad = None
            parameter.__dict__.pop("summed_grad", None)


def _channels_first(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous() for x in inputs)


def check_rows(rowwise: Any, trained: list[nn.Parameter], like_these: Tensor) -> None:
    """Compare the hooks' gradients of made-up rows with autograd's, of each row alone.

    Hooks have been seen to be wrong by far and in silence for a layer that they do not know, and a network that mixes
    rows has no gradients by row at all. What is compared is public, so whether a site refuses tells of no patient. One
    set of rows that agrees is enough: with an activation within rounding of a kink the two ways differ by chance.

    Raises:
        RefusedError: they differ.
    """
    for seed in range(PROBES):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(PROBE_ROWS, *like_these.shape[1:], generator=generator).to(like_these)
        agree = _rows_agree(rowwise, trained, rows)
        rowwise.enable_hooks()
        if agree:
            return
    raise RefusedError(
        "Opacus' gradients of single rows are not those of autograd for this network: it cannot be trained "
        "by DP-SGD; use step: whitened"
    )


def _rows_agree(rowwise: Any, trained: list[nn.Parameter], x: Tensor) -> bool:
    torch.autograd.backward(rowwise(x).sum())
    samples = [getattr(parameter, "grad_sample", None) for parameter in trained]
    forget(trained)
    rowwise.disable_hooks()
    tolerance = PROBE_TOLERANCE * torch.finfo(x.dtype).eps
    for row in range(len(x)):
        own = torch.autograd.grad(rowwise(x[row : row + 1]).sum(), trained, materialize_grads=True, allow_unused=True)
        size = sum(float(g.double().square().sum()) for g in own) ** 0.5
        if not math.isfinite(size):
            raise RefusedError("the weights received have gradients that are no numbers, on made-up rows")
        for sample, gradient in zip(samples, own, strict=True):
            error = size
            if isinstance(sample, Tensor) and sample.shape == (len(x), *gradient.shape):
                error = float((sample[row] - gradient).double().norm())
            if not error <= tolerance * size:
                return False
    return True


def flipped_secretly(x: Tensor) -> Tensor:
    """Each image mirrored left-right and top-bottom with probability 1/2; coins from the site's own generator."""
    coins = torch.from_numpy(bernoulli(0.5, 2 * len(x), secret_generator())).view(2, -1, 1, 1, 1)
    x = torch.where(coins[0].to(x.device), x.flip(-1), x)
    return torch.where(coins[1].to(x.device), x.flip(-2), x)


def forget(trained: list[nn.Parameter]) -> None:
    """Let go of the gradients of a piece."""
    for parameter in trained:
        parameter.grad = None
        parameter.grad_sample = None  # type: ignore[attr-defined]
