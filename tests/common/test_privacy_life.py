"""The filter of a data set's life: at which order its sums are held, and what no filter takes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from dp_accounting.rdp import rdp_privacy_accountant

from equipoise.common.privacy.accounting import FINITE, ORDERS, PrivacyCost, rdp_epsilon_of
from equipoise.common.privacy.events import Event
from equipoise.common.privacy.life import LifeFilter, best_order
from equipoise.common.privacy.plan import ReleasePlan

DELTA = 1e-5
CAPS = PrivacyCost(epsilon=4.0, epsilon_if_others_collude=8.0, delta=DELTA)


def test_the_orders_are_those_of_dp_accounting() -> None:
    assert [float(order) for order in rdp_privacy_accountant.DEFAULT_RDP_ORDERS] == list(FINITE)
    assert (*FINITE, math.inf) == ORDERS


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0, 10.0])
def test_the_order_is_the_best_for_gaussian_releases(epsilon: float) -> None:
    """A Gaussian spends the cap at the chosen order when RDP over all orders says the cap."""
    index, budget = best_order(epsilon, DELTA)
    sigma = math.sqrt(ORDERS[index] / (2 * budget))
    assert rdp_epsilon_of([Event("gaussian", sigma)], DELTA) == pytest.approx(epsilon, rel=1e-9)


def test_no_noise_is_never_admitted() -> None:
    fresh = LifeFilter.open(CAPS)
    assert not fresh.admits([ReleasePlan.none()])
    assert fresh.admits([])
    assert not replace(fresh, curve=(math.inf,) * len(ORDERS)).admits([])


def test_caps_and_curves_that_no_account_has_are_refused() -> None:
    fresh = LifeFilter.open(CAPS)
    for field, wrong in (
        ("curve", fresh.curve[1:]),
        ("curve", (-1.0, *fresh.curve[1:])),
        ("curve", (math.nan, *fresh.curve[1:])),
        ("curve_if_others_collude", (-1.0, *fresh.curve[1:])),
        ("caps", replace(CAPS, epsilon=0.0)),
        ("caps", replace(CAPS, epsilon_if_others_collude=math.inf)),
        ("caps", replace(CAPS, delta=1.0)),
    ):
        with pytest.raises(ValueError, match="expected"):
            replace(fresh, **{field: wrong})
