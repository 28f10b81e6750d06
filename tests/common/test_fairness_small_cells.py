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
from equipoise.common.fairness.small_cells import (
    HIDDEN,
    Policy,
    complemented,
    display,
    hidden_cells,
    suppressed,
    with_totals,
)

MOST = 29  # of a cell in the tables that a reader tries
ALL_TABLES = np.indices((MOST + 1,) * 4).reshape(2, 2, -1)
ALL_WHOLE = np.zeros((3, 3, ALL_TABLES.shape[-1]), dtype=np.int64)
ALL_WHOLE[:2, :2] = ALL_TABLES
ALL_WHOLE[:2, 2], ALL_WHOLE[2] = ALL_WHOLE[:2, :2].sum(axis=1), ALL_WHOLE[:2].sum(axis=0)
ALL_WHOLE[2, 2] = ALL_WHOLE[:2, 2].sum(axis=0)


def possible(shown: list[list[str]], policy: Policy) -> np.ndarray:
    """All 2 x 2 tables, (4, N), that a reader who knows the policy cannot exclude."""
    fits = np.ones(ALL_WHOLE.shape[-1], dtype=bool)
    for row, column in product(range(3), range(3)):
        text, counts = shown[row][column], ALL_WHOLE[row, column]
        small = policy.small(counts)
        fits &= small if text.startswith("<") else ~small if text == HIDDEN else counts == int(text)
    return ALL_TABLES.reshape(4, -1)[:, fits]


@given(
    cells=st.lists(st.integers(0, 14), min_size=4, max_size=4),
    zero_shown=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_reader_who_tries_every_table_learns_no_small_count(cells: list[int], zero_shown: bool) -> None:
    policy = Policy(5, zero_shown)
    table = np.array(cells).reshape(2, 2)
    candidates = possible(display(table, policy), policy)
    assert (candidates == np.array(cells)[:, None]).all(axis=0).any()
    small = policy.small(table).ravel()
    for place in np.flatnonzero(small):
        assert len(np.unique(candidates[place])) >= 2, display(table, policy)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 6), columns=st.integers(1, 3), k=st.sampled_from([5, 11]))
@settings(max_examples=60, deadline=None)
def test_every_small_count_is_hidden_and_never_alone_in_its_line(seed: int, rows: int, columns: int, k: int) -> None:
    table = np.random.default_rng(seed).integers(0, 60, (rows, columns))
    policy = Policy(k)
    hidden, whole = hidden_cells(table, policy), with_totals(table)
    assert hidden[policy.small(whole)].all()
    if not policy.small(whole).any():
        assert not hidden.any()  # nothing is hidden for nothing
    if not hidden.all():
        assert (hidden.sum(axis=0) != 1).all()
        assert (hidden.sum(axis=1) != 1).all()


def test_a_table_in_words() -> None:
    assert display(np.array([[400, 90], [300, 4], [50, 60], [0, 20]]), Policy(11)) == [
        ["400", "90", "490"],
        [HIDDEN, "<11", "304"],
        [HIDDEN, HIDDEN, "110"],
        ["0", "20", "20"],
        ["750", "174", "924"],
    ]
    assert display(np.array([[3, 7]]), Policy(0)) == [["3", "7", "10"], ["3", "7", "10"]]
    # The total of a row is small itself.
    assert display(np.array([[2, 3], [400, 500]]), Policy(11))[0] == ["<11", "<11", "<11"]


def test_zero_is_shown_or_not_as_the_policy_says() -> None:
    table = np.array([[0, 40], [30, 50]])
    assert not hidden_cells(table, Policy(11)).any()
    assert hidden_cells(table, Policy(11, zero_shown=False))[0, 0]
    with pytest.raises(StudyError, match=r"evaluation.min_cell=7: choose one of 0, 5, 8, 10, 11"):
        Policy(7)
    with pytest.raises(ValueError, match="carries noise"):
        hidden_cells(np.array([[-1, 40]]), Policy(11))


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
