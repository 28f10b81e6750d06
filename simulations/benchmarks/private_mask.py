"""How well a private sensitivity by tensor agrees with the clean one on bench A, design by design.

    python -m equipoise.simulations.benchmarks.private_mask --seeds 0 --seeds 1 --seeds 2 --seeds 3 --seeds 4

Six hospitals of 300 patients; each seed has its own data and base model. The reference is what SWiFT uses without
privacy: `patient_sensitivities` by tensor with the weights of the exact cells and scores. Two rank correlations
(Spearman, over units) are given for the bias: *raw*, of the sensitivities as they are, which differ by orders of
magnitude and which any public pool tells; and *equalised*, of both divided by the pool's mean energies, which is 0 by
definition for the pool alone and so shows what the patients' release adds. Where the release falls back on the pool the
equalised correlation counts as 0.

Settings were chosen on seeds from 100 on, which have variants of them in their own file. Resumable by seed: finished
seeds lie in the cache.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import spearmanr
from torch import Tensor

from equipoise.common import block_energies, equalisation, private_mask
from equipoise.common.canonical import digest_json
from equipoise.common.cells import bias_weights, task_weights
from equipoise.common.fairness.t_interval import half_width
from equipoise.common.files import write_whole
from equipoise.common.layout import Layout
from equipoise.common.losses import cell_index
from equipoise.common.mask import Granularity, SoftMask
from equipoise.common.models import normalise
from equipoise.common.private_mask import FLOOR
from equipoise.common.private_step import CAP
from equipoise.common.sensitivities import patient_sensitivities
from equipoise.simulations.benchmarks import mask_designs, mask_gradients
from equipoise.simulations.benchmarks.mask_designs import (
    DESIGNS,
    Budget,
    Design,
    Found,
    Patients,
    Rows,
    Vector,
    chosen_with,
    pool_alone,
)
from equipoise.simulations.benchmarks.mask_gradients import by_parameter, channel_rows, cohort_sketches, tensor_rows
from equipoise.simulations.benchmarks.origin import commit, machine
from equipoise.simulations.benchmarks.private_rounds import (
    CACHE,
    COUNTS_SHARE,
    INPUTS,
    MASK_SHARE,
    RESULTS,
    Bench,
)
from equipoise.simulations.dermoscopy import DEVICES, Device, draw_images
from equipoise.simulations.synthetic import stream

Row = dict[str, Any]

FIRST_CHOICE_SEED = 100  # settings are chosen on seeds from here on
ALL = 1 - COUNTS_SHARE
BUDGETS = tuple(Budget(mode, 3.0, share) for share in (MASK_SHARE, ALL) for mode in ("once", "local"))
MORE_BUDGETS = tuple(Budget(mode, epsilon, MASK_SHARE) for epsilon in (1.0, 8.0) for mode in ("once", "local"))
POOLS = ("U2", "U1", "light", "dark", "noise")
VARIANTS: dict[str, dict[str, float]] = {
    f"{name}={value:g}": {name: value}
    for name, values in {
        "task_scale": (0.15, 0.6),
        "level_share": (0.03, 0.3),
        "percentile": (90.0, 97.0, 99.0),
        "ridge": (1e-5, 1e-2),
    }.items()
    for value in values
}


def strange_pool(kind: str, seed: int, count: int = 600) -> NDArray[np.uint8]:
    """Pools that differ from the patients in structure, for which the model's errors are of another kind.

    `light`: light skin and no disease alone, one camera. `dark`: dark skin and disease alone, through a camera that
    blurs and is noisier and darker than any hospital's. `noise`: white noise, which `check_pool` refuses.
    """
    rng = stream(seed, "pool", kind)
    if kind == "noise":
        return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    which = np.full(count, int(kind == "dark"))
    device = Device((1.10, 0.90, 0.80), 1.5, 1.2, 0.08) if kind == "dark" else DEVICES[-1]
    return draw_images(which, which, device, rng)


@dataclass
class Case:
    """One seed's patients, pools and reference."""

    bench: Bench

    @cached_property
    def layout(self) -> Layout:
        """The model's tensors."""
        return Layout.of(self.bench.model().named_parameters())

    @cached_property
    def cell(self) -> Tensor:
        """(n,) of the patients."""
        _, label, group = self.bench.cohort
        return cell_index(group, label)

    @cached_property
    def patients(self) -> Patients:
        """By tensor, with sketches."""
        inputs, label, _ = self.bench.cohort
        found = tensor_rows(self.bench.model(), inputs)
        sketches = cohort_sketches(self.bench.model(), inputs, stream(self.bench.seed, "sketches"))
        return Patients(Rows(found.logits, found.energies, sketches), label.numpy(), self.cell.numpy())

    @cached_property
    def weights(self) -> tuple[Vector, Vector]:
        """Clean (bias, task) weights by cell, from exact counts and scores."""
        counts = self.patients.counts
        scores = np.zeros(counts.size)
        np.add.at(scores, self.cell.numpy(), expit(self.patients.rows.logits))
        bias = bias_weights(counts, scores.reshape(counts.shape), "equalized_odds")
        return bias.reshape(-1), task_weights(counts, "cells", CAP).reshape(-1)

    def clean(self, granularity: Granularity) -> tuple[Vector, Vector]:
        """The reference: sensitivities of bias and task without noise."""
        inputs, label, _ = self.bench.cohort
        bias, task = (torch.from_numpy(weight) for weight in self.weights)
        return patient_sensitivities(
            self.bench.model(),
            self.layout,
            lambda part: inputs[part],
            torch.arange(len(label)),
            label,
            self.cell,
            task,
            bias,
            granularity,
        )

    def images(self, pool: str) -> Tensor:
        """Normalised inputs of a pool."""
        if pool not in ("U1", "U2"):
            return normalise(INPUTS, torch.from_numpy(strange_pool(pool, self.bench.seed)).permute(0, 3, 1, 2))
        return self.bench.pool("U1" if pool == "U1" else "U2")

    def blocks(self, level: str) -> Vector:
        """(blocks, T) of 0 and 1: tensors of one layer, or of one stage of the network."""
        parts = 2 if level == "stage" else -1
        keys = [".".join(name.split(".")[:parts]) for name in self.layout.shapes]
        return np.array([[float(key == own) for key in keys] for own in dict.fromkeys(keys)])


