"""Scores of each group on one scale: increasing, invertible, and the same decisions as thresholds by group."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.common.alignment import Alignment, increasing

SCORES = st.lists(st.floats(-30, 30), min_size=1, max_size=20)


@st.composite
def alignments(draw: st.DrawFn) -> Alignment:
    knots, groups = draw(st.integers(1, 6)), draw(st.integers(2, 4))
    lists = st.lists(st.floats(-9, 9), min_size=knots, max_size=knots)
    rows = [increasing(np.array(sorted(draw(lists)))) for _ in range(groups)]
    return Alignment.checked(rows[0], np.stack(rows))


@given(alignments(), SCORES, st.floats(-15, 15))
def test_one_threshold_on_the_common_scale_is_each_groups_own(found: Alignment, scores: list[float], at: float) -> None:
    logits = np.array(scores)
    own = found.threshold(at)
    for group, threshold in enumerate(own):
        moved = found(logits, np.full(len(logits), group))
        clear = np.abs(logits - threshold) > 1e-6
        np.testing.assert_array_equal((moved >= at)[clear], (logits >= threshold)[clear])


@given(alignments(), SCORES)
def test_no_two_patients_of_a_group_change_places(found: Alignment, scores: list[float]) -> None:
    logits = np.sort(np.array(scores))
    for group in range(len(found.of_group)):
        moved = found(logits, np.full(len(logits), group))
        assert (np.diff(moved) >= 0).all()


def test_a_score_just_below_a_knot_stays_below_it() -> None:
    knots = [0.0, 1e-6, 0.23828125, 1.0, 1.000001]
    found = Alignment.checked(np.array(knots), np.array([knots, [-3.0, -2.999999, 0.0, 1e-6, 2e-6]]))
    just_below, at = found(np.array([-5e-324, 0.0]), np.array([1, 1]))
    assert just_below <= at == 0.23828125


def test_by_hand() -> None:
    found = Alignment.checked(np.array([0.0, 1.0]), np.array([[0.0, 1.0], [2.0, 4.0], [0.0, 1.0]]))
    np.testing.assert_allclose(found(np.array([-1.0, 0.5, 3.0]), np.array([0, 2, 0])), [-1.0, 0.5, 3.0])
    np.testing.assert_allclose(found(np.array([1.0, 3.0, 5.0]), np.array([1, 1, 1])), [-1.0, 0.5, 2.0])


def test_it_survives_json_bit_for_bit() -> None:
    found = Alignment.checked(np.array([0.1, 1 / 3]), np.array([[0.1, 1 / 3], [-2 / 3, np.pi], [0.1, 1 / 3]]))
    again = Alignment.from_json(json.loads(json.dumps(found.to_json())))
    np.testing.assert_array_equal(again.common, found.common)
    np.testing.assert_array_equal(again.of_group, found.of_group)


@pytest.mark.parametrize(
    "value",
    [
        {"common": [0.0, 0.0], "of_group": [[0.0, 1.0]]},
        {"common": [0.0, 1.0], "of_group": [[1.0, 0.0]]},
        {"common": [0.0, 1.0], "of_group": [[0.0]]},
        {"common": [0.0, float("nan")], "of_group": [[0.0, 1.0]]},
        {"common": [], "of_group": [[]]},
    ],
)
def test_knots_that_are_no_map_are_refused(value: dict[str, list[object]]) -> None:
    with pytest.raises(ValueError, match="knots"):
        Alignment.from_json(value)


def test_knots_are_held_to_increase_as_numbers_and_not_as_their_type_counts() -> None:
    """A difference of unsigned integers is never below 0, and one patient would move the next by such knots."""
    common, falling = np.arange(3.0), np.array([[104, 10, 232]], dtype=np.uint8)
    with pytest.raises(ValueError, match="increase"):
        Alignment.checked(common, falling)
    with pytest.raises(ValueError, match="increase"):
        Alignment.checked(falling[0], common[None])
    kept = Alignment.checked(np.array([0, 1, 2], dtype=np.uint8), common[None])
    assert kept.common.dtype == kept.of_group.dtype == np.float64
