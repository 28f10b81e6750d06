"""Random effects over hospitals: the BCG trials, statsmodels, sums that equal the direct computation, coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from statsmodels.stats.meta_analysis import combine_effects

from equipoise.common.fairness.heterogeneity import (
    cochran_q,
    dersimonian_laird,
    from_sites,
    from_sums,
    moments,
    power_note,
    q_profile,
    reml,
    shrunken,
    site_contrast,
)

# Thirteen trials of BCG vaccine (Colditz et al., JAMA 1994): cases and others, vaccinated and not.
BCG = np.array(
    [
        [4, 119, 11, 128],
        [6, 300, 29, 274],
        [3, 228, 11, 209],
        [62, 13536, 248, 12619],
        [33, 5036, 47, 5761],
        [180, 1361, 372, 1079],
        [8, 2537, 10, 619],
        [505, 87886, 499, 87892],
        [29, 7470, 45, 7232],
        [17, 1699, 65, 1600],
        [186, 50448, 141, 27197],
        [5, 2493, 3, 2338],
        [27, 16886, 29, 17825],
    ],
    dtype=float,
)
A, B, C, D = BCG.T
EFFECTS = np.log(A / (A + B)) - np.log(C / (C + D))
VARIANCES = 1 / A - 1 / (A + B) + 1 / C - 1 / (C + D)


def test_the_bcg_trials_give_the_published_figures() -> None:
    # Viechtbauer, J Stat Softw 2010;36(3), section 3: REML tau^2 .3132, mean -.7145, Q 152.233, I^2 92.22 %.
    assert reml(EFFECTS, VARIANCES) == pytest.approx(0.3132, abs=5e-5)
    sums = moments(EFFECTS, VARIANCES).sum(axis=0)
    assert cochran_q(sums) == pytest.approx(152.233, abs=5e-4)
    assert dersimonian_laird(sums) == pytest.approx(0.3088, abs=5e-5)
    found = from_sites("log risk ratio", "vaccinated", EFFECTS, VARIANCES, n=1)
    assert found.mean.value == pytest.approx(-0.7145, abs=5e-5)
    # The Q-profile interval of tau^2 (same source): .1197 to 1.1115.
    assert found.tau_interval is not None
    assert [x * x for x in found.tau_interval] == pytest.approx([0.1197, 1.1115], abs=5e-5)


@given(seed=st.integers(0, 2**32 - 1), sites=st.integers(3, 12), spread=st.sampled_from([0.0, 0.05, 0.3]))
@settings(max_examples=60, deadline=None)
def test_it_equals_statsmodels(seed: int, sites: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    variances = rng.uniform(0.002, 0.02, sites)
    effects = rng.normal(0.1, spread, sites) + rng.normal(0, variances**0.5)
    sums = moments(effects, variances).sum(axis=0)
    theirs = combine_effects(effects, variances, method_re="chi2", use_t=True)
    tau_squared = dersimonian_laird(sums)
    assert tau_squared == pytest.approx(max(theirs.tau2, 0), abs=1e-12)
    assert cochran_q(sums) == pytest.approx(theirs.q, abs=1e-9)
    if theirs.tau2 < 0:  # statsmodels goes on with the negative value
        return
    found = from_sums("d", "g", sums, moments(effects, variances, tau_squared).sum(axis=0), tau_squared, n=9)
    assert found.mean.value == pytest.approx(theirs.mean_effect_re, abs=1e-12)
    # statsmodels' HKSJ interval where it is the wider one, the plain one (with t) elsewhere.
    assert found.mean.low is not None
    half = max(theirs.sd_eff_w_re_hksj, theirs.sd_eff_w_re)
    quantile = (theirs.conf_int()[3][1] - theirs.mean_effect_re) / theirs.sd_eff_w_re_hksj
    high = min(theirs.mean_effect_re + half * quantile, 1.0)  # a difference of rates
    assert found.mean.high == pytest.approx(high, rel=1e-6)
    assert found.i_squared == pytest.approx(max(theirs.i2, 0), abs=1e-9)


@given(seed=st.integers(0, 2**32 - 1), sites=st.integers(2, 10))
@settings(max_examples=60, deadline=None)
def test_reml_is_the_maximum_of_the_restricted_likelihood(seed: int, sites: int) -> None:
    rng = np.random.default_rng(seed)
    variances = rng.uniform(0.005, 0.05, sites)
    effects = rng.normal(0, 0.2, sites)

    def cost(tau_squared: float) -> float:
        weight = 1 / (variances + tau_squared)
        mean = (weight * effects).sum() / weight.sum()
        return 0.5 * float(-np.log(weight).sum() + np.log(weight.sum()) + (weight * (effects - mean) ** 2).sum())

    found = reml(effects, variances)
    best = minimize_scalar(cost, bounds=(0, 5), method="bounded", options={"xatol": 1e-10})
    assert cost(found) <= min(best.fun, cost(0.0)) + 1e-7


def test_sums_over_sites_in_any_order_and_partition() -> None:
    rows = moments(EFFECTS, VARIANCES, 0.3)
    order = np.random.default_rng(0).permutation(13)
    assert rows[order].sum(axis=0) == pytest.approx(rows.sum(axis=0), abs=1e-12)
    assert rows[:5].sum(axis=0) + rows[5:].sum(axis=0) == pytest.approx(rows.sum(axis=0), abs=1e-12)


def test_two_hospitals_are_too_few_and_the_note_stays() -> None:
    found = from_sites("tpr_difference", "b less a", EFFECTS[:2], VARIANCES[:2], n=50)
    assert (found.mean.value, found.prediction, found.tau, found.sites) == (None, None, None, 2)
    assert found.mean.reason == "2 hospitals with both groups, 3 needed"
    for sites in (2, 4, 30):
        assert "cannot rule out differences" in power_note(sites)
    alike = from_sites("tpr_difference", "b less a", np.full(4, 0.1), np.full(4, 0.01), n=50)
    assert (alike.tau, alike.q, alike.i_squared) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
    assert alike.prediction[0] < alike.mean.low < 0.1  # type: ignore[index, operator]
    assert alike.tau_interval == (0.0, 0.0) or alike.tau_interval[1] > 0  # type: ignore[index]


def test_a_sites_difference_by_hand() -> None:
    counts = np.array([[[80, 20], [10, 90]], [[85, 15], [12, 8]], [[0, 0], [0, 0]]])
    found = site_contrast("tpr", counts, 1, 0)
    assert found is not None
    p, q = 91 / 102, 9 / 22
    assert found == pytest.approx((0.4 - 0.9, p * (1 - p) / 102 + q * (1 - q) / 22))
    noisy = site_contrast("tpr", counts, 1, 0, noise=4.0)
    assert noisy is not None
    extra = 4 * (0.81 + 0.01) / 100**2 + 4 * (0.16 + 0.36) / 20**2
    assert noisy[1] - found[1] == pytest.approx(extra)
    sure = site_contrast("tpr", np.array([[[0, 0], [0, 9]], [[0, 0], [9, 0]], [[0, 0], [0, 0]]]), 1, 0)
    assert sure is not None
    assert sure[1] > 0.01
    assert site_contrast("tpr", counts, 2, 0) is None
    assert site_contrast("tpr", counts, 1, 0, minimum=21) is None


def test_shrinkage_draws_small_sites_to_the_mean() -> None:
    effects, variances = np.array([0.5, 0.1, 0.0]), np.array([0.2, 0.001, 0.001])
    drawn = shrunken(effects, variances, 0.01)
    assert abs(drawn[0] - 0.05) < 0.1
    assert drawn[1] == pytest.approx(0.1, abs=0.01)
    assert shrunken(effects, variances, 0.0) == pytest.approx([np.average(effects, weights=1 / variances)] * 3)


@pytest.mark.parametrize(("sites", "tau"), [(4, 0.05), (10, 0.05), (10, 0.0)])
def test_intervals_of_the_mean_and_predictions_cover(sites: int, tau: float) -> None:
    rng = np.random.default_rng(5)
    mean = ahead = 0
    repeats = 200
    for _ in range(repeats):
        n = rng.integers(60, 300, sites)
        true = rng.normal(0.1, tau, sites)
        counts = np.zeros((sites, 3, 2, 2), dtype=np.int64)
        counts[:, 0, 1, 1], counts[:, 1, 1, 1] = rng.binomial(n, 0.7), rng.binomial(n, 0.7 + true)
        counts[:, 0, 1, 0], counts[:, 1, 1, 0] = n - counts[:, 0, 1, 1], n - counts[:, 1, 1, 1]
        pairs = [site_contrast("tpr", table, 1, 0) for table in counts]
        effects, variances = np.array([pair for pair in pairs if pair is not None]).T
        first = moments(effects, variances).sum(axis=0)
        tau_squared = dersimonian_laird(first)
        second = moments(effects, variances, tau_squared).sum(axis=0)
        found = from_sums("tpr_difference", "b less a", first, second, tau_squared, n=int(n.sum()))
        mean += found.mean.low <= 0.1 <= found.mean.high  # type: ignore[operator]
        ahead += found.prediction[0] <= rng.normal(0.1, tau) <= found.prediction[1]  # type: ignore[index]
    assert mean >= 0.93 * repeats
    assert ahead >= 0.85 * repeats  # .90 is what such intervals have where tau is near the sites' own errors


def test_the_power_is_as_poor_as_the_note_says() -> None:
    # Specification, section 4: four sites, 30 positives a group, tau .05: half of all estimates are 0.
    rng = np.random.default_rng(6)
    zero = 0
    for _ in range(300):
        true = rng.normal(0.0, 0.05, 4)
        a, b = rng.binomial(30, 0.75, 4), rng.binomial(30, np.clip(0.75 + true, 0, 1))
        effects = (b - a) / 30
        variances = np.array([p * (1 - p) / 32 + q * (1 - q) / 32 for p, q in zip((a + 1) / 32, (b + 1) / 32)])  # noqa: B905
        zero += dersimonian_laird(moments(effects, variances).sum(axis=0)) == 0
    assert 0.4 < zero / 300 < 0.7
    low, high = q_profile(effects, variances)
    assert low == 0.0
    assert high > 0.05
    assert math.isfinite(high)
