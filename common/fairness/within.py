"""Why a pooled gap is what it is: within hospitals, and by which hospitals treat whom.

Two groups can have equal rates at every hospital and different rates pooled, if they are treated at hospitals where the
model performs differently; and the other way round. The within-hospital difference is Mantel and Haenszel's: the sites'
differences weighed by n0 n1 / (n0 + n1), so that a site with one group has no weight. The identity

    pooled = within + composition

leaves for composition what the mix of hospitals alone makes. "Within" reads: at one hospital the model treats the
groups differently. "Composition" reads: the groups are treated at hospitals where the model performs differently, a
matter of devices and sites. Neither is a claim about causes.

The interval within hospitals is a stratified Newcombe interval: each group's rate, weighed over hospitals, has Wilson's
limits for its effective number of patients, and MOVER joins the two. With one hospital it is Newcombe's, and it has a
width where a few patients are all alike (Sato's variance, which was used before, is 0 there: of 3 x 4 and 3 x 12
patients found at a rate of .9 its interval held the truth in .85, this one in .97). That of composition is the delta
method's.

References:
    Mantel and Haenszel 1959. Yan and Su, Stat Biopharm Res 2010;2:329-335 (stratified Newcombe, with limits by
    stratum). Kish 1965 (effective size).

>>> easy = np.array([[[0, 0], [45, 855]], [[0, 0], [5, 95]], [[0, 0], [0, 0]]])
>>> hard = np.array([[[0, 0], [30, 70]], [[0, 0], [270, 630]], [[0, 0], [0, 0]]])
>>> found = decompose("tpr", np.stack([easy, hard]), 1, 0, ["men", "women"])
>>> round(found.pooled.value, 3), round(found.within.value, 3), round(found.composition, 3)
(-0.2, 0.0, -0.2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.intervals import mover, normal_quantile, wilson_limits
from equipoise.common.fairness.noise import CellNoise, cell_variances, shortage
from equipoise.common.fairness.reference import difference
from equipoise.common.fairness.shares import RATES, fraction
from equipoise.common.fairness.tables import Counts, Floats, group_names


@dataclass(frozen=True)
class Decomposition:
    """A pooled difference between two groups and its two parts.

    Attributes:
        pooled: group less reference, all hospitals' patients together.
        within: Mantel and Haenszel's difference.
        composition: pooled less within; None unless both are estimable.
        composition_interval: its interval at the same level; None where there is no composition.
        weights: (K,) each hospital's share of the weight in `within`; 0 where it lacks a group.
    """

    pooled: Estimate
    within: Estimate
    composition: float | None
    composition_interval: tuple[float, float] | None
    weights: Floats

    @property
    def sites(self) -> int:
        """Hospitals that had both groups; the others have no weight in `within`."""
        return int((self.weights > 0).sum())


def decompose(
    rate: str,
    tables: Counts,
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
        rate: a name of `shares.RATES`.
        tables: (K, G + 1, 2, 2) of the hospitals; noisy counts that leave a denominator below 1 count as lacking it.
        group, reference: rows; the difference is group less reference.
        names, level, minimum, noise: as in `rates.rate_by_group`; the noise is that of one hospital's table.

    Edge cases: the pooled difference is not estimable where a group has fewer than `minimum` patients, the one within
    hospitals where it has fewer at the hospitals that have both groups.
    """
    labels, variances = group_names(tables.shape[1], names), cell_variances(noise, tables)
    pooled = difference(
        rate, tables.sum(axis=0), group, reference, names, level=level, minimum=minimum, noise=variances.sum(axis=0)
    )
    rows = [group, reference]
    hits, patients = (part[:, rows].T.astype(np.float64) for part in fraction(tables, rate))
    blur = np.stack([part[:, rows].T for part in fraction(variances, rate)])
    sides = _Sides(hits, patients, blur[0], blur[1] - blur[0])
    who, metric = f"{labels[group]} less {labels[reference]}", f"within_{rate}_difference"
    n = round(float(sides.shared.sum()))
    if lacking := sides.lacking([labels[row] for row in rows], RATES[rate][2], minimum):
        return Decomposition(
            pooled, Estimate.missing(metric, lacking, n=n, level=level, group=who), None, None, sides.weights
        )
    z = normal_quantile(level)
    value, low, high, sd = sides.within(z)
    method = "mantel-haenszel, stratified newcombe"
    within = Estimate.of(metric, value, low, high, n=n, method=method, level=level, group=who, noise_sd=sd)
    if pooled.value is None:
        return Decomposition(pooled, within, None, None, sides.weights)
    composition, half = pooled.value - value, z * sides.composition_variance() ** 0.5
    return Decomposition(pooled, within, composition, (composition - half, composition + half), sides.weights)


