"""Each patient's energies: squared gradient norms of the score and of the cross-entropy, by tensor.

A sensitivity for every parameter drowns in noise; one for every tensor survives it (decision 0020). It is a sum of
energies, and a tensor's energy needs no gradient: with the patches X that a convolution saw and the gradient dY at its
output, the squared norm of dY^T X is the sum of the entries of (X X^T) * (dY dY^T), two matrices of the size of the
positions (Goodfellow 2015, arXiv:1510.01799; Li et al. 2022, arXiv:2110.05679). Where a layer has more positions than
that is worth, its gradients are formed for a few rows at a time and let go. One forward pass and one backward pass by
the activations serve the score and the cross-entropy, since both gradients are multiples of the logit's.

>>> energies = BlockEnergies(model, list(layout.shapes))
>>> logits, gram = energies.rows(x)                             # public pool
>>> bias, task = energies.patients(x, owner, label)             # (n, tensors) each
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from equipoise.common.layer_gradients import is_last_axis_norm, layer_normed, summed_gradients
from equipoise.common.row_gradients import RowGradients

Vector = NDArray[np.float64]
_Call = tuple[str, nn.Module, Tensor, Tensor]

FORMED_BYTES = 32 * 2**20  # gradients of one layer that are held at once
PROBE_ROWS = 4


class BlockEnergies:
    """Squared norms of row and patient gradients of one model, by tensor.

    Args:
        model: gives one logit a row and mixes no rows; in eval mode.
        names: the tensors, in the order of the result.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.names = list(names)
        self._model = model
        self._column = {name: i for i, name in enumerate(self.names)}
        self._layers = _known_layers(model, self._column)
        self._fallback = RowGradients(model, self.names)
        self._agreed = False

    def patients(self, x: Tensor, owner: Tensor, label: Tensor) -> tuple[Vector, Vector]:
        """Energies of the mean over each patient's rows of the gradient of the score and of the cross-entropy.

        Args:
            x: (m, ...) normalised inputs, all rows of some patients.
            owner: (m,) int64 in 0..n-1, non-decreasing.
            label: (n,) int64.

        Returns:
            (bias, task), (n, tensors) float64 each: by tensor the squared norms of mean p (1 - p) dz and of
            mean (p - y) dz.

        Formal guarantee:
            A patient's energies depend on that patient's rows and label alone, up to the rounding of the sizes in which
            rows are worked on together. They are not bounded (`energy_basis.contributions` does that) and no noise is
            added.

        Edge cases:
            A row whose logit is NaN or infinite contributes 0 to the mean and still counts as one of the patient's
            rows; where a logit is finite and a gradient is not, the patient's energies are not finite. A patient
            without rows has energy 0. No rows: zeros.
        """
        n = len(label)
        found = np.zeros((2, n, len(self.names)))
        if len(x) == 0:
            return found[0], found[1]
        count = torch.bincount(owner, minlength=n)
        logits, calls = self._traced(x)
        p = torch.sigmoid(logits)
        share = 1.0 / count[owner].to(p)
        sound = logits.isfinite()
        factors = torch.stack([share * p * (1 - p), share * (p - label[owner].to(p))]).where(sound, 0.0)
        for many in torch.unique(count[count > 0]).tolist():
            # Patients of equally many rows together: (patients, many) indices of their rows.
            chosen = torch.nonzero(count[owner] == many).flatten().reshape(-1, many)
            whose = owner[chosen[:, 0]].cpu().numpy()
            scale, usable = factors[:, chosen].double(), sound[chosen]
            pairs = usable[:, :, None] & usable[:, None, :]
            for name, gram in self._grams(calls, x, chosen):
                known = gram.double().where(pairs, 0.0)
                energies = torch.einsum("spa,pab,spb->sp", scale, known, scale)
                found[:, whose, self._column[name]] = energies.clamp_min(0).cpu().numpy()
        return found[0], found[1]

    def rows(self, x: Tensor) -> tuple[Vector, Vector]:
        """Logits (m,) and the energies of each row's logit gradient, (m, tensors) float64; for a public pool."""
        found = np.zeros((len(x), len(self.names)))
        if len(x) == 0:
            return np.zeros(0), found
        logits, calls = self._traced(x)
        for name, gram in self._grams(calls, x, torch.arange(len(x))[:, None]):
            found[:, self._column[name]] = gram[:, 0, 0].double().cpu().numpy()
        return logits.double().cpu().numpy(), found

    def _traced(self, x: Tensor) -> tuple[Tensor, list[_Call] | None]:
        """Logits, and for each layer its input and the gradient at its output; None where rows must be formed."""
        if not self._agreed:
            # On made-up rows: which way is taken, hence every patient's last bits, must not depend on a patient.
            generator = torch.Generator().manual_seed(0)
            probe = torch.randn(PROBE_ROWS, *x.shape[1:], generator=generator).to(x)
            if self._layers is None or not self._agree(probe):
                self._layers = None
                self._fallback(probe)
            self._agreed = True
        if self._layers is None:
            with torch.no_grad():
                return self._model(x), None
        return self._backward(x, self._layers)

    def _backward(self, x: Tensor, layers: dict[str, nn.Module]) -> tuple[Tensor, list[_Call]]:
        calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []

        def note(prefix: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
            def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
                if not output.requires_grad:
                    output.requires_grad_()
                calls.append((prefix, layer, inputs[0].detach(), output))

            return hook

        handles = [layer.register_forward_hook(note(prefix)) for prefix, layer in layers.items()]
        try:
            with torch.enable_grad():
                logits: Tensor = self._model(x)
        finally:
            for handle in handles:
                handle.remove()
        outputs = [output for *_, output in calls]
        by_output = torch.autograd.grad(
            logits, outputs, torch.ones_like(logits), allow_unused=True, materialize_grads=True
        )
        return logits.detach(), [
            (prefix, layer, seen, g) for (prefix, layer, seen, _), g in zip(calls, by_output, strict=True)
        ]

    def _agree(self, x: Tensor) -> bool:
        """Whether the rows taken as one patient have the energies of autograd's gradient of their summed logits.

        Not so for a layer that is called twice or a parameter that is used outside its layer.
        """
        layers = self._layers or {}
        _, calls = self._backward(x, layers)
        if len(calls) != len(layers):
            return False
        direct = summed_gradients(self._model, self.names, x)
        tolerance = 1e3 * torch.finfo(x.dtype).eps
        together = torch.arange(len(x))[None]
        for name, gram in self._grams(calls, x, together):
            expected = float(direct[name].double().square().sum())
            size = expected + float(gram[0].diagonal().double().sum())
            if not abs(float(gram.double().sum()) - expected) <= tolerance * size:
                return False
        return True

    def _grams(self, calls: list[_Call] | None, x: Tensor, chosen: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and (patients, many, many) inner products of the gradients of each patient's rows."""
        with torch.no_grad():
            if calls is None:
                for name, rows in self._fallback(x[chosen.flatten()])[1]:
                    yield name, _inner(rows.reshape(*chosen.shape, -1))
                return
            for prefix, layer, seen, g in calls:
                every = len(chosen) == len(seen)  # one row a patient, in order: nothing to gather
                mine = (seen, g) if every else (seen[chosen.flatten()], g[chosen.flatten()])
                for own, gram in _layer_grams(layer, *mine, chosen.shape[1]):
                    if prefix + own in self._column:
                        yield prefix + own, gram


def _known_layers(model: nn.Module, names: dict[str, int]) -> dict[str, nn.Module] | None:
    """Prefix -> layer of the layers that hold `names`, where all are known; else None."""
    layers: dict[str, nn.Module] = {}
    covered: set[str] = set()
    for path, layer in model.named_modules():
        prefix = f"{path}." if path else ""
        own = {prefix + name for name, _ in layer.named_parameters(recurse=False)}
        if not own & names.keys():
            continue
        plain_conv = type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"
        known = type(layer) in (nn.Linear, nn.GroupNorm) or is_last_axis_norm(layer)
        if not (known or (plain_conv and not isinstance(layer.padding, str))):
            return None
        layers[prefix] = layer
        covered |= own
    return layers if names.keys() <= covered else None


def _layer_grams(layer: nn.Module, x: Tensor, g: Tensor, many: int) -> Iterator[tuple[str, Tensor]]:
    """Inner products of the row gradients by each of a layer's parameters, `many` consecutive rows a patient."""
    if isinstance(layer, nn.GroupNorm):
        normed = functional.group_norm(x, layer.num_groups, eps=layer.eps)
        channels = layer.num_channels
        yield "weight", _inner((g * normed).flatten(2).sum(dim=2).reshape(-1, many, channels))
        yield "bias", _inner(g.flatten(2).sum(dim=2).reshape(-1, many, channels))
        return
    if isinstance(layer, nn.LayerNorm):
        # A sum over every axis between the row's and the channels'.
        by_gain, by_shift = ((t if t.ndim > 2 else t[:, None]).flatten(1, -2) for t in (g * layer_normed(layer, x), g))
        yield "weight", _inner(by_gain.sum(dim=1).reshape(-1, many, x.shape[-1]))
        yield "bias", _inner(by_shift.sum(dim=1).reshape(-1, many, x.shape[-1]))
        return
    if isinstance(layer, nn.Linear):
        seen = (x[:, None] if x.ndim == 2 else x.flatten(1, -2)).mT
        by_y = (g[:, None] if g.ndim == 2 else g.flatten(1, -2)).mT
        yield "weight", _products(seen, by_y, many)
    else:
        by_y = g.flatten(2)
        yield "weight", _products(lambda part: _patches(layer, x[part]), by_y, many)
    if layer.bias is not None:
        yield "bias", _inner(by_y.sum(dim=2).reshape(-1, many, by_y.shape[1]))


def _patches(layer: nn.Module, x: Tensor) -> Tensor:
    """(m, entries of a filter, positions) inputs of a convolution."""
    if not isinstance(layer, nn.Conv2d):
        raise TypeError(type(layer).__name__)
    if layer.kernel_size == (1, 1) and layer.padding == (0, 0):
        return x[:, :, :: layer.stride[0], :: layer.stride[1]].flatten(2)
    geometry: Any = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # pairs, unknown to the stubs
    return functional.unfold(x, *geometry)


def _products(seen: Tensor | Callable[[slice], Tensor], by_y: Tensor, many: int) -> Tensor:
    """Inner products of the rows' gradients dY X^T by the cheaper of two ways.

    Args:
        seen: X, (m, K, L), or what gives it for a slice of the rows.
        by_y: dY, (m, O, L).
        many: rows of a patient.

    Returns:
        (m / many, many, many).
    """

    def part_of(part: slice) -> Tensor:
        return seen(part) if callable(seen) else seen[part]

    m, outputs, positions = by_y.shape
    entries = part_of(slice(0, 1)).shape[1]
    every = many * positions
    implicit = every * every * (entries + outputs) < every * outputs * entries
    bytes_of_patient = 4 * many * max(entries * positions, 0 if implicit else outputs * entries)
    step = many * max(1, FORMED_BYTES // max(1, bytes_of_patient))
    grams = []
    for begin in range(0, m, step):
        part = slice(begin, begin + step)
        x, y = part_of(part), by_y[part]
        if implicit:
            x, y = (t.mT.reshape(-1, many * positions, t.shape[1]) for t in (x, y))
            both = (x @ x.mT).mul_(y @ y.mT)
            grams.append(both.reshape(-1, many, positions, many, positions).sum(dim=(2, 4)))
        else:
            grams.append(_inner((y @ x.mT).reshape(-1, many, outputs * entries)))
    return torch.cat(grams)


def _inner(rows: Tensor) -> Tensor:
    """(n, many, d) to the inner products (n, many, many)."""
    if rows.shape[1] == 1:
        return rows.square().sum(dim=2)[:, :, None]
    return rows @ rows.mT
