"""Noisy tables: intervals know the noise, figures stay unbiased, nothing is 0 for want of patients."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from equipoise.common.errors import StudyError
from equipoise.common.fairness.auc import auc_by_group, auc_gap, binned_auc, overall_auc, worst_group_auc, xauc
from equipoise.common.fairness.auc_change import (
    auc_change_by_group,
    auc_gap_change,
    overall_auc_change,
    worst_group_auc_change,
)
from equipoise.common.fairness.change import gap_change, overall_rate_change, rate_change_by_group
from equipoise.common.fairness.contrasts import GAPS
from equipoise.common.fairness.estimate import Estimate, rounded_up
from equipoise.common.fairness.intervals import normal_quantile, score_limits, wilson_limits
from equipoise.common.fairness.noise import (
    HistogramNoise,
    anchored,
    cell_variances,
    needed,
    projected,
    shortage,
)
from equipoise.common.fairness.paired import PairedRate, rate_table
from equipoise.common.fairness.placements import coarseness
from equipoise.common.fairness.rates import expected_if_equal, gap, overall_rate, rate_by_group
from equipoise.common.fairness.tables import counts_after
from equipoise.common.fairness.thresholds import choose_threshold, match_selection_rate, selection_rate_at
from equipoise.common.privacy.mechanisms import DiscreteLaplace
from tests.interval import interval

Counts = NDArray[np.int64]
RATES = ("tpr", "fpr", "ppv", "selection_rate", "balanced_accuracy")


def laplace(epsilon: float, sites: int) -> float:
    """Variance of the noise that `sites` hospitals add to one cell together."""
    deviation = DiscreteLaplace(1 / epsilon).describe()["standard_deviation_steps"]
    assert isinstance(deviation, float)
    return sites * deviation**2


def noised(table: Counts, epsilon: float, sites: int, rng: np.random.Generator) -> Counts:
    """The table with the noise of `sites` hospitals: differences of geometric variables, seeded."""
    p = 1 - math.exp(-epsilon)
    shape = (sites, *table.shape)
    return table + (rng.geometric(p, shape) - rng.geometric(p, shape)).sum(axis=0)


def bins_of(auc: float, bins: int = 16) -> NDArray[np.float64]:
    """Shares [y, bin] of two unit normals with this AUC, cut at quantiles of their mixture."""
    from scipy.stats import norm

    shift = 2**0.5 * norm.ppf(auc)
    edges = np.linspace(-2, shift + 2, bins - 1)
    cumulated = [np.concatenate([[0], norm.cdf(edges - mean), [1]]) for mean in (0.0, shift)]
    return np.diff(np.array(cumulated), axis=1)


@pytest.fixture(scope="module")
def pair() -> Counts:
    return np.random.default_rng(0).integers(20, 90, (3, 2, 2, 2))


@pytest.fixture(scope="module")
def hist() -> Counts:
    rng = np.random.default_rng(1)
    return np.stack([np.stack([rng.multinomial(600, shares) for shares in bins_of(a)]) for a in (0.9, 0.8, 0.85)])


def test_no_noise_is_bit_for_bit_what_it_was(pair: Counts, hist: Counts) -> None:
    counts, none = counts_after(pair), np.zeros((3, 2, 2))
    for rate in RATES:
        assert rate_by_group(rate, counts, noise=none) == rate_by_group(rate, counts)
        assert overall_rate(rate, counts, noise=0.0) == overall_rate(rate, counts)
        assert rate_change_by_group(rate, pair, noise=none[..., None]) == rate_change_by_group(rate, pair)
    for metric in GAPS:
        assert gap(metric, counts, noise=none) == gap(metric, counts)
        assert expected_if_equal(metric, counts, noise=none) == expected_if_equal(metric, counts)
        assert gap_change(metric, pair, noise=0.0) == gap_change(metric, pair)
        assert gap(metric, counts).noise_sd == 0
    assert auc_by_group(hist, noise=HistogramNoise(0.0, 0.0)) == auc_by_group(hist)
    share, trials = np.array([0.0, 0.3, 1.0]), np.array([5.0, 60.0, 7.0])
    for z in (1.0, 1.96, 3.5):
        plain = wilson_limits(share, trials, z)
        assert [np.array_equal(*both) for both in zip(score_limits(share, trials, z), plain, strict=True)] == [True] * 2
        tiny = score_limits(share, trials, z, np.full(3, 1e-12), np.full(3, 1e-12))
        assert np.stack(tiny) == pytest.approx(np.stack(plain), abs=1e-9)


@given(
    above=st.integers(0, 60),
    rest=st.integers(0, 60),
    inside=st.floats(0.1, 30),
    outside=st.floats(0, 30),
    z=st.floats(1, 3),
)
@settings(max_examples=200, deadline=None)
def test_a_limit_lies_z_deviations_of_noise_and_sampling_away(
    above: int, rest: int, inside: float, outside: float, z: float
) -> None:
    n = above + rest + 30
    share = above / n
    part = np.array([share]), np.array([float(n)])
    for limit in score_limits(*part, z, np.array([inside]), np.array([outside])):
        p = float(limit[0])
        variance = p * (1 - p) / n + (inside * (1 - p) ** 2 + outside * p**2) / n**2
        if 0 < p < 1:
            assert abs(share - p) == pytest.approx(z * variance**0.5, rel=1e-6)
        else:  # cut: the equation would have left 0..1
            assert abs(share - p) <= z * variance**0.5 + 1e-9


def test_the_noise_of_a_rate_by_hand() -> None:
    # 80 of 100; one cell of noise in the numerator and one beside it: 4 (.2^2 + .8^2) / 100^2.
    counts = np.array([[[60, 40], [20, 80]], [[0, 0], [0, 0]]])
    tpr = rate_by_group("tpr", counts, noise=4.0)[0]
    assert tpr.noise_sd == pytest.approx((4 * (0.04 + 0.64)) ** 0.5 / 100)
    # Specification, section 4: variance p (1 - p) / n + noise; the interval is about twice 1.96 times its root.
    expected = 2 * 1.96 * (0.16 / 100 + 4 * 0.68 / 100**2) ** 0.5
    assert tpr.high - tpr.low == pytest.approx(expected, rel=0.02)  # type: ignore[operator]
    # Two cells above, two beside: selection rate 120 / 200.
    selected = rate_by_group("selection_rate", counts, noise=4.0)[0]
    assert selected.noise_sd == pytest.approx((2 * 4 * 0.16 + 2 * 4 * 0.36) ** 0.5 / 200)
    # Over both rows a cell holds the noise of two.
    assert overall_rate("tpr", counts, noise=4.0).noise_sd == pytest.approx((8 * 0.68) ** 0.5 / 100)
    # Balanced accuracy: half the root of the two variances.
    tnr = 4 * (0.16 + 0.36) / 100**2
    accuracy = rate_by_group("balanced_accuracy", counts, noise=4.0)[0]
    assert accuracy.noise_sd == pytest.approx((4 * 0.68 / 100**2 + tnr) ** 0.5 / 2)
    # A variance for each cell: noise in the denominator's other cell alone.
    only = np.zeros((2, 2, 2))
    only[:, 1, 0] = 9.0
    assert rate_by_group("tpr", counts, noise=only)[0].noise_sd == pytest.approx(3 * 0.8 / 100)


def test_a_count_below_nought_is_said_and_below_ten_is_no_number() -> None:
    counts = np.array([[[40, -3], [1, 8]], [[0, 0], [0, 0]]])
    fpr, tpr = (rate_by_group(rate, counts, ["women"], noise=2.0)[0] for rate in ("fpr", "tpr"))
    assert (fpr.value, fpr.low) == (0.0, 0.0)
    assert fpr.high is not None
    assert fpr.high > 0.05
    assert fpr.reason == "noise left -3 of 37 negatives, shown as 0"
    assert (tpr.value, tpr.status) == (None, "not_estimable")
    assert tpr.reason == "9 positives counted with noise of 2.0, 10 needed"
    negative = rate_by_group("tpr", counts - 20, noise=2.0)[0]
    assert (negative.value, negative.n) == (None, -31)
    one = rate_by_group("tpr", np.array([[[20, 20], [-2, 40]], [[0, 0], [0, 0]]]), noise=2.0)[0]
    assert (one.value, one.reason) == (1.0, "noise left 40 of 38 positives, shown as 1")


def test_a_count_within_its_noise_is_no_number() -> None:
    counts = np.array([[[50, 50], [5, 20]], [[50, 50], [40, 60]], [[0, 0], [0, 0]]])
    assert rate_by_group("tpr", counts, noise=70.0)[0].value == pytest.approx(0.8)  # 25, noise 11.8
    lost = rate_by_group("tpr", counts, noise=100.0)[0]
    assert lost.reason == "25 positives counted with noise of 14.1, 29 needed"
    found = gap("equal_opportunity_difference", counts, ["women", "men"], noise=100.0)
    assert found.value is None
    assert "without women: 25 positives counted with noise of 14.1" in found.reason
    assert needed(10) == 10
    assert needed(10, 49.0) == 14
    assert shortage(14, "positives", 10, 49.0) == ""
    # Where the denominator could be anything nothing bounds a share.
    assert [float(x[0]) for x in score_limits(np.array([0.4]), np.array([20.0]), 3.0, *[np.array([50.0])] * 2)] == [
        0,
        1,
    ]


def test_negative_variances_are_refused() -> None:
    for broken in (-1.0, math.nan, np.array([[1.0, -1.0], [1.0, 1.0]])):
        with pytest.raises(ValueError, match="expected finite variances"):
            cell_variances(broken, np.zeros((3, 2, 2), dtype=np.int64))
    with pytest.raises(ValueError, match="noise_sd=-1"):
        Estimate.of("tpr", 0.5, 0.4, 0.6, n=9, method="", noise_sd=-1.0)
    assert Estimate.missing("tpr", "none", n=0).noise_sd is None
    assert [rounded_up(x) for x in (0.0121, 0.012, 0.0, 0.1 + 0.2)] == [0.013, 0.012, 0.0, 0.3]


def test_what_chance_shows_under_no_gap_grows_with_the_noise() -> None:
    counts = np.zeros((3, 2, 2), dtype=np.int64)
    counts[:2] = [[180, 20], [10, 40]]
    plain, blurred = (expected_if_equal("equalized_odds_difference", counts, noise=x) for x in (0.0, 36.0))
    assert plain == pytest.approx(0.068, abs=0.004)
    rng = np.random.default_rng(5)
    drawn = np.zeros((1500, 3, 2, 2), dtype=np.int64)
    for g in range(2):
        for y, p in ((1, 0.8), (0, 0.1)):
            n = counts[g, y].sum()
            drawn[:, g, y, 1] = rng.binomial(n, p, 1500)
            drawn[:, g, y, 0] = n - drawn[:, g, y, 1]
    blur = np.rint(rng.normal(0, 6, drawn.shape)).astype(np.int64)
    values = [gap("equalized_odds_difference", table, noise=36.0).value for table in drawn + blur]
    measured = float(np.mean([value for value in values if value is not None]))
    assert blurred == pytest.approx(measured, abs=0.006)
    assert blurred is not None
    assert blurred > 1.7 * plain  # type: ignore[operator]


@pytest.mark.parametrize("metric", ["tpr", "fpr", "selection_rate", "accuracy", "balanced_accuracy", "ppv", "npv"])
def test_the_noise_of_a_change_is_what_fresh_noise_does(metric: str, pair: Counts) -> None:
    rng = np.random.default_rng(2)
    pair = pair[:1]
    blurred = pair + np.rint(rng.normal(0, 3, (1500, *pair.shape))).astype(np.int64)
    values = [rate_change_by_group(metric, table)[0].value for table in blurred]
    said = rate_change_by_group(metric, pair, noise=9.0)[0].noise_sd
    assert said == pytest.approx(float(np.std([v for v in values if v is not None])), rel=0.08)


def test_the_noise_of_a_change_of_a_gap_is_what_fresh_noise_does() -> None:
    pair = np.zeros((3, 2, 2, 2), dtype=np.int64)
    pair[:2, 1] = [[[30, 20], [10, 140]], [[100, 40], [20, 40]]]
    pair[:2, 0] = [[[300, 20], [10, 40]], [[290, 25], [15, 40]]]
    rng = np.random.default_rng(3)
    blurred = pair + np.rint(rng.normal(0, 4, (700, *pair.shape))).astype(np.int64)
    for metric in ("equal_opportunity_difference", "equalized_odds_difference", "equalized_odds_mean"):
        before, after = blurred.sum(axis=-1), blurred.sum(axis=-2)
        values = [gap(metric, a).value - gap(metric, b).value for b, a in zip(before, after, strict=True)]  # type: ignore[operator]
        said = gap_change(metric, pair, noise=16.0).noise_sd
        assert said == pytest.approx(float(np.std(values)), rel=0.15)
        exact, noisy = gap_change(metric, pair), gap_change(metric, pair, noise=16.0)
        assert noisy.value == exact.value
        assert noisy.high - noisy.low > exact.high - exact.low  # type: ignore[operator]


def test_noise_shared_by_two_rates_correlates_them() -> None:
    # Cell 11 counts for both rates and each cell for both denominators: sum of noise times both influences, over n^2.
    table = np.array([[[0, 0], [0, 0]], [[30, 10], [20, 140]]])
    paired = PairedRate("tpr", rate_table("tpr", table), np.full((2, 2), 9.0))
    p, q = 160 / 200, 150 / 200
    expected = 9 * (p * q - p * (1 - q) - q * (1 - p) + (1 - p) * (1 - q)) / 200**2
    assert paired.noise_covariance[0, 1] == pytest.approx(expected)
    assert paired.change_noise == pytest.approx(9 * (2 + 4 * (p - q) ** 2) / 200**2)
    assert overall_rate_change("tpr", table[None], noise=9.0).noise_sd == pytest.approx(paired.change_noise**0.5)


def test_the_projection_is_the_nearest_table_of_the_same_sum() -> None:
    rng = np.random.default_rng(4)
    table = rng.normal(3, 6, (5, 2, 8))
    total = np.maximum(table.sum(axis=-1), 0)
    nearest = projected(table, total)
    assert (nearest >= 0).all()
    assert nearest.sum(axis=-1) == pytest.approx(total)
    for _ in range(50):
        other = rng.dirichlet(np.ones(8), (5, 2)) * total[..., None]
        assert (((table - nearest) ** 2).sum(axis=-1) <= ((table - other) ** 2).sum(axis=-1) + 1e-9).all()
    whole = rng.integers(0, 9, (3, 2, 8))
    assert projected(whole, whole.sum(axis=-1).astype(float)) == pytest.approx(whole)
    assert projected(np.array([-4.0, -9.0]), np.array(0.0)).tolist() == [0, 0]


def test_an_anchored_histogram_has_the_margins_of_the_pair_table(hist: Counts) -> None:
    pair = np.random.default_rng(6).integers(100, 200, (3, 2, 2, 2))
    corrected, noise = anchored(hist, 5.0, pair, np.array([[1.0, 2.0], [2.0, 4.0]]))
    assert corrected.sum(axis=-1) == pytest.approx(pair.sum(axis=(-2, -1)))
    step = corrected - hist
    assert step == pytest.approx(np.broadcast_to(step[..., :1], step.shape))
    assert noise == HistogramNoise(5.0, 9.0)
    with pytest.raises(ValueError, match="groups and labels"):
        anchored(hist, 5.0, pair[:2], 1.0)


@pytest.mark.parametrize("anchor", [False, True])
def test_the_noise_of_an_auc_and_of_its_change_is_what_fresh_noise_does(hist: Counts, anchor: bool) -> None:
    rng = np.random.default_rng(7)
    pair = np.tile(hist.sum(axis=-1)[..., None, None] // 4, (1, 1, 2, 2))
    margin = 30.0  # a noisier pair table than any plan would ask for, so that what both AUCs share is seen
    values, changes = [], []
    for _ in range(1000):
        before, after = (hist + np.rint(rng.normal(0, 8, hist.shape)).astype(np.int64) for _ in range(2))
        noise: float | HistogramNoise = 64.0
        if anchor:
            blurred = pair + np.rint(rng.normal(0, margin, pair.shape)).astype(np.int64)
            (first, noise), (second, _) = (anchored(table, 64.0, blurred, margin**2) for table in (before, after))
        else:
            first, second = before.astype(float), after.astype(float)
        one, other = (binned_auc(table[1], noise) for table in (first, second))
        values.append(one.value)
        changes.append(other.value - one.value)
    expected = binned_auc(hist[1]).value + float(coarseness(hist[1]))
    assert np.mean(values) == pytest.approx(expected, abs=0.0015)
    blur = HistogramNoise(64.0, 4 * margin**2) if anchor else 64.0
    said = auc_by_group(hist.astype(float), noise=blur)[1].noise_sd
    assert said == pytest.approx(float(np.std(values)), rel=0.1)
    change = auc_change_by_group(hist.astype(float), hist.astype(float), noise=blur)[1]
    assert change.noise_sd == pytest.approx(float(np.std(changes)), rel=0.1)


def test_clipping_makes_a_gap_that_is_not_there_and_the_estimate_does_not() -> None:
    # Two groups of one AUC, 45 and 360 positives; noise of four hospitals at epsilon 1.
    rng = np.random.default_rng(8)
    shares, sizes = bins_of(0.85), ((180, 45), (1440, 360))
    clipped, ours = [], []
    for _ in range(300):
        exact = np.stack(
            [np.stack([rng.multinomial(n, p) for n, p in zip(size, shares, strict=True)]) for size in sizes]
        )
        table = noised(exact, 1.0, 4, rng)
        nearest = projected(table, np.maximum(table.sum(axis=-1), 1).astype(float))
        clipped.append(np.diff([binned_auc(part).value for part in nearest])[0])
        ours.append(np.diff([binned_auc(part, laplace(1.0, 4)).value for part in table])[0])
    assert np.mean(clipped) > 0.03
    assert abs(np.mean(ours)) < 0.02


def test_auc_figures_carry_their_noise(hist: Counts) -> None:
    by_group = auc_by_group(hist, noise=30.0)
    sd = [estimate.noise_sd for estimate in by_group]
    assert all(x is not None and x > 0 for x in sd)
    assert worst_group_auc(hist, noise=30.0).noise_sd == sd[1]
    assert auc_gap(hist, noise=30.0).noise_sd == pytest.approx(math.hypot(sd[0], sd[1]))  # type: ignore[arg-type]
    assert overall_auc(hist, noise=30.0).noise_sd < sd[1]  # type: ignore[operator]
    assert xauc(hist, ["a", "b"], noise=30.0)["a", "b"].noise_sd > 0  # type: ignore[operator]
    for estimate in (*by_group, worst_group_auc(hist, noise=30.0), auc_gap(hist, noise=30.0)):
        assert "noisy" in estimate.method
    for blurred, plain in zip(by_group, auc_by_group(hist), strict=True):
        assert blurred.low < plain.low < plain.high < blurred.high  # type: ignore[operator]
    few = auc_by_group(hist // 60, noise=30.0)[0]
    assert few.value is None
    assert "counted with noise of 21.9, 44 of each needed" in few.reason
    with pytest.raises(ValueError, match="patients of both classes"):
        binned_auc(hist[0] * np.array([[1], [-1]]), 1.0)


def test_changes_of_auc_take_their_pairing_from_the_decision_table(hist: Counts) -> None:
    # Identical models: bins before are bins after.
    blocks = np.zeros((3, 2, 4, 4), dtype=np.int64)
    blocks[..., range(4), range(4)] = hist.reshape(3, 2, 4, 4).sum(axis=-1)
    unpaired, coarse = (auc_change_by_group(hist, hist, joint=joint)[0] for joint in (None, blocks))
    assert (unpaired.method, coarse.method) == ("unpaired delong", "coarsely paired delong")
    assert coarse.high - coarse.low < 0.2 * (unpaired.high - unpaired.low)  # type: ignore[operator]
    assert overall_auc_change(hist, hist, joint=blocks).high < overall_auc_change(hist, hist).high  # type: ignore[operator]
    independent = blocks.sum(axis=-1)[..., :, None] * blocks.sum(axis=-2)[..., None, :] // 600
    loose = auc_change_by_group(hist, hist, joint=independent)[0]
    assert loose.high == pytest.approx(unpaired.high, rel=0.05)
    noisy = auc_change_by_group(hist, hist + 1, joint=blocks, noise=25.0)[0]
    assert noisy.noise_sd is not None
    assert noisy.high - noisy.low > 2 * 1.9 * noisy.noise_sd  # type: ignore[operator]
    for change in (worst_group_auc_change, auc_gap_change):
        estimate = change(hist, hist + 1, joint=blocks, noise=25.0)
        assert estimate.noise_sd == pytest.approx(noisy.noise_sd, rel=0.8)
        assert estimate.high - estimate.low > 2 * 1.9 * estimate.noise_sd  # type: ignore[operator]
    with pytest.raises(ValueError, match="different patients"):
        auc_change_by_group(hist, hist + 1)
    with pytest.raises(ValueError, match="placement sums belong to histograms without noise"):
        auc_change_by_group(hist, hist, sums=np.zeros((3, 2, 5)), noise=1.0)


def test_thresholds_from_a_noisy_histogram() -> None:
    rng = np.random.default_rng(9)
    edges = np.linspace(-3, 3, 15)
    from scipy.stats import norm

    shares = np.diff([np.concatenate([[0], norm.cdf(edges - mean), [1]]) for mean in (0.0, 2.0)], axis=1)
    exact = np.stack([np.rint(shares * np.array([[6000], [2000]])).astype(np.int64)] * 3)
    found: dict[str, list[float]] = {rule: [] for rule in ("sens>=0.9", "spec>=0.9", "youden", "median")}
    rates = []
    for _ in range(40):
        table = noised(exact, 0.5, 4, rng)
        for rule, values in found.items():
            values.append(choose_threshold(rule, table, edges, noise=laplace(0.5, 4)))
        rates.append(float(selection_rate_at(table, edges, 1.0, noise=laplace(0.5, 4))))
        other = match_selection_rate(table, edges, table, float(edges[9]), noise=laplace(0.5, 4))
        assert other == edges[9]
    for rule, values in found.items():
        assert np.abs(np.array(values) - choose_threshold(rule, exact, edges)).max() <= edges[1] - edges[0] + 1e-9
    assert np.mean(rates) == pytest.approx(float(selection_rate_at(exact, edges, 1.0)), abs=0.01)
    # Positives above the edges: 95, 99, 79, 82 of 100 as counted, which rises; projected 97.3, 97.3, 79.7, 79.7.
    waves = np.array([[[90, -5, 12, -6, 9]], [[5, -4, 20, -3, 82]]]).reshape(1, 2, 5)
    assert choose_threshold("sens>=0.8", waves, np.arange(4.0), noise=4.0) == 1.0
    nobody = np.array([[[50, 60], [-20, 25]]])
    with pytest.raises(StudyError, match=r"5 positive patients counted with noise of 8.9, 18 needed"):
        choose_threshold("median", nobody, np.array([0.0]), noise=40.0)


@pytest.mark.parametrize(("epsilon", "sites"), [(1.0, 1), (1.0, 4), (0.5, 10)])
def test_intervals_of_noisy_tables_cover(epsilon: float, sites: int) -> None:
    rng = np.random.default_rng(10)
    tpr, fpr = np.array([[0.8, 0.82], [0.68, 0.76]]), np.array([[0.15, 0.15], [0.16, 0.17]])
    variance = laplace(epsilon, sites)
    truth = {"rate": 0.76, "gap": 0.06, "change": 0.08, "gap change": -0.06, "auc": 0.0}
    shares = bins_of(0.83)
    truth["auc"] = binned_auc(shares * 1e6).value
    covered: dict[str, list[bool]] = {name: [] for name in truth}
    repeats = 150
    for _ in range(repeats):
        pair = np.zeros((3, 2, 2, 2), dtype=np.int64)
        for g, n in enumerate((300, 100)):
            for y, p in ((1, tpr[g]), (0, fpr[g])):
                both = p[0] * p[1] + 0.7 * (p.min() - p[0] * p[1])
                cells = [1 - p[0] - p[1] + both, p[1] - both, p[0] - both, both]
                pair[g, y] = rng.multinomial(n * (4 - 3 * y), cells).reshape(2, 2)
        pair = noised(pair, epsilon, sites, rng)
        table = noised(
            np.stack([rng.multinomial(n, p) for n, p in zip((400, 100), shares, strict=True)]), epsilon, sites, rng
        )
        counts = counts_after(pair)
        estimates = {
            "rate": rate_by_group("tpr", counts, noise=2 * variance)[1],
            "gap": gap("equal_opportunity_difference", counts, noise=2 * variance),
            "change": rate_change_by_group("tpr", pair, noise=variance)[1],
            "gap change": gap_change("equal_opportunity_difference", pair, noise=variance),
            "auc": auc_by_group(np.stack([table, table]), noise=variance)[0],
        }
        for name, estimate in estimates.items():
            if (limits := interval(estimate)) is not None:
                covered[name].append(limits[0] <= truth[name] <= limits[1])
    # .95 gives at least .90 in 150 samples with probability .99; intervals that ignore the noise cover .5 to .9 here.
    for name, inside in covered.items():
        assert len(inside) >= 0.7 * repeats, name
        assert np.mean(inside) >= 0.90, name


def test_ignoring_the_noise_would_cover_too_seldom() -> None:
    rng = np.random.default_rng(11)
    counts = np.zeros((2, 2, 2), dtype=np.int64)
    covered = {True: 0, False: 0}
    for _ in range(300):
        counts[0, 1, 1] = rng.binomial(60, 0.76)
        counts[0, 1, 0] = 60 - counts[0, 1, 1]
        table = noised(counts, 0.5, 4, rng)
        for knows in covered:
            low, high = interval(rate_by_group("tpr", table, noise=laplace(0.5, 4) if knows else 0.0)[0]) or (0, 0)
            covered[knows] += low <= 0.76 <= high
    assert covered[True] >= 0.93 * 300
    assert covered[False] < 0.85 * 300


def test_half_of_the_noise_is_too_little() -> None:
    # The quantile of the noise alone: with all patients alike, an interval is its noise.
    counts = np.zeros((2, 2, 2), dtype=np.int64)
    counts[0, 1] = [0, 10_000]
    width = rate_by_group("tpr", counts, noise=1e4)[0]
    half = rate_by_group("tpr", counts, noise=5e3)[0]
    assert (1 - width.low) / (1 - half.low) == pytest.approx(2**0.5, rel=0.02)  # type: ignore[operator]
    assert 1 - width.low == pytest.approx(normal_quantile(0.95) * 100 / 10_000, rel=0.03)  # type: ignore[operator]
