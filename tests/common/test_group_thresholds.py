"""Group thresholds: rates by hand from one histogram, what noise does, and that a study has to allow them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise.common import catalogue
from equipoise.common.errors import DataError, StudyError
from equipoise.common.fairness.auc import auc_by_group
from equipoise.common.fairness.tables import hybrid_edges
from equipoise.common.methods import METHODS
from equipoise.common.methods.group_thresholds import LEVELS, Curve, align, positive_edges
from tests.driving import answer, drive, parts_of, private_town, town
from tests.tiny import People, declare, draw_people

NAMES = ("young", "old")
EDGES = np.linspace(-4, 4, 33)
RNG = np.random.default_rng(4)


def two_groups(n: int = 4000) -> np.ndarray:
    """hist[g, y, bin]: the second group's scores lie 1.2 higher, at both labels; nobody of unknown group."""
    hist = np.zeros((3, 2, len(EDGES) + 1), dtype=np.int64)
    for g, shift in enumerate((0.0, 1.2)):
        for y in (0, 1):
            scores = RNG.normal(1.8 * y - 1.2 + shift, 1.0, n)
            hist[g, y] = np.bincount(np.searchsorted(EDGES, scores, side="right"), minlength=len(EDGES) + 1)
    return hist


HIST = two_groups()


def rates(thresholds: np.ndarray, y: int) -> np.ndarray:
    """Share of each group's patients of a label at or above its threshold."""
    return np.array([float(Curve.of(HIST[g, y], EDGES).share(np.array([t]))[0]) for g, t in enumerate(thresholds)])


def test_a_curve_by_hand() -> None:
    # Bins (-1, 0), (0, 1), (1, 2) of width 1 with 4, 0 and 4 patients, the outer ones as wide as their neighbours.
    curve = Curve.of(np.array([4, 0, 4]), np.array([0.0, 1.0]))
    np.testing.assert_allclose(
        curve.share(np.array([-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0])), [1, 0.75, 0.5, 0.5, 0.5, 0.25, 0]
    )
    np.testing.assert_allclose(curve.thresholds(np.array([0.75, 0.25])), [-0.5, 1.5], atol=1e-9)


@pytest.mark.parametrize(("aim", "y"), [("equal_sensitivity", 1), ("equal_false_positive_rate", 0)])
def test_the_rate_that_is_aimed_at_is_the_same_for_all_groups_at_every_level(aim: str, y: int) -> None:
    found, left_out = align(HIST, EDGES, aim, 0.0, NAMES)  # type: ignore[arg-type]
    assert left_out == []
    for level, thresholds in zip(LEVELS[::-1], found.of_group.T, strict=True):
        np.testing.assert_allclose(rates(thresholds[:2], y), level, atol=1e-3)
    pooled = HIST.sum(axis=0)[y]
    common = Curve.of(pooled, EDGES).share(found.common)
    np.testing.assert_allclose(common, LEVELS[::-1], atol=1e-3)  # the common scale is that of all patients


def test_equalized_odds_weighs_both_rates() -> None:
    # The second group's healthy have higher scores at the same sensitivity: one rate must give way.
    hist = HIST.copy()
    hist[1, 0] = np.roll(HIST[1, 0], 2)
    sensitive, _ = align(hist, EDGES, "equal_sensitivity", 0.0, NAMES)
    both, _ = align(hist, EDGES, "equalized_odds", 0.0, NAMES)

    def gaps(thresholds: np.ndarray) -> tuple[float, float]:
        found = [[float(Curve.of(hist[g, y], EDGES).share(thresholds[g : g + 1])[0]) for g in (0, 1)] for y in (0, 1)]
        return abs(found[1][0] - found[1][1]), abs(found[0][0] - found[0][1])

    at = LEVELS[::-1].tolist().index(pytest.approx(0.8))
    tpr, fpr = gaps(both.of_group[:2, at])
    tpr_only, fpr_only = gaps(sensitive.of_group[:2, at])
    assert tpr_only < 0.005
    assert fpr < fpr_only
    assert tpr + fpr <= tpr_only + fpr_only + 0.01


def test_groups_of_too_few_keep_the_common_threshold_and_are_named() -> None:
    hist = HIST.copy()
    hist[1, 1] = 0
    hist[1, 1, 20] = 9
    found, left_out = align(hist, EDGES, "equal_sensitivity", 0.0, NAMES)
    np.testing.assert_array_equal(found.of_group[1], found.common)
    assert left_out == ["old keeps the common threshold: 9 patients of a label, 10 needed."]
    with pytest.raises(DataError, match="too few training patients"):
        align(np.minimum(hist, 0), EDGES, "equal_sensitivity", 0.0, NAMES)


def test_more_noise_asks_for_more_patients() -> None:
    hist = HIST // 20
    own = hist[:2, 1].sum(axis=1)
    assert align(hist, EDGES, "equal_sensitivity", 0.0, NAMES)[1] == []
    # A standard deviation of 33 bins times the noise that is more than half of each group, and not of both together.
    noise = float((own.max() / 1.95) ** 2 / 33)
    assert len(align(hist, EDGES, "equal_sensitivity", noise, NAMES)[1]) == 2


