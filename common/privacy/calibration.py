"""The noise of a split: every phase its share, the whole at most epsilon at delta.

The phases of a split see the same patients and are composed by PLD; the splits themselves are disjoint and are
calibrated one by one.

>>> table = ReleasePlan.counts(cells=1, dimensions=4, noise=1.0)
>>> rounds = ReleasePlan.vector(clip=1.0, dimensions=32, noise=1.0, releases=10)
>>> found = calibrate({"counts": table, "rounds": rounds}, {"counts": 0.1, "rounds": 0.9}, epsilon=3.0, delta=1e-5)
>>> 2.99 < found.cost.epsilon <= 3.0
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dp_accounting import get_sigma_gaussian

from equipoise.common.privacy.accounting import PrivacyCost, cost_of, epsilon_of, rdp_epsilon_of
from equipoise.common.privacy.plan import ReleasePlan

TOLERANCE = 1e-4  # epsilon that may be left unused, as a share
MOST_STEPS = 60


@dataclass(frozen=True)
class Calibration:
    """Plans whose noise fits a budget.

    Attributes:
        plans: the plan of each phase, with its noise.
        scale: the noise scale s; for Gaussian phases alone it is 1 / mu of Gaussian differential privacy.
        cost: what the plans cost together, by PLD, at the delta that the slack left.
        rdp_epsilon: what RDP says of the same: at least as much, but for the rounding up of PLD's grid (1e-3 of it).
    """

    plans: Mapping[str, ReleasePlan]
    scale: float
    cost: PrivacyCost
    rdp_epsilon: float


def calibrate(
    phases: Mapping[str, ReleasePlan], shares: Mapping[str, float], epsilon: float, delta: float, slack: float = 0.0
) -> Calibration:
    """The least noise with which all phases together cost at most epsilon at delta - slack.

    Args:
        phases: a template a phase; the noise that it states is replaced.
        shares: each phase's share of the budget; they sum to 1.
        epsilon: to be spent in the view of an honest majority.
        delta: of the guarantee.
        slack: the part of delta that something outside these plans has declared; 0 for the mechanisms of this package.

    Formal guarantee:
        Unit: patient; relation: add or remove one. The plans, composed adaptively in any order, cost at most epsilon
        at delta - slack by a PLD that is rounded upwards; the search ends on that side.

    Edge cases:
        A phase whose noise would fall below what its lattice or law supports raises; no bound is ever loosened.

    Raises:
        ValueError: phases and shares differ, shares do not sum to 1, epsilon or delta is out of range, or no noise in
            reach fits.
    """
    if not phases or set(phases) != set(shares):
        raise ValueError(f"shares for {sorted(shares)}: expected one for each of {sorted(phases)}")
    if abs(math.fsum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"shares sum to {math.fsum(shares.values())}: expected 1")
    if not 0 < epsilon < math.inf or not 0 <= slack < delta:
        raise ValueError(f"epsilon={epsilon}, delta={delta}, slack={slack}: expected epsilon > 0 and slack < delta")
    remaining = delta - slack

    def plans_at(scale: float) -> dict[str, ReleasePlan]:
        return {name: plan.scaled(scale, shares[name]) for name, plan in phases.items()}

    def excess(log_scale: float) -> float:
        """log(cost / budget), falling and nearly straight in the logarithm of the scale."""
        spent = epsilon_of([plan.event for plan in plans_at(math.exp(log_scale)).values()], remaining)
        return math.log(spent / epsilon) if spent > 0 else -math.inf

    log_scale = _root(excess, math.log(get_sigma_gaussian(epsilon, remaining)))
    plans = plans_at(math.exp(log_scale))
    listed = list(plans.values())
    return Calibration(
        plans,
        math.exp(log_scale),
        cost_of(listed, remaining),
        rdp_epsilon_of([plan.event for plan in listed], remaining),
    )


def _root(excess: Callable[[float], float], guess: float) -> float:
    """A point where the falling `excess` lies in [-TOLERANCE, 0]; false position with the Illinois step."""
    low, high, stride = guess, guess, 0.02
    at_low = at_high = excess(guess)
    for _ in range(MOST_STEPS):
        if at_low > 0 >= at_high:
            break
        # One Gaussian's excess falls by about the logarithm's own step, so that the first stride already brackets.
        if at_low <= 0:
            high, at_high = low, at_low
            low -= max(stride, min(-at_high, 1.0))
            at_low = excess(low)
        else:
            low, at_low = high, at_high
            high += max(stride, min(at_low, 1.0))
            at_high = excess(high)
        stride *= 2
    weight_low, weight_high, moved = at_low, at_high, 0
    for _ in range(MOST_STEPS):
        if -TOLERANCE <= at_high <= 0:
            return high
        if not at_low > 0 >= at_high:
            break
        straight = math.isfinite(weight_low) and math.isfinite(weight_high)
        aim = low + (high - low) * weight_low / (weight_low - weight_high) if straight else (low + high) / 2
        # Aim a little to the safe side, so that the end is reached from there.
        middle = min(aim + TOLERANCE / 4, (aim + high) / 2)
        value = excess(middle)
        # An end that stays twice in a row counts half, so that it moves soon (the Illinois step).
        if value > 0:
            weight_high = weight_high / 2 if moved > 0 else at_high
            low, at_low, weight_low, moved = middle, value, value, 1
        else:
            weight_low = weight_low / 2 if moved < 0 else at_low
            high, at_high, weight_high, moved = middle, value, value, -1
    raise ValueError(f"no noise in reach costs the budget: excess {at_low:g} to {at_high:g}; choose another epsilon")
