"""Predictive values at the prevalence of all patients, also where noise leaves none."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.common.fairness.ratios import standardised_predictive_value
from equipoise.server.report.decision_figures import predictive_values

NAMES = ("a", "b")
COUNTS = np.array([[[30, 10], [5, 15]], [[40, 20], [10, 30]], [[0, 0], [0, 0]]])  # [group, label, decision]
NOISE = np.full(COUNTS.shape, 4.0)


@pytest.mark.parametrize("metric", ["ppv", "npv"])
def test_a_prevalence_that_noise_pushed_to_an_end_is_no_error_and_no_number(metric: str) -> None:
    for prevalence in (0.0, 1.0):
        found = predictive_values(metric, COUNTS, prevalence, NAMES, NOISE)
        assert [estimate.group for estimate in found] == ["a", "b", "unknown"]
        assert all(estimate.value is None and estimate.reason for estimate in found)
        assert {estimate.metric for estimate in found} == {f"standardised_{metric}"}


def test_inside_it_is_the_predictive_value_at_that_prevalence() -> None:
    found = predictive_values("ppv", COUNTS, 0.3, NAMES, NOISE)
    assert found == standardised_predictive_value("ppv", COUNTS, 0.3, NAMES, noise=NOISE)
    # tpr .75, fpr .25: .3 * .75 / (.3 * .75 + .7 * .25)
    assert found[0].value == pytest.approx(0.225 / 0.4)
