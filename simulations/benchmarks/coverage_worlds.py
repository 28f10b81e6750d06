"""Worlds in which the truth is known: scores of two models, normal within group and label, and the tables of them.

The world of the evaluation's specification: a positive decision from 1 on, negatives N(0, 1) in every group, positives
N(d, 1) with AUC = Phi(d / sqrt 2); prevalence .20, a minority of 25 %; before, TPR .758 and .637, FPR .159, AUC .885
and .830. Afterwards the minority is served better and the majority a little worse; the two scores of a patient
correlate by .9. Hospitals matter only by the noise that each adds to its tables, since tables are summed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from equipoise.common.fairness.joint import interval_cells
from equipoise.common.fairness.placements import placements_of_bins
from equipoise.common.fairness.tables import Counts, Floats, bin_scores, hybrid_edges, quantile_edges

CORRELATION = 0.9
FINE = hybrid_edges(None, 1024)
NOISY_BINS = 16
# Operating points as logits: a model's own threshold, the one of the base model's selection rate, the base model's.
BEFORE, AFTER = np.zeros(3), np.array([0.0, -0.05, 0.1])


@dataclass(frozen=True)
class Group:
    """A group: its patients, and the mean score of its positives before and after (negatives have 0)."""

    positives: int
    negatives: int
    before: float
    after: float


@dataclass(frozen=True)
class World:
    """Groups of patients with known scores.

    Attributes:
        name: what it is called in the results.
        groups: at least two, the minority last.
        threshold: the score from which on a decision is positive, before and after.
        sites: hospitals, for the noise of each.
        spread: standard deviation of the positives' scores (that of the negatives is 1).
    """

    name: str
    groups: tuple[Group, ...]
    threshold: float
    sites: tuple[int, ...]
    spread: float = 1.0

    def rates(self, when: str) -> tuple[Floats, Floats]:
        """True (TPR, FPR) by group, `before` or `after`."""
        means = np.array([getattr(group, when) for group in self.groups])
        fpr = np.full(len(means), norm.sf(self.threshold))
        return norm.sf(self.threshold - means, scale=self.spread), fpr

    def aucs(self, when: str) -> Floats:
        """True AUC by group, of the scores themselves (not of their bins)."""
        means = np.array([getattr(group, when) for group in self.groups])
        found: Floats = norm.cdf(means / np.hypot(1.0, self.spread))
        return found

    def coarse_edges(self) -> Floats:
        """Edges of the bins under noise: quantiles of public scores, here of a sample of the mixture before."""
        rng = np.random.default_rng(12345)
        means = np.concatenate([np.repeat([0.0, g.before], [g.negatives, g.positives]) for g in self.groups])
        return quantile_edges(rng.choice(means, 4000) + rng.standard_normal(4000) - self.threshold, NOISY_BINS)


@dataclass(frozen=True)
class Sample:
    """The exact tables of R draws of the patients; index G of the groups is `unknown` and empty.

    Attributes:
        fine, coarse: histograms (R, G + 1, 2, B) before and after, of 1024 and of 16 bins.
        joint: (R, G + 1, 2, 4, 4).
        sums: (R, G + 1, 2, 5) placement sums.
    """

    fine: tuple[Counts, Counts]
    coarse: tuple[Counts, Counts]
    joint: Counts
    sums: Floats


class Sampler:
    """Draws patients of a world."""

    def __init__(self, world: World) -> None:
        self.groups = len(world.groups) + 1
        cells = [
            (index, label, count, mean_before, mean_after)
            for index, group in enumerate(world.groups)
            for label, count, mean_before, mean_after in (
                (0, group.negatives, 0.0, 0.0),
                (1, group.positives, group.before, group.after),
            )
        ]
        counts = [cell[2] for cell in cells]
        self.group, self.label = (np.repeat([cell[k] for cell in cells], counts) for k in (0, 1))
        self.means = np.stack([np.repeat([cell[k] for cell in cells], counts) for k in (3, 4)]) - world.threshold
        self.scale = np.where(self.label == 1, world.spread, 1.0)
        self.edges = world.coarse_edges()

    def draw(self, draws: int, rng: np.random.Generator) -> Sample:
        """So many draws."""
        first, other = rng.standard_normal((2, draws, len(self.label)))
        second = CORRELATION * first + (1 - CORRELATION**2) ** 0.5 * other
        scores = [mean + self.scale * part for mean, part in zip(self.means, (first, second), strict=True)]
        bins = [bin_scores(part, FINE) for part in scores]
        fine = [self._count(part, len(FINE) + 1) for part in bins]
        coarse = [self._count(bin_scores(part, self.edges), NOISY_BINS) for part in scores]
        cells = interval_cells(scores[0], scores[1], BEFORE, AFTER)
        intervals = len(BEFORE) + 1
        joint = self._count(cells[0] * intervals + cells[1], intervals * intervals)
        row = np.arange(draws)[:, None]
        v_b, v_a = (
            placements_of_bins(hist.reshape(-1, *hist.shape[-2:])).reshape(hist.shape)[row, self.group, self.label, b]
            for hist, b in zip(fine, bins, strict=True)
        )
        terms = (v_b, v_a, v_b**2, v_a**2, v_b * v_a)
        where = ((row * self.groups + self.group) * 2 + self.label).ravel()
        size = draws * self.groups * 2
        added = [np.bincount(where, part.ravel(), size).astype(np.float64) for part in terms]
        sums: Floats = np.stack(added, axis=-1)
        return Sample(
            (fine[0], fine[1]),
            (coarse[0], coarse[1]),
            joint.reshape(draws, self.groups, 2, intervals, intervals),
            sums.reshape(draws, self.groups, 2, 5),
        )

    def _count(self, cell: Counts, cells: int) -> Counts:
        """(R, G + 1, 2, cells) patients by group, label and cell (R, n)."""
        draws = len(cell)
        row = (np.arange(draws)[:, None] * self.groups + self.group) * 2 + self.label
        found = np.bincount((row * cells + cell).ravel(), minlength=draws * self.groups * 2 * cells)
        return found.reshape(draws, self.groups, 2, cells).astype(np.int64)


def noise(shape: tuple[int, ...], epsilon: float, shares: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Discrete Laplace noise of scale 1 / epsilon, `shares` times over (a sum of geometric variables is negative
    binomial, for a fraction of one, too).
    """
    p = -np.expm1(-epsilon)
    drawn = rng.negative_binomial(shares, p, (2, *shape))
    difference: NDArray[np.int64] = drawn[0] - drawn[1]
    return difference


