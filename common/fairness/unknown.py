"""Patients of unknown group: how many, whether by label, and how far a gap could move if their groups were known.

`unknown` is a level of its own: counted, shown, and left out of gaps. What its patients could do to a gap is bounded
without any assumption (Manski): the widest gap gives all unknown patients that help to one group and all that hurt to
another; the narrowest lets each of the two outermost groups move towards the other. For two groups both bounds are
attained, up to one patient where the groups could meet; for more the lower one may be unattainably low.

>>> table = np.array([[[80, 20], [10, 90]], [[85, 15], [30, 70]], [[0, 0], [5, 5]]])
>>> bounds = allocation_bounds("equal_opportunity_difference", table)
>>> round(bounds.low, 4), round(bounds.high, 4)  # 90/105 - 75/105 and 95/105 - 70/105
(0.1429, 0.2381)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.common.fairness.contrasts import find_gap
from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS
from equipoise.common.fairness.intervals import newcombe
from equipoise.common.fairness.rates import strata
from equipoise.common.fairness.shares import fraction
from equipoise.common.fairness.tables import Counts

LARGEST_SHARE = 0.10  # of patients with unknown group, before a page says so first


@dataclass(frozen=True)
class AllocationBounds:
    """Between which values a gap lies, whatever the groups of the unknown patients are.

    Attributes:
        metric: the gap.
        low, high: its bounds; they are about the counted patients and hold no sampling error.
        unknown: patients of unknown group in the denominators.
    """

    metric: str
    low: float
    high: float
    unknown: int


def allocation_bounds(
    metric: str, counts: Counts, names: Sequence[str] | None = None, *, minimum: int = MINIMUM_PATIENTS
) -> AllocationBounds | None:
    """Bounds of a gap over all ways to give the unknown patients to the declared groups that it compares.

    Args:
        metric: a name of `contrasts.GAPS`.
        counts: (G + 1, 2, 2) exact counts, `unknown` last.
        names, minimum: as in `rates.gap`.

    Returns:
        None where the gap is not estimable.

    Raises:
        ValueError: a count is negative, as only noise makes it; there are no bounds of a noisy table.
    """
    if counts.min() < 0:
        raise ValueError("the bounds need exact counts; this table carries noise")
    form = find_gap(metric)
    chosen = strata(counts, form, names, minimum)
    if not chosen.enough or form.form == "signed":
        return None
    lows, highs, unknown = [], [], 0
    for rate in form.rates:
        above, below = fraction(counts, rate)
        rows = [row for r, row in chosen.columns if r == rate]
        for_it, against = int(above[-1]), int(below[-1] - above[-1])
        unknown += for_it + against
        # Rates of each group where all unknown patients help it, all hurt it, or none is given.
        helped = (above[rows] + for_it) / (below[rows] + for_it)
        hurt = above[rows] / (below[rows] + against)
        apart = ~np.eye(len(rows), dtype=bool)
        highs.append(float((helped[:, None] - hurt[None, :])[apart].max()))
        lows.append(max(float((hurt[:, None] - helped[None, :])[apart].max()), 0.0))
    join = max if form.form == "max" else _mean
    return AllocationBounds(metric, join(lows), join(highs), unknown)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def unknown_warnings(counts: Counts, *, level: float = LEVEL) -> tuple[str, ...]:
    """Sentences on the patients of unknown group in exact counts[g, y, decision]; none where little is unknown.

    One where they are more than a tenth of all, one where their share differs by label, so that leaving them out
    changes the mix of patients (Newcombe's interval excludes 0).
    """
    by_label = counts.sum(axis=2)
    everyone, unknown = by_label.sum(axis=0), by_label[-1]
    found = []
    if everyone.sum() and unknown.sum() / everyone.sum() > LARGEST_SHARE:
        share = unknown.sum() / everyone.sum()
        found.append(f"the group of {unknown.sum()} of {everyone.sum()} patients ({share:.0%}) is unknown")
    if everyone.min() > 0:
        low, high = newcombe(int(unknown[1]), int(everyone[1]), int(unknown[0]), int(everyone[0]), level)
        if low > 0 or high < 0:
            shares = [f"{count / total:.1%}" for count, total in zip(unknown[::-1], everyone[::-1], strict=True)]
            found.append(f"the group is unknown for {shares[0]} of positives and {shares[1]} of negatives")
    return tuple(found)
