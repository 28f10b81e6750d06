"""The accountant against closed forms, brute force and other accountants: close, and never below the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import LaplaceDpEvent
from dp_accounting.pld import PLDAccountant
from numpy.typing import NDArray
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from equipoise.common.privacy.accounting import (
    FINITE,
    PrivacyCost,
    cost_of,
    epsilon_of,
    parallel_max,
    rdp_curve,
    rdp_epsilon_of,
)
from equipoise.common.privacy.events import Event
from equipoise.common.privacy.plan import ReleasePlan

DELTA = 1e-5


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Balle and Wang 2018, Theorem 8: the exact curve of mu-Gaussian differential privacy."""
    return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu)))


def gaussian_epsilon(mu: float, delta: float = DELTA) -> float:
    return float(brentq(lambda epsilon: gaussian_delta(epsilon, mu) - delta, 0, 200, xtol=1e-13))


def gaussian_masses(sigma: float, reach: int) -> NDArray[np.float64]:
    points = np.arange(-reach, reach + 1)
    weights = np.exp(-(points**2) / (2 * sigma**2))
    return np.asarray(weights / weights.sum())


def hockey_stick(upper: NDArray[np.float64], lower: NDArray[np.float64], epsilon: float) -> float:
    return float(np.maximum(upper - math.exp(epsilon) * lower, 0).sum())


def brute_epsilon(masses: NDArray[np.float64], shift: int, delta: float = DELTA) -> float:
    """Epsilon at delta between an integer law and its shift, from the masses themselves."""
    upper, lower = masses[shift:], masses[:-shift]
    return float(brentq(lambda epsilon: hockey_stick(upper, lower, epsilon) - delta, 0, 100, xtol=1e-12))


@pytest.mark.parametrize(("epsilon", "mu"), [(1, 0.268), (3, 0.719), (8, 1.666)])
def test_gaussian_compositions_agree_with_gaussian_differential_privacy(epsilon: float, mu: float) -> None:
    """mu^2 adds up: a table, a mask and ten rounds that share mu^2 as 3, 15 and 82 per cent."""
    events = [
        Event("gaussian", noise=1 / (mu * math.sqrt(0.03))),
        Event("gaussian", noise=1 / (mu * math.sqrt(0.15))),
        Event("gaussian", noise=math.sqrt(10 / 0.82) / mu, count=10),
    ]
    truth = gaussian_epsilon(mu)
    assert truth == pytest.approx(epsilon, rel=1e-3)
    assert truth <= epsilon_of(events, DELTA) <= 1.0001 * truth
    assert truth <= rdp_epsilon_of(events, DELTA) <= 1.12 * truth


@pytest.mark.parametrize("mu", [0.01, 0.1, 5.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_never_below_the_truth_far_from_the_usual_case(mu: float, delta: float) -> None:
    truth = 0.0 if gaussian_delta(0, mu) <= delta else gaussian_epsilon(mu, delta)
    assert truth <= epsilon_of([Event("gaussian", 1 / mu)], delta) <= 1.002 * truth + 1e-12


@pytest.mark.parametrize(("sigma", "rate"), [(1.0, 0.2), (2.0, 0.05), (0.7, 0.5)])
def test_one_sampled_step_agrees_with_its_closed_form(sigma: float, rate: float) -> None:
    """The larger of both directions between N(0, s^2) and (1 - q) N(0, s^2) + q N(1, s^2), by integration."""
    grid = np.linspace(-14 * sigma, 14 * sigma + 1, 2_000_001)
    width = grid[1] - grid[0]
    without = norm.pdf(grid, 0, sigma) * width
    within = (1 - rate) * without + rate * norm.pdf(grid, 1, sigma) * width
    truth = max(
        float(brentq(lambda epsilon, one, other: hockey_stick(one, other, epsilon) - DELTA, 0, 50, args=pair))
        for pair in ((within, without), (without, within))
    )
    assert truth * (1 - 1e-9) <= epsilon_of([Event("gaussian", sigma, rate=rate)], DELTA) <= 1.002 * truth


@pytest.mark.filterwarnings("ignore:Optimal order is the largest alpha")  # Opacus has fewer orders
@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "delta"),
    [(1.5, 0.04, 2250, 1e-5), (2.0, 0.064, 200, 1e-3), (1.0, 0.125, 16, 1e-3), (8.0, 0.5, 50, 1e-4)],
)
def test_dp_sgd_agrees_with_opacus(sigma: float, rate: float, steps: int, delta: float) -> None:
    event = [Event("gaussian", sigma, steps, rate)]
    prv = PRVAccountant()
    prv.history = [(sigma, rate, steps)]
    assert epsilon_of(event, delta) == pytest.approx(prv.get_epsilon(delta), rel=0.01)
    rdp = RDPAccountant()
    rdp.history = [(sigma, rate, steps)]
    assert rdp_epsilon_of(event, delta) == pytest.approx(rdp.get_epsilon(delta), rel=0.002)
    assert epsilon_of(event, delta) < rdp_epsilon_of(event, delta)


