"""What an interval supports: whole intervals inside the margin, and no gap is never no gap."""

from __future__ import annotations

import pytest

from equipoise.common.fairness.estimate import Estimate
from equipoise.common.fairness.statements import equivalence


def gap(low: float, high: float) -> Estimate:
    return Estimate.of("tpr_difference", (low + high) / 2, low, high, n=500, method="")


@pytest.mark.parametrize(
    ("low", "high", "shown", "equivalent"),
    [
        (0.0, 0.04, False, True),
        (-0.03, 0.04, False, True),
        (0.01, 0.04, True, True),
        (0.0, 0.05, False, False),  # the margin itself is outside
        (-0.051, 0.02, False, False),
        (0.06, 0.09, True, False),
        (-0.20, -0.01, True, False),
    ],
)
def test_only_whole_intervals_count(low: float, high: float, shown: bool, equivalent: bool) -> None:
    found = equivalence(gap(low, high), 0.05)
    assert (found.shown, found.equivalent) == (shown, equivalent)
    assert found.text.startswith("a gap is shown" if shown else "no gap shown")
    assert ("within the declared margin of 0.05" in found.text) == equivalent


def test_what_cannot_be_ruled_out_is_said() -> None:
    assert equivalence(gap(-0.02, 0.12)).text == (
        "no gap shown; one of up to 0.120 cannot be ruled out (-0.020 to 0.120; declared margin 0.05)"
    )
    none = equivalence(Estimate.missing("tpr_difference", "3 positives, 10 needed", n=3))
    assert (none.shown, none.equivalent) == (None, None)
    assert none.text == "nothing can be said (not_estimable: 3 positives, 10 needed)"
    with pytest.raises(ValueError, match="margin=0"):
        equivalence(gap(0, 1), 0.0)


def test_no_margin_holds_where_a_declared_group_is_left_out() -> None:
    gap = Estimate.of(
        "equal_opportunity_difference", 0.01, 0.0, 0.02, n=900, method="", reason="without C: 6 positives"
    )
    found = equivalence(gap, 0.05)
    assert (found.shown, found.equivalent) == (False, None)
    assert found.text == (
        "of the groups that can be judged, no gap is shown (0.000 to 0.020); no margin can hold for all groups without "
        "C: 6 positives"
    )
