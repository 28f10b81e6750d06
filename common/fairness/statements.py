"""What may be said of a gap: shown, not shown, or within a declared margin. Never that there is none.

An interval that holds 0 shows no gap; it does not show that there is none. That two groups differ by less than matters
is a statement of its own, and needs a margin declared beforehand and the *whole* interval inside it (equivalence), for
every declared group: nobody knows how far one that cannot be judged lies from the others.

>>> gap = Estimate.of("equal_opportunity_difference", 0.02, 0.0, 0.04, n=900, method="")
>>> equivalence(gap, 0.05).text
'no gap shown; it lies within the declared margin of 0.05 (0.000 to 0.040)'
"""

from __future__ import annotations

from dataclasses import dataclass

from equipoise.common.fairness.estimate import Estimate

MARGIN = 0.05


@dataclass(frozen=True)
class Statement:
    """What one interval supports.

    Attributes:
        shown: whether it excludes 0; None where nothing is estimable.
        equivalent: whether all of it lies within the margin to both sides of 0; None where nothing is estimable or a
            declared group is left out.
        text: one sentence.
    """

    shown: bool | None
    equivalent: bool | None
    text: str


def equivalence(estimate: Estimate, margin: float = MARGIN) -> Statement:
    """What the interval of a gap or a difference supports, at a margin declared before the data were read.

    Raises:
        ValueError: the margin is not above 0.
    """
    if margin <= 0:
        raise ValueError(f"margin={margin}: expected a number above 0")
    if estimate.low is None or estimate.high is None:
        return Statement(None, None, f"nothing can be said ({estimate.status}: {estimate.reason})")
    low, high = estimate.low, estimate.high
    shown = low > 0 or high < 0
    equivalent = -margin < low and high < margin
    interval = f"{low:.3f} to {high:.3f}"
    if estimate.reason:
        first = "a gap is shown" if shown else "no gap is shown"
        judged = f"of the groups that can be judged, {first} ({interval})"
        return Statement(shown, None, f"{judged}; no margin can hold for all groups {estimate.reason}")
    furthest = max(abs(low), abs(high))
    first = "a gap is shown" if shown else "no gap shown"
    if equivalent:
        second = f"it lies within the declared margin of {margin:g} ({interval})"
    else:
        second = f"one of up to {furthest:.3f} cannot be ruled out ({interval}; declared margin {margin:g})"
    return Statement(shown, equivalent, f"{first}; {second}")
