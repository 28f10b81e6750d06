"""Rates by group and the gaps between groups, from counts of patients, each with its interval.

`counts[g, y, decision]` is a margin of the pair table or a histogram cut at an edge (`tables.counts_after`,
`tables.counts_at`); `g` ends with `unknown`, which has its rates shown and stays out of gaps unless asked for.

Official intervals: Wilson for a rate; MOVER of two Wilson intervals for balanced accuracy; simultaneous Newcombe with
Bonferroni over the pairs of groups (and over both rates, for equalized odds) for gaps. A gap compares the groups whose
rate is estimable; the reason names those it leaves out. Fewer than two leave no number.

Counts may carry noise of known variance (`noise`, see the module of that name). Wilson's interval then becomes
`intervals.score_limits`, the others follow from it, and a noisy share is cut to 0..1 and says so.

>>> table = np.array([[[80, 20], [10, 90]], [[85, 15], [30, 70]], [[0, 0], [0, 0]]])
>>> round(equalized_odds_difference(table, ["men", "women"]).value, 6)
0.2
>>> [e.value for e in rate_by_group("tpr", table, ["men", "women"])]
[0.9, 0.7, None]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from equipoise.common.fairness.contrasts import Gap, find_gap, gap_contrasts, gap_limits, gap_value
from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.intervals import mover, newcombe, normal_quantile, score_limits, wilson
from equipoise.common.fairness.noise import CellNoise, cell_variances, shortage
from equipoise.common.fairness.shares import RATES, fraction, shares_of
from equipoise.common.fairness.tables import Counts, Floats, group_names

__all__ = [
    "RATES",
    "Estimate",
    "Strata",
    "demographic_parity_difference",
    "equal_opportunity_difference",
    "equalized_odds_difference",
    "equalized_odds_mean",
    "expected_if_equal",
    "fpr_difference",
    "fraction",
    "gap",
    "newcombe",
    "overall_rate",
    "rate_by_group",
    "strata",
    "wilson",
]


def rate_by_group(
    metric: str,
    counts: Counts,
    names: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: CellNoise = 0.0,
) -> tuple[Estimate, ...]:
    """`metric` (a rate or `balanced_accuracy`) for each row of `counts` (G + 1, 2, 2), `unknown` last.

    A rate whose denominator is below `minimum`, or within its noise of 0, is not estimable. `noise` is the variance of
    the noise in one cell of `counts`, or an array that broadcasts to its shape.
    """
    labels = group_names(len(counts), names)
    variances = cell_variances(noise, counts)
    return tuple(
        _one(cell, variance, metric, name, level, minimum)
        for cell, variance, name in zip(counts, variances, labels, strict=True)
    )


def overall_rate(
    metric: str,
    counts: Counts,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: CellNoise = 0.0,
) -> Estimate:
    """A rate over all patients, those of unknown group included; `noise` as in `rate_by_group`."""
    return _one(counts.sum(axis=0), cell_variances(noise, counts).sum(axis=0), metric, None, level, minimum)


def _one(counts: Counts, variances: Floats, metric: str, group: str | None, level: float, minimum: int) -> Estimate:
    if metric == "balanced_accuracy":
        return _balanced_accuracy(counts, variances, group, level, minimum)
    part = shares_of([(metric, counts, variances)])
    n = int(part.trials[0])
    if lacking := part.lacking(minimum):
        return Estimate.missing(metric, lacking, n=n, level=level, group=group)
    low, high = score_limits(part.shares, part.trials, normal_quantile(level), part.inside, part.outside)
    method = "noisy wilson" if part.noisy else "wilson"
    sd = float(part.noise[0]) ** 0.5
    value, reason = part.shares[0], part.cut
    return Estimate.of(
        metric, value, low[0], high[0], n=n, method=method, level=level, group=group, reason=reason, noise_sd=sd
    )


def _balanced_accuracy(counts: Counts, variances: Floats, group: str | None, level: float, minimum: int) -> Estimate:
    metric, n = "balanced_accuracy", int(counts.sum())
    parts = shares_of([(rate, counts, variances) for rate in ("tpr", "tnr")])
    if lacking := parts.lacking(minimum):
        return Estimate.missing(metric, lacking, n=n, level=level, group=group)
    limits = score_limits(parts.shares, parts.trials, normal_quantile(level), parts.inside, parts.outside)
    low, high = mover(parts.shares, *limits, np.array([[0.5, 0.5]]), np.eye(2))
    method = "mover of noisy wilson" if parts.noisy else "mover of wilson"
    sd = 0.5 * float(parts.noise.sum()) ** 0.5
    value, reason = parts.shares.mean(), parts.cut
    return Estimate.of(
        metric, value, low[0], high[0], n=n, method=method, level=level, group=group, reason=reason, noise_sd=sd
    )


@dataclass(frozen=True)
class Strata:
    """The groups that each rate of a gap can be compared over, and why others are left out.

    Attributes:
        form: the gap.
        columns: (rate, row of the table) of every compared rate, rate by rate.
        sizes: number of compared groups of each rate.
        left_out: one clause for each declared group that a rate cannot speak for.
    """

    form: Gap
    columns: tuple[tuple[str, int], ...]
    sizes: tuple[int, ...]
    left_out: tuple[str, ...]

    @property
    def enough(self) -> bool:
        """True where every rate has two groups to compare (exactly two, for a signed gap)."""
        return min(self.sizes) >= 2 and (self.form.form != "signed" or max(self.sizes) == 2)

    @property
    def reason(self) -> str:
        """Which groups the gap does not speak for; empty if none."""
        return "without " + "; ".join(self.left_out) if self.left_out else ""

    @property
    def why_not(self) -> str:
        """Why there is no gap where there are not `enough` groups."""
        if min(self.sizes) >= 2:
            return f"{self.form.metric} compares two groups, and there are {max(self.sizes)}"
        return f"fewer than two groups to compare: {self.reason}"

    @property
    def contrasts(self) -> Floats:
        """(C, len(columns)) contrasts whose largest is the gap."""
        return gap_contrasts(self.sizes, self.form.form)


def strata(
    counts: Counts,
    form: Gap,
    names: Sequence[str] | None,
    minimum: int,
    noise: CellNoise = 0.0,
) -> Strata:
    """Which rates of `counts` (G + 1, 2, 2) a gap compares; `noise` as in `rate_by_group`."""
    labels = group_names(len(counts), names)
    variances = cell_variances(noise, counts)
    rows = range(len(counts) - 1)  # `unknown` is no group to compare
    columns: list[tuple[str, int]] = []
    sizes: list[int] = []
    left_out: list[str] = []
    for rate in form.rates:
        below, variance = fraction(counts, rate)[1], fraction(variances, rate)[1]
        lacking = {row: shortage(int(below[row]), RATES[rate][2], minimum, float(variance[row])) for row in rows}
        columns += [(rate, row) for row in rows if not lacking[row]]
        sizes.append(sum(not reason for reason in lacking.values()))
        left_out += [f"{labels[row]}: {reason}" for row, reason in lacking.items() if reason]
    return Strata(form, tuple(columns), tuple(sizes), tuple(left_out))


def gap(
    metric: str,
    counts: Counts,
    names: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: CellNoise = 0.0,
) -> Estimate:
    """A gap between groups.

    Args:
        metric: a name of `contrasts.GAPS`.
        counts: (G + 1, 2, 2), `unknown` last.
        names: the declared groups.
        minimum: smallest denominator of a compared rate.
        noise: variance of the noise in one cell of `counts`, or an array that broadcasts to its shape.

    Edge cases: fewer than two groups with enough patients for one of the rates give `not_estimable`; a rate of a group
    without enough is left out and named in `reason`.
    """
    form = find_gap(metric)
    variances = cell_variances(noise, counts)
    chosen = strata(counts, form, names, minimum, variances)
    if not chosen.enough:
        n = sum(int(fraction(counts, rate)[1][row]) for rate, row in chosen.columns)
        return Estimate.missing(metric, chosen.why_not, n=n, level=level)
    parts = shares_of([(rate, counts[row], variances[row]) for rate, row in chosen.columns])
    shares, contrasts, n = parts.shares, chosen.contrasts, int(parts.trials.sum())
    low, high = gap_limits(shares, parts.trials, contrasts, level, parts.inside, parts.outside)
    value = gap_value(shares, contrasts)
    sd = float(contrasts[np.argmax(contrasts @ shares)] ** 2 @ parts.noise) ** 0.5
    method = f"simultaneous {'noisy ' if parts.noisy else ''}newcombe, bonferroni over {len(contrasts) // 2}"
    return Estimate.of(metric, value, low, high, n=n, method=method, level=level, reason=chosen.reason, noise_sd=sd)


# Each takes (counts, names) and the options of `gap`.
equalized_odds_difference = partial(gap, "equalized_odds_difference")  # the larger of the TPR and the FPR gap
equalized_odds_mean = partial(gap, "equalized_odds_mean")  # their mean
equal_opportunity_difference = partial(gap, "equal_opportunity_difference")  # the TPR gap
fpr_difference = partial(gap, "fpr_difference")
demographic_parity_difference = partial(gap, "demographic_parity_difference")  # the gap of selection rates


def expected_if_equal(
    metric: str,
    counts: Counts,
    names: Sequence[str] | None = None,
    *,
    minimum: int = MINIMUM_PATIENTS,
    draws: int = 4000,
    noise: CellNoise = 0.0,
) -> float | None:
    """Mean gap that chance alone would show if all groups had the same rates; None where the gap is not estimable.

    Gaps of the maximum kind are biased upwards, more so for many or small groups; this is their value under no gap
    (parametric simulation with the groups' own sizes and the common rate; evaluation specification, section 4). The
    noise in the counts adds to what chance shows, and is simulated too.
    """
    form = find_gap(metric)
    variances = cell_variances(noise, counts)
    chosen = strata(counts, form, names, minimum, variances)
    if not chosen.enough:
        return None
    generator = np.random.default_rng(0)  # public figures only: a fixed seed makes the report reproducible
    columns: list[Floats] = []
    for rate in form.rates:
        parts = shares_of([(r, counts[row], variances[row]) for r, row in chosen.columns if r == rate])
        below = parts.trials.astype(np.int64)
        common = min(max(float(parts.counted.sum() / below.sum()), 0.0), 1.0)
        drawn = generator.binomial(below, common, (draws, below.size))
        if not parts.noisy:
            columns.append(drawn / below)
            continue
        inside, outside = (generator.normal(0, sd**0.5, drawn.shape) for sd in (parts.inside, parts.outside))
        columns.append(np.clip((drawn + inside) / np.maximum(below + inside + outside, 1.0), 0.0, 1.0))
    gaps = np.stack([np.ptp(column, axis=1) for column in columns])
    if form.form == "signed":
        gaps = np.stack([np.abs(sum(column[:, 0] - column[:, 1] for column in columns)) / len(columns)])
    joined = gaps.max(axis=0) if form.form == "max" else gaps.mean(axis=0)
    return float(joined.mean())
