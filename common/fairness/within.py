"""Why a pooled gap is what it is: within hospitals, and by which hospitals treat whom.

Two groups can have equal rates at every hospital and different rates pooled, if they are treated at hospitals where the
model performs differently; and the other way round. The within-hospital difference is Mantel and Haenszel's: the sites'
differences weighed by n0 n1 / (n0 + n1), so that a site with one group has no weight. The identity

    pooled = within + composition

leaves for composition what the mix of hospitals alone makes. "Within" reads: at one hospital the model treats the
groups differently. "Composition" reads: the groups are treated at hospitals where the model performs differently, a
matter of devices and sites. Neither is a claim about causes.

Everything comes from sums over sites of six scalars (`stratum_terms`). The variance is Sato's, consistent for many
small hospitals and for few large ones; noise in the sites' tables adds its own.

References:
    Mantel and Haenszel 1959. Greenland and Robins, Biometrics 1985;41:55-68. Sato, Biometrics 1989;45:1323-1324.

>>> easy = np.array([[[0, 0], [45, 855]], [[0, 0], [5, 95]], [[0, 0], [0, 0]]])
>>> hard = np.array([[[0, 0], [30, 70]], [[0, 0], [270, 630]], [[0, 0], [0, 0]]])
>>> terms = sum(stratum_terms("tpr", site, 1, 0) for site in (easy, hard))
>>> found = decompose("tpr", easy + hard, terms, 1, 0, ["men", "women"])
>>> round(found.pooled.value, 3), round(found.within.value, 3), round(found.composition, 3)
(-0.2, 0.0, -0.2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.intervals import normal_quantile
from equipoise.common.fairness.noise import CellNoise, cell_variances
from equipoise.common.fairness.reference import difference
from equipoise.common.fairness.shares import shares_of
from equipoise.common.fairness.tables import Counts, Floats, group_names

TERMS = ("weight", "weighted difference", "sato p", "sato q", "noise", "sites with both groups")


@dataclass(frozen=True)
class Decomposition:
    """A pooled difference between two groups and its two parts.

    Attributes:
        pooled: group less reference, all hospitals' patients together.
        within: Mantel and Haenszel's difference.
        composition: pooled less within; None unless both are estimable.
        sites: hospitals that had both groups; the others have no weight in `within`.
    """

    pooled: Estimate
    within: Estimate
    composition: float | None
    sites: int


def stratum_terms(rate: str, counts: Counts, group: int, reference: int, noise: CellNoise = 0.0) -> Floats:
    """One hospital's summands, (6,) in the order of `TERMS`; all 0 where it lacks one of the groups.

    Args:
        rate: a name of `shares.RATES`.
        counts: (G + 1, 2, 2) of one hospital; noisy counts that leave a denominator below 1 count as lacking it.
        group, reference: rows of `counts`.
        noise: as in `rates.rate_by_group`.
    """
    variances = cell_variances(noise, counts)
    rates = shares_of([(rate, counts[row], variances[row]) for row in (group, reference)])
    if rates.trials.min() < 1:
        return np.zeros(len(TERMS))
    (a, b), (n, m), total = rates.counted, rates.trials, float(rates.trials.sum())
    weight = n * m / total
    p = (n * n * b - m * m * a + n * m * (m - n) / 2) / (total * total)
    q = (a * (m - b) + b * (n - a)) / (2 * total)
    difference = float(rates.shares[0] - rates.shares[1])
    return np.array([weight, weight * difference, p, q, weight**2 * float(rates.noise.sum()), 1.0])


def decompose(
    rate: str,
    counts: Counts,
    terms: Floats,
    group: int,
    reference: int,
    names: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: CellNoise = 0.0,
) -> Decomposition:
    """The pooled difference, the one within hospitals, and what composition makes of it.

    Args:
        rate, group, reference: as in `stratum_terms`.
        counts: (G + 1, 2, 2) summed over hospitals.
        terms: (6,) `stratum_terms` summed over hospitals.
        names, level, minimum, noise: as in `rates.rate_by_group`; the noise is that of the summed table.

    Edge cases: the pooled difference is not estimable where a group has too few patients, the one within hospitals
    where no hospital has both groups.
    """
    labels = group_names(len(counts), names)
    who, metric = f"{labels[group]} less {labels[reference]}", f"{rate}_difference"
    pooled = difference(rate, counts, group, reference, names, level=level, minimum=minimum, noise=noise)
    weight, weighted, p, q, blur, sites = (float(term) for term in terms)
    n = pooled.n
    if weight <= 0:
        within = Estimate.missing(f"within_{metric}", "no hospital has both groups", n=n, level=level, group=who)
        return Decomposition(pooled, within, None, 0)
    value = weighted / weight
    variance = max(value * p + q, 0.0) / weight**2 + blur / weight**2
    half = normal_quantile(level) * variance**0.5
    within = Estimate.of(
        f"within_{metric}",
        value,
        max(value - half, -1.0),
        min(value + half, 1.0),
        n=n or 0,
        method="mantel-haenszel, sato",
        level=level,
        group=who,
        noise_sd=blur**0.5 / weight,
    )
    composition = None if pooled.value is None else pooled.value - value
    return Decomposition(pooled, within, composition, round(sites))