def test_a_noisy_histogram_gives_nearly_the_same_rates() -> None:
    off = []
    for _ in range(20):
        noisy = (HIST // 10) + RNG.laplace(0, 1.0, HIST.shape).round().astype(np.int64)
        found, _ = align(noisy, EDGES, "equal_sensitivity", 2.0, NAMES)
        at = LEVELS[::-1].tolist().index(pytest.approx(0.8))
        off.append(np.abs(rates(found.of_group[:2, at], 1) - 0.8).max())
    assert np.mean(off) < 0.03


def test_edges_of_a_private_histogram_look_where_the_diseased_are() -> None:
    scores = RNG.normal(-2.0, 1.5, 2000)
    edges = positive_edges(scores, 32)
    assert len(edges) == 31
    assert (np.diff(edges) > 0).all()
    positives = RNG.normal(0.5, 1.2, 5000)  # of which a score says p
    own = np.histogram(positives, np.concatenate([[-50], edges, [50]]))[0]
    plain = np.histogram(positives, np.concatenate([[-50], np.quantile(scores, np.arange(1, 32) / 32), [50]]))[0]
    assert own.max() < plain.max()


def shifted_people() -> People:
    """900 patients; the rows of one sex lie elsewhere, so that its scores do."""
    people = draw_people(900, 2)
    moved = 0.5 * (torch.arange(people.rows[0].shape[1]) == 1)
    rows = [row + (sex == 1) * moved for row, sex in zip(people.rows, people.sex, strict=True)]
    return replace(people, rows=tuple(rows))


ALLOWED = {"allow_group_thresholds": True}


def test_a_study_has_to_allow_it() -> None:
    place = town("group_thresholds")
    with pytest.raises(StudyError, match=r"sex must be known at use.*--allow-group-thresholds"):
        METHODS["group_thresholds"].plan(place.study, place.model)


@pytest.mark.parametrize("aim", ["equal_sensitivity", "equal_false_positive_rate", "equalized_odds"])
def test_a_run_asks_once_moves_no_weight_and_closes_the_gap_on_its_patients(aim: str) -> None:
    place = town("group_thresholds", people=shifted_people(), aim=aim, **ALLOWED)
    apart, together = place.run(*parts_of(900, 4)), place.run()
    assert apart.names == ["score_histogram"]
    assert apart.sums[0].query.split == "train"
    after = apart.outcome.classifier
    assert after.state.keys() == place.model.state.keys()
    assert all((after.state[name] == value).all() for name, value in place.model.state.items())
    assert after.alignment is not None
    assert together.outcome.classifier.alignment is not None
    np.testing.assert_array_equal(after.alignment.of_group, together.outcome.classifier.alignment.of_group)
    assert "sex must be known at use" in apart.outcome.notes["warnings"][0]

    edges = hybrid_edges(None, place.study.score_bins)
    hists = []
    for model in (place.model, after):
        query = catalogue.score_histogram(place.study, "test", "any").with_inputs(
            **model.inputs(), edges={"edges": edges}
        )
        hists.append(answer(place.study, query, place.sites(range(900))).count("sex"))

    def gap(hist: np.ndarray, y: int) -> float:
        everybody = hist.sum(axis=(0, 1))
        at = int(np.searchsorted(np.cumsum(everybody), everybody.sum() / 2))  # half of all patients are flagged
        above = hist[:2, y, at + 1 :].sum(axis=1) / hist[:2, y].sum(axis=1)
        return float(abs(above[0] - above[1]))

    labels = {"equal_sensitivity": [1], "equal_false_positive_rate": [0], "equalized_odds": [0, 1]}[aim]
    before, now = (np.mean([gap(hist, y) for y in labels]) for hist in hists)
    assert before > 0.1
    assert now < before / 2
    for one, other in zip(auc_by_group(hists[0]), auc_by_group(hists[1]), strict=True):
        assert one.value == pytest.approx(other.value, abs=0.01)  # but for bins


def test_patients_of_unknown_group_keep_their_scores() -> None:
    after = town("group_thresholds", people=shifted_people(), **ALLOWED).run().outcome.classifier
    assert after.alignment is not None
    np.testing.assert_array_equal(after.alignment.of_group[-1], after.alignment.common)


def test_the_private_form_is_one_table_of_one_cell_a_patient(tmp_path: Path) -> None:
    place = private_town(tmp_path, "group_thresholds", count=900, seed=2, **ALLOWED)
    sites = place.sites(*parts_of(900, 3))
    study = declare(place.study, dict.fromkeys(sites, 300))
    done = drive(study, sites, place.model)
    query = done.sums[0].query
    assert done.names == ["score_histogram"]
    assert query.plan.kind == "counts"
    assert query.plan.clip == 1
    assert query.plan.noise == pytest.approx(1 / 3, rel=0.02)  # all of epsilon 3: Laplace of scale 1 / 3 at every site
    assert query.blocks["sex"].shape == (3, 2, 32)
    assert done.outcome.classifier.alignment is not None
