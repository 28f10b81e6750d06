"""Polya shares: any h of them are discrete Laplace noise, and one alone conceals what its probabilities say."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import chisquare, nbinom

from equipoise.common.privacy import polya, samplers
from equipoise.common.privacy.accounting import cost_of, epsilon_of, rdp_curve, rdp_epsilon_of
from equipoise.common.privacy.events import Event
from equipoise.common.privacy.mechanisms import DiscreteLaplace, PolyaShare
from equipoise.common.privacy.plan import ReleasePlan
from equipoise.common.privacy.randomness import keyed_generator

DELTA = 1e-5
CASES = [(0.3, 2), (1.0, 5), (3.0, 2), (8.0, 13), (40.0, 7)]


def masses(scale: float, shares: int) -> NDArray[np.float64]:
    """f(0), f(1), ... of one of `shares` shares, as the accountant has them."""
    return polya._masses(scale, shares)[0]


def generator(number: int = 0) -> np.random.Generator:
    return keyed_generator(bytes([number + 100]) * 32)


def share_law(scale: float, shares: float, reach: int) -> NDArray[np.float64]:
    """Probabilities of X - Y at -reach to reach by convolution of negative binomials, independent of polya.py."""
    q = math.exp(-1 / scale)
    one = nbinom.pmf(np.arange(40 * reach), 1 / shares, 1 - q)
    both = np.convolve(one, one[::-1])
    middle = one.size - 1
    return np.asarray(both[middle - reach : middle + reach + 1])


def laplace_law(scale: float, reach: int) -> NDArray[np.float64]:
    weights = np.exp(-np.abs(np.arange(-reach, reach + 1)) / scale)
    return np.asarray(weights * math.tanh(1 / (2 * scale)))


@pytest.mark.parametrize(("scale", "shares"), CASES)
def test_probabilities_are_those_of_two_negative_binomials(scale: float, shares: int) -> None:
    reach = math.ceil(3 * scale) + 3
    direct = share_law(scale, shares, reach)[reach:]
    assert masses(scale, shares)[: reach + 1] == pytest.approx(direct, rel=1e-9, abs=1e-300)
    points = masses(scale, shares)
    assert 2 * points.sum() - points[0] == pytest.approx(1, rel=1e-14)


def test_probabilities_to_many_digits() -> None:
    """Against the closed form with Gauss's hypergeometric function, in the far tail too."""
    for scale, shares in CASES:
        r, q = mpmath.mpf(1) / shares, mpmath.exp(-1 / mpmath.mpf(scale))
        points = masses(scale, shares)
        for k in (0, 1, 2, 5, math.ceil(20 * scale), math.ceil(60 * scale)):
            exact = (1 - q) ** (2 * r) * q**k * mpmath.rf(r, k) / mpmath.factorial(k)
            exact *= mpmath.hyp2f1(r, r + k, k + 1, q**2)
            assert points[k] == pytest.approx(float(exact), rel=1e-11)


@pytest.mark.parametrize(("scale", "shares"), CASES)
def test_shares_add_up_to_discrete_laplace_noise(scale: float, shares: int) -> None:
    """The convolution of all shares' probabilities, point by point."""
    one = masses(scale, shares)
    law = np.concatenate([one[:0:-1], one])
    total = np.ones(1)
    for _ in range(shares):
        total = np.convolve(total, law)
        middle = (total.size - 1) // 2
        keep = min(middle, one.size - 1)
        total = total[middle - keep : middle + keep + 1]
    reach = math.ceil(8 * scale)
    middle = (total.size - 1) // 2
    assert total[middle - reach : middle + reach + 1] == pytest.approx(laplace_law(scale, reach), rel=1e-9)


@pytest.mark.parametrize(("scale", "shares"), CASES)
def test_samples_have_their_probabilities(scale: float, shares: int) -> None:
    sample = samplers.polya_share(scale, shares, 150_000, generator())
    reach = math.ceil(12 * scale) + 4
    points, expected = np.arange(-reach, reach + 1), share_law(scale, shares, reach) * sample.size
    common = expected >= 10
    observed = np.array([(sample == point).sum() for point in points[common]])
    observed, expected = (
        np.append(observed, sample.size - observed.sum()),
        np.append(expected[common], sample.size - expected[common].sum()),
    )
    assert chisquare(observed, expected).pvalue > 1e-3
    wrong = share_law(scale * 1.1, shares, reach)[common] * sample.size
    assert chisquare(observed, np.append(wrong, sample.size - wrong.sum())).pvalue < 1e-6


