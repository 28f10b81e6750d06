"""AUC from score histograms: by group, over all, across groups, with DeLong intervals and the paired change.

With P_b and N_b the positives and negatives in bin b, AUC_B = sum_b P_b (N_<b + N_b / 2) / (n+ n-): ties inside a bin
count one half. It differs from the AUC of the unbinned scores by at most `binning_bound`, half of sum_b p_b q_b with
p, q the bins' shares of each class. Where that is over 0.005 an AUC, and whatever compares it, is `imprecise`.

The interval is taken on the logit scale with the quantile of a t distribution whose degrees of freedom are
Satterthwaite's for the two classes' variances of placements, as Brunner and Munzel have it for the same statistic: with
ten positives the normal quantile covers .91 to .94, this one .93 to .95, and with fifty they are alike (decision 0041).

Histograms may carry noise (`noise`: variance of one cell, or what `noise.anchored` returned with the histogram). The
AUC is bilinear in the counts, so a noisy histogram gives it without bias as it is, negative bins included; the noise
adds the variance of sum_b (F_b - A) times the noise of bin b, with F the placements, over n+, and likewise over n-. The
interval joins DeLong's on the logit scale, taken at the projected histogram, with that of the noise (MOVER). Noisy
histograms have few bins, whose AUC lies below that of the scores; `placements.coarseness` makes up for it (decision
0044).

References:
    DeLong, DeLong and Clarke-Pearson, Biometrics 1988;44:837-845. Sun and Xu, IEEE SPL 2014;21:1389-1393 (placements).
    Brunner and Munzel, Biom J 2000;42:17-25 (degrees of freedom). Kallus and Zhou, NeurIPS 2019 (xAUC).
    Logit scale: evaluation specification, section 4.

>>> hist = np.array([[[2, 1, 0], [0, 1, 2]], [[0, 0, 0], [0, 0, 0]]])
>>> round(binned_auc(hist[0]).value, 4), round(binned_auc(hist[0]).bound, 4)
(0.9444, 0.0556)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.special import expit, ndtr, stdtrit

from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.intervals import normal_quantile
from equipoise.common.fairness.noise import HistogramNoise, histogram_noise, needed, projected, summed_noise
from equipoise.common.fairness.placements import auc_influence, coarseness, placement_sums, placements_of_bins
from equipoise.common.fairness.tables import Table, group_names

__all__ = [
    "LARGEST_BINNING_BOUND",
    "BinnedAUC",
    "auc_by_group",
    "auc_estimate",
    "auc_gap",
    "binned_auc",
    "marked_if_coarse",
    "missing_group",
    "overall_auc",
    "placement_sums",
    "placements_of_bins",
    "worst_group_auc",
    "xauc",
]

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
        noise: variance that the noise in the counts adds.
        lacking: what was added for what few noisy bins leave out (`placements.coarseness`); 0 without noise.
        centre: AUC of the projected histogram, at which `variance` was taken; `value` without noise.
        degrees: degrees of freedom of `variance`.
    """

    value: float
    bound: float
    variance: float
    positives: int
    negatives: int
    noise: float
    centre: float
    degrees: float
    lacking: float = 0.0

    def limits(self, z: float) -> tuple[float, float]:
        """Interval at the normal quantile z (t for sampling) on the logit scale.

        With noise, its distances and z deviations of the noise are joined in quadrature.

        Edge case: where every pair is ranked right (or every one wrong), DeLong's variance is 0, which is no certainty.
        Pairing off min(n+, n-) disjoint positive-negative pairs makes their successes binomial with the AUC as its
        probability, so Wilson's interval of that many successes holds.
        """
        low, high = self._sampling_limits(z)
        if self.noise == 0.0:
            return low, high
        down, up = (math.hypot(part, z * self.noise**0.5) for part in (self.centre - low, high - self.centre))
        return max(self.value - down, 0.0), min(self.value + up, 1.0)

    def _sampling_limits(self, z: float) -> tuple[float, float]:
        if self.variance == 0.0:
            spread = z * z / (min(self.positives, self.negatives) + z * z)
            return max(self.centre - spread, 0.0), min(self.centre + spread, 1.0)
        half = float(stdtrit(self.degrees, ndtr(z))) * self.variance**0.5 / (self.centre * (1 - self.centre))
        middle = math.log(self.centre / (1 - self.centre))
        return float(expit(middle - half)), float(expit(middle + half))


