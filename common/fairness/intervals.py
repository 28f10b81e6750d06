"""Intervals for proportions and for linear combinations of them.

Everything here is a score-based hybrid interval (MOVER: method of variance estimates recovery): take an interval for
each single proportion, and combine the distances from estimate to limit as if they were standard errors. Newcombe's
intervals for a difference of two independent and of two paired proportions are its two best-known cases. Wald intervals
undercover badly for the small groups that matter here (evaluation specification, section 4).

References:
    Wilson 1927. Newcombe, Stat Med 1998;17:857-872 (one proportion), 873-890 (two independent; method 10), 2635-2650
    (two paired; method 10). Zou and Donner, Stat Med 2008;27:1693-1702 (MOVER; correlated parts).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from equipoise.common.fairness.estimate import LEVEL
from equipoise.common.fairness.tables import Floats


def normal_quantile(level: float, comparisons: int = 1) -> float:
    """Two-sided normal quantile at `level`, shared by `comparisons` intervals (Bonferroni)."""
    if not 0 < level < 1 or comparisons < 1:
        raise ValueError(f"level={level}, comparisons={comparisons}: expected 0 < level < 1 and comparisons >= 1")
    return -NormalDist().inv_cdf((1 - level) / (2 * comparisons))


def wilson_limits(share: Floats, trials: Floats, z: float) -> tuple[Floats, Floats]:
    """Wilson score limits, elementwise; `trials` may be fractional (an effective size) but must be above 0."""
    denominator = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / denominator
    half = z / denominator * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    # At 0 and 1 the limit is exact; rounding must not push it to the estimate's wrong side.
    low = np.where(share <= 0, 0.0, np.clip(centre - half, 0.0, share))
    high = np.where(share >= 1, 1.0, np.clip(centre + half, share, 1.0))
    return low, high


def score_limits(
    share: Floats, trials: Floats, z: float, inside: Floats | None = None, outside: Floats | None = None
) -> tuple[Floats, Floats]:
    """Wilson score limits of shares whose counts carry noise, elementwise.

    With the noisy numerator A and denominator N, A - p N has mean 0 at the true p and variance N p (1 - p) + inside
    (1 - p)^2 + outside p^2, whatever the noise did to either. The limits are the p between which |A - p N| is at most z
    of its standard deviations: a quadratic equation, and Wilson's where the noise is 0. (Fieller, J R Stat Soc B
    1954;16:175-185, for the ratio; evaluation specification, section 4, for the variance.)

    Args:
        share, trials: A / N cut to [0, 1], and N > 0.
        inside, outside: variances of the noise in A and in N - A; None for no noise.

    Edge case: where N itself is within its noise of 0 nothing bounds the share, and the limits are 0 and 1.
    """
    if inside is None or outside is None or not (inside.any() or outside.any()):
        return wilson_limits(share, trials, z)
    c, u, w = (z * z * part for part in (1 / trials, inside / trials**2, outside / trials**2))
    square, middle = 1 + c - u - w, 2 * share + c - 2 * u
    root = np.sqrt(np.maximum(middle * middle - 4 * square * (share * share - u), 0.0))
    bounded = square > 0
    safe = np.where(bounded, square, 1.0)
    low = np.where(bounded, np.clip((middle - root) / (2 * safe), 0.0, share), 0.0)
    high = np.where(bounded, np.clip((middle + root) / (2 * safe), share, 1.0), 1.0)
    return low, high


def noise_variance(share: Floats, trials: Floats, inside: Floats, outside: Floats) -> Floats:
    """Variance that noise alone gives a share, that of A - p N over N^2; `inside`, `outside` as in `score_limits`."""
    variance: Floats = (inside * (1 - share) ** 2 + outside * share**2) / trials**2
    return variance


def wilson(successes: float, trials: float, level: float = LEVEL) -> tuple[float, float]:
    """Wilson score interval of successes / trials.

    Raises:
        ValueError: no trials, or successes outside 0..trials.
    """
    if not 0 <= successes <= trials or trials <= 0:
        raise ValueError(f"successes={successes}, trials={trials}: expected 0 <= successes <= trials, trials > 0")
    low, high = wilson_limits(np.array([successes / trials]), np.array([float(trials)]), normal_quantile(level))
    return float(low[0]), float(high[0])


def newcombe(
    successes1: float, trials1: float, successes2: float, trials2: float, level: float = LEVEL
) -> tuple[float, float]:
    """Newcombe's hybrid score interval of successes1 / trials1 - successes2 / trials2, independent samples."""
    share = np.array([successes1 / trials1, successes2 / trials2])
    limits = wilson_limits(share, np.array([trials1, trials2], dtype=np.float64), normal_quantile(level))
    low, high = mover(share, *limits, np.array([[1.0, -1.0]]), np.eye(2))
    return float(low[0]), float(high[0])


def paired_correlation(table: NDArray[np.int64] | Floats) -> float:
    """Correlation of two paired decisions from their 2 x 2 table, corrected as in Newcombe's method 10.

    A positive correlation narrows the interval, so its cross product is reduced by n / 2 (to no less than 0).
    """
    (a, b), (c, d) = np.asarray(table, dtype=np.float64)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    if margins <= 0:
        return 0.0
    cross = a * d - b * c
    if cross > 0:
        cross = max(cross - (a + b + c + d) / 2, 0.0)
    return float(cross / math.sqrt(margins))


def mover(share: Floats, low: Floats, high: Floats, contrasts: Floats, correlation: Floats) -> tuple[Floats, Floats]:
    """Intervals of linear combinations of estimates that have intervals of their own.

    Args:
        share, low, high: (..., P) estimates and their limits.
        contrasts: (C, P) coefficients, one combination a row.
        correlation: (..., P, P) correlations of the estimates.

    Returns:
        (..., C) lower and upper limits.
    """
    value = share @ contrasts.T
    # Going down, a part with a positive coefficient moves to its lower limit and one with a negative to its upper. The
    # distances keep their coefficients' signs, as standard errors would: correlated parts cancel in a difference.
    below, above = (share - low)[..., None, :], (high - share)[..., None, :]
    down = contrasts * np.where(contrasts > 0, below, above)
    up = contrasts * np.where(contrasts > 0, above, below)
    return value - _length(down, correlation), value + _length(up, correlation)


def _length(parts: Floats, correlation: Floats) -> Floats:
    squared = ((parts @ correlation) * parts).sum(axis=-1)
    length: Floats = np.sqrt(np.maximum(squared, 0.0))
    return length
