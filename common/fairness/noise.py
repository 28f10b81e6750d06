"""Noise that protects the tables: what is known of it, how histograms use it, when it leaves nothing to say.

Under privacy each cell of a table is the count plus an independent integer of mean 0 and known variance: discrete
Laplace noise of scale b, added once or by each of K sites, has 2 r / (1 - r)^2 with r = exp(-1 / b), once or K times.
Cells may be negative. A margin of m cells has the sum of their variances, so a **variance table** of the same shape is
summed exactly as the counts are; one number stands for all cells alike, and 0 for no noise.

Nothing here rounds a noisy count up, and no figure is made from counts clipped at 0. Measured with 16 bins, discrete
Laplace noise at epsilon 1 from each of four hospitals of 200 patients: projecting a histogram onto non-negative counts
pulls the AUC of a group of 40 positives down by 0.055 and that of a group three times as large by much less, which is a
gap between groups that is not there. Figures are therefore linear or bilinear in the noisy counts, which keeps them
unbiased, and only the result is cut to its range. Where a curve must rise (thresholds) or a variance must not be
negative, `projected` is used: the nearest non-negative table of the same sum.

References:
    Duchi et al., ICML 2008 (projection onto the simplex). Hay et al., PVLDB 2010;3 (consistency of noisy counts).

>>> projected(np.array([3.0, -1.0, 2.0]), np.array(4.0))
array([2.5, 0. , 1.5])
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from equipoise.common.fairness.tables import Counts, Floats, Table, counts_after

CellNoise = float | Floats
DETECTABLE = 2.0  # a count below this many standard deviations of its own noise could be of nobody


@dataclass(frozen=True)
class HistogramNoise:
    """Variances of a histogram whose margins were taken from another table (`anchored`).

    Attributes:
        cell: variance of the noise in one bin before anchoring.
        total: variance of the noise in the number of patients of one group and label.
    """

    cell: float
    total: float


def cell_variances(noise: CellNoise, counts: Table) -> Floats:
    """The variance table of `counts`: float64 of the same shape.

    Args:
        noise: variance of every cell, or an array that broadcasts to the shape of `counts`.

    Raises:
        ValueError: a variance is negative or not finite.
    """
    variances = np.asarray(noise, dtype=np.float64)
    if not (np.isfinite(variances).all() and (variances >= 0).all()):
        raise ValueError(f"noise={noise}: expected finite variances of at least 0")
    return np.broadcast_to(variances, counts.shape)


def histogram_noise(noise: float | HistogramNoise, bins: int) -> HistogramNoise:
    """The variances of a histogram of `bins` bins; the number of patients is the sum of the bins unless anchored."""
    return noise if isinstance(noise, HistogramNoise) else HistogramNoise(float(noise), float(noise) * bins)


def summed_noise(noise: float | HistogramNoise, rows: int) -> float | HistogramNoise:
    """The noise in the sum of `rows` histograms that each carry `noise`."""
    if isinstance(noise, HistogramNoise):
        return HistogramNoise(noise.cell * rows, noise.total * rows)
    return noise * rows


def needed(minimum: int, variance: float = 0.0) -> int:
    """The smallest count that supports a figure: `minimum`, and twice the standard deviation of the count's own noise.

    A count is compared with it as released, noise included, so the comparison tells nothing that the count does not.
    """
    return max(minimum, math.ceil(DETECTABLE * math.sqrt(variance)))


def shortage(count: int, what: str, minimum: int, variance: float = 0.0) -> str:
    """Why `count` patients, noisy with `variance`, support no figure; empty where they do."""
    least = needed(minimum, variance)
    if count >= max(least, 1):
        return ""
    noisy = f" counted with noise of {math.sqrt(variance):.1f}" if variance else ""
    return f"{count} {what}{noisy}, {least} needed"


def projected(table: Table, total: Floats) -> Floats:
    """The non-negative table nearest to `table` (least squares along the last axis) whose last axis sums to `total`.

    Args:
        table: (..., B).
        total: (...), at least 0.
    """
    values = np.asarray(table, dtype=np.float64)
    falling = -np.sort(-values, axis=-1)
    excess = (np.cumsum(falling, axis=-1) - np.asarray(total)[..., None]) / np.arange(1, values.shape[-1] + 1)
    kept = np.maximum((falling > excess).sum(axis=-1, keepdims=True), 1)
    nearest: Floats = np.maximum(values - np.take_along_axis(excess, kept - 1, axis=-1), 0.0)
    return nearest


def anchored(hist: Counts, hist_noise: float, pair: Table, pair_noise: CellNoise) -> tuple[Floats, HistogramNoise]:
    """A noisy histogram whose numbers of patients by group and label are those of the pair table, and its noise.

    The pair table has fewer cells, so its margins are less noisy; each bin takes an equal part of the difference (the
    least-squares correction). Without noise use the histogram as it is.

    Args:
        hist: (G + 1, 2, B) counts with noise of variance `hist_noise` in each cell.
        pair: (G + 1, 2, 2, 2) counts of the same patients at one operating point.
        pair_noise: variance of its cells; the sum over a margin is taken to be the same for all groups and labels.

    Raises:
        ValueError: the two tables have different groups.
    """
    if hist.shape[:2] != pair.shape[:2]:
        raise ValueError(f"a histogram of {hist.shape[:2]} groups and labels with a pair table of {pair.shape[:2]}")
    total = pair.sum(axis=(-2, -1))
    bins = hist.shape[-1]
    corrected: Floats = hist + (total - hist.sum(axis=-1))[..., None] / bins
    variance = counts_after(cell_variances(pair_noise, pair)).sum(axis=-1)
    return corrected, HistogramNoise(float(hist_noise), float(variance.max()))
