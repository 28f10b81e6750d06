"""Small cells: none is shown, none follows from what is shown, and a rate does not give one away."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.common.errors import StudyError
from equipoise.common.fairness.estimate import Estimate
from equipoise.common.fairness.rates import rate_by_group
from equipoise.common.fairness.small_cells import Policy, complemented, suppressed

MOST = 29  # of a cell in the tables that a reader tries
ALL_TABLES = np.indices((MOST + 1,) * 4).reshape(2, 2, -1)
ALL_WHOLE = np.zeros((3, 3, ALL_TABLES.shape[-1]), dtype=np.int64)
ALL_WHOLE[:2, :2] = ALL_TABLES
ALL_WHOLE[:2, 2], ALL_WHOLE[2] = ALL_WHOLE[:2, :2].sum(axis=1), ALL_WHOLE[:2].sum(axis=0)
ALL_WHOLE[2, 2] = ALL_WHOLE[:2, 2].sum(axis=0)


def hidden_cells(table: np.ndarray, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
    """What is hidden of a table with its totals last in each row and column, the smallest above 0 first, and that."""
    rows = np.concatenate([table, table.sum(axis=1, keepdims=True)], axis=1)
    whole = np.concatenate([rows, rows.sum(axis=0, keepdims=True)], axis=0)
    places = np.arange(whole.size).reshape(whole.shape)
    lines = np.zeros((sum(whole.shape), whole.size))
    for number, line in enumerate([*places, *places.T]):
        # Every row and column: its parts less its total are 0.
        lines[number, line[:-1]], lines[number, line[-1]] = 1.0, -1.0
    values = whole.ravel()
    order = [(count == 0, count) for count in values.tolist()]
    hidden = complemented(values, lines, policy.small(values), policy, places.ravel(), order)
    return hidden.reshape(whole.shape), whole


def possible(whole: np.ndarray, hidden: np.ndarray, policy: Policy) -> np.ndarray:
    """All 2 x 2 tables, (4, N), that a reader who knows the policy cannot exclude.

    Of a hidden count the reader is told whether it is small.
    """
    fits = np.ones(ALL_WHOLE.shape[-1], dtype=bool)
    for place in product(range(3), range(3)):
        counts = ALL_WHOLE[place]
        told = policy.small(counts) == policy.small(whole)[place]
        fits &= told if hidden[place] else counts == whole[place]
    return ALL_TABLES.reshape(4, -1)[:, fits]


@given(
    cells=st.lists(st.integers(0, 14), min_size=4, max_size=4),
    zero_shown=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_reader_who_tries_every_table_learns_no_small_count(cells: list[int], zero_shown: bool) -> None:
    policy = Policy(5, zero_shown)
    table = np.array(cells).reshape(2, 2)
    hidden, whole = hidden_cells(table, policy)
    candidates = possible(whole, hidden, policy)
    assert (candidates == np.array(cells)[:, None]).all(axis=0).any()
    small = policy.small(table).ravel()
    for place in np.flatnonzero(small):
        assert len(np.unique(candidates[place])) >= 2, (whole, hidden)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 6), columns=st.integers(1, 3), k=st.sampled_from([5, 11]))
@settings(max_examples=60, deadline=None)
def test_every_small_count_is_hidden_and_never_alone_in_its_line(seed: int, rows: int, columns: int, k: int) -> None:
    table = np.random.default_rng(seed).integers(0, 60, (rows, columns))
    policy = Policy(k)
    hidden, whole = hidden_cells(table, policy)
    small = policy.small(whole)
    assert hidden[small].all()
    if not small.any():
        assert not hidden.any()  # nothing is hidden for nothing
    if not hidden.all():
        for row, column in np.argwhere(small):
            assert hidden[row].sum() > 1
            assert hidden[:, column].sum() > 1


def test_a_table_with_totals() -> None:
    hidden, _ = hidden_cells(np.array([[400, 90], [300, 4], [50, 60], [0, 20]]), Policy(11))
    assert hidden.astype(int).tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0], [0, 1, 1], [0, 1, 0]]
    assert not hidden_cells(np.array([[3, 7]]), Policy(0))[0].any()
    # The total of a row is small itself.
    assert hidden_cells(np.array([[2, 3], [400, 500]]), Policy(11))[0][0].all()


def test_zero_is_shown_or_not_as_the_policy_says() -> None:
    table = np.array([[0, 40], [30, 50]])
    assert not hidden_cells(table, Policy(11))[0].any()
    assert hidden_cells(table, Policy(11, zero_shown=False))[0][0, 0]
    with pytest.raises(StudyError, match=r"evaluation.min_cell=7: choose one of 0, 5, 8, 10, 11"):
        Policy(7)


def complement(
    values: list[int], lines: list[list[float]], units: list[int], order: list[int], k: int = 11
) -> list[int]:
    """Places that are hidden, the small ones from the beginning."""
    counts, policy = np.array(values), Policy(k)
    hidden = complemented(counts, np.array(lines), policy.small(counts), policy, np.array(units), order)
    return [int(place) for place in np.flatnonzero(hidden)]


def test_a_further_count_is_hidden_where_a_sum_gives_a_small_one_away() -> None:
    adds_up = [[1.0, 1.0, 1.0, -1.0]]
    assert complement([300, 4, 60, 364], adds_up, [0, 1, 2, -1], [300, 4, 60, 0]) == [1, 2]
    assert complement([300, 4, 60, 364], adds_up, [0, 1, -1, -1], [300, 4, 60, 0]) == [0, 1]  # 60 stands elsewhere
    assert complement([300, 4, 5, 309], adds_up, [0, 1, 2, -1], [300, 4, 5, 0]) == [1, 2]  # 4 and 5 or 3 and 6
    assert complement([300, 1, 1, 302], adds_up, [0, 1, 2, -1], [300, 4, 5, 0]) == [0, 1, 2]  # 1 and 1 alone add up
    assert complement([300, 40, 60, 400], adds_up, [0, 1, 2, -1], [300, 40, 60, 0]) == []
    assert complement([300, 4, 60, 364], adds_up, [0, 1, -1, -1], [0] * 4, k=0) == []
    assert complement([300, 4, 0, 304], adds_up, [-1, 1, -1, -1], [0] * 4) == [1]  # nothing is left that could help


def test_counts_of_one_unit_are_hidden_together_and_a_second_sum_asks_for_more() -> None:
    # Two rows of two cells each with their totals: hiding 90 hides its neighbour, too.
    cells = [400, 90, 300, 4]
    lines = [
        [1.0, 1, 0, 0, -1, 0, 0, 0],
        [0, 0, 1.0, 1, 0, -1, 0, 0],
        [1.0, 0, 1, 0, 0, 0, -1, 0],
        [0, 1.0, 0, 1, 0, 0, 0, -1],
    ]
    totals = [490, 304, 700, 94]
    units = [0, 0, 1, 1, -1, -1, -1, -1]
    assert complement([*cells, *totals], lines, units, [90, 90, 4, 4, 0, 0, 0, 0]) == [0, 1, 2, 3]


def test_a_suppressed_estimate_keeps_its_name_alone() -> None:
    counts = np.array([[[500, 60], [4, 90]], [[0, 0], [0, 0]]])
    found = suppressed(rate_by_group("tpr", counts, ["a"])[0], Policy(11))
    assert (found.metric, found.group, found.status) == ("tpr", "a", "suppressed")
    assert (found.value, found.low, found.high, found.n) == (None,) * 4
    assert found.reason == "a count below 11 could be read from it"


def test_a_suppressed_estimate_takes_no_number() -> None:
    with pytest.raises(ValueError, match="suppressed takes no number"):
        Estimate("tpr", 0.0, 0.0, 0.0, 3, "suppressed", "small")
    with pytest.raises(ValueError, match="not_released takes no number and needs a reason"):
        Estimate("tpr", None, None, None, None, "not_released")
