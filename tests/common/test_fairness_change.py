"""Paired changes: exact values, paired intervals, coverage in small simulations, comparison through the base model."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.common.errors import StudyError
from equipoise.common.fairness.change import (
    gap_change,
    overall_rate_change,
    rate_change_by_group,
)
from equipoise.common.fairness.contrasts import GAPS
from equipoise.common.fairness.rates import gap, overall_rate, rate_by_group
from equipoise.common.fairness.tables import counts_after, counts_before
from tests.interval import interval


def joint(before: float, after: float, agreement: float) -> np.ndarray:
    """Cell probabilities 00, 01, 10, 11 of [before, after] with these margins; agreement 0 is independence."""
    both = before * after + agreement * (min(before, after) - before * after)
    return np.array([1 - before - after + both, after - both, before - both, both])


def draw(rng: np.random.Generator, rates: list[tuple[float, float, float, float]], n: int) -> np.ndarray:
    """pair[g, y, before, after] for groups of (TPR before, after, FPR before, after); unknown is empty."""
    pair = np.zeros((len(rates) + 1, 2, 2, 2), dtype=np.int64)
    for g, (tpr0, tpr1, fpr0, fpr1) in enumerate(rates):
        pair[g, 1] = rng.multinomial(n, joint(tpr0, tpr1, 0.7)).reshape(2, 2)
        pair[g, 0] = rng.multinomial(n, joint(fpr0, fpr1, 0.7)).reshape(2, 2)
    return pair


@pytest.mark.parametrize("seed", range(5))
def test_every_change_is_the_difference_of_the_two_estimates(seed: int) -> None:
    pair = np.random.default_rng(seed).integers(5, 60, (4, 2, 2, 2))
    before, after = counts_before(pair), counts_after(pair)
    rates = ["tpr", "fnr", "fpr", "tnr", "selection_rate", "accuracy", "balanced_accuracy", "ppv", "npv"]
    for rate in rates:
        changes = rate_change_by_group(rate, pair)
        for one, b, a in zip(changes, rate_by_group(rate, before), rate_by_group(rate, after), strict=True):
            assert one.value == pytest.approx(a.value - b.value, abs=1e-12)  # type: ignore[operator]
            assert one.low < one.value < one.high  # type: ignore[operator]
        overall = overall_rate_change(rate, pair).value
        assert overall == pytest.approx(overall_rate(rate, after).value - overall_rate(rate, before).value)  # type: ignore[operator]
    for metric in GAPS:
        expected = gap(metric, after).value - gap(metric, before).value  # type: ignore[operator]
        change = gap_change(metric, pair)
        assert change.value == pytest.approx(expected, abs=1e-12)
        assert change == gap_change(metric, pair)  # the draws' seed is fixed


def test_the_change_of_a_signed_gap() -> None:
    pair = np.random.default_rng(7).integers(20, 90, (3, 2, 2, 2))
    expected = [gap("eodds_bmft_signed", counts(pair)).value for counts in (counts_before, counts_after)]
    change = gap_change("eodds_bmft_signed", pair)
    assert change.value == pytest.approx(expected[1] - expected[0], abs=1e-12)  # type: ignore[operator]
    assert change.low < change.value < change.high  # type: ignore[operator]


def test_a_rate_and_its_complement_change_by_opposite_intervals() -> None:
    pair = np.random.default_rng(0).integers(5, 60, (2, 2, 2, 2))
    for rate, complement in (("tpr", "fnr"), ("fpr", "tnr")):
        low, high = interval(rate_change_by_group(rate, pair)[0]) or (0, 0)
        assert interval(rate_change_by_group(complement, pair)[0]) == pytest.approx((-high, -low))


def test_labels_and_decisions_exchanged_turn_ppv_into_npv() -> None:
    pair = np.random.default_rng(1).integers(5, 60, (2, 2, 2, 2))
    turned = pair[:, ::-1, ::-1, ::-1]
    assert interval(rate_change_by_group("ppv", pair)[0]) == interval(rate_change_by_group("npv", turned)[0])


def test_too_few_patients_and_unknown_names() -> None:
    pair = np.zeros((3, 2, 2, 2), dtype=np.int64)
    pair[:2, 0] = 20
    pair[0, 1] = 20
    for metric in ("equalized_odds_difference", "equal_opportunity_difference"):
        change = gap_change(metric, pair, ["men", "women"])
        assert (change.value, change.low) == (None, None)
        assert "women: 0 positives" in change.reason
    assert rate_change_by_group("balanced_accuracy", pair)[1].reason == "0 positives, 10 needed"
    with pytest.raises(StudyError, match="metric=f1: its change is not defined"):
        overall_rate_change("f1", pair)


def test_the_same_decisions_leave_an_interval_around_zero() -> None:
    pair = np.zeros((3, 2, 2, 2), dtype=np.int64)
    pair[:2, 1] = [[20, 0], [0, 80]]
    pair[:2, 0] = [[90, 0], [0, 10]]
    change = gap_change("equalized_odds_difference", pair)
    assert change.value == 0
    assert change.low < 0 < change.high  # type: ignore[operator]


# (TPR before, after, FPR before, after) by group, patients a cell: each is hard for a bootstrap of the maximum.
FALLS_TO_NOTHING = [(0.8, 0.75, 0.1, 0.15), (0.6, 0.75, 0.2, 0.15)]
SIX_GROUPS_FALL = [(0.9 - 0.06 * g, 0.8, 0.1, 0.12) for g in range(6)]
NO_GAP = [(0.8, 0.8, 0.1, 0.1)] * 2
FLIPS = [(0.85, 0.75, 0.1, 0.2), (0.75, 0.85, 0.2, 0.1)]  # the same gap, the other way round: no change
CLEAR_FALL = [(0.85, 0.82, 0.1, 0.12), (0.6, 0.67, 0.15, 0.13)]


@pytest.mark.parametrize(
    ("rates", "n", "metric", "truth"),
    [
        (FALLS_TO_NOTHING, 100, "equalized_odds_difference", -0.2),
        (FALLS_TO_NOTHING, 100, "equalized_odds_mean", -0.15),
        (SIX_GROUPS_FALL, 200, "equalized_odds_difference", -0.3),
        (NO_GAP, 100, "equalized_odds_difference", 0.0),
        (FLIPS, 200, "equalized_odds_difference", 0.0),
        (CLEAR_FALL, 1000, "equalized_odds_difference", -0.1),
    ],
)
def test_intervals_of_gap_changes_cover(
    rates: list[tuple[float, float, float, float]], n: int, metric: str, truth: float
) -> None:
    rng = np.random.default_rng(4)
    covered = false_falls = 0
    for _ in range(100):
        low, high = interval(gap_change(metric, draw(rng, rates, n)))  # type: ignore[misc]
        covered += low <= truth + 1e-12 and truth - 1e-12 <= high
        false_falls += high < truth - 1e-12
    assert covered >= 90  # nominal 95
    assert false_falls <= 6  # nominal 2.5


def test_single_rate_intervals_cover() -> None:
    rng = np.random.default_rng(5)
    truth = {"tpr": 0.05, "balanced_accuracy": 0.05, "ppv": 0.85 / 0.95 - 0.8 / 0.95}
    covered = dict.fromkeys(truth, 0)
    for _ in range(200):
        pair = draw(rng, [(0.8, 0.85, 0.15, 0.10)], 60)
        for metric, expected in truth.items():
            low, high = interval(rate_change_by_group(metric, pair)[0])  # type: ignore[misc]
            covered[metric] += low <= expected <= high
    assert min(covered.values()) >= 182  # .91, nominal .95


def test_the_delta_method_has_the_multinomials_standard_error() -> None:
    cells = np.array([[[300, 40], [30, 80]], [[50, 20], [10, 200]]])
    change = rate_change_by_group("ppv", np.stack([cells, cells * 0]))[0]
    half = (change.high - change.low) / 2  # type: ignore[operator]
    drawn = np.random.default_rng(0).multinomial(730, cells.ravel() / 730, size=20_000).reshape(-1, 2, 2, 2)
    before = drawn[:, 1, 1].sum(axis=-1) / drawn[:, :, 1].sum(axis=(1, 2))
    after = drawn[:, 1, :, 1].sum(axis=-1) / drawn[:, :, :, 1].sum(axis=(1, 2))
    assert half / 1.96 == pytest.approx((after - before).std(), rel=0.03)


def test_twenty_of_twenty_found_are_no_certainty() -> None:
    # The small group's TPR rises from .70 to .95, the large one's stays at .95, so the gap falls by .25. Redrawing the
    # tables claimed too small a fall in .11 of draws, since a table of 20 found of 20 is hardly ever redrawn otherwise.
    rng, repeats, short = np.random.default_rng(0), 300, 0
    for _ in range(repeats):
        pair = np.zeros((3, 2, 2, 2), dtype=np.int64)
        for group, (n, before, after) in enumerate(((20, 0.70, 0.95), (400, 0.95, 0.95))):
            both = 0.9 * before + 0.1 * before * after
            pair[group, 1] = rng.multinomial(n, [1 - before - after + both, after - both, before - both, both]).reshape(
                2, 2
            )
        found = gap_change("equal_opportunity_difference", pair)
        short += found.low > -0.25  # type: ignore[operator]
    assert short <= 0.06 * repeats
