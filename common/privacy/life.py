"""The life of a data set: a Renyi filter that says whether one more study fits under the site's caps.

Studies are chosen after the results of earlier ones, so their costs are themselves random and ordinary composition does
not cover them. A filter does: at one order, fixed before the first study, the Renyi costs of all releases are summed,
and a study is admitted only while the sum stays within what the cap is worth at that order.

>>> account = LifeFilter.open(PrivacyCost(epsilon=4.0, epsilon_if_others_collude=8.0, delta=1e-5))
>>> study = [ReleasePlan.vector(clip=1.0, dimensions=32, noise=15.0, releases=10)]
>>> account.admits(study), account.admits(10 * study)
(True, False)

References:
    [1] Feldman, Zrnic: Individual privacy accounting via a Renyi filter. NeurIPS 2021.
    [2] Rogers, Roth, Ullman, Vadhan: Privacy odometers and filters. NeurIPS 2016.
    [3] Lecuyer: Practical privacy filters and odometers with Renyi differential privacy. 2021.
    [4] Canonne, Kamath, Steinke: The discrete Gaussian for differential privacy. NeurIPS 2020, Proposition 12.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.common.privacy.accounting import FINITE, ORDERS, PrivacyCost, rdp_curve
from equipoise.common.privacy.events import Event
from equipoise.common.privacy.plan import ReleasePlan

Curve = tuple[float, ...]


@dataclass(frozen=True)
class LifeFilter:
    """The caps of one set of patients beside what they have spent; the account itself is `equipoise.client.accounts`.

    Formal guarantee:
        Unit: patient; relation: add or remove one. Whatever studies are chosen in view of earlier releases, all that is
        ever charged is (caps.epsilon, caps.delta)-private to an honest majority's view and
        (caps.epsilon_if_others_collude, caps.delta)-private to a server with all other sites. A study is admitted if
        afterwards one of two sums keeps its budget: (a) of the Renyi costs at the order of the cap ([1]; [4] from there
        to epsilon and delta), an order that depends on the cap alone, since the best order after the fact would depend
        on the releases; (b) of the pure epsilons, at the cap itself.
        Both together are a filter: split the outcomes S by which sum kept its budget at the end. Where (a) did, it did
        all along, as costs only grow; on these outcomes the history is that of the filter (a) alone, so
        P(S, a) <= e^epsilon Q(S, a) + delta. On the others (b) did, and every likelihood ratio is at most e^epsilon, so
        P(S, b) <= e^epsilon Q(S, b). Add the two.

    Attributes:
        caps: the largest cost ever, for each observer.
        curve: Renyi cost so far at each of accounting.ORDERS, in the view of an honest majority.
        curve_if_others_collude: the same if all others collude.

    Raises:
        ValueError: caps that are not positive, or curves of another length, negative or not numbers.
    """

    caps: PrivacyCost
    curve: Curve
    curve_if_others_collude: Curve

    def __post_init__(self) -> None:
        for cap in (self.caps.epsilon, self.caps.epsilon_if_others_collude):
            if not 0 < cap < math.inf:
                raise ValueError(f"cap={cap}: expected a positive, finite epsilon")
        if not 0 < self.caps.delta < 1:
            raise ValueError(f"delta={self.caps.delta}: expected more than 0, less than 1")
        for curve in (self.curve, self.curve_if_others_collude):
            if len(curve) != len(ORDERS) or not all(cost >= 0 for cost in curve):
                raise ValueError(f"a curve of {len(curve)} costs: expected {len(ORDERS)}, none negative")

    @staticmethod
    def open(caps: PrivacyCost) -> LifeFilter:
        """The filter of a data set from which nothing has been released."""
        nothing = (0.0,) * len(ORDERS)
        return LifeFilter(caps, nothing, nothing)

    def admits(self, plans: Sequence[ReleasePlan]) -> bool:
        """Whether all releases of `plans` fit under both caps beside what has been charged."""
        honest = _plus(self.curve, [plan.event for plan in plans])
        alone = _plus(self.curve_if_others_collude, [plan.event_if_others_collude for plan in plans])
        return _keeps(honest, self.caps.epsilon, self.caps.delta) and _keeps(
            alone, self.caps.epsilon_if_others_collude, self.caps.delta
        )


def best_order(epsilon: float, delta: float) -> tuple[int, float]:
    """Position in ORDERS and Renyi budget there of the order at which (epsilon, delta) is worth most Gaussian releases.

    The budget at order a is epsilon - log(1 - 1/a) + log(delta a) / (a - 1) ([4]); a Gaussian costs in proportion to a.
    """
    alpha = np.array(FINITE)
    budgets = epsilon - np.log1p(-1 / alpha) + np.log(delta * alpha) / (alpha - 1)
    index = int(np.argmax(budgets / alpha))
    return index, float(budgets[index])


def _keeps(curve: Curve, epsilon: float, delta: float) -> bool:
    index, budget = best_order(epsilon, delta)
    return curve[index] <= budget or curve[-1] <= epsilon


def _plus(curve: Curve, events: Sequence[Event]) -> Curve:
    return tuple((np.array(curve) + rdp_curve(events, ORDERS)).tolist())
