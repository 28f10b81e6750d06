"""A hospital far from the others: z against the rest, its false alarms among honest hospitals, and too few patients."""

from __future__ import annotations

import numpy as np
import pytest
from statsmodels.stats.proportion import test_proportions_2indep as two_proportions

from equipoise.common.fairness.outliers import FAR, leave_one_out
from equipoise.common.fairness.tables import Counts


def positives(found: list[int], n: list[int]) -> Counts:
    tables = np.zeros((len(n), 2, 2), dtype=np.int64)
    tables[:, 1, 1], tables[:, 1, 0] = found, np.array(n) - np.array(found)
    return tables


def test_z_is_that_of_agresti_and_caffo_at_the_unsmoothed_difference() -> None:
    found, n = [30, 55, 20], [60, 80, 40]
    z = leave_one_out("tpr", positives(found, n))
    for site in range(3):
        rest = (sum(found) - found[site], sum(n) - n[site])
        oracle = two_proportions(found[site] + 1, n[site] + 2, rest[0] + 1, rest[1] + 2, method="wald")
        spread = oracle.diff / oracle.statistic
        assert z[site] == pytest.approx((found[site] / n[site] - rest[0] / rest[1]) / spread, rel=1e-9)


def test_honest_hospitals_alike_are_rarely_far_and_a_false_one_is() -> None:
    rng = np.random.default_rng(0)
    n = np.array([200] * 10)
    far = [np.abs(leave_one_out("tpr", positives(list(rng.binomial(n, 0.75)), list(n)))) > FAR for _ in range(500)]
    assert np.mean(far) < 0.006  # 0.0027 for a normal z
    z = leave_one_out("tpr", positives([150] * 9 + [200], list(n)))
    assert z[-1] > FAR
    assert np.abs(z[:-1]).max() < FAR


def test_too_few_patients_give_no_z() -> None:
    z = leave_one_out("tpr", positives([9, 50], [9, 60]))
    assert np.isnan(z).all()
    assert np.isnan(leave_one_out("fpr", positives([9, 50], [20, 60]))).all()
