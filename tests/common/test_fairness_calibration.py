"""Calibration and Brier score: torchmetrics and scikit-learn as oracles, the null of a calibrated model, exact sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import binary_calibration_error

from equipoise.common.fairness.brier import brier_by_group
from equipoise.common.fairness.calibration import (
    SCORE_STEPS,
    calibration_by_group,
    calibration_of_histogram,
)
from tests.interval import interval
from tests.score_tables import brier_sums, calibration_table


def patients(rng: np.random.Generator, n: int, bend: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels; calibrated where `bend` is 1."""
    risk = rng.beta(0.8, 3.0, n)
    return risk**bend, (rng.random(n) < risk).astype(np.int64)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 300), bend=st.sampled_from([1.0, 0.5, 2.0]))
@settings(max_examples=60, deadline=None)
def test_it_equals_torchmetrics(seed: int, n: int, bend: float) -> None:
    score, label = patients(np.random.default_rng(seed), n, bend)
    theirs = binary_calibration_error(torch.tensor(score), torch.tensor(label), n_bins=10, norm="l1")
    ours = calibration_by_group(calibration_table(score, label, label * 0, 2), minimum=1)[0].ece
    assert ours.value == pytest.approx(float(theirs), abs=1e-5)  # sums are in steps of 2^-16


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 100), sites=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_sums_over_sites_are_the_pooled_sums(seed: int, n: int, sites: int) -> None:
    rng = np.random.default_rng(seed)
    score, label = patients(rng, n)
    group, site = rng.integers(0, 4, n), rng.integers(0, sites, n)
    for make in (lambda s, y, g: calibration_table(s, y, g, 4), lambda s, y, g: brier_sums(s, y, g, 4)):
        parts = [make(score[site == s], label[site == s], group[site == s]) for s in range(sites)]
        assert np.array_equal(sum(parts), make(score, label, group))


def test_by_hand() -> None:
    # Bins [0, .1), [.5, .6), [.9, 1]: four patients at .05 (one positive), two at .5 (both), four at 1.0 (three).
    score = np.array([0.05] * 4 + [0.5] * 2 + [1.0] * 4)
    label = np.array([1, 0, 0, 0, 1, 1, 1, 1, 1, 0])
    cal = calibration_table(score, label, label * 0, 2)
    assert cal[0, [0, 5, 9], :2].tolist() == [[4, 1], [2, 2], [4, 3]]
    assert cal[0].sum(axis=0)[2] == round(0.05 * SCORE_STEPS) * 4 + SCORE_STEPS + 4 * SCORE_STEPS
    found = calibration_by_group(cal)[0]
    assert found.ece.value == pytest.approx(0.4 * 0.2 + 0.2 * 0.5 + 0.4 * 0.25, abs=1e-5)
    squares = 0.4 * (0.2**2 - 0.25 * 0.75 / 3) + 0.2 * 0.5**2 + 0.4 * (0.25**2 - 0.75 * 0.25 / 3)
    assert found.ece_debiased_sq == pytest.approx(squares, abs=1e-5)
    assert found.citl.value == pytest.approx(6 / 5.2, abs=1e-5)
    assert found.ece.status == "imprecise"
    assert "100 needed" in found.ece.reason


@pytest.mark.parametrize(("n", "expected"), [(100, 0.088), (1000, 0.029), (5000, 0.013)])
def test_the_null_of_a_calibrated_model_is_what_such_models_show(n: int, expected: float) -> None:
    # Specification, section 1, for scores spread over the bins.
    rng = np.random.default_rng(0)
    values, nulls, p95, squared = [], [], [], []
    for _ in range(60):
        score = rng.uniform(0, 1, n)
        label = (rng.random(n) < score).astype(np.int64)
        found = calibration_by_group(calibration_table(score, label, label * 0, 2))[0]
        values.append(found.ece.value)
        nulls.append(found.null_mean)
        p95.append(found.null_p95)
        squared.append(found.ece_debiased_sq)
    assert np.mean(nulls) == pytest.approx(np.mean(values), rel=0.12)  # type: ignore[arg-type]
    assert np.mean(values) == pytest.approx(expected, rel=0.35)  # type: ignore[arg-type]
    assert 0.85 <= np.mean(np.array(values) <= np.array(p95)) <= 1.0
    assert abs(np.mean(squared)) < 8e-4  # type: ignore[arg-type]


