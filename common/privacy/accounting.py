"""What releases cost: epsilon at a delta, for the composition of events, to two kinds of observer.

PLD (privacy loss distributions, dp_accounting) is the figure that plans are priced in; it is rounded upwards
everywhere. RDP stands beside it and carries the life of a data set (`life.py`).

>>> round(epsilon_of([Event("gaussian", noise=1 / 0.719)], 1e-5), 3)
2.999

References:
    [1] Koskela, Jaelkoe, Honkela: Computing tight differential privacy guarantees using FFT. AISTATS 2020.
    [2] Doroshenko, Ghazi, Kamath, Kumar, Manurangsi: Connect the dots. PoPETs 2022.
    [3] Mironov: Renyi differential privacy. CSF 2017; Mironov, Talwar, Zhang 2019 for Poisson sampling.
    [4] Canonne, Kamath, Steinke: The discrete Gaussian for differential privacy. NeurIPS 2020.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.common.privacy import polya
from equipoise.common.privacy.events import Event
from equipoise.common.privacy.plan import ReleasePlan

# Renyi orders at which costs are kept: dp_accounting's own, and infinity, which is pure differential privacy and which
# only Laplace noise has. The library takes a second to load, so it is asked where something is priced and not before.
FINITE: tuple[float, ...] = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *map(float, range(11, 64)),
    128.0,
    256.0,
    512.0,
    1024.0,
)
ORDERS: tuple[float, ...] = (*FINITE, math.inf)
SERIES_FROM = 2.5  # below, dp_accounting's series for orders that are no integers may not converge
COARSEST, FINEST = 1e-3, 1e-5  # discretisation of the privacy loss


@dataclass(frozen=True)
class PrivacyCost:
    """What releases cost at `delta`: to an honest majority's view, and to a server with all other sites."""

    epsilon: float
    epsilon_if_others_collude: float
    delta: float


def cost_of(plans: Sequence[ReleasePlan], delta: float) -> PrivacyCost:
    """The PLD cost of all releases of `plans` on the same patients."""
    honest = [plan.event for plan in plans]
    alone = [plan.event_if_others_collude for plan in plans]
    epsilon = epsilon_of(honest, delta)
    return PrivacyCost(epsilon, epsilon if alone == honest else epsilon_of(alone, delta), delta)


def parallel_max(costs: Iterable[PrivacyCost]) -> PrivacyCost:
    """The cost of releases on disjoint sets of patients: the largest, for each observer.

    Formal guarantee:
        Unit: patient; relation: add or remove one. A patient is in one set only, so one release sequence depends on
        her. Holds only where membership is a fixed function of the patient alone, such as the keyed hash of a site.

    Raises:
        ValueError: no cost, or costs at different deltas.
    """
    listed = list(costs)
    deltas = {cost.delta for cost in listed}
    if len(deltas) != 1:
        raise ValueError(f"costs at delta {sorted(deltas)}: expected one delta")
    return PrivacyCost(
        max(cost.epsilon for cost in listed), max(cost.epsilon_if_others_collude for cost in listed), deltas.pop()
    )


def epsilon_of(events: Sequence[Event], delta: float) -> float:
    """Epsilon at `delta` of the composition, by PLD, rounded upwards; 0 for no event, infinity for one without noise.

    Formal guarantee:
        Unit: patient; relation: add or remove one. Every distribution is pessimistic: its losses are rounded so that
        its hockey-stick curve lies on or above the true one ([2]; truncated tails count as infinite loss).

    Raises:
        ValueError: `delta` lies outside (0, 1).
    """
    _check_delta(delta)
    if not events:
        return 0.0
    if any(event.law == "none" for event in events):
        return math.inf
    return _epsilon_of(tuple(_merged(events)), delta)


@lru_cache(maxsize=1024)
def _epsilon_of(merged: tuple[Event, ...], delta: float) -> float:
    """The same question is asked for every site of a simulation, and for every control of one shape."""
    interval = _interval(merged)
    total = reduce(lambda left, right: left.compose(right), (_loss(event, interval) for event in merged))
    return float(total.get_epsilon_for_delta(delta))


def rdp_epsilon_of(events: Sequence[Event], delta: float) -> float:
    """Epsilon at `delta` by Renyi differential privacy at the best of dp_accounting's orders."""
    _check_delta(delta)
    if not events:
        return 0.0
    return epsilon_of_curve(rdp_curve(events, ORDERS), delta)


def epsilon_of_curve(curve: Sequence[float] | NDArray[np.float64], delta: float) -> float:
    """Epsilon at `delta` of a Renyi curve at ORDERS: the least over the orders, pure privacy among them."""
    costs = np.asarray(curve, dtype=np.float64)
    if not costs.any():
        return 0.0
    from dp_accounting.rdp import rdp_privacy_accountant as rdp

    return min(float(rdp.compute_epsilon(FINITE, costs[:-1], delta)[0]), float(costs[-1]))


