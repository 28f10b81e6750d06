"""What private releases cost in time and memory at the size of a ResNet-18, side by side in one process.

    python -m equipoise.simulations.benchmarks.private_cost --date 2026-01-31

One forward and backward pass over the same images is 1. Rounds alternate all contenders, since on a shared machine a
ratio of neighbours means more than seconds do; CPU time of one thread, median over rounds
(DP-SGD, which takes many times as long, once). What a site computes runs as
a site runs it (`equipoise.client.computations`): the whole query, with the model loaded, its checks and the rounding of
each patient. Peak memory is taken in a process of its own for each contender, above what the model and the images take.
Figures go to results/private-cost.json; docs/privacy.md has the table.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from equipoise.client.alike import PLACES
from equipoise.client.cohort import Split
from equipoise.client.computations import COMPUTATIONS
from equipoise.client.contribution import Rows
from equipoise.client.scores import ScoreCache
from equipoise.client.workplace import Workplace
from equipoise.common import catalogue
from equipoise.common.canonical import sha256
from equipoise.common.classifier import Classifier
from equipoise.common.files import write_whole
from equipoise.common.models import resnet18
from equipoise.common.privacy.mechanisms import DiscreteGaussian, DiscreteLaplace, Mechanism, RoundedGaussian
from equipoise.common.privacy.rounding import clip_and_round
from equipoise.common.query import Query
from equipoise.common.space import RANK, Space
from equipoise.common.study import Study
from equipoise.simulations.benchmarks.origin import commit, machine

RESULTS = Path(__file__).parent / "results"
SIDE = 64  # pixels
MILLION = 1_000_000
BASE = "forward and backward"
SENSITIVITY, STEP = "sensitivity pass", "private step, space whole"
HEAD, DP_SGD = "private step, space head", "DP-SGD step of a site"
HOOKS, GHOST = "Opacus' hooks, as shipped", "Opacus' ghost clipping, as shipped"
SLOW = (DP_SGD, HOOKS, GHOST)  # timed once
BOUNDS = {SENSITIVITY: 1.8, STEP: 2.0}
MEMORY_BOUND, NOISE_BOUND_S = 3.0, 0.3
NOISES: dict[str, Mechanism] = {
    "rounded Gaussian": RoundedGaussian(1e4),
    "discrete Gaussian": DiscreteGaussian(1e4),
    "discrete Laplace": DiscreteLaplace(1e4),
}


class Bench:
    """The model, the images, one a patient, and everything that is timed, by name."""

    def __init__(self, images: int) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        torch.optim.SGD([torch.zeros(1)])  # loads torch's compiler, which is nobody's time or memory here
        self.model = resnet18().eval()
        file = save(self.model.state_dict())
        self.classifier = Classifier.of(file, self.model, "head.")
        rng = np.random.default_rng(0)
        self.split = Split(
            torch.from_numpy(rng.integers(0, 256, (images, 3, SIDE, SIDE), dtype=np.uint8)),
            torch.arange(images),
            torch.from_numpy(rng.integers(0, 2, images)),
            {"tone": torch.from_numpy(rng.integers(0, 2, images))},
        )
        self.study = _study(sha256(file), images)
        self.contenders: dict[str, Callable[[], object]] = {
            BASE: self.forward_and_backward,
            SENSITIVITY: self._asked(self._sensitivities()),
            STEP: self._asked(self._whitened("whole")),
            HEAD: self._asked(self._whitened("head")),
            DP_SGD: self._asked(self._private_training()),
            HOOKS: self.hooks,
            GHOST: self.ghost,
        }

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Normalised images and labels, as many at a time as sites take."""
        x = (self.split.inputs.float() / 255 - 0.5) / 0.25
        x = x.contiguous(memory_format=torch.channels_last)
        return list(zip(torch.split(x, PLACES), torch.split(self.split.label.float(), PLACES), strict=True))

    def forward_and_backward(self) -> None:
        """The gradient of the mean loss, once over the images."""
        for x, y in self.batches():
            loss = functional.binary_cross_entropy_with_logits(self.model(x), y)
            torch.autograd.grad(loss, list(self.model.parameters()))

    def hooks(self) -> None:
        """Opacus' DP-SGD step with gradients by row: clipped by row, floating-point noise of torch's generator."""
        wrapped = GradSampleModule(self.model.train(), loss_reduction="sum")
        optimizer = DPOptimizer(
            torch.optim.SGD(self.model.parameters(), lr=0.0),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            expected_batch_size=len(self.split.inputs),
            loss_reduction="sum",
        )
        batches = self.batches()
        for number, (x, y) in enumerate(batches):
            optimizer.signal_skip_step(do_skip=number + 1 < len(batches))
            torch.autograd.backward(functional.binary_cross_entropy_with_logits(wrapped(x), y, reduction="sum"))
            optimizer.step()
            optimizer.zero_grad()
        _unhook(wrapped, self.model)

    def ghost(self) -> None:
        """The same without forming gradients by row: norms from layers' inputs, then a second backward pass."""
        wrapped = GradSampleModuleFastGradientClipping(self.model.train(), loss_reduction="sum", max_grad_norm=1.0)
        optimizer = DPOptimizerFastGradientClipping(
            torch.optim.SGD(self.model.parameters(), lr=0.0),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            expected_batch_size=len(self.split.inputs),
            loss_reduction="sum",
        )
        criterion = DPLossFastGradientClipping(
            wrapped, optimizer, nn.BCEWithLogitsLoss(reduction="sum"), loss_reduction="sum"
        )
        batches = self.batches()
        for number, (x, y) in enumerate(batches):
            optimizer.signal_skip_step(do_skip=number + 1 < len(batches))
            criterion(wrapped(x)[:, None], y[:, None]).backward()
            optimizer.step()
            optimizer.zero_grad()
        _unhook(wrapped, self.model)

    def _asked(self, query: Query) -> Callable[[], object]:
        """A query answered by a site as far as the noise: loaded, computed, clipped, rounded, added up."""

        def answer() -> object:
            place = Workplace(self.study, "a", query, self.split, ScoreCache(), 0)
            found = COMPUTATIONS[query.name](place)
            if not isinstance(found, Rows):
                return found  # DP-SGD clips and adds up by itself
            plan = query.plan
            total = np.zeros(plan.dimensions, dtype=np.int64)
            for part in found.parts:
                total += clip_and_round(part, plan.clip, plan.step).sum(axis=0)
            return total

        return answer

    def _sensitivities(self) -> Query:
        layout = self.classifier.layout("whole")
        tensors, ones = len(layout.shapes), np.ones((3, 2))
        return catalogue.block_sensitivities(self.study, layout).with_inputs(
            **self.classifier.inputs(),
            weights={"bias": ones, "task": ones},
            units={"unit": np.ones((2, tensors)), "kept": np.ones(2)},
        )

    def _whitened(self, kind: Any) -> Query:
        space = Space.of(self.model, kind, head="head.", seed=self.study.seed, rank=RANK)
        basis = np.random.default_rng(1).normal(size=(space.size, 32)) / space.size**0.5
        ones = np.ones((3, 2))
        return catalogue.whitened_gradient(self.study, "rounds", kind, RANK, 32, 0.9).with_inputs(
            **self.classifier.inputs(),
            weights={"bias": ones, "task": ones},
            basis={"basis": basis, "clip": np.array([1.0])},
        )

    def _private_training(self) -> Query:
        parameters = {"beta": 1.0, "lr": 0.0, "momentum": 0.0, "weight_decay": 0.0, "flips": False, "round": 0}
        layout, everybody = self.classifier.layout("whole"), len(self.split.inputs)
        ones = np.ones((3, 2))
        return catalogue.private_training(self.study, layout, "whole", parameters, everybody, 1).with_inputs(
            **self.classifier.inputs(), weights={"bias": ones, "task": ones}, clip={"clip": np.array([1.0])}
        )


