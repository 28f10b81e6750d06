"""Differences from a reference group: values, simultaneous limits, who is the reference."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.common.errors import StudyError
from equipoise.common.fairness.intervals import newcombe
from equipoise.common.fairness.reference import difference, differences_from_reference, largest_group

NAMES = ["a", "b", "c"]
COUNTS = np.array(
    [[[80, 20], [10, 90]], [[85, 15], [30, 70]], [[700, 100], [50, 150]], [[0, 0], [0, 0]]],
)


def test_every_other_group_is_compared_with_the_largest() -> None:
    assert largest_group(COUNTS, NAMES) == "c"
    found = differences_from_reference("tpr", COUNTS, NAMES)
    assert [e.group for e in found] == ["a less c", "b less c"]
    assert [e.value for e in found] == pytest.approx([0.9 - 0.75, 0.7 - 0.75])
    assert [e.metric for e in found] == ["tpr_difference"] * 2
    declared = differences_from_reference("fpr", COUNTS, NAMES, reference="a")
    assert [e.group for e in declared] == ["b less a", "c less a"]
    assert declared[0].value == pytest.approx(-0.05)


def test_limits_are_newcombes_shared_by_the_comparisons() -> None:
    found = differences_from_reference("tpr", COUNTS, NAMES)[1]
    assert (found.low, found.high) == pytest.approx(newcombe(70, 100, 150, 200, 1 - 0.05 / 2), abs=1e-12)
    single = difference("tpr", COUNTS, 1, 2, NAMES)
    assert (single.low, single.high) == pytest.approx(newcombe(70, 100, 150, 200), abs=1e-12)
    assert (single.method, found.method) == ("newcombe", "simultaneous newcombe, bonferroni over 2")


def test_the_noise_adds_up_over_both_groups() -> None:
    # One cell above and one beside in each group: 9 (.7^2 + .3^2) / 100^2 + 9 (.75^2 + .25^2) / 200^2.
    found = difference("tpr", COUNTS, 1, 2, NAMES, noise=9.0)
    assert found.noise_sd == pytest.approx((9 * 0.58 / 100**2 + 9 * 0.625 / 200**2) ** 0.5)
    plain = difference("tpr", COUNTS, 1, 2, NAMES)
    assert found.low < plain.low < plain.high < found.high  # type: ignore[operator]


def test_a_group_without_patients_is_named_and_others_stay() -> None:
    counts = COUNTS.copy()
    counts[0, 1] = [1, 2]
    found = differences_from_reference("tpr", counts, NAMES)
    assert (found[0].value, found[0].reason) == (None, "a: 3 positives, 10 needed")
    assert found[1].value is not None
    with pytest.raises(StudyError, match="reference=unknown: no declared group; choose one of a, b, c"):
        differences_from_reference("tpr", counts, NAMES, reference="unknown")
