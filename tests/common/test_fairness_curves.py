"""Curves: merged bins hold enough patients, ROC rises and keeps its ends, gaps at edges are gaps, reliability."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import auc as trapezoid

from equipoise.common.fairness.auc import binned_auc
from equipoise.common.fairness.calibration import SCORE_STEPS
from equipoise.common.fairness.curves import gap_at_every_edge, merged_bins, pooled_violators, reliability, roc_points
from equipoise.common.fairness.rates import gap
from equipoise.common.fairness.tables import counts_at
from tests.score_tables import calibration_table

Seed = st.integers(0, 2**32 - 1)


@given(seed=Seed, bins=st.integers(1, 40), fewest=st.sampled_from([1, 5, 11]))
@settings(max_examples=80, deadline=None)
def test_merged_bins_hold_enough_of_a_class_or_none(seed: int, bins: int, fewest: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.choice([0.3, 4.0, 20.0]), (2, bins))
    cuts = merged_bins(counts, fewest)
    parts = np.add.reduceat(counts, np.append(0, cuts + 1), axis=1)
    assert parts.sum() == counts.sum()
    enough = (counts.sum(axis=1, keepdims=True) >= fewest) | (counts.sum(axis=1, keepdims=True) == 0)
    if enough.all():
        assert ((parts == 0) | (parts >= fewest)).all()
        assert parts.any(axis=0).all() or len(cuts) == 0


@given(seed=Seed, bins=st.integers(2, 30))
@settings(max_examples=40, deadline=None)
def test_the_area_under_the_curve_is_the_auc(seed: int, bins: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 9, (2, bins)) + np.eye(2, bins, dtype=np.int64)
    points = roc_points(counts)
    assert points[0].tolist() == [0, 0]
    assert points[-1] == pytest.approx([1, 1])
    assert (np.diff(points, axis=0) >= -1e-12).all()
    assert trapezoid(*points.T) == pytest.approx(binned_auc(counts).value, abs=1e-12)


def test_a_drawn_curve_has_no_small_steps_and_a_noisy_one_rises() -> None:
    rng = np.random.default_rng(0)
    counts = np.stack([np.bincount(rng.binomial(40, p, 400), minlength=41) for p in (0.4, 0.55)])
    points = roc_points(counts, fewest=11)
    steps = np.diff(points, axis=0) * 400
    assert ((steps < 1e-9) | (steps > 10.99)).all()
    assert len(points) > 8
    noisy = roc_points(counts + np.rint(rng.normal(0, 5, counts.shape)).astype(np.int64), noise=25.0)
    assert (np.diff(noisy, axis=0) >= -1e-12).all()
    with pytest.raises(ValueError, match="both classes"):
        roc_points(np.array([[3, 4], [0, 0]]))


@pytest.mark.parametrize(
    "metric", ["equalized_odds_difference", "equalized_odds_mean", "demographic_parity_difference"]
)
def test_a_gap_at_an_edge_is_the_gap_of_the_counts_there(metric: str) -> None:
    hist = np.random.default_rng(1).integers(2, 20, (4, 2, 12))
    curve = gap_at_every_edge(metric, hist)
    expected = [gap(metric, counts_at(hist, edge)).value for edge in range(11)]
    assert curve.tolist() == pytest.approx(expected, abs=1e-12)
    hist[1:3, 1] = 0  # one group with positives is left
    missing = np.isnan(gap_at_every_edge(metric, hist))
    reads_positives = metric not in ("demographic_parity_difference", "fpr_difference")
    assert missing.all() == reads_positives
    assert np.isfinite(gap_at_every_edge(metric, hist - 4, noise=2.0)[~missing]).all()


def test_reliability_by_hand_and_monotone() -> None:
    score = np.array([0.05] * 10 + [0.55] * 10)
    label = np.array([1] * 4 + [0] * 6 + [1] * 3 + [0] * 7)
    rows = reliability(calibration_table(score, label, label * 0, 1)[0], 0.95)
    assert rows[:, [0, 1, 4]].tolist() == pytest.approx(np.array([[0.05, 0.4, 10], [0.55, 0.3, 10]]), abs=1e-4)
    assert (rows[:, 2] < rows[:, 1]).all()
    rising = reliability(calibration_table(score, label, label * 0, 1)[0], 0.95, monotone=True)
    assert rising[:, 1] == pytest.approx([0.35, 0.35])
    assert SCORE_STEPS == 65536


@given(seed=Seed, n=st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_pooling_violators_equals_scikit_learn(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    values, weights = np.round(rng.normal(0, 1, n), 1), rng.integers(1, 9, n).astype(float)
    ours = pooled_violators(values, weights)
    if n:
        theirs = IsotonicRegression().fit_transform(np.arange(n), values, sample_weight=weights)
        assert ours == pytest.approx(theirs, abs=1e-9)
    assert len(ours) == n
