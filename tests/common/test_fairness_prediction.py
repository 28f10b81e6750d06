"""Predicted widths: those that a study of that size then has, and the noise that it then carries."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.common.fairness.auc import auc_gap
from equipoise.common.fairness.prediction import expected_counts, predicted_auc_gap, predicted_gap
from equipoise.common.fairness.rates import gap

PATIENTS, PREVALENCE = np.array([1500.0, 500.0]), np.array([0.2, 0.3])


def test_expected_counts_by_hand() -> None:
    counts = expected_counts(PATIENTS, PREVALENCE, tpr=0.7, fpr=0.1)
    assert counts.tolist() == [[[1080, 120], [90, 210]], [[315, 35], [45, 105]], [[0, 0], [0, 0]]]


@pytest.mark.parametrize("metric", ["equal_opportunity_difference", "equalized_odds_difference", "fpr_difference"])
@pytest.mark.parametrize("noise", [0.0, 60.0])
def test_the_predicted_width_is_what_a_study_has(metric: str, noise: float) -> None:
    rng = np.random.default_rng(0)
    counts = expected_counts(PATIENTS, PREVALENCE, tpr=0.7, fpr=0.1)
    said = predicted_gap(metric, counts, noise=noise)
    found = []
    for _ in range(60):
        drawn = np.zeros((3, 2, 2), dtype=np.int64)
        for g, y in ((0, 0), (0, 1), (1, 0), (1, 1)):
            n = int(counts[g, y].sum())
            drawn[g, y, 1] = rng.binomial(n, 0.7 if y else 0.1)
            drawn[g, y, 0] = n - drawn[g, y, 1]
        table = drawn + np.rint(rng.normal(0, noise**0.5, drawn.shape)).astype(np.int64)
        estimate = gap(metric, table, noise=noise)
        found.append([estimate.high - estimate.value, estimate.noise_sd])  # type: ignore[operator]
    width, sd = np.mean(found, axis=0)
    assert said.half_width == pytest.approx(width, rel=0.1)
    assert said.noise_sd == pytest.approx(sd, rel=0.35)  # of the widest pair; the estimate's own is of the leading one
    assert said.noise_is_small == (said.noise_sd <= said.sampling_sd / 2)
    assert said.precise == (said.half_width <= 0.1)  # type: ignore[operator]


def test_sampling_and_noise_by_hand() -> None:
    counts = expected_counts(PATIENTS, PREVALENCE, tpr=0.7, fpr=0.1)
    said = predicted_gap("equal_opportunity_difference", counts, noise=9.0)
    assert said.sampling_sd == pytest.approx((0.21 / 300 + 0.21 / 150) ** 0.5)
    assert said.noise_sd == pytest.approx((9 * 0.58 / 300**2 + 9 * 0.58 / 150**2) ** 0.5)
    few = predicted_gap("equal_opportunity_difference", expected_counts(PATIENTS / 100, PREVALENCE, tpr=0.7, fpr=0.1))
    assert (few.half_width, few.precise) == (None, False)
    assert "positives" in few.reason


@pytest.mark.parametrize("noise", [0.0, 40.0])
def test_the_predicted_width_of_an_auc_gap(noise: float) -> None:
    said = predicted_auc_gap(PATIENTS, PREVALENCE, 0.85, bins=16, noise=noise)
    rng = np.random.default_rng(1)
    from scipy.stats import norm

    shift = 2**0.5 * norm.ppf(0.85)
    mixture = np.concatenate([rng.normal(0, 1, 31_000), rng.normal(shift, 1, 9000)])
    edges = np.quantile(mixture, np.arange(1, 16) / 16)
    found = []
    for _ in range(60):
        hist = np.zeros((3, 2, 16), dtype=np.int64)
        for g, (n, share) in enumerate(zip(PATIENTS, PREVALENCE, strict=True)):
            for y, count in enumerate((int(n * (1 - share)), int(n * share))):
                hist[g, y] = np.bincount(np.searchsorted(edges, rng.normal(shift * y, 1, count)), minlength=16)
        hist = hist + np.rint(rng.normal(0, noise**0.5, hist.shape)).astype(np.int64)
        estimate = auc_gap(hist, noise=noise)
        found.append([estimate.high - estimate.value, estimate.noise_sd])  # type: ignore[operator]
    width, sd = np.mean(found, axis=0)
    assert said.half_width == pytest.approx(width, rel=0.15)
    assert said.noise_sd == pytest.approx(sd, rel=0.1)
    assert predicted_auc_gap(PATIENTS / 100, PREVALENCE, 0.85, bins=16).half_width is None
