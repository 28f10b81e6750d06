"""Unknown groups: bounds that no allocation of the patients leaves, and warnings where unknown is many or uneven."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.common.fairness.contrasts import GAPS
from equipoise.common.fairness.rates import gap
from equipoise.common.fairness.unknown import allocation_bounds, unknown_warnings


def compositions(total: int, parts: int) -> list[tuple[int, ...]]:
    """All ways to write `total` as an ordered sum of `parts` counts."""
    return [way for way in product(range(total + 1), repeat=parts) if sum(way) == total]


@given(seed=st.integers(0, 2**32 - 1), groups=st.integers(2, 3), metric=st.sampled_from(sorted(GAPS)))
@settings(max_examples=40, deadline=None)
def test_no_allocation_leaves_the_bounds_and_the_upper_one_is_attained(seed: int, groups: int, metric: str) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 9, (groups + 1, 2, 2))
    counts[-1] = rng.integers(0, 5 - groups, (2, 2))
    bounds = allocation_bounds(metric, counts, minimum=1)
    assert bounds is not None
    values = []
    for ways in product(*(compositions(int(n), groups) for n in counts[-1].ravel())):
        given_out = counts.copy()
        given_out[:-1] += np.array(ways).T.reshape(groups, 2, 2)
        value = gap(metric, given_out, minimum=1).value
        assert value is not None
        values.append(value)
    assert bounds.low - 1e-12 <= min(values)
    assert max(values) <= bounds.high + 1e-12
    if metric != "demographic_parity_difference":
        assert max(values) == pytest.approx(bounds.high)
    if groups == 2 and metric == "equal_opportunity_difference" and bounds.low > 0:
        assert min(values) == pytest.approx(bounds.low)


def test_by_hand_and_without_unknown_patients() -> None:
    counts = np.array([[[80, 20], [10, 90]], [[85, 15], [30, 70]], [[0, 0], [5, 5]]])
    bounds = allocation_bounds("equal_opportunity_difference", counts)
    assert (bounds.low, bounds.high) == pytest.approx((90 / 105 - 75 / 105, 95 / 105 - 70 / 105))  # type: ignore[union-attr]
    assert bounds.unknown == 10  # type: ignore[union-attr]
    counts[-1] = 0
    same = allocation_bounds("equalized_odds_difference", counts)
    assert (same.low, same.high) == pytest.approx((0.2, 0.2))  # type: ignore[union-attr]


def test_there_are_no_bounds_where_there_is_no_gap_or_noise() -> None:
    counts = np.array([[[80, 20], [1, 2]], [[85, 15], [30, 70]], [[0, 0], [5, 5]]])
    assert allocation_bounds("equal_opportunity_difference", counts) is None
    assert allocation_bounds("eodds_bmft_signed", counts * 10) is None
    with pytest.raises(ValueError, match="carries noise"):
        allocation_bounds("fpr_difference", counts - 2)


def test_warnings() -> None:
    few_and_even = np.array([[[400, 100], [100, 400]], [[20, 5], [5, 20]]])
    assert unknown_warnings(few_and_even) == ()
    many = np.array([[[400, 100], [100, 400]], [[100, 50], [50, 100]]])
    assert unknown_warnings(many) == ("the group of 300 of 1300 patients (23%) is unknown",)
    uneven = np.array([[[400, 100], [100, 400]], [[2, 0], [20, 30]]])
    assert unknown_warnings(uneven) == ("the group is unknown for 9.1% of positives and 0.4% of negatives",)
    assert unknown_warnings(np.zeros((2, 2, 2), dtype=np.int64)) == ()