@dataclass(frozen=True)
class _Sides:
    """Two groups at K hospitals; row 0 is the group, row 1 the reference.

    Attributes:
        hits, patients: (2, K) numerators and denominators of the rate.
        inside, outside: (2, K) variances of the noise in the numerators and in the rest of the denominators.
    """

    hits: Floats
    patients: Floats
    inside: Floats
    outside: Floats

    @property
    def both(self) -> Floats:
        """(K,) 1 where a hospital has both groups, else 0."""
        there: Floats = (self.patients.min(axis=0) >= 1).astype(np.float64)
        return there

    @property
    def shared(self) -> Floats:
        """(2, K) patients that count within hospitals."""
        return self.patients * self.both

    @property
    def total(self) -> Floats:
        """(K,) n0 + n1, at least 1."""
        total: Floats = np.maximum(self.patients.sum(axis=0), 1.0)
        return total

    @property
    def weights(self) -> Floats:
        """(K,) Mantel and Haenszel's weights, of sum 1; all 0 where no hospital has both groups."""
        weight = self.both * self.patients.prod(axis=0) / self.total
        share: Floats = weight / (weight.sum() or 1.0)
        return share

    @property
    def shares(self) -> Floats:
        """(2, K) rates, cut to 0..1; 0 where there is nobody."""
        cut: Floats = np.clip(self.hits / np.maximum(self.patients, 1.0), 0.0, 1.0)
        return cut

    def lacking(self, names: Sequence[str], what: str, minimum: int) -> str:
        """Why there is no difference within hospitals; empty where there is one."""
        if not self.both.any():
            return "no hospital has both groups"
        noise = ((self.inside + self.outside) * self.both).sum(axis=1)
        counted = zip(names, self.shared.sum(axis=1), noise, strict=True)
        found = ((name, shortage(round(float(n)), what, minimum, float(v))) for name, n, v in counted)
        return "; ".join(f"{name}, at hospitals with both groups: {reason}" for name, reason in found if reason)

    def within(self, z: float) -> tuple[float, float, float, float]:
        """Difference within hospitals, its limits, and the standard deviation that noise alone gives it."""
        weights, each, n = self.weights, self.shares, np.maximum(self.patients, 1.0)
        rates = each @ weights
        # Design effect: rates that differ between hospitals vary less around their own mean than around the common one.
        # A hospital's own p (1 - p) is too small by 1 / n; the common one, which is too large, makes up for it.
        common = (rates * (1 - rates))[:, None]
        spread = weights**2 / n
        own = (spread * (each * (1 - each) + common / n)).sum(axis=1)
        largest = (spread * common).sum(axis=1)
        effect = np.where(largest > 0, np.minimum(own / np.where(largest > 0, largest, 1.0), 1.0), 1.0)
        low, high = wilson_limits(rates, 1 / (effect * spread.sum(axis=1)), z)
        contrast = np.array([[1.0, -1.0]])
        (bottom,), (top,) = mover(rates, low, high, contrast, np.eye(2))
        value, sd = float(contrast[0] @ rates), self._noise_variance(self._within_influence()) ** 0.5
        down, up = np.hypot(value - bottom, z * sd), np.hypot(top - value, z * sd)
        return value, max(value - float(down), -1.0), min(value + float(up), 1.0), sd

    def composition_variance(self) -> float:
        """Variance of pooled less within, who is treated where included: the delta method over patients."""
        influence = self._pooled_influence() - self._within_influence()
        # Half a patient of each kind, so that a rate of 0 or 1 of a few patients is not certain.
        found = (self.hits + 0.5) / (np.maximum(self.patients, 0.0) + 1)
        chances = np.clip(np.stack([1 - found, found]), 0.0, 1.0)
        sampled = float((np.maximum(self.patients, 0.0) * chances * influence**2).sum())
        return sampled + self._noise_variance(influence)

    def _pooled_influence(self) -> Floats:
        """(2 outcomes, 2, K): what one more patient, missed or found, does to the pooled difference."""
        n = self.patients.sum(axis=1, keepdims=True)
        rates = self.hits.sum(axis=1, keepdims=True) / n
        sign = np.array([[1.0], [-1.0]])
        moved = np.stack([-rates, 1 - rates]) * sign / n
        return np.broadcast_to(moved, (2, *self.patients.shape))

    def _within_influence(self) -> Floats:
        """(2 outcomes, 2, K): the same for the difference within hospitals, the change of its weights included."""
        other, sign = self.patients[::-1], np.array([[1.0], [-1.0]])
        value = sign * float(np.array([1.0, -1.0]) @ (self.shares @ self.weights))
        share = self.both * other / self.total
        weight = float((self.both * self.patients.prod(axis=0) / self.total).sum())
        missed = -share * self.hits.sum(axis=0) / self.total - value * share**2
        influence: Floats = np.stack([missed, missed + share]) * sign / weight
        return influence

    def _noise_variance(self, influence: Floats) -> float:
        return float((np.stack([self.outside, self.inside]) * influence**2).sum())