def noise_variance(epsilon: float, shares: float) -> float:
    """Variance of `noise`."""
    r = float(np.exp(-epsilon))
    return shares * 2 * r / (1 - r) ** 2


def worlds() -> tuple[World, ...]:
    """Every world."""
    study = [
        World(f"{sites} x {patients}", _minority(sites * patients), 1.0, (sites,))
        for sites in (4, 10)
        for patients in (200, 500, 1000, 2000, 5000)
    ]
    cut, mean = float(norm.ppf(0.9)), float(norm.ppf(0.9) + norm.ppf(0.8))
    equal = [
        World(f"{g} equal groups, {n} positives each", (Group(n, 4 * n, mean, mean),) * g, cut, (10,))
        for n in (20, 50, 200, 1000)
        for g in (2, 4, 10)
    ]
    apart = [
        World(
            f"{g} unequal groups, {n} positives each",
            tuple(Group(n, 4 * n, mean - 0.8 * k / (g - 1), mean - 0.5 * k / (g - 1)) for k in range(g)),
            cut,
            (10,),
        )
        for n in (50, 200)
        for g in (4, 10)
    ]
    small = [
        World("10 and 40 positives, AUC .830", _pair(10, 1.3494), 1.0, (4,)),
        World("10 and 40 positives, AUC .917", _pair(10, 1.9587), 1.0, (4,)),
        World("20 and 80 positives, AUC .830", _pair(20, 1.3494), 1.0, (4,)),
        World("50 and 200 positives, AUC .830", _pair(50, 1.3494), 1.0, (4,)),
        World("50 and 200 positives, AUC .830, positives twice as spread", _pair(50, 2.1336), 1.0, (4,), spread=2.0),
        World("100 and 300 positives", (Group(300, 1200, 1.6977, 1.65), Group(100, 400, 1.3494, 1.55)), 1.0, (4, 10)),
    ]
    return (*study, *small, *equal, *apart)


def _minority(patients: int) -> tuple[Group, Group]:
    positives = round(0.2 * patients)
    few, negatives = positives // 4, (patients - positives) // 4
    majority = Group(positives - few, patients - positives - negatives, 1.6977, 1.65)
    return majority, Group(few, negatives, 1.3494, 1.55)


def _pair(positives: int, mean: float) -> tuple[Group, Group]:
    return Group(4 * positives, 16 * positives, mean, mean), Group(positives, 4 * positives, mean, mean)
