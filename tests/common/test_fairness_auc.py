"""AUC from histograms: scikit-learn as the oracle, the binning bound, DeLong by hand, and sums over sites."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from equipoise.common.fairness.auc import (
    auc_by_group,
    auc_gap,
    binned_auc,
    overall_auc,
    placement_sums,
    placements_of_bins,
    worst_group_auc,
    xauc,
)
from equipoise.common.fairness.auc_change import (
    auc_change_by_group,
    auc_gap_change,
    hidden_by_binning,
    overall_auc_change,
    worst_group_auc_change,
)
from equipoise.common.fairness.placements import auc_covariance, coarseness
from equipoise.common.fairness.tables import bin_scores, histogram, hybrid_edges

EDGES = hybrid_edges(None, 1024)


def patients(seed: int, n: int, groups: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores of two correlated models, label, group; logits of useful classifiers."""
    rng = np.random.default_rng(seed)
    label, group = rng.integers(0, 2, n), rng.integers(0, groups, n)
    before = rng.normal(1.7 * label - 0.6 * group * label, 1)
    return before, before + rng.normal(0.3 * label, 0.5, n), label, group


def table(scores: np.ndarray, label: np.ndarray, group: np.ndarray, groups: int = 2) -> np.ndarray:
    return histogram(bin_scores(scores, EDGES), label, group, groups + 1, len(EDGES) + 1)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 200),
    bins=st.sampled_from([8, 16, 64, 256]),
    scale=st.sampled_from([0.01, 1.0, 8.0]),
    decimals=st.sampled_from([1, 12]),
)
@settings(max_examples=150, deadline=None)
def test_the_binning_bound_holds(seed: int, n: int, bins: int, scale: float, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.concatenate([[0, 1], rng.integers(0, 2, n - 2)])
    scores = np.round(rng.normal(label * rng.normal(), 1, n) * scale, decimals)  # with ties
    edges = hybrid_edges(None, bins)
    auc = binned_auc(histogram(bin_scores(scores, edges), label, label * 0, 1, bins)[0])
    assert abs(auc.value - roc_auc_score(label, scores)) <= auc.bound + 1e-12


def test_the_binning_bound_is_attained_by_one_bin_and_vanishes_with_a_bin_for_each_score() -> None:
    label, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4])
    one = binned_auc(histogram(bin_scores(scores, np.array([9.0])), label, label * 0, 1, 2)[0])
    assert (one.value, one.bound) == (0.5, 0.5)
    all_own = binned_auc(histogram(bin_scores(scores, scores), label, label * 0, 1, 5)[0])
    assert (all_own.value, all_own.bound) == (1.0, 0.0)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(30, 200))
@settings(max_examples=30, deadline=None)
def test_with_a_bin_for_each_score_it_equals_scikit_learn(seed: int, n: int) -> None:
    before, _, label, group = patients(seed, n)
    label[:4], group[:4] = [0, 1, 0, 1], [0, 0, 1, 1]
    edges = np.unique(before)
    hist = histogram(bin_scores(before, edges), label, group, 3, len(edges) + 1)
    groups = auc_by_group(hist, minimum=1)
    for g in range(2):
        assert groups[g].value == pytest.approx(roc_auc_score(label[group == g], before[group == g]), abs=1e-12)
    assert overall_auc(hist, minimum=1).value == pytest.approx(roc_auc_score(label, before), abs=1e-12)
    values = [estimate.value for estimate in groups[:2] if estimate.value is not None]
    assert worst_group_auc(hist, minimum=1).value == min(values)
    assert auc_gap(hist, minimum=1).value == pytest.approx(max(values) - min(values), abs=1e-12)
    across = np.concatenate([before[(group == 0) & (label == 1)], before[(group == 1) & (label == 0)]])
    truth = np.concatenate(
        [np.ones(((group == 0) & (label == 1)).sum()), np.zeros(((group == 1) & (label == 0)).sum())]
    )
    assert xauc(hist, ["a", "b"], minimum=1)["a", "b"].value == pytest.approx(roc_auc_score(truth, across), abs=1e-12)


def test_what_bins_lack_is_a_third_of_what_merging_neighbours_takes() -> None:
    hist = np.random.default_rng(3).integers(1, 50, (2, 16))
    pairings = np.arange(0, 16, 2), np.concatenate([[0], np.arange(1, 16, 2)])
    merged = [np.add.reduceat(hist, starts, axis=1) for starts in pairings]
    lost = binned_auc(hist).value - np.mean([binned_auc(coarse).value for coarse in merged])
    assert coarseness(hist) == pytest.approx(lost / 3, abs=1e-12)


