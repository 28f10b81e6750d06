"""Net benefit by hand, by patients, with intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.common.errors import StudyError
from equipoise.common.fairness.net_benefit import net_benefit, treat_all
from tests.interval import interval

EMPTY = [[0, 0], [0, 0]]


def test_by_hand() -> None:
    # 100 patients, 40 found, 10 false alarms at t = 0.2: .4 - .1 / 4; standardised by the prevalence .5.
    counts = np.array([[[40, 10], [10, 40]], EMPTY])
    plain, unknown = net_benefit(counts, 0.2, ["all"])
    assert plain.value == pytest.approx(0.375)
    assert unknown.value is None
    standard = net_benefit(counts, 0.2, standardised=True)[0]
    assert standard.value == pytest.approx(0.75)
    assert standard.metric == "standardised_net_benefit"
    assert treat_all(0.5, 0.2) == pytest.approx(0.375)
    assert treat_all(0.2, 0.2) == pytest.approx(0)
    perfect = net_benefit(np.array([[[50, 0], [0, 50]], EMPTY]), 0.3, standardised=True)[0]
    assert perfect.value == 1


def test_it_is_the_mean_over_patients_of_what_each_is_worth() -> None:
    rng = np.random.default_rng(0)
    label, decision = rng.integers(0, 2, 300), rng.integers(0, 2, 300)
    counts = np.zeros((2, 2, 2), dtype=np.int64)
    np.add.at(counts, (label * 0, label, decision), 1)
    worth = decision * np.where(label == 1, 1.0, -0.1 / 0.9)
    estimate = net_benefit(counts, 0.1)[0]
    assert estimate.value == pytest.approx(worth.mean())
    half = 1.96 * worth.std() / 300**0.5
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.05)  # type: ignore[operator]


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("variance", [0.0, 30.0])
def test_intervals_cover(standardised: bool, variance: float) -> None:
    rng = np.random.default_rng(1)
    cells = np.array([0.66, 0.12, 0.06, 0.16])  # TN, FP, FN, TP
    truth = 0.16 - 0.12 * 0.25
    # Standardised: positives and negatives are those of the test set, so they are fixed in the repeats.
    covered, repeats = 0, 400
    for _ in range(repeats):
        if standardised:
            tp, fp = rng.binomial(66, 16 / 22), rng.binomial(234, 12 / 78)
            counts = np.array([[[234 - fp, fp], [66 - tp, tp]], EMPTY])
        else:
            counts = np.array([rng.multinomial(300, cells).reshape(2, 2), EMPTY])
        counts = counts + np.rint(rng.normal(0, variance**0.5, counts.shape)).astype(np.int64)
        low, high = interval(net_benefit(counts, 0.2, standardised=standardised, noise=variance)[0]) or (1, 0)
        covered += low <= (truth / 0.22 if standardised else truth) <= high
    assert covered >= 0.925 * repeats


def test_the_noise_is_what_fresh_noise_does() -> None:
    rng = np.random.default_rng(2)
    counts = np.array([[[300, 60], [40, 100]], EMPTY])
    blurred = counts + np.rint(rng.normal(0, 5, (800, *counts.shape))).astype(np.int64)
    values = [net_benefit(table, 0.3)[0].value for table in blurred]
    assert net_benefit(counts, 0.3, noise=25.0)[0].noise_sd == pytest.approx(np.std(values), rel=0.08)  # type: ignore[arg-type]


def test_it_needs_a_probability_and_patients() -> None:
    counts = np.array([[[4, 1], [1, 1]], EMPTY])
    for threshold in (0.0, 1.0, 2.0):
        with pytest.raises(StudyError, match=r"threshold=\d.\d: net benefit needs a probability"):
            net_benefit(counts, threshold)
    assert net_benefit(counts, 0.5)[0].reason == "7 patients, 10 needed"
    assert net_benefit(counts, 0.5, standardised=True)[0].value is None
