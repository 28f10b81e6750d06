"""Ways to compute a private sensitivity by tensor that were measured against each other; one of them is in use.

A feasibility study, like `private_rounds`: all hospitals' patients in plain memory and noise from a seeded generator so
that a row repeats. Budgets are Gaussian differential privacy: a phase with a share s of mu^2 gets noise of
bound / (mu sqrt(s)), once or at each hospital (decision 0020).

    chosen      energies in the pool's units, their level held back, one joint clip; shrunk (`equalisation`)
    unshrunk    the same release, read without shrinking
    quarter     besides, the pool's directions scaled by l^(-1/4), which leaves the least noise over all; shrunk
    whitened    besides, fully whitened: l^(-1/2); shrunk
    equalised   energies in the pool's units with their level, bias and task clipped apart
    by_cell     energies in the root of the pool's units, clipped apart, a sum for each cell
    sketches    signed gradients through 8 random signs a tensor, sums for each cell, squared on the server
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from equipoise.common.cells import task_weights
from equipoise.common.equalisation import PERCENTILE, Equalisation, contributions, energy_weights
from equipoise.common.privacy.rounding import choose_step, clip_and_round, lattice_sensitivity
from equipoise.common.private_mask import DEVIATIONS, PrivateSensitivities, shrinking, weighted_patients
from equipoise.common.private_step import CAP
from equipoise.simulations.benchmarks.private_rounds import COUNTS_SHARE, DELTA, HOSPITALS, Mode, gaussian_mu

Vector = NDArray[np.float64]

CELLS = 6  # light, dark, unknown by label
BY_CELL_PERCENTILE, SKETCH_PERCENTILE = 50.0, 75.0


@dataclass(frozen=True, eq=False)
class Rows:
    """Logits (n,), energies (n, T) of the logit's gradient and, for sketches, its (n, T, 8) products with signs."""

    logits: Vector
    energies: Vector
    sketches: Vector | None = None

    @property
    def bias(self) -> Vector:
        """(n, T) energies of the score."""
        p = expit(self.logits)
        bias: Vector = (p * (1 - p))[:, None] ** 2 * self.energies
        return bias

    def task(self, label: NDArray[np.int64]) -> Vector:
        """(n, T) energies of the cross-entropy."""
        task: Vector = (expit(self.logits) - label)[:, None] ** 2 * self.energies
        return task

    def pooled(self, blocks: Vector) -> Rows:
        """By block instead of by tensor; `blocks` is (blocks, T) of 0 and 1."""
        return Rows(self.logits, self.energies @ blocks.T)


@dataclass(frozen=True)
class Patients:
    """All hospitals' patients, one row each."""

    rows: Rows
    label: NDArray[np.int64]
    cell: NDArray[np.int64]

    @property
    def counts(self) -> Vector:
        """(3, 2) exact patients by cell."""
        return np.bincount(self.cell, minlength=CELLS).astype(np.float64).reshape(-1, 2)


@dataclass(frozen=True)
class Budget:
    """Which noise a mask gets: a share of mu^2 at a total epsilon, once or at each hospital."""

    mode: Mode
    epsilon: float
    share: float

    def noise(self, share: float) -> float:
        """Standard deviation of all hospitals' noise together, for a bound of 1."""
        times = HOSPITALS if self.mode == "local" else 1
        return float((times / share) ** 0.5 / gaussian_mu(self.epsilon, DELTA))

    def noisy_counts(self, counts: Vector, rng: np.random.Generator) -> Vector:
        """Counts as an earlier release gave them; nobody's group is unknown."""
        noisy = counts.copy()
        noisy[:2] += self.noise(COUNTS_SHARE) * rng.standard_normal((2, 2))
        return noisy


@dataclass(frozen=True)
class Found:
    """Sensitivities by tensor, what the task's counts as at least in a mask, and whether patients or the pool spoke."""

    bias: Vector
    task: Vector
    least: Vector | float = 0.0
    source: str = "patients"


Design = Callable[[Patients, Rows, Budget, np.random.Generator], Found]


@lru_cache(maxsize=8)
def _public(pool: Rows, **settings: float) -> Equalisation:
    return Equalisation.from_pool(pool.logits, pool.energies, **settings)


def _released(vectors: Vector, budget: Budget, rng: np.random.Generator) -> tuple[Vector, float]:
    """The sum on the lattice with noise, and the noise's standard deviation; rows are of norm 1 at most."""
    d = vectors.shape[1]
    step = choose_step(1.0, d)
    sd = lattice_sensitivity(1.0, step, d) * budget.noise(budget.share)
    points = clip_and_round(vectors, 1.0, step).sum(axis=0)
    noise = np.rint(sd / step * rng.standard_normal(d)).astype(np.int64)
    return (points + noise) * step, sd


