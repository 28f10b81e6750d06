"""docs/audit-evidence.md says what the committed results say, and prints no number where there is none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from equipoise.common.fairness.tables import Counts
from equipoise.simulations.benchmarks.audits import DATA_SETS, PAGE, RESULTS, page, section, within


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found


def test_the_page_is_what_the_results_give(results: dict[str, Any]) -> None:
    assert set(results) == set(DATA_SETS)
    assert PAGE.read_text() == page(results)


def test_women_of_two_hospitals_are_estimable_pooled_and_not_there(results: dict[str, Any]) -> None:
    sex = next(one for one in results["heart"]["attributes"] if one["attribute"] == "sex")
    for site in ("switzerland", "va"):
        there = sex["sites"][site]
        assert (there["status"], there["value"], there["low"]) == ("not_estimable", None, None)
        assert "female" in there["reason"]
    assert sex["gaps"]["equalized_odds_difference"]["value"] > 0.3  # planted: the vendor saw no diseased woman
    assert "not estimable" in section("heart", results["heart"])


def test_every_attribute_of_every_data_set_is_there(results: dict[str, Any]) -> None:
    named = {name: [one["attribute"] for one in result["attributes"]] for name, result in results.items()}
    assert named["diabetes"] == ["race", "gender", "age"]
    assert named["ham10000"] == ["age", "sex"]
    assert "made up" in results["diabetes"]["note"]


def test_within_and_composition_add_up() -> None:
    # Simpson: no gap at either hospital, other groups at the better one.
    easy: Counts = np.array([[[0, 0], [45, 855]], [[0, 0], [5, 95]], [[0, 0], [0, 0]]])
    hard: Counts = np.array([[[0, 0], [30, 70]], [[0, 0], [270, 630]], [[0, 0], [0, 0]]])
    (found,) = within([easy, hard], ["men", "women"])
    assert found["within"]["value"] == pytest.approx(0.0)
    assert found["composition"] == pytest.approx(found["pooled"]["value"])
    assert found["pooled"]["value"] == pytest.approx(-0.2)
