"""The noise of a split: every phase its share, the whole at most epsilon at delta.

The phases of a split see the same patients and are composed by PLD; the splits themselves are disjoint and are
calibrated one by one.

>>> from equipoise.common.privacy.accounting import cost_of
>>> table = ReleasePlan.counts(cells=1, dimensions=4, noise=1.0)
>>> rounds = ReleasePlan.vector(clip=1.0, dimensions=32, noise=1.0, releases=10)
>>> found = calibrate({"counts": table, "rounds": rounds}, {"counts": 0.1, "rounds": 0.9}, epsilon=3.0, delta=1e-5)
>>> 2.99 < cost_of(list(found.values()), 1e-5).epsilon <= 3.0
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from equipoise.common.privacy.accounting import epsilon_of
from equipoise.common.privacy.plan import ReleasePlan

TOLERANCE = 1e-4  # epsilon that may be left unused, as a share
MOST_STEPS = 60


def calibrate(
    phases: Mapping[str, ReleasePlan], shares: Mapping[str, float], epsilon: float, delta: float
) -> dict[str, ReleasePlan]:
    """The plan of each phase with the least noise with which all together cost at most epsilon at delta.

    Args:
        phases: a template a phase; the noise that it states is replaced.
        shares: each phase's share of the budget; they sum to 1.
        epsilon: to be spent in the view of an honest majority.
        delta: of the guarantee.

    Formal guarantee:
        Unit: patient; relation: add or remove one. The plans, composed adaptively in any order, cost at most epsilon
        at delta by a PLD that is rounded upwards; the search ends on that side.

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
    if not 0 < epsilon < math.inf or not 0 < delta < 1:
        raise ValueError(f"epsilon={epsilon}, delta={delta}: expected epsilon > 0 and 0 < delta < 1")

    def plans_at(scale: float) -> dict[str, ReleasePlan]:
        return {name: plan.scaled(scale, shares[name]) for name, plan in phases.items()}

    def excess(log_scale: float) -> float:
        """log(cost / budget), falling and nearly straight in the logarithm of the scale."""
        spent = epsilon_of([plan.event for plan in plans_at(math.exp(log_scale)).values()], delta)
        return math.log(spent / epsilon) if spent > 0 else -math.inf

    from dp_accounting import get_sigma_gaussian

    return plans_at(math.exp(_root(excess, math.log(get_sigma_gaussian(epsilon, delta)))))


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
