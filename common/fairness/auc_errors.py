"""Drawn errors of two AUCs of the same patients, before and after; the limits of the AUC's change follow from them.

An AUC near 1 can be further below its estimate than above it, and an estimate that is too high comes with a standard
error that is too small. An interval of the change that is symmetric on the raw scale therefore understates losses: of
20 positives and 80 negatives whose AUC fell from .97 to .94, one in ten had a true change below its lower limit
(nominal: one in forty). So a true AUC is drawn as normal on a scale on which it is nearly so, with the spread of a t
quantile, and both ends of the change are quantiles of the draws.

Design note: the scale is sinh(logit / 4). The logit alone is bent too little (the placements of few patients are more
skewed than it allows for), sinh(logit / 2) too much (twice as wide for twenty positives). Newcombe's way to join limits
(MOVER) fails for AUCs of nearly the same ranking: the arms that it subtracts are bent in opposite directions (decision
0045).

>>> x = np.array([-1.959964, 0.0, 1.959964])
>>> errors = sampling_errors(0.95, 0.02, 30.0, 40.0, x, 1.959964)
>>> [round(float(0.95 - error), 3) for error in errors]  # true AUCs
[0.884, 0.95, 0.977]
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit, ndtr, ndtri, stdtrit

from equipoise.common.fairness.auc import BinnedAUC
from equipoise.common.fairness.intervals import normal_quantile
from equipoise.common.fairness.maximum import DRAWS
from equipoise.common.fairness.tables import Floats

BEND = 0.25
_GOLDEN = (5**0.5 - 1) / 2


@lru_cache(maxsize=1)
def normal_pairs() -> Floats:
    """(2, DRAWS) independent standard normals that lie evenly (a lattice), so that few give a quantile exactly."""
    place = np.arange(DRAWS) + 0.5
    pairs: Floats = ndtri(np.stack([place / DRAWS, (place * _GOLDEN) % 1.0]))
    return pairs


def correlated(pairs: Floats, correlation: ArrayLike) -> Floats:
    """(2, ..., DRAWS) standard normals of the given correlations (...) from independent ones (2, DRAWS)."""
    shared = np.asarray(correlation, dtype=np.float64)[..., None]
    second = shared * pairs[0] + np.sqrt(1 - shared**2) * pairs[1]
    return np.stack([np.broadcast_to(pairs[0], second.shape), second])


def sampling_errors(
    centre: ArrayLike, deviation: ArrayLike, degrees: ArrayLike, fewest: ArrayLike, x: Floats, z: float
) -> Floats:
    """Estimate less true AUC, (..., DRAWS), for standard normals x.

    Args:
        centre, deviation, degrees: (...) the AUC, DeLong's standard error and its degrees of freedom.
        fewest: (...) patients of the smaller class.
        x: (..., DRAWS); larger values mean a larger true AUC.
        z: normal quantile of the interval, at which the draws have the spread of t.

    Edge case: a standard error of 0 is no certainty; Wilson's limits for `fewest` successes hold, as in `auc`.
    """
    centre, deviation, degrees, fewest = (
        np.asarray(part, dtype=np.float64)[..., None] for part in (centre, deviation, degrees, fewest)
    )
    flat = deviation == 0
    inside = np.where(flat, 0.5, centre)
    place = BEND * logit(inside)
    slope = BEND * np.cosh(place) / (inside * (1 - inside))
    spread = slope * deviation * stdtrit(degrees, ndtr(z)) / z
    true = expit(np.arcsinh(np.sinh(place) + spread * x) / BEND)
    distance = np.sign(x) * x**2 / (fewest + x**2)
    errors: Floats = centre - np.where(flat, np.clip(centre + distance, 0.0, 1.0), true)
    return errors


def auc_errors(aucs: tuple[BinnedAUC, BinnedAUC], correlation: float, added: Floats, level: float) -> Floats:
    """(2, DRAWS) errors of the AUCs before and after, from sampling and from noise.

    Args:
        aucs, correlation: of the same patients before and after.
        added: (2, 2) covariance that noise alone gives them.
        level: confidence level of the interval that they are for.
    """
    drawn = correlated(normal_pairs(), correlation)
    errors = np.stack(
        [
            sampling_errors(auc.centre, auc.variance**0.5, auc.degrees, min(auc.positives, auc.negatives), x,
                            normal_quantile(level))
            for auc, x in zip(aucs, drawn, strict=True)
        ]
    )  # fmt: skip
    return errors + noise_errors(added) if added.any() else errors


def noise_errors(added: Floats) -> Floats:
    """(2, DRAWS) normal errors of covariance `added`, independent of the sampling errors."""
    mixed = np.random.default_rng(0).permutation(normal_pairs(), axis=1)
    values, vectors = np.linalg.eigh(added)
    drawn: Floats = (vectors * np.sqrt(np.maximum(values, 0.0))) @ mixed
    return drawn