def test_intervals_cover() -> None:
    rng = np.random.default_rng(1)
    risk = np.array([0.1, 0.35, 0.6, 0.85])
    said = np.array([0.05, 0.45, 0.75, 0.95])
    truth, ratio = np.abs(risk - said).mean(), risk.sum() / said.sum()
    ece = citl = 0
    for _ in range(200):
        place = np.repeat(np.arange(4), 100)
        label = (rng.random(400) < risk[place]).astype(np.int64)
        found = calibration_by_group(calibration_table(said[place], label, label * 0, 2))[0]
        ece += found.ece.low <= truth <= found.ece.high  # type: ignore[operator]
        citl += found.citl.low <= ratio <= found.citl.high  # type: ignore[operator]
    assert ece >= 186
    assert citl >= 186


def test_a_histogram_says_nearly_the_same_and_knows_its_noise() -> None:
    rng = np.random.default_rng(2)
    score, label = patients(rng, 8000, 0.6)
    edges = np.quantile(score, np.arange(1, 16) / 16)
    bins = np.searchsorted(edges, score, side="right")
    centres = np.array([score[bins == b].mean() for b in range(16)])
    hist = np.zeros((2, 2, 16), dtype=np.int64)
    np.add.at(hist, (label * 0, label, bins), 1)
    exact = calibration_by_group(calibration_table(score, label, label * 0, 2))[0]
    coarse = calibration_by_group(calibration_of_histogram(hist, centres))[0]
    assert coarse.ece.value == pytest.approx(exact.ece.value, abs=0.003)
    assert coarse.citl.value == pytest.approx(exact.citl.value, abs=1e-3)
    assert coarse.null_p95 < exact.ece.value  # type: ignore[operator]
    # A calibrated model seen through noise: the null knows how large an ECE the noise makes.
    even = np.rint(500 * np.stack([1 - centres, centres])).astype(np.int64)[None].repeat(2, axis=0)
    found = [
        calibration_by_group(
            calibration_of_histogram(even + np.rint(rng.normal(0, 20, even.shape)).astype(np.int64), centres),
            noise=400.0,
        )[0]
        for _ in range(100)
    ]
    quiet = calibration_by_group(calibration_of_histogram(even, centres))[0]
    assert np.mean([f.ece.value for f in found]) < np.mean([f.null_p95 for f in found])  # type: ignore[arg-type]
    assert found[0].null_p95 > 1.5 * quiet.null_p95  # type: ignore[operator]
    spread = np.std([f.citl.value for f in found])  # type: ignore[arg-type]
    assert found[0].citl.noise_sd == pytest.approx(spread, rel=0.25)
    squares = [f.ece_debiased_sq for f in found]
    assert np.mean(squares) == pytest.approx(quiet.ece_debiased_sq, abs=1e-4)  # type: ignore[arg-type]


def test_few_patients_and_scores_that_expect_nobody() -> None:
    label = np.array([0, 1, 1])
    found = calibration_by_group(calibration_table(np.array([0.2, 0.4, 0.9]), label, label * 0, 2))[0]
    assert (found.ece.value, found.null_p95, found.citl.value) == (None, None, None)
    assert found.ece.reason == "3 patients, 10 needed"
    zero = calibration_by_group(calibration_table(np.zeros(40), np.zeros(40, dtype=int), np.zeros(40, dtype=int), 2))[0]
    assert zero.citl.reason == "the scores expect no positive patient"


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 300))
@settings(max_examples=40, deadline=None)
def test_the_brier_score_equals_scikit_learn(seed: int, n: int) -> None:
    score, label = patients(np.random.default_rng(seed), n)
    ours = brier_by_group(brier_sums(score, label, label * 0, 2), minimum=2)[0]
    assert ours.value == pytest.approx(brier_score_loss(label, score, pos_label=1), abs=1e-5)
    assert ours.reason == "depends on the prevalence"


def test_the_interval_of_a_brier_score_covers() -> None:
    rng = np.random.default_rng(3)
    score, label = patients(rng, 400_000, 0.7)
    truth = ((score - label) ** 2).mean()
    covered = 0
    for _ in range(300):
        score, label = patients(rng, 60, 0.7)
        low, high = interval(brier_by_group(brier_sums(score, label, label * 0, 2))[0]) or (1, 0)
        covered += low <= truth <= high
    assert covered >= 0.92 * 300
    alike = brier_by_group(brier_sums(np.full(50, 0.5), np.tile([0, 1], 25), np.zeros(50, dtype=int), 2))[0]
    assert alike.low < 0.25 < alike.high  # type: ignore[operator]
    assert brier_by_group(brier_sums(np.ones(5), np.ones(5, dtype=int), np.zeros(5, dtype=int), 2))[0].value is None
