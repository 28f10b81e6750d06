"""AUC from score histograms: by group, over all, across groups, with DeLong intervals and the paired change.

With P_b and N_b the positives and negatives in bin b, AUC_B = sum_b P_b (N_<b + N_b / 2) / (n+ n-): ties inside a bin
count one half. It differs from the AUC of the unbinned scores by at most `binning_bound`, half of sum_b p_b q_b with
p, q the bins' shares of each class.

A patient's *placement* is the share of the other class that it ranks right: for a positive the share of negatives below
it, for a negative the share of positives above it, ties one half. DeLong's variance is the variance of placements, and
the variance of an AUC change needs their products. Both models' placements of one patient are known only at the
patient's site, once the pooled histograms are: a second round of sums over patients (`placement_sums`).

References:
    DeLong, DeLong and Clarke-Pearson, Biometrics 1988;44:837-845. Sun and Xu, IEEE SPL 2014;21:1389-1393 (placements).
    Kallus and Zhou, NeurIPS 2019 (xAUC). Logit scale: evaluation specification, section 4.

>>> hist = np.array([[[2, 1, 0], [0, 1, 2]], [[0, 0, 0], [0, 0, 0]]])
>>> round(binned_auc(hist[0]).value, 4), round(binned_auc(hist[0]).bound, 4)
(0.9444, 0.0556)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.intervals import normal_quantile
from equipoise.common.fairness.tables import Counts, Floats, group_names

LARGEST_BINNING_BOUND = 0.005
_METHOD = "logit delong"


@dataclass(frozen=True)
class BinnedAUC:
    """AUC of two histograms.

    Attributes:
        value: the AUC at bin resolution.
        bound: largest distance from the AUC of the unbinned scores.
        variance: DeLong's variance of `value`; 0 where the classes are separated or hold one patient each.
        positives, negatives: patients of each class.
    """

    value: float
    bound: float
    variance: float
    positives: int
    negatives: int

    def limits(self, z: float) -> tuple[float, float]:
        """Interval of half-width z on the logit scale.

        Edge case: where every pair is ranked right (or every one wrong), DeLong's variance is 0, which is no certainty.
        Pairing off min(n+, n-) disjoint positive-negative pairs makes their successes binomial with the AUC as its
        probability, so Wilson's interval of that many successes holds.
        """
        if self.variance == 0.0:
            spread = z * z / (min(self.positives, self.negatives) + z * z)
            return max(self.value - spread, 0.0), min(self.value + spread, 1.0)
        half = z * self.variance**0.5 / (self.value * (1 - self.value))
        middle = math.log(self.value / (1 - self.value))
        return _sigmoid(middle - half), _sigmoid(middle + half)

    @property
    def guarded_variance(self) -> float:
        """`variance`, or where that is 0 the square of the standard error that `limits` implies at 95 %."""
        if self.variance > 0.0:
            return self.variance
        z = normal_quantile(LEVEL)
        return (z / (min(self.positives, self.negatives) + z * z)) ** 2


def binned_auc(counts: Counts) -> BinnedAUC:
    """AUC of counts[y, bin]; also across groups, with the negatives of one and the positives of another.

    Raises:
        ValueError: a class has no patients.
    """
    total = [int(n) for n in counts.sum(axis=1)]
    if min(total) == 0:
        raise ValueError("the AUC needs patients of both classes")
    placements = placements_of_bins(counts[None])[0]
    negatives, positives = total
    value = float((counts[1] * placements[1]).sum()) / positives
    bound = 0.5 * float((counts[0] / negatives * (counts[1] / positives)).sum())
    variance = sum(
        float((counts[y] * (placements[y] - value) ** 2).sum()) / (max(total[y] - 1, 1) * total[y]) for y in (0, 1)
    )
    return BinnedAUC(value, bound, variance, positives, negatives)


def _estimate(counts: Counts, metric: str, group: str | None, level: float, minimum: int) -> Estimate:
    """The AUC of counts[y, bin] as an estimate."""
    negatives, positives = (int(n) for n in counts.sum(axis=1))
    n = negatives + positives
    need = max(minimum, 1)
    if min(negatives, positives) < need:
        reason = f"{positives} positives and {negatives} negatives, {need} of each needed"
        return Estimate.missing(metric, reason, n=n, level=level, group=group)
    auc = binned_auc(counts)
    if auc.bound >= 0.5:
        reason = "constant scores: all patients lie in one bin"
        return Estimate.missing(metric, reason, n=n, level=level, group=group, binning_bound=auc.bound)
    low, high = auc.limits(normal_quantile(level))
    estimate = Estimate.of(
        metric, auc.value, low, high, n=n, method=_METHOD, level=level, group=group, binning_bound=auc.bound
    )
    if auc.bound <= LARGEST_BINNING_BOUND:
        return estimate
    reason = f"binning may move it by {auc.bound:.3f}; use more bins or other edges"
    return replace(estimate, status="imprecise", reason=reason)


def auc_by_group(
    hist: Counts, names: Sequence[str] | None = None, *, level: float = LEVEL, minimum: int = MINIMUM_PATIENTS
) -> tuple[Estimate, ...]:
    """AUC within each group of hist[g, y, bin], `unknown` last; with fewer than `minimum` of a class not estimable."""
    labels = group_names(len(hist), names)
    return tuple(_estimate(counts, "auc", name, level, minimum) for counts, name in zip(hist, labels, strict=True))


def overall_auc(hist: Counts, *, level: float = LEVEL, minimum: int = MINIMUM_PATIENTS) -> Estimate:
    """AUC over all patients, those of unknown group included."""
    return _estimate(hist.sum(axis=0), "auc", None, level, minimum)


def worst_group_auc(
    hist: Counts, names: Sequence[str] | None = None, *, level: float = LEVEL, minimum: int = MINIMUM_PATIENTS
) -> Estimate:
    """The smallest AUC of the declared groups; not estimable where one of them is not.

    Interval: simultaneous over the groups (Bonferroni), [smallest lower limit, smallest upper limit].
    """
    single = auc_by_group(hist, names, level=level, minimum=minimum)[:-1]
    if lacking := missing_group("worst_group_auc", single, level):
        return lacking
    aucs = [binned_auc(counts) for counts in hist[:-1]]
    limits = [auc.limits(normal_quantile(level, len(aucs))) for auc in aucs]
    return Estimate.of(
        "worst_group_auc",
        min(auc.value for auc in aucs),
        min(low for low, _ in limits),
        min(high for _, high in limits),
        n=sum(estimate.n for estimate in single),
        method=f"simultaneous {_METHOD}",
        level=level,
        binning_bound=max(auc.bound for auc in aucs),
    )


def auc_gap(
    hist: Counts, names: Sequence[str] | None = None, *, level: float = LEVEL, minimum: int = MINIMUM_PATIENTS
) -> Estimate:
    """Largest minus smallest AUC of the declared groups; not estimable where one of them is not.

    Interval: simultaneous over the pairs of groups (Bonferroni), each by MOVER from two logit DeLong intervals.
    """
    single = auc_by_group(hist, names, level=level, minimum=minimum)[:-1]
    if lacking := missing_group("auc_gap", single, level):
        return lacking
    aucs = [binned_auc(counts) for counts in hist[:-1]]
    pairs = list(combinations(aucs, 2))
    differences = [_difference(first, second, normal_quantile(level, len(pairs))) for first, second in pairs]
    value, low, high = (max(column) for column in zip(*differences, strict=True))
    return Estimate.of(
        "auc_gap",
        value,
        low,
        high,
        n=sum(estimate.n for estimate in single),
        method=f"simultaneous {_METHOD}",
        level=level,
        binning_bound=sum(sorted(auc.bound for auc in aucs)[-2:]),
    )


def missing_group(metric: str, single: Sequence[Estimate], level: float) -> Estimate | None:
    """The `not_estimable` of a comparison over all groups, naming those without a number; None if there are none."""
    lacking = [f"{estimate.group}: {estimate.reason}" for estimate in single if estimate.value is None]
    if not lacking:
        return None
    return Estimate.missing(metric, "; ".join(lacking), n=sum(estimate.n for estimate in single), level=level)


def _difference(first: BinnedAUC, second: BinnedAUC, z: float) -> tuple[float, float, float]:
    """|AUC - AUC| of two groups and its interval."""
    if first.value < second.value:
        first, second = second, first
    value = first.value - second.value
    (low1, high1), (low2, high2) = first.limits(z), second.limits(z)
    low = value - np.hypot(first.value - low1, high2 - second.value)
    high = value + np.hypot(high1 - first.value, second.value - low2)
    return value, max(float(low), 0.0), min(max(float(high), -float(low)), 1.0)


def xauc(
    hist: Counts, names: Sequence[str] | None = None, *, level: float = LEVEL, minimum: int = MINIMUM_PATIENTS
) -> dict[tuple[str, str], Estimate]:
    """P(score of a positive of g > score of a negative of h) for all declared g, h; the diagonal is the group's AUC.

    A shift of one group's scores leaves both AUCs within groups untouched and shows here.
    """
    labels = group_names(len(hist), names)[:-1]
    return {
        (g, h): _estimate(np.stack([hist[j, 0], hist[i, 1]]), "xauc", f"{g} over {h}", level, minimum)
        for i, g in enumerate(labels)
        for j, h in enumerate(labels)
    }


def placements_of_bins(hist: Counts) -> Floats:
    """The placement that a patient in each cell of hist[g, y, bin] has within its group, float64 in [0, 1].

    Edge case: 0 where the other class of the group is empty.
    """
    total = hist.sum(axis=-1, keepdims=True)
    below = np.cumsum(hist, axis=-1) - hist
    negatives_below = below[:, :1] + hist[:, :1] / 2
    positives_above = total[:, 1:] - below[:, 1:] - hist[:, 1:] / 2
    # Label 0 is placed among the positives above it, label 1 among the negatives below it.
    other = np.concatenate([total[:, 1:], total[:, :1]], axis=1)
    placed: Floats = np.concatenate([positives_above, negatives_below], axis=1) / np.maximum(other, 1)
    return placed


def placement_sums(before: Floats, after: Floats, label: Counts, group: Counts, groups: int) -> Floats:
    """One site's sums over patients by group and label: V_b, V_a, V_b^2, V_a^2, V_b V_a (b before, a after).

    Args:
        before, after: (n,) float64, each patient's placement under the two models, looked up in `placements_of_bins`
            of the pooled histograms.
        label, group: (n,) integers.
        groups: number of groups, `unknown` included.

    Returns:
        (groups, 2, 5) float64; every summand lies in [0, 1], so one patient's L2 bound is sqrt(5).
    """
    sums = np.zeros((groups, 2, 5))
    np.add.at(sums, (group, label), np.stack([before, after, before**2, after**2, before * after], axis=-1))
    return sums


def auc_covariance(hist: Counts, sums: Floats) -> Floats:
    """DeLong covariance [[var before, cov], [cov, var after]] of one group's two AUCs.

    Args:
        hist: counts[y, bin] of either model (only the numbers of patients are used).
        sums: (2, 5), the group's part of the summed `placement_sums`.
    """
    covariance = np.zeros((2, 2))
    for n, (v_b, v_a, v_bb, v_aa, v_ba) in zip(hist.sum(axis=1), sums, strict=True):
        if n < 2:
            continue
        scatter = np.array([[v_bb - v_b * v_b / n, v_ba - v_b * v_a / n], [v_ba - v_b * v_a / n, v_aa - v_a * v_a / n]])
        covariance += scatter / (n * (n - 1))
    return covariance


def _sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1.0 + math.tanh(0.5 * x))
