"""Average precision: scikit-learn as the oracle, the bound of the bins, the prevalence beside it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from equipoise.common.errors import StudyError
from equipoise.common.fairness.auprc import auprc_by_group, average_precision
from equipoise.common.fairness.tables import bin_scores, histogram, hybrid_edges
from tests.interval import interval

EDGES = hybrid_edges(None, 1024)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 200), decimals=st.sampled_from([0, 1, 12]))
@settings(max_examples=100, deadline=None)
def test_with_a_bin_for_each_score_it_equals_scikit_learn(seed: int, n: int, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.concatenate([[1], rng.integers(0, 2, n)])
    scores = np.round(rng.normal(label, 1), decimals)
    edges = np.unique(scores)
    value, bound = average_precision(histogram(bin_scores(scores, edges), label, label * 0, 1, len(edges) + 1)[0])
    assert value == pytest.approx(average_precision_score(label, scores), abs=1e-12)
    distinct = len(edges) == len(scores)
    assert not distinct or bound == pytest.approx(0, abs=1e-12)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 200), bins=st.sampled_from([8, 16, 64, 1024]))
@settings(max_examples=100, deadline=None)
def test_the_bound_of_the_bins_holds(seed: int, n: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.concatenate([[1], rng.integers(0, 2, n)])
    scores = rng.normal(2 * label - 1, 1)
    edges = hybrid_edges(None, bins)
    value, bound = average_precision(histogram(bin_scores(scores, edges), label, label * 0, 1, bins)[0])
    assert abs(value - average_precision_score(label, scores)) <= bound + 1e-12


def test_by_hand() -> None:
    # From the top: a bin of one positive, one of a positive and a negative, one of two negatives: (1 + 2/3) / 2.
    counts = np.array([[2, 1, 0], [0, 1, 1]])
    value, bound = average_precision(counts)
    assert value == pytest.approx((1 + 2 / 3) / 2)
    assert bound == pytest.approx(1 - value)  # the positive first: precision 1 twice
    with pytest.raises(ValueError, match="positive patients"):
        average_precision(np.array([[2, 1], [0, 0]]))


def test_it_moves_with_the_prevalence_and_says_so() -> None:
    # Specification, section 1: the same ROC curve (AUC .885), prevalence .20 and .40: .705 and .842.
    rng = np.random.default_rng(0)
    found = []
    for share in (0.2, 0.4):
        label = (np.arange(60_000) < share * 60_000).astype(np.int64)
        scores = rng.normal(1.2 * 2**0.5 * label, 1)
        estimate = auprc_by_group(histogram(bin_scores(scores, EDGES), label, label * 0, 2, 1024), ["all"])[0]
        assert f"at prevalence {share:.3f}" in estimate.reason
        assert estimate.binning_bound < 0.005  # type: ignore[operator]
        found.append(estimate.value)
    assert found == pytest.approx([0.705, 0.842], abs=0.012)


def test_intervals_cover() -> None:
    rng = np.random.default_rng(3)
    label = np.repeat([0, 1], [240, 60])
    shift = 1.2 * 2**0.5
    truth = np.mean([average_precision_score(label, rng.normal(shift * label, 1)) for _ in range(500)])
    covered = 0
    for _ in range(200):
        counts = histogram(bin_scores(rng.normal(shift * label, 1), EDGES), label, label * 0, 2, 1024)
        low, high = interval(auprc_by_group(counts)[0]) or (1, 0)
        covered += low <= truth <= high
    assert covered >= 0.93 * 200


def test_few_bins_and_few_positives_give_no_number() -> None:
    with pytest.raises(StudyError, match="bins=256: average precision needs at least 1024"):
        auprc_by_group(np.zeros((2, 2, 256), dtype=np.int64))
    hist = np.zeros((3, 2, 1024), dtype=np.int64)
    hist[0, :, 500], hist[1, 1, 900], hist[1, 0, 100] = 9, 30, 30
    few, perfect, none = auprc_by_group(hist, ["a", "b"])
    assert (few.value, few.reason) == (None, "9 positives, 10 needed")
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert perfect.low == pytest.approx(30 / (30 + 1.96**2), abs=1e-3)
    assert none.value is None