def test_the_reference_case_of_renyi_accounting() -> None:
    """Noise 1.5, q 0.04, 2,250 steps; dp_accounting's series is an upper bound, 3e-5 above Opacus's."""
    opacus = RDPAccountant()
    opacus.history = [(1.5, 0.04, 2250)]
    assert opacus.get_epsilon(DELTA) == pytest.approx(7.32911117143, rel=1e-11)
    ours = rdp_epsilon_of([Event("gaussian", 1.5, 2250, 0.04)], DELTA)
    assert 7.32911117143 <= ours <= 7.32911117143 * 1.0001


def test_a_mixed_composition_agrees_with_dp_accounting() -> None:
    """Its own accountant at a ten times finer grid, Laplace tables included."""
    events = [
        Event("gaussian", 6.0),
        Event("gaussian", 2.0, 200, 0.064),
        Event("discrete_laplace", 10.0, 4),
        Event("gaussian", 10.0, 6),
    ]
    reference = PLDAccountant(value_discretization_interval=1e-4)
    for event in events:
        reference.compose(event.dp_event)
    expected = reference.get_epsilon(1e-3)
    assert epsilon_of(events, 1e-3) == pytest.approx(expected, rel=0.002)
    assert expected <= rdp_epsilon_of(events, 1e-3) <= 1.25 * expected


@pytest.mark.parametrize("scale", [0.5, 3.0, 10.0])
def test_one_table_with_laplace_noise_costs_the_inverse_of_its_scale(scale: float) -> None:
    """Exactly (1 / scale, 0); at delta > 0 it is randomised response: log((e^a - delta (1 + e^a)))."""
    truth = math.log(math.exp(1 / scale) - DELTA * (1 + math.exp(1 / scale)))
    assert truth - 1e-12 <= epsilon_of([Event("discrete_laplace", scale)], DELTA) <= truth * 1.003


def test_tables_of_one_patient_compose_exactly() -> None:
    """Twelve cells of 1/10 each: sums of twelve signs, by the binomial."""
    flips = np.array([math.comb(12, k) for k in range(13)], dtype=float)
    likely = math.exp(0.1) / (1 + math.exp(0.1))
    upper = flips * likely ** np.arange(13) * (1 - likely) ** np.arange(12, -1, -1)
    truth = float(brentq(lambda epsilon: hockey_stick(upper, upper[::-1], epsilon) - DELTA, 0, 1.2))
    assert truth - 1e-9 <= epsilon_of([Event("discrete_laplace", 10.0, 12)], DELTA) <= truth * 1.001


def test_a_laplace_bound_in_one_cell_is_dominated_by_its_event() -> None:
    """A patient who moves one cell by D steps: discrete Laplace of D shifts lies under randomised response."""
    points = np.arange(-4000, 4001)
    for shift in (1, 3, 50):
        scale = 2.0 * shift
        weights = np.exp(-np.abs(points) / scale)
        actual = brute_epsilon(weights / weights.sum(), shift)
        assert actual <= epsilon_of([Event("discrete_laplace", scale / shift)], DELTA) + 1e-9


@pytest.mark.parametrize("sigma", [0.6, 1.0, 2.5, 20.0])
def test_counts_with_discrete_gaussian_noise_are_charged_by_their_masses(sigma: float) -> None:
    truth = brute_epsilon(gaussian_masses(sigma, int(20 * sigma + 20)), 1)
    assert truth - 1e-9 <= epsilon_of([Event("discrete_gaussian", sigma)], DELTA) <= 1.001 * truth


def test_the_discrete_gaussian_may_cost_more_than_the_gaussian_of_its_sigma() -> None:
    """Why counts are charged by their masses and vectors at a smaller sigma."""
    discrete, continuous = epsilon_of([Event("discrete_gaussian", 1.0)], DELTA), gaussian_epsilon(1.0)
    assert discrete == pytest.approx(4.4302, abs=1e-3)
    assert continuous == pytest.approx(4.3772, abs=1e-3)


@pytest.mark.parametrize(("sigma", "shift"), [(3.0, 1), (5.0, 2), (9.0, 7), (64.0, 40)])
def test_smoothing_lemma(sigma: float, shift: int) -> None:
    """The discrete Gaussian of sigma costs at most the Gaussian of sqrt(sigma^2 - 4), and not much less."""
    discrete = brute_epsilon(gaussian_masses(sigma, int(30 * sigma)), shift)
    smaller = math.sqrt(sigma**2 - 4)
    assert discrete <= gaussian_epsilon(shift / smaller)
    assert discrete > 0.9 * gaussian_epsilon(shift / sigma)