def _study(digest: str, images: int) -> Study:
    return Study.model_validate(
        {
            "study": "private-cost",
            "model": {
                "factory": "equipoise.common.models:resnet18",
                "weights": {"path": "vendor", "sha256": digest},
                "head": "head.",
            },
            "inputs": {"kind": "image", "size": SIDE, "mean": 0.5, "std": 0.25},
            "label": {"column": "malignant", "positive": 1},
            "attributes": [{"name": "tone", "levels": ["light", "dark"], "primary": True}],
            "method": {"name": "swift"},
            "privacy": {"mode": "local", "epsilon": 3},
            "sites": {"minimum": 1, "declared_patients": {"a": images}},
        }
    )


def _unhook(wrapped: Any, model: nn.Module) -> None:
    wrapped.to_standard_module()
    model.eval()
    for parameter in model.parameters():
        parameter.grad = None
        parameter.__dict__.pop("summed_grad", None)


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def rounds_of(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every contender in every round, and of noise for a million coordinates."""
    found: dict[str, list[float]] = {name: [] for name in (*bench.contenders, *NOISES)}
    for round_ in range(rounds + 1):
        for name, work in bench.contenders.items():
            if name in SLOW and round_ != 1:
                continue
            seconds = cpu_s(work)
            print(f"{name}: {seconds:.2f} s", file=sys.stderr, flush=True)
            if round_:  # the first one loads libraries and fills caches
                found[name].append(seconds)
        for name, noise in NOISES.items():
            seconds = cpu_s(lambda noise=noise: noise.noise((MILLION,)))  # type: ignore[misc]
            if round_:
                found[name].append(seconds)
    return found


def extra_mib(bench: Bench, name: str) -> float:
    """Peak memory of a contender above what this process held before, MiB; Linux alone can tell."""
    bench.forward_and_backward()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _resident("VmRSS")
    bench.contenders[name]()
    return _resident("VmHWM") - before


def _resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def measured(images: int, rounds: int) -> dict[str, Any]:
    """All figures."""
    bench = Bench(images)
    seconds = rounds_of(bench, rounds)
    memory = {}
    for name in bench.contenders:
        command = [sys.executable, "-m", __spec__.name, "--images", str(PLACES), "--memory", name]  # of one batch
        memory[name] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    base = seconds[BASE]
    return {
        "images": images,
        "side": SIDE,
        "parameters": bench.classifier.layout("whole").size,
        "cpu_s": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "ratio": {
            name: {
                "median": round(median(v / b for v, b in zip(seconds[name], base, strict=False)), 3),
                "least": round(min(v / b for v, b in zip(seconds[name], base, strict=False)), 3),
                "most": round(max(v / b for v, b in zip(seconds[name], base, strict=False)), 3),
            }
            for name in bench.contenders
        },
        "noise_s": {name: round(median(seconds[name]), 4) for name in NOISES},
        "extra_mib": {name: round(value) for name, value in memory.items()},
        "extra_memory": {name: round(value / memory[BASE], 2) for name, value in memory.items()},
    }


def table(result: dict[str, Any]) -> str:
    """The table of docs/privacy.md."""
    lines = ["| what | CPU time, least to most | bound | extra memory | bound |", "|---|---|---|---|---|"]
    for name, ratio in result["ratio"].items():
        bound = f"{BOUNDS[name]:g}" if name in BOUNDS else ""
        memory = f"{MEMORY_BOUND:g}" if name == SENSITIVITY else ""
        lines.append(
            f"| {name} | {ratio['median']:.2f}, {ratio['least']:.2f} to {ratio['most']:.2f} | {bound} | "
            f"{result['extra_memory'][name]:.2f} ({result['extra_mib'][name]} MiB) | {memory} |"
        )
    for name, seconds in result["noise_s"].items():
        lines.append(f"| {name} noise, a million coordinates | {seconds:.2f} s | {NOISE_BOUND_S:g} s | | |")
    return "\n".join(lines) + "\n"


def main(
    date: Annotated[str, typer.Option(help="Date of the figures, as in 2026-01-31.")] = "",
    images: Annotated[int, typer.Option(min=1, help="Images, one a patient.")] = 96,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which everything is timed once.")] = 5,
    memory: Annotated[str, typer.Option(help="Print the extra memory of this contender alone.")] = "",
) -> None:
    """Measure, print the table and write the figures."""
    if memory:
        print(extra_mib(Bench(images), memory))
        return
    result = {
        "command": "python -m equipoise.simulations.benchmarks.private_cost "
        f"--date {date} --images {images} --rounds {rounds}",
        "date": date,
        "commit": commit(),
        "machine": machine(),
        "bounds": {**BOUNDS, "extra memory": MEMORY_BOUND, "noise_s": NOISE_BOUND_S},
        **measured(images, rounds),
    }
    write_whole(RESULTS / "private-cost.json", json.dumps(result, indent=1).encode())
    print(table(result))


if __name__ == "__main__":
    typer.run(main)