def _weights(patients: Patients, budget: Budget, rng: np.random.Generator) -> tuple[Vector, Vector, Vector]:
    """Noisy counts, and the factors of bias and task energies by cell that follow from them."""
    counts = budget.noisy_counts(patients.counts, rng)
    return counts, *energy_weights(counts, task_weights(counts, "cells", CAP))


def _asked(
    public: Equalisation, patients: Patients, budget: Budget, rng: np.random.Generator
) -> tuple[Vector, float, tuple[float, float]]:
    counts, *weights = _weights(patients, budget, rng)
    energies = patients.rows.bias, patients.rows.task(patients.label)
    vectors = contributions(public.unit, public.kept, *energies, patients.cell, weights[0], weights[1])
    total, sd = _released(vectors, budget, rng)
    return total, sd, weighted_patients(counts, weights[0], weights[1])


def chosen_with(**settings: float) -> Design:
    """What is in use, with other `settings` of `Equalisation.from_pool`."""

    def design(patients: Patients, pool: Rows, budget: Budget, rng: np.random.Generator) -> Found:
        public = _public(pool, **settings)
        total, sd, weighted = _asked(public, patients, budget, rng)
        found = PrivateSensitivities.from_total(total, public, sd, weighted)
        return Found(found.bias, found.task, DEVIATIONS * found.task_sd, found.source)

    return design


def pool_alone(pool: Rows) -> Found:
    """What the public pool says without a patient."""
    found = PrivateSensitivities.from_pool(_public(pool))
    return Found(found.bias, found.task, source=found.source)


def unshrunk(patients: Patients, pool: Rows, budget: Budget, rng: np.random.Generator) -> Found:
    """The same release, taken as it is."""
    public = _public(pool)
    total = _asked(public, patients, budget, rng)[0].reshape(2, -1)
    mean = total.mean(axis=1, keepdims=True)
    bias, task = np.maximum(total - mean + mean / public.kept[:, None], 0.0) * public.unit
    return Found(bias, task)


def _scaled(exponent: float) -> Design:
    """The pool's directions scaled by l^-exponent before the clip; the levels' share of the norm stays."""

    def design(patients: Patients, pool: Rows, budget: Budget, rng: np.random.Generator) -> Found:
        public = _public(pool)
        _, *weights = _weights(patients, budget, rng)
        levels = np.kron(np.eye(2), np.full(public.tensors, public.tensors**-0.5))
        axes, scale = np.vstack([levels, public.directions]), public.spread**-exponent
        # The chosen design has scale 1 here, so that its levels' share is kept by this factor.
        share = np.sqrt((public.spread * scale**2).sum() / public.spread.sum())
        scale = np.concatenate([public.kept * share, scale])

        def seen(rows: Rows, label: NDArray[np.int64], factors: tuple[Vector, Vector]) -> Vector:
            halves = [
                energies * factor[:, None] / unit
                for energies, factor, unit in zip((rows.bias, rows.task(label)), factors, public.unit, strict=True)
            ]
            along: Vector = np.hstack(halves) @ axes.T * scale
            return along

        ones, positive = np.ones(len(pool.logits)), (rng.random(len(pool.logits)) < expit(pool.logits)).astype(np.int64)
        clip = _clip(seen(pool, positive, (ones, ones)), PERCENTILE)
        factors = (weights[0].reshape(-1)[patients.cell], weights[1].reshape(-1)[patients.cell])
        total, sd = _released(_clipped(seen(patients.rows, patients.label, factors) / clip, 1.0), budget, rng)
        along, noise = total * clip / scale, sd * clip / scale
        _, factor = shrinking(along[2:] / noise[2:], public.spread / noise[2:] ** 2, 1.0)
        bias, task = np.split(axes.T @ np.concatenate([along[:2], factor * along[2:]]), 2)
        return Found(np.maximum(bias, 0.0) * public.unit[0], np.maximum(task, 0.0) * public.unit[1])

    return design


def _clipped(rows: Vector, clip: float) -> Vector:
    """Rows divided by the clip bound, of norm 1 at most."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    clipped: Vector = rows / np.maximum(norms, clip)
    return clipped


def _clip(pool: Vector, percentile: float) -> float:
    return float(np.percentile(np.linalg.norm(pool, axis=1), percentile))


def _pool_halves(pool: Rows) -> tuple[Vector, Vector]:
    """Bias energies, and task energies in expectation over the model's own scores."""
    p = expit(pool.logits)
    return pool.bias, (p * (1 - p))[:, None] * pool.energies


def equalised(patients: Patients, pool: Rows, budget: Budget, rng: np.random.Generator) -> Found:
    """Energies by tensor in the pool's units; a row has two halves of norm 1, hence the factor 1 / sqrt(2)."""
    _, *weights = _weights(patients, budget, rng)
    units, halves = [], []
    own = patients.rows.bias, patients.rows.task(patients.label)
    for energies, public, weight in zip(own, _pool_halves(pool), weights, strict=True):
        unit = public.mean(axis=0)
        units.append(unit * _clip(public / unit, PERCENTILE))
        halves.append(_clipped(weight.reshape(-1)[patients.cell][:, None] * energies / units[-1], 1.0))
    total, _ = _released(np.hstack(halves) / 2**0.5, budget, rng)
    bias, task = np.split(np.maximum(total, 0.0), 2)
    return Found(bias * units[0], task * units[1])