def test_shares_of_discrete_gaussians_add_up_to_one() -> None:
    """Four shares of sigma 4, the smallest that a plan allows, are a discrete Gaussian of sigma 8 at every point."""
    share = gaussian_masses(4.0, 40)
    joint = np.convolve(np.convolve(share, share), np.convolve(share, share))
    reach = 100  # beyond 10 share sigmas the reach of a share cuts the sum
    middle = joint.size // 2
    inside = joint[middle - reach : middle + reach + 1][60:-60]
    assert inside == pytest.approx(gaussian_masses(8.0, reach)[60:-60], rel=1e-12)


def test_renyi_curves_against_the_masses() -> None:
    orders = [1.5, 2.0, 7.0, 32.0]
    points = np.arange(-3000, 3001)
    for law, logs, slack in (
        ("discrete_laplace", -np.abs(points) / 5.0, 0.0),
        ("discrete_gaussian", -(points**2) / 50.0, 1e-6),
    ):
        log_masses = logs - np.logaddexp.reduce(logs)
        for order, ours in zip(orders, rdp_curve([Event(law, 5.0)], orders), strict=True):  # type: ignore[arg-type]
            terms = order * log_masses[1:] + (1 - order) * log_masses[:-1]
            truth = float(np.logaddexp.reduce(terms)) / (order - 1)
            assert truth * (1 - 1e-9) <= ours <= truth * (1 + slack) + 1e-9
        thrice = rdp_curve([Event(law, 5.0, count=3)], orders)  # type: ignore[arg-type]
        assert thrice == pytest.approx(3 * rdp_curve([Event(law, 5.0)], orders))  # type: ignore[arg-type]


def test_a_sampled_renyi_curve_is_finite_and_grows_where_the_series_fails() -> None:
    """q 0.5 and noise 5: dp_accounting gives up below order 2; the curve stays an upper bound there."""
    curve = rdp_curve([Event("gaussian", 5.0, rate=0.5)], FINITE)
    assert np.isfinite(curve).all()
    assert (np.diff(curve) >= -1e-15).all()
    assert (rdp_curve([Event("gaussian", 5.0, rate=0.5)], [1.2])[0]) >= 1.2 / (2 * 25) * 0.25
    assert (curve <= rdp_curve([Event("gaussian", 5.0)], [max(order, 2.5) for order in FINITE])).all()


def test_composition_does_not_depend_on_how_events_are_written() -> None:
    events = [Event("gaussian", 2.0, 100, 0.05), Event("discrete_laplace", 8.0, 6), Event("gaussian", 9.0, 4)]
    split = [
        Event("gaussian", 9.0),
        Event("gaussian", 2.0, 60, 0.05),
        *[Event("discrete_laplace", 8.0)] * 6,
        Event("gaussian", 9.0, 3),
        Event("gaussian", 2.0, 40, 0.05),
    ]
    assert epsilon_of(events, DELTA) == pytest.approx(epsilon_of(split, DELTA), rel=1e-12)


def test_edges() -> None:
    assert epsilon_of([], DELTA) == rdp_epsilon_of([], DELTA) == 0.0
    assert epsilon_of([Event("none"), Event("gaussian", 1.0)], DELTA) == math.inf
    assert rdp_epsilon_of([Event("none")], DELTA) == math.inf
    for delta in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="delta"):
            epsilon_of([Event("gaussian", 1.0)], delta)


def test_two_figures() -> None:
    """Equal where each site adds all the noise; with shares, collusion leaves a site its own share."""
    local = cost_of([ReleasePlan.vector(1.0, 64, 12.0, releases=20)], DELTA)
    assert local.epsilon == local.epsilon_if_others_collude
    shared = cost_of([ReleasePlan.vector(1.0, 64, 12.0, releases=20, honest=4)], DELTA)
    assert shared.epsilon == pytest.approx(local.epsilon, rel=1e-9)
    mu = math.sqrt(20 * 4) * ReleasePlan.vector(1.0, 64, 12.0).sensitivity / 12.0
    assert shared.epsilon_if_others_collude == pytest.approx(gaussian_epsilon(mu), rel=1e-4)


def test_disjoint_patients_cost_the_largest_of_each_figure() -> None:
    assert parallel_max([PrivacyCost(1, 5, DELTA), PrivacyCost(3, 3, DELTA)]) == PrivacyCost(3, 5, DELTA)
    with pytest.raises(ValueError, match="delta"):
        parallel_max([PrivacyCost(1, 1, 1e-5), PrivacyCost(1, 1, 1e-6)])
    with pytest.raises(ValueError, match="delta"):
        parallel_max([])


def test_events_in_the_words_of_dp_accounting() -> None:
    assert str(Event("none").dp_event) == "NonPrivateDpEvent()"
    assert type(Event("discrete_gaussian", 3.0).dp_event).__name__ == "UnsupportedDpEvent"
    laplace = PLDAccountant()
    laplace.compose(Event("discrete_laplace", 4.0).dp_event)
    continuous = PLDAccountant()
    continuous.compose(LaplaceDpEvent(4.0))
    assert laplace.get_epsilon(1e-9) == pytest.approx(continuous.get_epsilon(1e-9), rel=1e-3)
