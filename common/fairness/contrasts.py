"""Gaps as the largest of a set of linear contrasts of rates.

Every gap that this project reports is max_i (c_i . r) over rows c_i and the groups' rates r: `max - min` of one rate
is the largest pairwise difference; the equalized odds difference is the largest over both rates' pairs; its mean form
is the largest over pairs of pairs, because the two gaps are maximised separately. The rows hold each contrast with both
signs. Since a maximum grows with each of its parts, simultaneous intervals of the contrasts give an interval of the
gap: [largest lower limit, largest upper limit]. A bootstrap of the maximum does not (coverage .000 for four equal
groups, evaluation specification, section 4).

>>> gap_contrasts([2], "max")
array([[ 1., -1.],
       [-1.,  1.]])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

import numpy as np

from equipoise.common.errors import StudyError
from equipoise.common.fairness.intervals import mover, normal_quantile, score_limits
from equipoise.common.fairness.tables import Floats

Form = Literal["max", "mean", "signed"]


@dataclass(frozen=True)
class Gap:
    """A gap by its rates and how they are joined.

    Attributes:
        metric: exact name.
        rates: the rates compared between groups.
        form: `max`, the largest of the rates' gaps (fairlearn's `worst_case`, `between_groups`); `mean`, their mean;
            `signed`, the absolute mean of two groups' differences, which cancel where they have opposite signs.
    """

    metric: str
    rates: tuple[str, ...]
    form: Form


GAPS = {
    gap.metric: gap
    for gap in (
        Gap("equalized_odds_difference", ("tpr", "fpr"), "max"),
        Gap("equalized_odds_mean", ("tpr", "fpr"), "mean"),
        Gap("equal_opportunity_difference", ("tpr",), "max"),
        Gap("fpr_difference", ("fpr",), "max"),
        Gap("demographic_parity_difference", ("selection_rate",), "max"),
    )
}

# Only for tables that compare figures with papers: BMFT's code adds the two differences inside one absolute value, so a
# TPR gap of +.20 and an FPR gap of -.20 give 0 (evaluation specification, section 1).
COMPARISON_GAPS = {"eodds_bmft_signed": Gap("eodds_bmft_signed", ("tpr", "fpr"), "signed")}


def find_gap(metric: str) -> Gap:
    """The gap called `metric`.

    Raises:
        StudyError: there is none of this name.
    """
    found = {**GAPS, **COMPARISON_GAPS}.get(metric)
    if found is None:
        raise StudyError(f"metric={metric}: unknown gap; choose one of {', '.join(GAPS)}")
    return found


def gap_contrasts(sizes: Sequence[int], form: Form) -> Floats:
    """Contrasts over the concatenated rates of several parts, both signs of each.

    Args:
        sizes: number of compared groups in each part (a part is one rate), each at least 2.
        form: how the parts are joined.

    Returns:
        (C, sum(sizes)) float64; the gap of rates r is `max(C @ r)`.

    Raises:
        ValueError: the form `signed` with other than two groups.
    """
    width = sum(sizes)
    if form == "signed":
        if any(size != 2 for size in sizes):
            raise ValueError(f"sizes={list(sizes)}: a signed gap compares two groups")
        row = np.tile([1.0, -1.0], len(sizes)) / len(sizes)
        return np.stack([row, -row])
    parts = []
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        pairs = list(permutations(range(size), 2))
        rows = np.zeros((len(pairs), width))
        for row, (first, second) in zip(rows, pairs, strict=True):
            row[start + first], row[start + second] = 1.0, -1.0
        parts.append(rows)
    if form == "max":
        return np.vstack(parts)
    joined = parts[0]
    for rows in parts[1:]:
        joined = (joined[:, None, :] + rows[None, :, :]).reshape(-1, width)
    return joined / len(parts)


def gap_value(shares: Floats, contrasts: Floats) -> float:
    """The gap of rates `shares` (P,)."""
    return float(np.max(contrasts @ shares))


def gap_limits(
    shares: Floats,
    trials: Floats,
    contrasts: Floats,
    level: float,
    inside: Floats | None = None,
    outside: Floats | None = None,
) -> tuple[float, float]:
    """Interval of a gap from independent rates: simultaneous Newcombe, Bonferroni over the contrasts.

    Args:
        shares, trials: (P,) rates and their denominators, all above 0.
        contrasts: (C, P), each contrast with both signs.
        level: confidence level of the gap.
        inside, outside: (P,) variances of the noise, as in `intervals.score_limits`.
    """
    z = normal_quantile(level, len(contrasts) // 2)
    limits = score_limits(shares, trials, z, inside, outside)
    lows, highs = mover(shares, *limits, contrasts, np.eye(len(shares)))
    return max(float(lows.max()), 0.0), min(float(highs.max()), 1.0)