def _in_cells(rows: Vector, cell: NDArray[np.int64]) -> Vector:
    """(n, cells * d): each row at its cell, 0 elsewhere."""
    placed = np.zeros((len(rows), CELLS, rows.shape[1]))
    placed[np.arange(len(rows)), cell] = rows
    return placed.reshape(len(rows), -1)


def by_cell(patients: Patients, pool: Rows, budget: Budget, rng: np.random.Generator) -> Found:
    """Energies in units of the root of the pool's mean; the bias by cell, the task over all."""
    counts, *_ = _weights(patients, budget, rng)
    square = energy_weights(counts, task_weights(counts, "cells", CAP))[0].reshape(-1)
    units, halves = [], []
    own = patients.rows.bias, patients.rows.task(patients.label)
    for energies, public in zip(own, _pool_halves(pool), strict=True):
        unit = np.sqrt(public.mean(axis=0))
        units.append(unit * _clip(public / unit, BY_CELL_PERCENTILE))
        halves.append(_clipped(energies / units[-1], 1.0))
    vectors = np.hstack([_in_cells(halves[0], patients.cell), halves[1]]) / 2**0.5
    total, _ = _released(vectors, budget, rng)
    sums = total.reshape(CELLS + 1, -1)
    return Found(np.maximum(square @ sums[:CELLS], 0.0) * units[0], np.maximum(sums[CELLS], 0.0) * units[1])


@dataclass(frozen=True)
class CellSums:
    """Sums by cell of patients' clipped bias energies, where there are too many units to keep each patient's.

    Attributes:
        sums: (cells, units), rows divided by `unit` and clipped to 1.
        unit: (units,) the root of the pool's mean, the clip bound included.
    """

    sums: Vector
    unit: Vector

    def noised(self, counts: Vector, budget: Budget, rng: np.random.Generator) -> Vector:
        """(units,) bias sensitivities as in `by_cell`, all the budget for the bias; Gaussian noise, not rounded."""
        noisy = budget.noisy_counts(counts, rng)
        square = energy_weights(noisy, task_weights(noisy, "cells", CAP))[0].reshape(-1)
        # Independent noise on each cell's sum, taken together as it enters the weighted sum.
        sd = budget.noise(budget.share) * float(np.linalg.norm(square))
        total = square @ self.sums + sd * rng.standard_normal(len(self.unit))
        return np.maximum(total, 0.0) * self.unit


def sketches(patients: Patients, pool: Rows, budget: Budget, rng: np.random.Generator) -> Found:
    """Signed gradients; the noise's variance is subtracted from the squares."""
    if patients.rows.sketches is None:
        raise ValueError("sketches: the rows hold none")
    counts, *_ = _weights(patients, budget, rng)
    label = np.arange(CELLS) % 2
    # The weights themselves, with the true direction of the gaps (light skin scores higher): an optimistic shortcut.
    bias_weight = np.sqrt(energy_weights(counts, task_weights(counts, "cells", CAP))[0]).reshape(-1)
    bias_weight = bias_weight * np.array([1, 1, -1, -1, 0, 0])
    task_weight = task_weights(counts, "cells", CAP).reshape(-1)
    p = expit(patients.rows.logits)
    factors = p * (1 - p), p - label[patients.cell]
    units, parts = [], []
    for factor, public in zip(factors, _pool_halves(pool), strict=True):
        unit = np.sqrt(public.mean(axis=0))
        d = patients.rows.sketches.shape[2]
        # A sketch's mean square is the energy, so d of them have d times the energy's norm.
        clip = _clip(np.sqrt(public * d) / unit, SKETCH_PERCENTILE)
        units.append(unit * clip)
        rows = factor[:, None, None] * patients.rows.sketches / units[-1][None, :, None]
        parts.append(_in_cells(_clipped(rows.reshape(len(rows), -1), 1.0), patients.cell))
    total, sd = _released(np.hstack(parts) / 2**0.5, budget, rng)
    found = []
    for sums, weight, unit in zip(np.split(total, 2), (bias_weight, task_weight), units, strict=True):
        combined = (weight @ sums.reshape(CELLS, -1)).reshape(len(unit), -1)
        square = (combined**2).mean(axis=1) - sd**2 * (weight**2).sum()
        found.append(np.maximum(square, 0.0) * unit**2)
    return Found(found[0], found[1])


DESIGNS: Mapping[str, Design] = {
    "chosen": chosen_with(),
    "unshrunk": unshrunk,
    "quarter": _scaled(0.25),
    "whitened": _scaled(0.5),
    "equalised": equalised,
    "by_cell": by_cell,
    "sketches": sketches,
}