def agreement(found: Found, clean: tuple[Vector, Vector], unit: tuple[Vector, Vector]) -> Row:
    """Rank correlations with the reference and the mean difference of the masks that follow."""
    layout = Layout({str(index): () for index in range(len(found.bias))})

    def mask_of(bias: Vector, task: Vector) -> Vector:
        return layout.flatten(SoftMask.from_sensitivities(layout, bias, task, "tensor", "mean", FLOOR).values)

    masks = mask_of(found.bias, np.maximum(found.task, found.least)), mask_of(*clean)
    private = found.source == "patients"
    return {
        "equalised": rank(found.bias / unit[0], clean[0] / unit[0]) if private else 0.0,
        "raw": rank(found.bias, clean[0]),
        "task_equalised": rank(found.task / unit[1], clean[1] / unit[1]) if private else 0.0,
        "mask": rank(*masks),
        "mask_difference": float(np.abs(masks[0] - masks[1]).mean()),
        "from_pool": float(not private),
    }


def rank(first: Vector, second: Vector) -> float:
    """Spearman's correlation; a constant orders nothing and counts as 0."""
    if len(np.unique(first)) == 1 or len(np.unique(second)) == 1:
        return 0.0
    return float(spearmanr(first, second).statistic)


def rows_of(case: Case, draws: int) -> Iterator[Row]:
    """Every row of one seed."""
    choosing = case.bench.seed >= FIRST_CHOICE_SEED
    clean = case.clean("tensor")
    for name in POOLS:
        pool = tensor_rows(case.bench.model(), case.images(name))
        designs: dict[str, Design] = dict(DESIGNS) if name == "U2" else {"chosen": chosen_with()}
        if choosing:
            designs |= {variant: chosen_with(**settings) for variant, settings in VARIANTS.items()}
        budgets = BUDGETS if name != "U2" else BUDGETS + MORE_BUDGETS
        yield from _levels(case, {"tensor": (case.patients, pool, clean)}, name, designs, budgets, draws)
        if name in ("U1", "U2"):
            blocks = {level: case.blocks(level) for level in ("layer", "stage")}
            seen = {
                level: (
                    Patients(case.patients.rows.pooled(to), case.patients.label, case.patients.cell),
                    pool.pooled(to),
                    (to @ clean[0], to @ clean[1]),
                )
                for level, to in blocks.items()
            }
            yield from _levels(case, seen, name, {"chosen": chosen_with()}, BUDGETS, draws)
    if not choosing:
        yield from _fine(case, draws)


def _levels(
    case: Case,
    seen: dict[str, tuple[Patients, Rows, tuple[Vector, Vector]]],
    name: str,
    designs: dict[str, Design],
    budgets: tuple[Budget, ...],
    draws: int,
) -> Iterator[Row]:
    for level, (patients, pool, clean) in seen.items():
        alone = pool_alone(pool)
        unit = alone.bias, alone.task
        where = {"seed": case.bench.seed, "pool": name, "level": level, "units": len(alone.bias)}
        yield {**where, "design": "pool alone", **agreement(alone, clean, unit)}
        for design, run in designs.items():
            for budget in budgets if design == "chosen" else BUDGETS:
                for draw in range(draws):
                    rng = stream(case.bench.seed, "private_mask", draw)
                    figures = agreement(run(patients, pool, budget, rng), clean, unit)
                    yield {**where, "design": design, **vars(budget), "draw": draw, **figures}


