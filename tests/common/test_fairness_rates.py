"""Rates and gaps against scikit-learn, fairlearn and statsmodels; no number where the patients support none."""

from __future__ import annotations

from collections.abc import Callable

import fairlearn.metrics as fl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint
from torchmetrics.classification import BinaryGroupStatRates

from equipoise.common.errors import StudyError
from equipoise.common.fairness.change import rate_change_by_group
from equipoise.common.fairness.contrasts import GAPS, gap_contrasts, gap_value
from equipoise.common.fairness.estimate import Estimate
from equipoise.common.fairness.rates import (
    RATES,
    demographic_parity_difference,
    equal_opportunity_difference,
    equalized_odds_difference,
    equalized_odds_mean,
    expected_if_equal,
    fpr_difference,
    fraction,
    gap,
    newcombe,
    overall_rate,
    rate_by_group,
    wilson,
)
from tests.interval import interval


def patients(seed: int, n: int, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """label, decision, group; every group has both labels."""
    rng = np.random.default_rng(seed)
    group = np.concatenate([np.repeat(np.arange(groups), 2), rng.integers(0, groups, n)])
    label = np.concatenate([np.tile([0, 1], groups), rng.integers(0, 2, n)])
    return label, (rng.random(len(label)) < 0.25 + 0.4 * label + 0.1 * group).astype(int), group


def table(label: np.ndarray, decision: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """counts[g, y, decision] with an empty unknown row."""
    counts = np.zeros((groups + 1, 2, 2), dtype=np.int64)
    np.add.at(counts, (group, label, decision), 1)
    return counts


@given(trials=st.integers(1, 400), share=st.floats(0, 1), others=st.integers(1, 400), other_share=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_wilson_and_newcombe_equal_statsmodels(trials: int, share: float, others: int, other_share: float) -> None:
    k, m = round(share * trials), round(other_share * others)
    assert wilson(k, trials) == pytest.approx(proportion_confint(k, trials, method="wilson"), abs=1e-12)
    expected = confint_proportions_2indep(k, trials, m, others, method="newcomb", compare="diff")
    assert newcombe(k, trials, m, others) == pytest.approx(expected, abs=1e-9)


def paired_interval(table: np.ndarray) -> tuple[float, float] | None:
    """Of the change of TPR of positives who were decided as in table[before, after]."""
    return interval(rate_change_by_group("tpr", np.stack([np.zeros_like(table), table])[None])[0])


def test_a_paired_change_has_the_published_interval() -> None:
    # Newcombe, Stat Med 1998;17:2635-2650, table II, method 10: e, f, g, h = 36, 12, 2, 0.
    paired = np.array([[0, 12], [2, 36]])  # [before, after]
    assert paired_interval(paired) == pytest.approx((0.0569, 0.3404), abs=5e-4)
    assert paired_interval(paired.T) == pytest.approx((-0.3404, -0.0569), abs=5e-4)


def test_a_paired_change_by_hand_with_a_corrected_correlation() -> None:
    paired = np.array([[40, 10], [2, 48]])
    (l1, u1), (l2, u2) = wilson(50, 100), wilson(58, 100)
    phi = (40 * 48 - 10 * 2 - 50) / (50 * 50 * 42 * 58) ** 0.5
    low = 0.08 - ((0.58 - l2) ** 2 + (u1 - 0.5) ** 2 - 2 * phi * (0.58 - l2) * (u1 - 0.5)) ** 0.5
    high = 0.08 + ((u2 - 0.58) ** 2 + (0.5 - l1) ** 2 - 2 * phi * (u2 - 0.58) * (0.5 - l1)) ** 0.5
    assert paired_interval(paired) == pytest.approx((low, high), abs=1e-12)
    unpaired = newcombe(58, 100, 50, 100)
    assert high - low < 0.6 * (unpaired[1] - unpaired[0])


@given(seed=st.integers(0, 10_000), n=st.integers(0, 120), groups=st.integers(2, 5))
@settings(max_examples=40, deadline=None)
def test_gaps_equal_fairlearn(seed: int, n: int, groups: int) -> None:
    label, decision, group = patients(seed, n, groups)
    counts = table(label, decision, group, groups)
    data = {"y_true": label, "y_pred": decision, "sensitive_features": group}
    cases: list[tuple[Callable[..., Estimate], float]] = [
        (equalized_odds_difference, fl.equalized_odds_difference(**data)),
        (equalized_odds_mean, fl.equalized_odds_difference(**data, agg="mean")),
        (equal_opportunity_difference, fl.equal_opportunity_difference(**data)),
        (demographic_parity_difference, fl.demographic_parity_difference(**data)),
        (fpr_difference, fl.MetricFrame(metrics=fl.false_positive_rate, **data).difference()),
    ]
    for ours, expected in cases:
        estimate = ours(counts, minimum=1)
        assert estimate.value == pytest.approx(expected, abs=1e-12)
        low, high = interval(estimate)  # type: ignore[misc]
        assert 0 <= low <= expected + 1e-12
        assert expected - 1e-12 <= high <= 1


@given(seed=st.integers(0, 10_000), n=st.integers(0, 120))
@settings(max_examples=30, deadline=None)
def test_rates_equal_scikit_learn(seed: int, n: int) -> None:
    label, decision, group = patients(seed, n, 3)
    counts = table(label, decision, group, 3)
    for g in range(3):
        mine = group == g
        tn, fp, fn, tp = confusion_matrix(label[mine], decision[mine], labels=[0, 1]).ravel()
        expected = {"tpr": (tp, tp + fn), "fpr": (fp, fp + tn), "ppv": (tp, tp + fp), "npv": (tn, tn + fn)}
        expected |= {"selection_rate": (tp + fp, mine.sum()), "fnr": (fn, tp + fn), "tnr": (tn, fp + tn)}
        expected |= {"accuracy": (tp + tn, mine.sum()), "prevalence": (tp + fn, mine.sum())}
        assert set(expected) == set(RATES)
        for rate, (above, below) in expected.items():
            assert [int(x[g]) for x in fraction(counts, rate)] == [above, below]
        accuracy = rate_by_group("balanced_accuracy", counts, minimum=1)[g]
        assert accuracy.value == pytest.approx(balanced_accuracy_score(label[mine], decision[mine]), abs=1e-12)
    assert overall_rate("accuracy", counts).value in (None, pytest.approx((label == decision).mean()))


def test_a_group_without_positives_gives_no_number_and_says_why() -> None:
    counts = np.array([[[80, 20], [10, 90]], [[95, 5], [0, 0]], [[0, 0], [0, 0]]])
    women = rate_by_group("tpr", counts, ["men", "women"])[1]
    assert (women.value, women.low, women.high, women.status) == (None, None, None, "not_estimable")
    assert women.reason == "0 positives, 10 needed"
    for metric in (equalized_odds_difference, equalized_odds_mean, equal_opportunity_difference):
        estimate = metric(counts, ["men", "women"])
        assert estimate.value is None
        assert "women: 0 positives" in estimate.reason
        assert estimate.to_json()["value"] is None
    # The false positives can still be compared.
    assert fpr_difference(counts, ["men", "women"]).value == pytest.approx(0.15)


def test_a_small_third_group_is_left_out_and_named() -> None:
    counts = np.array([[[80, 20], [10, 90]], [[90, 10], [30, 70]], [[50, 0], [0, 9]], [[0, 0], [0, 0]]])
    estimate = equal_opportunity_difference(counts, ["a", "b", "c"])
    assert estimate.value == pytest.approx(0.2)
    assert estimate.reason == "without c: 9 positives, 10 needed"
    assert equal_opportunity_difference(counts, ["a", "b", "c"], minimum=9).value == pytest.approx(0.3)


def test_unknown_stays_out_of_gaps() -> None:
    counts = np.array([[[80, 20], [10, 90]], [[80, 20], [20, 80]], [[50, 50], [50, 50]]])
    assert equal_opportunity_difference(counts).value == pytest.approx(0.1)
    assert rate_by_group("tpr", counts)[2].group == "unknown"
    assert overall_rate("tpr", counts).value == pytest.approx(220 / 300)


def test_the_precision_rule() -> None:
    small = np.array([[[10, 10], [10, 10]], [[10, 10], [10, 10]], [[0, 0], [0, 0]]])
    assert rate_by_group("tpr", small)[0].status == "imprecise"
    assert rate_by_group("tpr", small * 100)[0].status == "ok"
    with pytest.raises(ValueError, match="takes no number"):
        Estimate("tpr", 0.0, 0.0, 0.0, 3, "not_estimable", "3 positives")
    with pytest.raises(ValueError, match="needs a finite value"):
        Estimate("tpr", 0.0, None, None, 3, "ok")


def test_opposite_gaps_do_not_cancel() -> None:
    # TPR +.20, FPR -.20: a signed sum would give 0.
    counts = np.array([[[70, 30], [20, 80]], [[50, 50], [40, 60]], [[0, 0], [0, 0]]])
    assert equalized_odds_difference(counts).value == pytest.approx(0.2)
    assert equalized_odds_mean(counts).value == pytest.approx(0.2)


def test_the_signed_form_of_papers_cancels_and_is_for_two_groups() -> None:
    # BMFT's code: .5 |dFPR + dTPR|; opposite gaps of .20 give 0, gaps of one sign their mean.
    opposite = np.array([[[70, 30], [20, 80]], [[50, 50], [40, 60]], [[0, 0], [0, 0]]])
    cancelled = gap("eodds_bmft_signed", opposite)
    assert cancelled.value == pytest.approx(0, abs=1e-12)
    assert (cancelled.low, cancelled.high > 0.05) == (0, True)  # type: ignore[operator]
    alike = np.array([[[70, 30], [20, 80]], [[90, 10], [40, 60]], [[0, 0], [0, 0]]])
    assert gap("eodds_bmft_signed", alike).value == pytest.approx(0.2)
    assert expected_if_equal("eodds_bmft_signed", alike) < expected_if_equal("equalized_odds_mean", alike)  # type: ignore[operator]
    three = gap("eodds_bmft_signed", np.concatenate([alike[:1], alike]))
    assert (three.value, three.reason) == (None, "eodds_bmft_signed compares two groups, and there are 3")
    with pytest.raises(ValueError, match="a signed gap compares two groups"):
        gap_contrasts([3, 3], "signed")
    assert "eodds_bmft_signed" not in GAPS


def test_the_mean_form_maximises_each_rate_separately() -> None:
    contrasts = gap_contrasts([3, 3], "mean")
    rates = np.array([0.9, 0.5, 0.7, 0.1, 0.2, 0.4])
    assert gap_value(rates, contrasts) == pytest.approx((0.4 + 0.3) / 2)
    assert len(contrasts) == 36


def test_simultaneous_intervals_of_gaps_cover_where_there_is_no_gap() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        positives, negatives = rng.binomial(60, 0.8, 4), rng.binomial(200, 0.1, 4)
        counts = np.zeros((5, 2, 2), dtype=np.int64)
        counts[:4, 1, 1], counts[:4, 1, 0] = positives, 60 - positives
        counts[:4, 0, 1], counts[:4, 0, 0] = negatives, 200 - negatives
        estimate = equalized_odds_difference(counts)
        assert estimate.value is not None
        assert estimate.value > 0  # the gap itself is biased upwards; only its interval knows
        covered += estimate.low == 0
    assert covered >= 188  # 94 %


def test_expected_if_equal_gives_the_specified_figures() -> None:
    # Evaluation specification, section 4: TPR .8, FPR .1, 50 positives a group: .068 (2 groups), .117 (4 groups).
    for groups, expected in ((2, 0.068), (4, 0.117)):
        counts = np.zeros((groups + 1, 2, 2), dtype=np.int64)
        counts[:groups] = [[180, 20], [10, 40]]
        assert expected_if_equal("equalized_odds_difference", counts) == pytest.approx(expected, abs=0.004)
    assert expected_if_equal("equalized_odds_difference", counts * 0) is None


def test_pooled_and_within_hospital_gaps_can_contradict_each_other() -> None:
    # Case A: no gap at either hospital (TPR .95 and .70), group mix 9:1 against 1:9, pooled gap .20.
    easy = np.array([[[0, 0], [45, 855]], [[0, 0], [5, 95]], [[0, 0], [0, 0]]])
    hard = np.array([[[0, 0], [30, 70]], [[0, 0], [270, 630]], [[0, 0], [0, 0]]])
    assert equal_opportunity_difference(easy).value == pytest.approx(0, abs=1e-12)
    assert equal_opportunity_difference(hard).value == pytest.approx(0, abs=1e-12)
    assert equal_opportunity_difference(easy + hard).value == pytest.approx(0.2)


def test_absent_groups_keep_their_index_where_torchmetrics_renames_them() -> None:
    # torchmetrics 1.9 (issue 3489): groups {0, 2} of 3 in a batch are counted as {0, 1}.
    decision, label, group = np.array([1, 1, 0, 0]), np.array([1, 1, 1, 1]), np.array([0, 0, 2, 2])
    metric = BinaryGroupStatRates(num_groups=3)
    metric.update(torch.tensor(decision), torch.tensor(label), torch.tensor(group))
    theirs = metric.compute()
    renamed = float(theirs["group_1"][3]) == 1.0
    assert renamed, "torchmetrics has been repaired: drop this half of the test"
    ours = rate_by_group("tpr", table(label, decision, group, 3), minimum=1)
    assert [e.value for e in ours] == [1.0, None, 0.0, None]


def test_unknown_names_are_one_line_errors() -> None:
    counts = np.zeros((3, 2, 2), dtype=np.int64)
    with pytest.raises(StudyError, match="metric=EOdds: unknown gap; choose one of equalized_odds_difference"):
        gap("EOdds", counts)
    with pytest.raises(StudyError, match="metric=f1: unknown rate"):
        overall_rate("f1", counts)
