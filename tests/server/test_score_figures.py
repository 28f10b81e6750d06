"""Calibration and Brier score of bins: the scores' own where bins are narrow, and no number where they are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from equipoise.common.evaluation import BASE
from equipoise.common.fairness.calibration import calibration_by_group
from equipoise.common.fairness.tables import hybrid_edges
from equipoise.server.report.curves import score_sections
from equipoise.server.report.score_figures import WIDEST_BIN, bin_centres, bin_ends, score_figures
from equipoise.server.report.suppression import Suppression
from tests.score_tables import calibration_table
from tests.server.report_case import METHOD, Patients, draw, make_report, make_study, measure

N = 6000
STUDY = make_study(controls=())


def logit(share: Any) -> NDArray[np.float64]:
    share = np.asarray(share, dtype=np.float64)
    return np.log(share / (1 - share))


def calibrated(mean: float, spread: float = 1.2) -> Patients:
    """Patients, all of one group, whose scores are right; the disease is rare where the mean logit is low."""
    rng = np.random.default_rng(1)
    scores = rng.normal(mean, spread, N)
    label = (rng.random(N) < expit(scores)).astype(np.int64)
    return Patients(label, np.zeros(N, dtype=np.int64), {BASE: scores, METHOD: scores + 1e-3})


def figures(patients: Patients, edges: NDArray[np.float64]) -> dict[str, dict[str, Any]]:
    """ECE, O/E and Brier score of the one group."""
    measured = measure(STUDY, patients, edges)
    scores = score_figures(STUDY, measured, [BASE], Suppression.of(STUDY, measured))[BASE]["tone"]
    row = scores["calibration"][0]
    assert (row["ece_if_calibrated"] is None) == (row["ece"]["value"] is None) == (row["reliability"] == [])
    return {"ece": row["ece"], "citl": row["citl"], "brier": scores["brier"][0]}


@pytest.mark.parametrize("declared", [[0.05, 0.1, 0.2], np.arange(1, 10) / 10, np.arange(1, 40) / 40])
def test_few_bins_give_no_calibration_and_say_why(declared: Any) -> None:
    """With three edges O/E was 1.951 [1.80, 2.10] of scores that are right."""
    for estimate in figures(calibrated(-3.0), logit(declared)).values():
        assert (estimate["status"], estimate["value"], estimate["n"]) == ("not_released", None, N)
        assert "wide" in estimate["reason"]


@pytest.mark.parametrize("mean", [-6.0, -3.0, 0.0])
@pytest.mark.parametrize("bins", [256, 1024])
def test_narrow_bins_give_that_of_the_scores(bins: int, mean: float) -> None:
    patients = calibrated(mean)
    found = figures(patients, hybrid_edges(None, bins))
    scores = expit(patients.logits[BASE])
    exact = calibration_by_group(calibration_table(scores, patients.label, patients.group, 2))[0]
    assert found["brier"]["value"] == pytest.approx(((scores - patients.label) ** 2).mean(), abs=1e-3)
    assert found["ece"]["value"] == pytest.approx(exact.ece.value, abs=3e-3)
    if (bins, mean) == (256, -6.0):
        assert found["citl"]["status"] == "not_released"
    else:
        assert found["citl"]["value"] == pytest.approx(exact.citl.value, rel=0.01)


def test_a_rare_disease_needs_bins_that_are_narrow_beside_it() -> None:
    """A hundred equal bins hold all scores of two in a thousand in the first one, whose middle is 0.005."""
    found = figures(calibrated(-7.0, 0.5), logit(np.arange(1, 100) / 100))
    assert found["ece"]["status"] == found["brier"]["status"] == "ok"
    assert found["citl"]["status"] == "not_released"
    assert "more than 5%" in found["citl"]["reason"]


def test_open_bins_reach_to_0_and_to_1() -> None:
    edges = logit([0.3, 0.4])
    assert pytest.approx(np.array([[0, 0.3], [0.3, 0.4], [0.4, 1]])) == bin_ends(edges).T
    assert bin_centres(edges)[[0, 2]] == pytest.approx([0.15, 0.7])
    assert 0 < np.ptp(bin_ends(hybrid_edges(None, 1024)), axis=0).max() < WIDEST_BIN / 10


def test_the_page_says_why_and_draws_nothing() -> None:
    report = make_report(make_study(bins=16), draw([300, 300, 0], {BASE: [0, 0, 0], METHOD: [0, 0, 0]}))
    section = score_sections(report)[1]
    assert sum("Not released: a bin of the score is" in text for text in section.text) == 1
    assert [len(block.rows) for block in section.blocks] == [4]  # type: ignore[union-attr]