def binned_auc(counts: Table, noise: float | HistogramNoise = 0.0) -> BinnedAUC:
    """AUC of counts[y, bin]; also across groups, with the negatives of one and the positives of another.

    Args:
        counts: (2, B); with noise, cells may be negative.
        noise: variance of the noise in one cell, or of `noise.anchored` counts.

    Raises:
        ValueError: a class has no patients.
    """
    blur = histogram_noise(noise, counts.shape[-1])
    if blur.cell == 0.0:
        return _exact_auc(counts)
    total = counts.sum(axis=1)
    if total.min() <= 0:
        raise ValueError("the AUC needs patients of both classes")
    value = float((counts[1] * placements_of_bins(counts[None])[0, 1]).sum()) / float(total[1])
    lacking = float(coarseness(counts))
    nearest = projected(counts, total)
    shape = _exact_auc(nearest)
    rests = auc_influence(nearest, shape.value)
    variance = sum(
        blur.cell * float(((rest - rest.mean()) ** 2).sum()) + blur.total * float(rest.mean()) ** 2 for rest in rests
    )
    return replace(shape, value=min(max(value + lacking, 0.0), 1.0), noise=variance, lacking=lacking)


def _exact_auc(counts: Table) -> BinnedAUC:
    total = [round(float(n)) for n in counts.sum(axis=1)]
    if min(total) == 0:
        raise ValueError("the AUC needs patients of both classes")
    placements = placements_of_bins(counts[None])[0]
    negatives, positives = total
    value = float((counts[1] * placements[1]).sum()) / positives
    bound = 0.5 * float((counts[0] / negatives * (counts[1] / positives)).sum())
    freedom = [max(n - 1, 1) for n in total]
    parts = [float((counts[y] * (placements[y] - value) ** 2).sum()) / (freedom[y] * total[y]) for y in (0, 1)]
    variance, spread = sum(parts), sum(part * part / n for part, n in zip(parts, freedom, strict=True))
    degrees = variance * variance / spread if spread > 0 else float(min(freedom))
    return BinnedAUC(value, bound, variance, positives, negatives, 0.0, value, degrees)


def auc_estimate(
    counts: Table,
    noise: float | HistogramNoise,
    metric: str,
    group: str | None,
    level: float,
    minimum: int,
) -> Estimate:
    """The AUC of counts[y, bin] as an estimate."""
    negatives, positives = (round(float(n)) for n in counts.sum(axis=1))
    n = negatives + positives
    blur = histogram_noise(noise, counts.shape[-1])
    need = max(needed(minimum, blur.total), 1)
    if min(negatives, positives) < need:
        noisy = f", counted with noise of {blur.total**0.5:.1f}" if blur.total else ""
        reason = f"{positives} positives and {negatives} negatives{noisy}, {need} of each needed"
        return Estimate.missing(metric, reason, n=n, level=level, group=group)
    auc = binned_auc(counts, noise)
    if auc.bound >= 0.5:
        reason = "constant scores: all patients lie in one bin"
        return Estimate.missing(metric, reason, n=n, level=level, group=group, binning_bound=auc.bound)
    low, high = auc.limits(normal_quantile(level))
    method = f"noisy {_METHOD}" if auc.noise else _METHOD
    sd, bound = auc.noise**0.5, auc.bound
    estimate = Estimate.of(
        metric, auc.value, low, high, n=n, method=method, level=level, group=group, binning_bound=bound, noise_sd=sd
    )
    return marked_if_coarse(estimate, [auc])


def marked_if_coarse(estimate: Estimate, aucs: Iterable[BinnedAUC]) -> Estimate:
    """A figure made of `aucs`, `imprecise` whatever its interval where binning may move one of them far."""
    aucs = list(aucs)
    if max(auc.bound for auc in aucs) <= LARGEST_BINNING_BOUND:
        return estimate
    noisy = any(auc.noise > 0 for auc in aucs)
    advice = "what smooth scores lose by it is made up for" if noisy else "use more bins or other edges"
    reason = f"binning may move it by up to {estimate.binning_bound:.3f}; {advice}"
    return replace(estimate, status="imprecise", reason=reason)


