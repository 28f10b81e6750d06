"""Ratios against fairlearn, intervals by the published formula, and predictive values that no prevalence moves."""

from __future__ import annotations

import math

import fairlearn.metrics as fl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.common.errors import StudyError
from equipoise.common.fairness.intervals import wilson
from equipoise.common.fairness.rates import rate_by_group
from equipoise.common.fairness.ratios import demographic_parity_ratio, ratio_limits, standardised_predictive_value
from tests.interval import interval

EMPTY = [[0, 0], [0, 0]]


@given(seed=st.integers(0, 10_000), n=st.integers(10, 200), groups=st.integers(2, 5))
@settings(max_examples=60, deadline=None)
def test_it_equals_fairlearn(seed: int, n: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    group, label = np.concatenate([np.arange(groups), rng.integers(0, groups, n)]), rng.integers(0, 2, n + groups)
    decision = (rng.random(n + groups) < 0.3 + 0.1 * group).astype(int)
    decision[0] = 1  # somebody is selected
    counts = np.zeros((groups + 1, 2, 2), dtype=np.int64)
    np.add.at(counts, (group, label, decision), 1)
    ours = demographic_parity_ratio(counts, minimum=1)
    theirs = fl.demographic_parity_ratio(y_true=label, y_pred=decision, sensitive_features=group)
    assert ours.value == pytest.approx(theirs, abs=1e-12)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1  # type: ignore[operator]


def test_limits_of_a_ratio_by_the_published_formula() -> None:
    # Donner and Zou 2012, equation 9, written out.
    (p, (l1, u1)), (q, (l2, u2)) = (0.3, wilson(30, 100)), (0.5, wilson(40, 80))
    low = (p * q - math.sqrt((p * q) ** 2 - l1 * u2 * (2 * p - l1) * (2 * q - u2))) / (u2 * (2 * q - u2))
    high = (p * q + math.sqrt((p * q) ** 2 - u1 * l2 * (2 * p - u1) * (2 * q - l2))) / (l2 * (2 * q - l2))
    assert ratio_limits((p, l1, u1), (q, l2, u2)) == pytest.approx((low, high), abs=1e-12)
    assert low < 0.6 < high
    assert ratio_limits((0.0, 0.0, 0.1), (0.5, 0.4, 0.6))[0] == 0
    assert ratio_limits((0.4, 0.3, 0.5), (0.0, 0.0, 0.2))[1] == math.inf
    assert ratio_limits((0.0, 0.0, 0.1), (0.0, 0.0, 0.2)) == (0.0, math.inf)


def test_limits_of_a_ratio_cover() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(600):
        (a, n), (b, m) = (rng.binomial(40, 0.2), 40), (rng.binomial(60, 0.5), 60)
        low, high = ratio_limits((a / n, *wilson(a, n)), (b / m, *wilson(b, m)))
        covered += low <= 0.4 <= high
    assert 0.93 <= covered / 600 <= 0.98


def test_a_rate_of_nought_is_no_division() -> None:
    nobody = np.array([[[50, 0], [50, 0]], [[60, 0], [40, 0]], EMPTY])
    ratio = demographic_parity_ratio(nobody)
    assert (ratio.value, ratio.reason) == (None, "no patient of any group is selected")
    one = nobody.copy()
    one[1, 1] = [20, 20]
    ratio = demographic_parity_ratio(one)
    assert (ratio.value, ratio.low) == (0.0, 0.0)
    assert 0 < ratio.high < 0.6  # type: ignore[operator]
    few = demographic_parity_ratio(np.array([[[3, 3], [1, 1]], [[60, 9], [40, 9]], EMPTY]), ["women", "men"])
    assert few.value is None
    assert "women: 8 patients, 10 needed" in few.reason


def test_standardised_values_do_not_follow_the_prevalence() -> None:
    # Specification, section 1: TPR .758, FPR .159 gives PPV .54 and .76 at prevalence .2 and .4; standardised, one.
    rows = []
    for positives, negatives in ((2000, 8000), (4000, 6000)):
        rows.append([[negatives - round(0.159 * negatives), round(0.159 * negatives)], [round(0.242 * positives), 0]])
        rows[-1][1][1] = positives - rows[-1][1][0]
    counts = np.array([*rows, EMPTY])
    raw = [estimate.value for estimate in rate_by_group("ppv", counts)[:2]]
    assert raw[1] - raw[0] > 0.2  # type: ignore[operator]
    for metric, right, wrong in (("ppv", 0.758, 0.159), ("npv", 0.841, 0.242)):
        share = 0.1 if metric == "ppv" else 0.9
        expected = share * right / (share * right + (1 - share) * wrong)
        found = standardised_predictive_value(metric, counts, 0.1, ["a", "b"])
        assert [e.value for e in found[:2]] == pytest.approx([expected] * 2, abs=1e-3)
        assert found[2].value is None
        assert found[0].low < expected < found[0].high  # type: ignore[operator]
    own = standardised_predictive_value("ppv", counts, 0.2)[0]
    assert own.value == pytest.approx(raw[0])


def test_standardised_intervals_cover_with_and_without_noise() -> None:
    rng = np.random.default_rng(1)
    truth = 0.2 * 0.75 / (0.2 * 0.75 + 0.8 * 0.15)
    for variance in (0.0, 25.0):
        covered = 0
        for _ in range(400):
            tp, fp = rng.binomial(80, 0.75), rng.binomial(200, 0.15)
            counts = np.array([[[200 - fp, fp], [80 - tp, tp]], EMPTY])
            counts += np.rint(rng.normal(0, variance**0.5, counts.shape)).astype(np.int64)
            low, high = interval(standardised_predictive_value("ppv", counts, 0.2, noise=variance)[0]) or (1, 0)
            covered += low <= truth <= high
        assert covered / 400 >= 0.92


def test_the_noise_of_a_ratio_and_of_a_standardised_value_is_what_fresh_noise_does() -> None:
    rng = np.random.default_rng(2)
    counts = np.array([[[300, 100], [40, 160]], [[200, 60], [90, 50]], EMPTY])
    blurred = counts + np.rint(rng.normal(0, 4, (1200, *counts.shape))).astype(np.int64)
    ratios = [demographic_parity_ratio(table).value for table in blurred]
    assert demographic_parity_ratio(counts, noise=16.0).noise_sd == pytest.approx(np.std(ratios), rel=0.08)  # type: ignore[arg-type]
    for metric in ("ppv", "npv"):
        values = [standardised_predictive_value(metric, table, 0.3)[0].value for table in blurred]
        said = standardised_predictive_value(metric, counts, 0.3, noise=16.0)[0].noise_sd
        assert said == pytest.approx(np.std(values), rel=0.08)  # type: ignore[arg-type]


def test_wrong_arguments_are_one_line_errors() -> None:
    counts = np.array([[[50, 50], [50, 50]], EMPTY])
    with pytest.raises(StudyError, match="metric=tpr: only ppv and npv"):
        standardised_predictive_value("tpr", counts, 0.1)
    with pytest.raises(StudyError, match="prevalence=1"):
        standardised_predictive_value("ppv", counts, 1.0)
    quiet = np.array([[[100, 0], [100, 0]], EMPTY])
    assert standardised_predictive_value("ppv", quiet, 0.2)[0].reason == "no patient gets a positive decision"