def _fine(case: Case, draws: int) -> Iterator[Row]:
    """Finer than tensors: channels in the chosen design, parameters by cell."""
    model, (inputs, label, _) = case.bench.model(), case.bench.cohort
    pool_images = case.images("U2")
    channels = Patients(channel_rows(model, inputs), label.numpy(), case.cell.numpy())
    seen = {"channel": (channels, channel_rows(model, pool_images), case.clean("channel"))}
    yield from _levels(case, seen, "U2", {"chosen": chosen_with()}, BUDGETS, draws)
    sums, public = by_parameter(model, pool_images, inputs, case.cell)
    clean, _ = case.clean("parameter")
    where = {"seed": case.bench.seed, "pool": "U2", "level": "parameter", "units": len(public)}
    yield {**where, "design": "pool alone", "equalised": 0.0, "raw": rank(public, clean)}
    for budget in BUDGETS:
        for draw in range(draws):
            rng = stream(case.bench.seed, "private_mask", draw)
            bias = sums.noised(case.patients.counts, budget, rng)
            figures = {"equalised": rank(bias / public, clean / public), "raw": rank(bias, clean)}
            yield {**where, "design": "by_cell, bias alone", **vars(budget), "draw": draw, **figures}


KEYS = ("pool", "level", "design", "mode", "epsilon", "share")


def summary(rows: list[Row]) -> list[Row]:
    """By pool, level, design and budget: mean, 95 % t-interval over seeds (of means over draws) and extremes."""
    table = []
    for key in dict.fromkeys(tuple(row.get(name) for name in KEYS) for row in rows):
        mine = [row for row in rows if tuple(row.get(name) for name in KEYS) == key]
        seeds = sorted({row["seed"] for row in mine})
        line: Row = dict(zip(KEYS, key, strict=True)) | {"units": mine[0]["units"], "runs": len(mine)}
        for figure in ("equalised", "raw", "task_equalised", "mask", "mask_difference", "from_pool"):
            if figure in mine[0]:
                values = [float(np.mean([row[figure] for row in mine if row["seed"] == seed])) for seed in seeds]
                line[figure] = interval(values)
        table.append(line)
    return table


def interval(values: list[float]) -> dict[str, float]:
    """Mean, 95 % t-interval, least and largest."""
    found = np.array(values)
    limits = {}
    if len(found) > 1:
        half = half_width(found)
        limits = {"low": found.mean() - half, "high": found.mean() + half}
    figures = {"mean": found.mean(), **limits, "least": found.min(), "largest": found.max()}
    return {name: round(float(value), 4) for name, value in figures.items()}


def code_digest(draws: int) -> str:
    """Tells finished seeds of this code from those of another."""
    modules = (block_energies, equalisation, private_mask, mask_designs, mask_gradients)
    sources = [Path(str(module.__file__)).read_text() for module in modules]
    return digest_json({"draws": draws, "code": [*sources, Path(__file__).read_text()]})[:12]


def main(
    seeds: Annotated[list[int], typer.Option(help="Seeds; those from 100 on are for choosing settings.")],
    draws: Annotated[int, typer.Option(help="Noise draws of each row.")] = 3,
    cache: Annotated[Path, typer.Option(help="Folder of base models and finished seeds.")] = CACHE,
) -> None:
    """Measure and write results/private-mask.json (seeds from 100 on: private-mask-choice.json)."""
    torch.set_num_threads(1)
    if len({seed >= FIRST_CHOICE_SEED for seed in seeds}) != 1:
        raise typer.BadParameter(f"--seeds {seeds}: seeds below and from {FIRST_CHOICE_SEED} go to different files")
    found: list[Row] = []
    for seed in seeds:
        done = cache / f"private-mask-{seed}-{code_digest(draws)}.json"
        if not done.exists():
            print(f"seed {seed}", file=sys.stderr, flush=True)
            rows = list(rows_of(Case(Bench.open(seed, cache)), draws))
            write_whole(done, json.dumps(rows).encode())
        found += json.loads(done.read_text())
    name = "private-mask-choice" if seeds[0] >= FIRST_CHOICE_SEED else "private-mask"
    value = {
        "command": f"python -m equipoise.simulations.benchmarks.private_mask {' '.join(f'--seeds {s}' for s in seeds)}",
        "commit": commit(),
        "machine": machine(),
        "seeds": seeds,
        "draws": draws,
        "summary": summary(found),
        "rows": [{key: _short(value) for key, value in row.items()} for row in found],
    }
    write_whole(RESULTS / f"{name}.json", json.dumps(value, indent=1).encode())
    print(RESULTS / f"{name}.json")


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    typer.run(main)