@pytest.mark.parametrize(
    ("mean", "spread", "share"), [(2.12, 1, 0.2), (1.55, 1, 0.2), (0.8, 1, 0.2), (2.8, 1, 0.1), (2.13, 2, 0.2)]
)
def test_sixteen_bins_give_the_auc_of_the_scores_once_what_they_lack_is_added(
    mean: float, spread: float, share: float
) -> None:
    at = np.linspace(-6, 12, 200_001)
    mixed = share * norm.cdf((at - mean) / spread) + (1 - share) * norm.cdf(at)
    edges = np.interp(np.arange(1, 16) / 16, mixed, at)
    parts = [np.diff(norm.cdf((edges - m) / s), prepend=0.0, append=1.0) for m, s in ((0.0, 1.0), (mean, spread))]
    counts = 1e6 * np.stack(parts)
    true = float(norm.cdf(mean / (1 + spread**2) ** 0.5))
    before = true - binned_auc(counts).value
    assert before > 0.001
    assert abs(before - coarseness(counts)) < before / 3


def test_delong_by_hand() -> None:
    # Positives 3, 1 and negatives 2, 0: placements of the positives 1, .5; of the negatives .5, 1. AUC .75.
    hist = np.array([[1, 0, 1, 0], [0, 1, 0, 1]])
    auc = binned_auc(hist)
    assert auc.value == 0.75
    assert auc.variance == pytest.approx(0.125 / 2 + 0.125 / 2)


def test_paired_delong_equals_the_direct_formula_and_sums_over_sites() -> None:
    before, after, label, group = patients(5, 600)
    tables = table(before, label, group), table(after, label, group)
    placed = [
        placements_of_bins(hist)[group, label, bin_scores(scores, EDGES)]
        for hist, scores in zip(tables, (before, after), strict=True)
    ]
    pooled = placement_sums(placed[0], placed[1], label, group, 3)
    site = np.random.default_rng(0).integers(0, 5, 600)
    summed = sum(
        placement_sums(placed[0][k], placed[1][k], label[k], group[k], 3) for k in (site == s for s in range(6))
    )
    assert summed == pytest.approx(pooled, abs=1e-9)
    for g in range(2):
        expected = np.zeros((2, 2))
        for y in (0, 1):
            members = (group == g) & (label == y)
            expected += np.cov(placed[0][members], placed[1][members]) / members.sum()
        covariance = auc_covariance(tables[0][g], pooled[g])
        assert covariance == pytest.approx(expected, abs=1e-12)
        assert covariance[0, 0] == pytest.approx(binned_auc(tables[0][g]).variance, abs=1e-12)
        # The sums of placements are the AUC itself.
        assert pooled[g, 1, 0] / tables[0][g, 1].sum() == pytest.approx(binned_auc(tables[0][g]).value, abs=1e-12)
    paired = auc_change_by_group(*tables, sums=pooled)[0]
    unpaired = auc_change_by_group(*tables)[0]
    assert paired.value == unpaired.value
    assert paired.high - paired.low < 0.7 * (unpaired.high - unpaired.low)  # type: ignore[operator]
    assert (paired.method, unpaired.method) == ("paired delong", "unpaired delong")


def test_logit_intervals_cover() -> None:
    # True AUC Phi(1.2) of a normal shift by 1.2 * sqrt(2): .885.
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(200):
        label = np.repeat([0, 1], [200, 60])
        estimate = overall_auc(table(rng.normal(label * 1.2 * 2**0.5, 1), label, label * 0))
        assert estimate.low is not None
        assert estimate.high is not None
        covered += estimate.low <= 0.8849 <= estimate.high
    assert covered >= 183  # .915; expected .95 +- .03


def test_a_perfect_auc_keeps_an_interval() -> None:
    label = np.repeat([0, 1], [40, 20])
    estimate = overall_auc(table(label * 10.0 - 5, label, label * 0))
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(20 / (20 + 1.96**2), abs=1e-3)


def test_constant_scores_are_no_estimate() -> None:
    label = np.repeat([0, 1], 50)
    estimate = overall_auc(table(np.zeros(100), label, label * 0))
    assert estimate.value is None
    assert "constant scores" in estimate.reason