def auc_by_group(
    hist: Table,
    names: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: float | HistogramNoise = 0.0,
) -> tuple[Estimate, ...]:
    """AUC within each group of hist[g, y, bin], `unknown` last; with fewer than `minimum` of a class not estimable.

    `noise` is the variance of the noise in one cell of `hist`, or what `noise.anchored` returned with it.
    """
    labels = group_names(len(hist), names)
    return tuple(
        auc_estimate(counts, noise, "auc", name, level, minimum) for counts, name in zip(hist, labels, strict=True)
    )


def overall_auc(
    hist: Table,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: float | HistogramNoise = 0.0,
) -> Estimate:
    """AUC over all patients, those of unknown group included; `noise` as in `auc_by_group`."""
    return auc_estimate(hist.sum(axis=0), summed_noise(noise, len(hist)), "auc", None, level, minimum)


def worst_group_auc(
    hist: Table,
    names: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: float | HistogramNoise = 0.0,
) -> Estimate:
    """The smallest AUC of the declared groups; not estimable where one of them is not. `noise` as in `auc_by_group`.

    Interval: simultaneous over the groups (Bonferroni), [smallest lower limit, smallest upper limit].
    """
    single = auc_by_group(hist, names, level=level, minimum=minimum, noise=noise)[:-1]
    if lacking := missing_group("worst_group_auc", single, level):
        return lacking
    aucs = [binned_auc(counts, noise) for counts in hist[:-1]]
    limits = [auc.limits(normal_quantile(level, len(aucs))) for auc in aucs]
    worst = min(aucs, key=lambda auc: auc.value)
    estimate = Estimate.of(
        "worst_group_auc",
        worst.value,
        min(low for low, _ in limits),
        min(high for _, high in limits),
        n=sum(estimate.n or 0 for estimate in single),
        method=f"simultaneous {'noisy ' if worst.noise else ''}{_METHOD}",
        level=level,
        binning_bound=max(auc.bound for auc in aucs),
        noise_sd=worst.noise**0.5,
    )
    return marked_if_coarse(estimate, aucs)


def auc_gap(
    hist: Table,
    names: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: float | HistogramNoise = 0.0,
) -> Estimate:
    """Largest minus smallest AUC of the declared groups; not estimable where one of them is not.

    Interval: simultaneous over the pairs of groups (Bonferroni), each by MOVER from two logit DeLong intervals. `noise`
    as in `auc_by_group`.
    """
    single = auc_by_group(hist, names, level=level, minimum=minimum, noise=noise)[:-1]
    if lacking := missing_group("auc_gap", single, level):
        return lacking
    aucs = [binned_auc(counts, noise) for counts in hist[:-1]]
    pairs = list(combinations(aucs, 2))
    differences = [_difference(first, second, normal_quantile(level, len(pairs))) for first, second in pairs]
    value, low, high = (max(column) for column in zip(*differences, strict=True))
    ends = min(aucs, key=lambda auc: auc.value), max(aucs, key=lambda auc: auc.value)
    estimate = Estimate.of(
        "auc_gap",
        value,
        low,
        high,
        n=sum(estimate.n or 0 for estimate in single),
        method=f"simultaneous {'noisy ' if ends[0].noise else ''}{_METHOD}",
        level=level,
        binning_bound=sum(sorted(auc.bound for auc in aucs)[-2:]),
        noise_sd=sum(auc.noise for auc in ends) ** 0.5,
    )
    return marked_if_coarse(estimate, aucs)


def missing_group(metric: str, single: Sequence[Estimate], level: float) -> Estimate | None:
    """The `not_estimable` of a comparison over all groups, naming those without a number; None if there are none."""
    lacking = [f"{estimate.group}: {estimate.reason}" for estimate in single if estimate.value is None]
    if not lacking:
        return None
    return Estimate.missing(metric, "; ".join(lacking), n=sum(estimate.n or 0 for estimate in single), level=level)


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
    hist: Table,
    names: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: float | HistogramNoise = 0.0,
) -> dict[tuple[str, str], Estimate]:
    """P(score of a positive of g > score of a negative of h) for all declared g, h; the diagonal is the group's AUC.

    A shift of one group's scores leaves both AUCs within groups untouched and shows here. `noise` as in `auc_by_group`.
    """
    labels = group_names(len(hist), names)[:-1]
    return {
        (g, h): auc_estimate(np.stack([hist[j, 0], hist[i, 1]]), noise, "xauc", f"{g} over {h}", level, minimum)
        for i, g in enumerate(labels)
        for j, h in enumerate(labels)
    }
