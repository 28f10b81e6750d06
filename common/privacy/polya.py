"""What one Polya share conceals: the privacy loss of the difference of two negative binomials, shifted by one step.

A share is K = X - Y, X and Y negative binomial with r = 1/h successes and q = exp(-1 / scale) (`samplers.py`). Let f be
its probabilities; f(-k) = f(k). If all other sites collude with the server, this is all the noise that a site has.

**The loss.** Between K and K + 1 the loss at k is ln f(k) - ln f(k - 1): ln R(|k|) for k <= 0 and -ln R(k - 1) for
k >= 1, with R(k) = f(k) / f(k + 1). P(X = k) is the integral of t^k over t in [0, q] with a positive density w (a Beta
integral, as r < 1), so f(k) = sum_j P(X = j + k) P(X = j) is the integral of t^k with the positive density w(t) times
the integral of w(u) / (1 - t u). By Cauchy and Schwarz f(k)^2 <= f(k - 1) f(k + 1) for k >= 1: R falls, from R(0) to
1 / q. So

    a share is exactly (ln R(0), 0)-differentially private for one cell that moves by one step,

which is finite, and more than 1 / scale: for h = 5, 2.60 at scale 1, 1.89 at scale 3, 1.49 at scale 30. Since most
samples of a share are 0, more noise hardly lowers it, and it is attained with high probability, so that the cells of a
patient add up almost fully: 12 cells at scale 10 cost 18.6 at delta 1e-5. Where this figure counts, discrete Gaussian
shares are the better choice: one of h shares costs about sqrt(h) times the claim.

**Its computation.** The generating function F(z) = ((1 - q)^2 / ((1 - q z)(1 - q / z)))^r gives, by z F'(z),

    q (k + 1 - r) f(k + 1) = (1 + q^2) k f(k) - q (k - 1 + r) f(k - 1).

f is the solution that falls, so R is computed from large k down (Miller's algorithm), where errors die out as q^2 a
step; what is left is rounding, 1e-12. Losses are rounded up to a grid after adding 1e-9, the mass beyond the last point
takes the loss of that point, and 1e-15 is added at the largest loss: the result lies above the true loss.

>>> round(largest_loss(scale=1.0, shares=5), 3)
2.598

Reference: Goryczka, Xiong: A comprehensive comparison of multiparty secure additions with differential privacy. TDSC
2017 (shares of geometric noise that add up).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from equipoise.common.privacy.samplers import MAXIMUM_SHARE_SCALE, MINIMUM_SCALE

TAIL = 69.0  # scales after which less than 1e-29 is left
SETTLING = 20.0  # scales in which a wrong start of the recurrence dies out to 1e-17
LOSS_ERROR = 1e-9
MASS_ERROR = 1e-15

Floats = NDArray[np.float64]


def largest_loss(scale: float, shares: int) -> float:
    """ln R(0): the pure epsilon of one share for one cell that moves by one step, rounded up."""
    return float(_masses(scale, shares)[1][0]) + LOSS_ERROR


def loss_distribution(scale: float, shares: int, interval: float) -> tuple[Floats, Floats]:
    """Losses on a grid of `interval` (float64, rising) and their probabilities, an upper bound of the true loss.

    Both directions, adding and removing a patient, have this distribution, by symmetry.
    """
    points, log_ratios = _masses(scale, shares)
    # k <= 0 with loss ln R(|k|), then k >= 1 with loss -ln R(k - 1) and probability f(k) = f(k - 1) / R(k - 1).
    losses = np.concatenate([log_ratios, -log_ratios]) + LOSS_ERROR
    probabilities = np.concatenate([points, points * np.exp(-log_ratios)])
    places = np.ceil(losses / interval).astype(np.int64)
    first = int(places.min())
    merged = np.bincount(places - first, weights=probabilities)
    merged[-1] += MASS_ERROR
    kept = np.flatnonzero(merged)
    rounded = np.asarray((kept + first) * interval, dtype=np.float64)
    return rounded, np.asarray(merged[kept], dtype=np.float64)


@lru_cache(maxsize=64)
def _masses(scale: float, shares: int) -> tuple[Floats, Floats]:
    """f(k) and ln R(k) for k = 0, 1, ..."""
    if not MINIMUM_SCALE <= scale <= MAXIMUM_SHARE_SCALE or shares < 2:
        raise ValueError(
            f"scale={scale}, shares={shares}: expected {MINIMUM_SCALE} to {MAXIMUM_SHARE_SCALE:.0f} and >= 2"
        )
    q, r = math.exp(-1 / scale), 1 / shares
    last = math.ceil(TAIL * scale) + 2
    ratio = 1 / q
    ratios = np.empty(last)
    for k in range(last + math.ceil(SETTLING * scale) + 20, 0, -1):
        ratio = ((1 + q * q) * k - q * (k + 1 - r) / ratio) / (q * (k - 1 + r))
        if k <= last:
            ratios[k - 1] = ratio
    log_ratios = np.log(ratios)
    # f relative to f(0), and then so that all points of both sides sum to 1.
    points = np.exp(-np.concatenate([[0.0], np.cumsum(log_ratios[:-1])]))
    points /= 2 * points.sum() - points[0]
    for array in (points, log_ratios):
        array.flags.writeable = False  # they are kept
    return points, log_ratios