def test_sums_of_samples_are_discrete_laplace() -> None:
    scale, shares, size = 4.0, 6, 100_000
    total = samplers.polya_share(scale, shares, size * shares, generator(1)).reshape(shares, size).sum(axis=0)
    reach = 20
    observed = np.array([(total == point).sum() for point in range(-reach, reach + 1)])
    for law, fits in ((laplace_law(scale, reach), True), (laplace_law(scale * 1.05, reach), False)):
        expected = np.append(law, 1 - law.sum()) * size
        assert (chisquare(np.append(observed, size - observed.sum()), expected).pvalue > 1e-3) == fits


@pytest.mark.parametrize(("scale", "shares"), CASES)
def test_the_slow_path_gives_the_same(scale: float, shares: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every length, then every number of jumps, settled in arbitrary precision: nothing changes."""
    fast = samplers.polya_share(scale, shares, 250, generator(2))
    with monkeypatch.context() as patch:
        patch.setattr(samplers, "GUARD", 1e9)
        assert np.array_equal(samplers.polya_share(scale, shares, 250, generator(2)), fast)
    monkeypatch.setattr(samplers, "MARGIN", 2**62)
    assert np.array_equal(samplers.polya_share(scale, shares, 250, generator(2)), fast)


def test_the_margin_covers_the_error_that_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A logarithm that errs by 0.9 of a coarse guard changes no sample: those it could change are settled exactly."""
    monkeypatch.setattr(samplers, "GUARD", 1e-6)
    plain = samplers._logarithmic(30.0, 20_000, generator(3))
    log = np.log
    monkeypatch.setattr(samplers.np, "log", lambda values: log(values) * (1 - 0.9e-6))
    assert np.array_equal(samplers._logarithmic(30.0, 20_000, generator(3)), plain)


def test_bits_are_added_until_a_length_is_settled() -> None:
    """U and V whose known bits leave two lengths open draw more of both, and then decide."""
    lengths = set()
    for number in range(30):
        u = samplers.Uniform(1, 1, generator(number))  # in [1/2, 1)
        v = samplers.Uniform(0, 1, generator(number + 50))  # in [0, 1/2)
        lengths.add(samplers._settle_ratio(3.0, u, v))
        assert u.bits > 1
        assert v.bits > 1
    assert len(lengths) > 5


def test_words_at_a_threshold_are_settled_by_further_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A word equal to floor(P(N >= 1) 2^64) is both: below the threshold with its next bits, or above."""
    threshold = samplers._poisson_words(3.0, 4)[0]
    drawn = samplers.random_words
    first = {"given": False}

    def words(source: np.random.Generator, count: int) -> NDArray[np.uint64]:
        if not first["given"]:
            first["given"] = True
            return np.full(count, threshold, dtype=np.uint64)
        return drawn(source, count)

    monkeypatch.setattr(samplers, "random_words", words)
    numbers = samplers._poisson(3.0, 4, 200, generator(4))
    assert set(numbers) == {0, 1}


@pytest.mark.parametrize(("scale", "shares"), CASES)
def test_one_share_is_charged_by_its_probabilities(scale: float, shares: int) -> None:
    """Brute force over the masses: the accountant is above the truth, by little; the largest loss is the epsilon."""
    reach = math.ceil(40 * scale) + 4
    points = masses(scale, shares)
    law = np.concatenate([points[reach:0:-1], points[: reach + 1]])
    upper, lower = law[1:], law[:-1]
    losses = np.log(upper) - np.log(lower)
    assert polya.largest_loss(scale, shares) == pytest.approx(np.abs(losses).max(), abs=1e-8)
    assert polya.largest_loss(scale, shares) >= np.abs(losses).max()
    assert (np.diff(losses[:reach]) >= -1e-9).all()  # R falls away from 0: the proof's log-convexity

    def delta(epsilon: float) -> float:
        return float(np.maximum(upper - math.exp(epsilon) * lower, 0).sum()) - DELTA

    truth = float(brentq(delta, 0, 50, xtol=1e-12))
    assert truth <= epsilon_of([Event("polya_share", scale, shares=shares)], DELTA) <= truth + 2e-3
    assert truth > 1 / scale


def test_cells_of_one_patient_compose() -> None:
    """Three cells by brute force over the triple convolution of the loss, on a fine grid rounded down: never above."""
    event = Event("polya_share", 2.0, 3, shares=4)
    points = masses(2.0, 4)
    law = np.concatenate([points[60:0:-1], points[:61]])
    upper, lower = law[1:], law[:-1]
    grid = 1e-3
    places = np.floor(np.log(upper / lower) / grid).astype(int)
    once = np.bincount(places - places.min(), weights=upper)
    thrice = np.convolve(np.convolve(once, once), once)
    losses = (np.arange(thrice.size) + 3 * places.min()) * grid

    def delta(epsilon: float) -> float:
        gain = np.where(losses > epsilon, 1 - np.exp(np.minimum(epsilon - losses, 0)), 0)
        return float((thrice * gain).sum()) - DELTA

    truth = float(brentq(delta, 0, 50))
    assert truth <= epsilon_of([event], DELTA) <= truth + 0.015
    assert truth <= rdp_epsilon_of([event], DELTA)  # both are upper bounds; the grids of each round up


def test_renyi_curve_of_a_share() -> None:
    points = masses(3.0, 5)
    law = np.concatenate([points[:0:-1], points])
    upper, lower = np.log(law[1:]), np.log(law[:-1])
    orders = [1.5, 2.0, 8.0, 64.0, math.inf]
    ours = rdp_curve([Event("polya_share", 3.0, 2, shares=5)], orders)
    for order, value in zip(orders[:-1], ours, strict=False):
        truth = 2 * float(np.logaddexp.reduce(order * upper + (1 - order) * lower)) / (order - 1)
        assert truth <= value <= truth + 2.1e-3
    assert ours[-1] == pytest.approx(2 * polya.largest_loss(3.0, 5))


def test_two_figures_of_a_plan() -> None:
    """Whatever the claim, one share is several times as much; the plan says so before anybody approves it."""
    plan = ReleasePlan.counts(cells=1, dimensions=8, noise=1.0, honest=5)
    cost = cost_of([plan], DELTA)
    assert cost.epsilon == pytest.approx(1, rel=1e-3)
    assert cost.epsilon_if_others_collude == pytest.approx(2.598, abs=2e-3)
    local = cost_of([ReleasePlan.counts(cells=1, dimensions=8, noise=1.0)], DELTA)
    assert local.epsilon_if_others_collude == local.epsilon == pytest.approx(cost.epsilon, rel=1e-9)


def test_the_share_that_conceals_almost_nothing_is_seen() -> None:
    """Many shares of little noise: nearly every sample is 0, and the figure says what that is worth."""
    assert masses(0.5, 400)[0] > 0.99
    assert polya.largest_loss(0.5, 400) > 7


def test_a_share_states_its_deviation_and_its_tail() -> None:
    for scale, shares in CASES:
        mechanism = PolyaShare(scale, shares)
        points = masses(scale, shares)
        second = 2 * (points * np.arange(points.size, dtype=float) ** 2).sum()
        assert mechanism.describe()["standard_deviation_steps"] == pytest.approx(math.sqrt(second), rel=1e-9)
        tail = mechanism.tail_steps(1e-6)
        assert 2 * points[tail + 1 :].sum() <= 1e-6
        assert tail == DiscreteLaplace(scale).tail_steps(1e-6)
    assert PolyaShare(2.0, 3).noise((2, 0)).shape == (2, 0)
    assert PolyaShare(2.0, 1).noise((4, 5)).dtype == np.int64


@pytest.mark.parametrize(("scale", "shares"), [(0.0, 2), (1e5, 2), (math.nan, 2), (1.0, 0), (1.0, 1001)])
def test_what_is_no_share(scale: float, shares: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        PolyaShare(scale, shares)
    with pytest.raises(ValueError, match="expected"):
        samplers.polya_share(scale, shares, 1, generator())
    if shares < 2 or not 1 <= scale <= 100:
        with pytest.raises(ValueError, match="expected"):
            polya.largest_loss(scale, shares)


def test_events_of_shares_survive_json_and_old_ones_read_as_before() -> None:
    event = Event("polya_share", 2.5, 4, shares=3)
    assert Event.from_json(event.to_json()) == event
    assert set(Event("gaussian", 1.0).to_json()) == {"law", "noise", "count", "rate", "relation"}
    assert type(event.dp_event).__name__ == "UnsupportedDpEvent"
