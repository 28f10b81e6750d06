"""Headcounts: tables of the same patients agree, or the release is refused; noise and absent hospitals are no fault."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.common import catalogue
from equipoise.common.errors import QuorumError
from equipoise.common.headcount import Headcount
from equipoise.common.query import Query, Sum
from tests.tiny import declare, make_study, private_study

STUDY = declare(make_study(), {"a": 30, "b": 30})
HISTOGRAM, DECISIONS = catalogue.score_histogram(STUDY, "test", "base"), catalogue.decision_table(STUDY, "base", "x", 3)
ALL = ("a", "b")


def total(query: Query, negatives: int, positives: int, seed: int = 0, cohort: tuple[str, ...] = ALL) -> Sum:
    """A sum in whose every block so many patients are spread at random over groups and bins."""
    rng = np.random.default_rng(seed)
    points = {}
    for name, block in query.blocks.items():
        table = np.zeros(block.shape, dtype=np.int64)
        for label, patients in enumerate((negatives, positives)):
            cells = rng.integers(0, [block.shape[0], *block.shape[2:]], (patients, len(block.shape) - 1))
            np.add.at(table[:, label], tuple(cells.T), 1)
        points[name] = table
    return Sum(query, cohort, points)


@given(seed=st.integers(0, 2**32 - 1), negatives=st.integers(0, 40), positives=st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_tables_agree_however_patients_lie_in_them_and_one_patient_more_is_seen(
    seed: int, negatives: int, positives: int
) -> None:
    headcount = Headcount()
    headcount.check(total(HISTOGRAM, negatives, positives, seed))
    headcount.check(total(DECISIONS, negatives, positives, seed + 1))
    with pytest.raises(QuorumError, match=rf"{positives + 1} positives and {negatives} negatives in decision_table"):
        headcount.check(total(DECISIONS, negatives, positives + 1, seed))


def test_one_attribute_of_one_release_is_held_against_the_others() -> None:
    wrong = total(HISTOGRAM, 10, 10)
    assert len(wrong.points) > 1
    list(wrong.points.values())[-1][0, 1, 0] -= 1
    with pytest.raises(QuorumError, match=r"disagree: 10 positives .* 9 positives .* one of a, b .*\(E160\)"):
        Headcount().check(wrong)


def test_other_hospitals_other_splits_and_noise_are_not_held_against_each_other() -> None:
    headcount = Headcount()
    headcount.check(total(HISTOGRAM, 10, 10))
    headcount.check(total(HISTOGRAM, 5, 6, cohort=("a",)))
    headcount.check(total(catalogue.score_histogram(STUDY, "validation", "base"), 3, 4))
    noisy = catalogue.decision_table(declare(private_study(), {"a": 30}), "base", "x", 3)
    headcount.check(total(noisy, 10, 10))
    headcount.check(total(noisy, 11, 9, seed=1))
    with pytest.raises(QuorumError):
        headcount.check(total(DECISIONS, 11, 9, seed=1))