def test_coarse_bins_are_marked() -> None:
    label = np.repeat([0, 1], 200)
    scores = np.random.default_rng(0).normal(label * 1e-3, 1e-3)
    estimate = overall_auc(histogram(bin_scores(scores, np.array([0.0])), label, label * 0, 2, 2))
    assert estimate.status == "imprecise"
    assert "binning may move it" in estimate.reason


def test_whatever_compares_a_coarse_auc_is_marked_like_it() -> None:
    """Two groups, of which one lies in few of the bins; the fine bins of the other change nothing for it."""
    rng = np.random.default_rng(0)
    label, group = np.tile([0, 1], 2000), np.repeat([0, 1], 2000)
    scores = rng.normal(label * 1.0, 1.0) * np.where(group == 0, 3.0, 0.02)
    before, after = table(scores, label, group), table(scores + rng.normal(0, 1e-3, 4000), label, group)
    fine, coarse, _ = auc_by_group(before)
    assert (fine.status, coarse.status) == ("ok", "imprecise")
    for estimate in (
        worst_group_auc(before),
        auc_gap(before),
        overall_auc(before[1:2]),
        auc_change_by_group(before, after)[1],
        overall_auc_change(before[1:2], after[1:2]),
        worst_group_auc_change(before, after),
        auc_gap_change(before, after),
    ):
        assert estimate.status == "imprecise", estimate.metric
        assert f"binning may move it by up to {estimate.binning_bound:.3f}" in estimate.reason
    assert auc_change_by_group(before, after)[0].reason == ""


def test_the_binning_bound_of_a_change_of_the_worst_group_allows_for_another_group_before_and_after() -> None:
    """One group is all in one bin before, the other after: both AUCs were 1, and both are 0.5 in the tables."""
    apart, together = np.array([[50, 0, 0], [0, 0, 50]]), np.array([[0, 50, 0], [0, 49, 1]])
    nobody = np.zeros((2, 3), dtype=np.int64)
    before, after = np.stack([together, apart, nobody]), np.stack([apart, together, nobody])
    bound = binned_auc(together).bound
    assert worst_group_auc_change(before, after).binning_bound == pytest.approx(2 * bound)
    assert hidden_by_binning(before, after) == pytest.approx(2 * bound)


def test_a_group_without_a_class_leaves_no_worst_group_and_is_named() -> None:
    before, after, label, group = patients(2, 400)
    label[group == 1] = 0
    tables = table(before, label, group), table(after, label, group)
    assert [e.value is None for e in auc_by_group(tables[0], ["men", "women"])] == [False, True, True]
    for estimate in (
        worst_group_auc(tables[0], ["men", "women"]),
        auc_gap(tables[0], ["men", "women"]),
        worst_group_auc_change(*tables, ["men", "women"]),
        auc_gap_change(*tables, ["men", "women"]),
    ):
        assert (estimate.value, estimate.status) == (None, "not_estimable")
        assert estimate.reason.startswith("women: 0 positives")


def test_xauc_shows_a_shift_that_the_groups_own_auc_hide() -> None:
    rng = np.random.default_rng(0)
    label, group = rng.integers(0, 2, 8000), np.repeat([0, 1], 4000)
    hist = table(rng.normal(1.5 * label - 0.6 * group, 1), label, group)
    assert auc_gap(hist).value < 0.03  # type: ignore[operator]
    across = xauc(hist, ["a", "b"])
    assert across["a", "b"].value - across["b", "a"].value > 0.15  # type: ignore[operator]


def test_changes_of_the_worst_group_and_of_the_gap() -> None:
    before, _, label, group = patients(11, 4000)
    repaired = before + 0.6 * group * label  # the offset that made group 1 worse
    tables = table(before, label, group), table(repaired, label, group)
    worst = worst_group_auc_change(*tables)
    gap = auc_gap_change(*tables)
    singles = [auc_by_group(hist)[:2] for hist in tables]
    least = [min(e.value for e in single if e.value is not None) for single in singles]
    assert worst.value == pytest.approx(least[1] - least[0])
    assert worst.low is not None
    assert worst.low > 0
    assert gap.high is not None
    assert gap.high < 0
    with pytest.raises(ValueError, match="different patients"):
        auc_change_by_group(tables[0], tables[1][::-1])
    assert overall_auc_change(*tables).value == pytest.approx(
        binned_auc(tables[1].sum(axis=0)).value - binned_auc(tables[0].sum(axis=0)).value
    )
    same = worst_group_auc_change(tables[0], tables[0])
    assert same.value == 0
    assert same.low < 0 < same.high  # type: ignore[operator]
