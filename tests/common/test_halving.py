"""The ladder of successive halving, by hand: what it costs, who goes on, who wins."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.common.errors import StudyError
from equipoise.common.halving import Judgement, Rung, ranked, rungs_of, winner_of


def held(value: float, auc: float = 0.8) -> Judgement:
    return Judgement(value, auc, held=True)


def fallen(value: float, auc: float = 0.5) -> Judgement:
    return Judgement(value, auc, held=False)


def test_twenty_seven_candidates_cost_three_full_runs_and_sixteen_by_four_two_and_a_half() -> None:
    ladder = rungs_of(27, 3, 27)
    assert ladder == [Rung(27, 0, 1), Rung(9, 1, 3), Rung(3, 3, 9), Rung(1, 9, 27)]
    assert sum(rung.spent for rung in ladder) == 3 * 27
    assert sum(rung.spent for rung in rungs_of(16, 4, 16)) == 2.5 * 16


@given(st.integers(1, 60), st.integers(2, 5), st.integers(1, 100))
def test_every_ladder_ends_at_the_full_run_and_never_trains_twice(candidates: int, reduction: int, rounds: int) -> None:
    try:
        ladder = rungs_of(candidates, reduction, rounds)
    except StudyError:
        return
    assert ladder[0].candidates == candidates
    assert ladder[-1].rounds == rounds
    assert ladder[0].before == 0
    for below, above in pairwise(ladder):
        assert above.before == below.rounds < above.rounds
        assert above.candidates == below.candidates // reduction
    full_runs = sum(rung.spent for rung in ladder) / rounds
    assert full_runs <= len(ladder) * max(1.0, candidates / reduction ** (len(ladder) - 1))


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(StudyError, match="at least 27 rounds"):
        rungs_of(27, 3, 26)


def test_the_best_go_first_and_the_fallen_last() -> None:
    judged = {0: held(0.7), 1: fallen(0.9), 2: held(0.8), 3: held(0.7)}
    assert ranked(judged) == [2, 0, 3, 1]


def test_a_gap_counts_only_near_the_best_auc() -> None:
    # A model that knows nothing has no gap: with AUC 0.6 it comes behind one with a gap of 0.2.
    judged = {0: held(-0.2, auc=0.80), 1: held(0.0, auc=0.60), 2: held(-0.1, auc=0.795)}
    assert ranked(judged, 0.01) == [2, 0, 1]
    assert ranked(judged) == [1, 2, 0]


def test_the_winner_is_of_the_highest_rung_and_never_below_the_floor() -> None:
    low, high = {0: held(0.9), 1: held(0.7)}, {1: held(0.6)}
    assert winner_of([low, high]) == (1, 1)
    assert winner_of([low, {1: fallen(0.99)}]) == (0, 0)
    assert winner_of([{0: fallen(1.0)}, {0: fallen(1.0)}]) is None


def test_a_search_of_more_releases_than_a_plan_may_have_is_refused_at_once() -> None:
    with pytest.raises(StudyError, match="10000 candidates in 1 rounds take 20000 releases, and a study at most"):
        rungs_of(10_000, 20_000, 1)
