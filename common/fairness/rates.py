"""Rates by group and the gaps between groups, from counts of patients, each with its interval.

`counts[g, y, decision]` is a margin of the pair table or a histogram cut at an edge (`tables.counts_after`,
`tables.counts_at`); `g` ends with `unknown`, which has its rates shown and stays out of gaps unless asked for.

Official intervals: Wilson for a rate; MOVER of two Wilson intervals for balanced accuracy; simultaneous Newcombe with
Bonferroni over the pairs of groups (and over both rates, for equalized odds) for gaps. A gap compares the groups whose
rate is estimable; the reason names those it leaves out. Fewer than two leave no number.

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
from numpy.typing import NDArray

from equipoise.common.errors import StudyError
from equipoise.common.fairness.contrasts import (
    Gap,
    find_gap,
    gap_contrasts,
    gap_limits,
    gap_value,
)
from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.intervals import mover, newcombe, normal_quantile, wilson, wilson_limits
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

# (label, decision) cells of the numerator and of the denominator, and what the denominator counts.
_POSITIVES, _NEGATIVES = ((1, 0), (1, 1)), ((0, 0), (0, 1))
_CALLED, _CLEARED = ((0, 1), (1, 1)), ((0, 0), (1, 0))
_EVERYONE = _NEGATIVES + _POSITIVES
RATES = {
    "tpr": (((1, 1),), _POSITIVES, "positives"),
    "fnr": (((1, 0),), _POSITIVES, "positives"),
    "fpr": (((0, 1),), _NEGATIVES, "negatives"),
    "tnr": (((0, 0),), _NEGATIVES, "negatives"),
    "ppv": (((1, 1),), _CALLED, "positive decisions"),
    "npv": (((0, 0),), _CLEARED, "negative decisions"),
    "selection_rate": (_CALLED, _EVERYONE, "patients"),
    "accuracy": (((0, 0), (1, 1)), _EVERYONE, "patients"),
    "prevalence": (_POSITIVES, _EVERYONE, "patients"),
}


def fraction(counts: Counts, rate: str) -> tuple[Counts, Counts]:
    """Numerator and denominator of a rate; counts[..., y, decision] gives arrays of the leading shape.

    Raises:
        StudyError: no rate of this name.
    """
    if rate not in RATES:
        raise StudyError(f"metric={rate}: unknown rate; choose one of balanced_accuracy, {', '.join(RATES)}")
    above, below, _ = RATES[rate]
    cells = [sum((counts[..., y, decision] for y, decision in part), np.int64(0)) for part in (above, below)]
    return np.asarray(cells[0]), np.asarray(cells[1])


def rate_by_group(
    metric: str,
    counts: Counts,
    names: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
) -> tuple[Estimate, ...]:
    """`metric` (a rate or `balanced_accuracy`) for each row of `counts` (G + 1, 2, 2), `unknown` last.

    A rate whose denominator is below `minimum` is not estimable.
    """
    labels = group_names(len(counts), names)
    return tuple(_one(cell, metric, name, level, minimum) for cell, name in zip(counts, labels, strict=True))


def overall_rate(metric: str, counts: Counts, *, level: float = LEVEL, minimum: int = MINIMUM_PATIENTS) -> Estimate:
    """A rate over all patients, those of unknown group included."""
    return _one(counts.sum(axis=0), metric, None, level, minimum)


def _one(counts: Counts, metric: str, group: str | None, level: float, minimum: int) -> Estimate:
    if metric == "balanced_accuracy":
        return _balanced_accuracy(counts, group, level, minimum)
    above, below = (int(part) for part in fraction(counts, metric))
    if below < max(minimum, 1):
        return Estimate.missing(metric, too_few(below, metric, minimum), n=below, level=level, group=group)
    low, high = wilson(above, below, level)
    return Estimate.of(metric, above / below, low, high, n=below, method="wilson", level=level, group=group)


def _balanced_accuracy(counts: Counts, group: str | None, level: float, minimum: int) -> Estimate:
    n = int(counts.sum())
    parts = [(rate, int(above), int(below)) for rate in ("tpr", "tnr") for above, below in [fraction(counts, rate)]]
    lacking = [too_few(below, rate, minimum) for rate, _, below in parts if below < max(minimum, 1)]
    if lacking:
        return Estimate.missing("balanced_accuracy", "; ".join(lacking), n=n, level=level, group=group)
    trials = np.array([below for _, _, below in parts], dtype=np.float64)
    shares = np.array([above for _, above, _ in parts]) / trials
    limits = wilson_limits(shares, trials, normal_quantile(level))
    low, high = mover(shares, *limits, np.array([[0.5, 0.5]]), np.eye(2))
    return Estimate.of(
        "balanced_accuracy", shares.mean(), low[0], high[0], n=n, method="mover of wilson", level=level, group=group
    )


def too_few(count: int, rate: str, minimum: int) -> str:
    """Why a rate of this denominator has no number."""
    return f"{count} {RATES[rate][2]}, {minimum} needed"


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
        """True where every rate has two groups to compare."""
        return min(self.sizes) >= 2

    @property
    def reason(self) -> str:
        """Which groups the gap does not speak for; empty if none."""
        return "without " + "; ".join(self.left_out) if self.left_out else ""

    @property
    def contrasts(self) -> Floats:
        """(C, len(columns)) contrasts whose largest is the gap."""
        return gap_contrasts(self.sizes, self.form.form)


def strata(
    counts: Counts, form: Gap, names: Sequence[str] | None, minimum: int, include_unknown: bool = False
) -> Strata:
    """Which rates of `counts` (G + 1, 2, 2) a gap compares."""
    labels = group_names(len(counts), names)
    rows = range(len(counts) if include_unknown else len(counts) - 1)
    columns: list[tuple[str, int]] = []
    sizes: list[int] = []
    left_out: list[str] = []
    for rate in form.rates:
        below = fraction(counts, rate)[1]
        kept = [row for row in rows if below[row] >= max(minimum, 1)]
        columns += [(rate, row) for row in kept]
        sizes.append(len(kept))
        left_out += [f"{labels[row]}: {too_few(int(below[row]), rate, minimum)}" for row in rows if row not in kept]
    return Strata(form, tuple(columns), tuple(sizes), tuple(left_out))


def gap(
    metric: str,
    counts: Counts,
    names: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    include_unknown: bool = False,
) -> Estimate:
    """A gap between groups.

    Args:
        metric: a name of `contrasts.GAPS`.
        counts: (G + 1, 2, 2), `unknown` last.
        names: the declared groups.
        minimum: smallest denominator of a compared rate.
        include_unknown: compare `unknown` as a group.

    Edge cases: fewer than two groups with enough patients for one of the rates give `not_estimable`; a rate of a group
    without enough is left out and named in `reason`.
    """
    form = find_gap(metric)
    chosen = strata(counts, form, names, minimum, include_unknown)
    parts = [tuple(int(x[row]) for x in fraction(counts, rate)) for rate, row in chosen.columns]
    n = sum(below for _, below in parts)
    if not chosen.enough:
        reason = f"fewer than two groups to compare: {chosen.reason}"
        return Estimate.missing(metric, reason, n=n, level=level)
    trials = np.array([below for _, below in parts], dtype=np.float64)
    shares = np.array([above for above, _ in parts]) / trials
    contrasts = chosen.contrasts
    low, high = gap_limits(shares, trials, contrasts, level)
    value = gap_value(shares, contrasts)
    method = f"simultaneous newcombe, bonferroni over {len(contrasts) // 2}"
    return Estimate.of(metric, value, low, high, n=n, method=method, level=level, reason=chosen.reason)


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
    include_unknown: bool = False,
    draws: int = 4000,
) -> float | None:
    """Mean gap that chance alone would show if all groups had the same rates; None where the gap is not estimable.

    Gaps of the maximum kind are biased upwards, more so for many or small groups; this is their value under no gap
    (parametric simulation with the groups' own sizes and the common rate; evaluation specification, section 4).
    """
    form = find_gap(metric)
    chosen = strata(counts, form, names, minimum, include_unknown)
    if not chosen.enough:
        return None
    generator = np.random.default_rng(0)  # public figures only: a fixed seed makes the report reproducible
    columns: list[NDArray[np.float64]] = []
    for rate in form.rates:
        above, below = (x[[row for r, row in chosen.columns if r == rate]] for x in fraction(counts, rate))
        columns.append(generator.binomial(below, above.sum() / below.sum(), (draws, below.size)) / below)
    gaps = np.stack([np.ptp(column, axis=1) for column in columns])
    joined = gaps.max(axis=0) if form.form == "max" else gaps.mean(axis=0)
    return float(joined.mean())