def rdp_curve(events: Sequence[Event], orders: Sequence[float]) -> NDArray[np.float64]:
    """Renyi divergence of the composition at each order, float64 [orders], add or remove one patient.

    A discrete Gaussian's is at most the Gaussian's ([4], Proposition 5). A discrete Laplace's is that of randomised
    response, in closed form; a Polya share's that of its losses, rounded up to a grid.
    """
    alpha = np.asarray(orders, dtype=np.float64)
    total = np.zeros_like(alpha)
    for event in events:
        if event.law == "none":
            return np.full_like(alpha, math.inf)
        if event.rate < 1:
            total += _sampled_curve(event, tuple(orders))
        elif event.law == "discrete_laplace":
            epsilon = 1 / event.noise
            # The loss is +epsilon with probability 1 / (1 + exp(-epsilon)), else -epsilon.
            finite = np.isfinite(alpha)
            above = (alpha[finite] - 1) * epsilon
            moment = np.logaddexp(above, -above - epsilon) - math.log1p(math.exp(-epsilon))
            total[finite] += event.count * moment / (alpha[finite] - 1)
            total[~finite] += event.count * epsilon
        elif event.law == "polya_share":
            total += event.count * _share_curve(event.noise, event.shares, tuple(orders))
        else:
            total += event.count * alpha / (2 * event.noise**2)
    return total


@lru_cache(maxsize=256)
def _share_curve(noise: float, shares: int, orders: tuple[float, ...]) -> NDArray[np.float64]:
    """Renyi divergence of one Polya share, log E[exp((order - 1) loss)] / (order - 1); at infinity the largest loss."""
    alpha = np.array(orders)
    losses, probabilities = polya.loss_distribution(noise, shares, COARSEST)
    curve = np.full(alpha.shape, polya.largest_loss(noise, shares))
    for place in np.flatnonzero(np.isfinite(alpha)):
        moment = np.logaddexp.reduce(np.log(probabilities) + (alpha[place] - 1) * losses)
        curve[place] = min(moment / (alpha[place] - 1), curve[place])
    curve.flags.writeable = False  # it is kept
    return curve


@lru_cache(maxsize=256)
def _sampled_curve(event: Event, orders: tuple[float, ...]) -> NDArray[np.float64]:
    """Renyi divergence of the Poisson-sampled Gaussian [3], from dp_accounting where its series converges."""
    from dp_accounting.rdp import rdp_privacy_accountant as rdp

    alpha = np.array(orders)
    finite = alpha[np.isfinite(alpha)]
    safe = (finite >= SERIES_FROM) | (finite == np.rint(finite))
    accountant = rdp.RdpAccountant([*finite[safe], max(math.ceil(finite.max()), 2)])
    accountant.compose(event.dp_event)
    computed = np.full(finite.size + 1, math.inf)
    computed[np.append(safe, True)] = accountant.rdp
    # The divergence grows with the order, so what holds at a larger order holds at a smaller one.
    positions = np.argsort(np.append(finite, math.inf))[::-1]
    upper = np.empty_like(computed)
    upper[positions] = np.minimum.accumulate(computed[positions])
    curve = np.full(alpha.size, math.inf)
    curve[np.isfinite(alpha)] = upper[:-1]
    curve.flags.writeable = False  # it is kept
    return curve


def _merged(events: Sequence[Event]) -> list[Event]:
    """Fewer events of the same composition: Gaussians add up in 1 / noise^2, equal ones in their counts."""
    precision = sum(event.count / event.noise**2 for event in events if _plain(event))
    counts: dict[Event, int] = {}
    for event in events:
        if not _plain(event):
            once = replace(event, count=1)
            counts[once] = counts.get(once, 0) + event.count
    merged = [replace(once, count=count) for once, count in counts.items()]
    return [Event("gaussian", 1 / math.sqrt(precision)), *merged] if precision else merged


def _plain(event: Event) -> bool:
    return event.law == "gaussian" and event.rate == 1


def _interval(events: Sequence[Event]) -> float:
    """A discretisation fine beside the loss of a single release: a tenth of its standard deviation."""
    finest = COARSEST
    for event in events:
        if event.law == "polya_share":
            continue  # a loss of about one, whatever the noise
        # Standard deviation of one release's loss, for Poisson sampling to first order in the rate.
        sampled = event.rate * math.sqrt(math.expm1(min(event.noise**-2, 50.0)))
        deviation = sampled if event.rate < 1 else 1 / event.noise
        finest = min(finest, deviation / 10)
    return max(finest, FINEST)


def _loss(event: Event, interval: float) -> Any:
    """The pessimistic privacy loss distribution of all releases of `event`."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    if event.law == "gaussian":
        once = pld.from_gaussian_mechanism(
            event.noise, value_discretization_interval=interval, sampling_prob=event.rate
        )
    elif event.law == "polya_share":
        once = _share_loss(event, interval)
    elif event.law == "discrete_gaussian":
        once = pld.from_discrete_gaussian_mechanism(
            event.noise, value_discretization_interval=interval, use_connect_dots=True
        )
    else:
        once = pld.from_discrete_laplace_mechanism(
            1 / event.noise, value_discretization_interval=interval, use_connect_dots=True
        )
    return once.self_compose(event.count) if event.count > 1 else once


def _share_loss(event: Event, interval: float) -> Any:
    """The loss distribution of one Polya share, in the form that dp_accounting takes: one outcome for each loss."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    losses, probabilities = polya.loss_distribution(event.noise, event.shares, interval)
    upper = np.log(probabilities)
    outcomes = range(losses.size)
    return pld.from_two_probability_mass_functions(
        dict(zip(outcomes, upper - losses, strict=True)),
        dict(zip(outcomes, upper, strict=True)),
        value_discretization_interval=interval,
    )


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta}: expected more than 0, less than 1")
