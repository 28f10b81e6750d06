"""The life of a data set: what is ever charged stays under both caps."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from equipoise.common.canonical import canonical_json
from equipoise.common.errors import RefusedError
from equipoise.common.privacy.accounting import ORDERS, PrivacyCost, cost_of, rdp_curve, rdp_epsilon_of
from equipoise.common.privacy.events import Event
from equipoise.common.privacy.life import LifeFilter, best_order, joined, summed
from equipoise.common.privacy.plan import ReleasePlan

DELTA = 1e-5
CAPS = PrivacyCost(epsilon=4.0, epsilon_if_others_collude=8.0, delta=DELTA)
STUDY = [ReleasePlan.counts(1, 4, noise=60.0), ReleasePlan.vector(1.0, 32, noise=18.0, releases=10)]
SHARED = [ReleasePlan.vector(1.0, 32, noise=18.0, releases=10, honest=9)]


def exhaust(account: LifeFilter, plans: list[ReleasePlan]) -> tuple[LifeFilter, int]:
    studies = 0
    while account.admits(plans):
        account, studies = account.charged(plans), studies + 1
    return account, studies


def test_studies_are_admitted_until_the_cap_and_no_further() -> None:
    account, studies = exhaust(LifeFilter.open(CAPS), STUDY)
    assert studies > 5
    assert cost_of(STUDY * studies, DELTA).epsilon < account.spent().epsilon <= CAPS.epsilon
    assert account.spent().epsilon > 0.95 * CAPS.epsilon
    with pytest.raises(RefusedError, match="lifetime cap of epsilon 4 "):
        account.charged(STUDY)


def test_the_cap_for_collusion_refuses_by_itself() -> None:
    """Nine shares cost three times the mu if all others collude: that cap is the tighter one."""
    account, studies = exhaust(LifeFilter.open(CAPS), SHARED)
    alone, more = exhaust(LifeFilter.open(replace(CAPS, epsilon_if_others_collude=1000.0)), SHARED)
    assert 0 < studies < more
    assert account.spent().epsilon < 0.8 * CAPS.epsilon
    assert account.spent().epsilon_if_others_collude <= CAPS.epsilon_if_others_collude
    assert alone.spent().epsilon <= CAPS.epsilon


def test_the_guarantee_follows_from_the_sum_at_one_order_fixed_in_advance() -> None:
    """What is admitted keeps the Renyi sum at the cap's own order under a budget that converts to the cap."""
    account, _ = exhaust(LifeFilter.open(CAPS), STUDY)
    index, budget = best_order(CAPS.epsilon, DELTA)
    order = ORDERS[index]
    assert account.curve[index] <= budget < account.curve[index] + rdp_curve([p.event for p in STUDY], [order]).sum()
    # Canonne, Kamath, Steinke 2020, Proposition 12: the delta that this much Renyi divergence gives at the cap.
    log_delta = (order - 1) * (budget - CAPS.epsilon) - math.log(order) + order * math.log1p(-1 / order)
    assert math.exp(log_delta) / (1 - 1 / order) == pytest.approx(DELTA, rel=1e-9)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0, 10.0])
def test_the_order_is_the_best_for_gaussian_releases(epsilon: float) -> None:
    """A Gaussian spends the cap at the chosen order when RDP over all orders says the cap."""
    index, budget = best_order(epsilon, DELTA)
    sigma = math.sqrt(ORDERS[index] / (2 * budget))
    assert rdp_epsilon_of([Event("gaussian", sigma)], DELTA) == pytest.approx(epsilon, rel=1e-9)


def test_later_studies_may_be_chosen_after_earlier_results() -> None:
    """Whatever adversary splits the budget, the sum it gets away with is the same."""
    generator = np.random.default_rng(0)
    account = LifeFilter.open(CAPS)
    for _ in range(600):
        study = [ReleasePlan.vector(1.0, 32, noise=float(generator.uniform(2, 60)))]
        account = account.charged(study) if account.admits(study) else account
    assert 0.98 * CAPS.epsilon < account.spent().epsilon <= CAPS.epsilon


def test_no_noise_is_never_admitted() -> None:
    assert not LifeFilter.open(CAPS).admits([ReleasePlan.none()])
    assert LifeFilter.open(CAPS).admits([])


def test_an_account_is_immutable_and_survives_json() -> None:
    fresh = LifeFilter.open(CAPS)
    account = fresh.charged(STUDY)
    assert fresh.spent() == PrivacyCost(0.0, 0.0, DELTA)
    assert LifeFilter.from_json(json.loads(canonical_json(account.to_json()))) == account
    broken = replace(account, curve=(math.inf,) * len(ORDERS))
    assert LifeFilter.from_json(json.loads(canonical_json(broken.to_json()))) == broken
    assert not broken.admits([])


def test_a_changed_account_is_refused() -> None:
    value = LifeFilter.open(CAPS).charged(STUDY).to_json()
    for key, wrong in (
        ("orders", [2.0]),
        ("curve", value["curve"][1:]),
        ("curve", [-1.0, *value["curve"][1:]]),
        ("curve", [math.nan, *value["curve"][1:]]),
        ("caps", value["caps"] | {"epsilon": 0.0}),
        ("caps", value["caps"] | {"delta": 1.0}),
        ("more", 1),
    ):
        with pytest.raises(ValueError, match=r"expected|orders"):
            LifeFilter.from_json(value | {key: wrong})


def test_accounts_that_become_one() -> None:
    """Overlap: the larger spend at each order. Splits that are no longer disjoint: the sum."""
    one, two = LifeFilter.open(CAPS).charged(STUDY), LifeFilter.open(CAPS).charged(SHARED)
    assert joined([one, two]).curve == tuple(np.maximum(one.curve, two.curve))
    assert summed([one, two]) == one.charged(SHARED)
    with pytest.raises(ValueError, match="different caps"):
        joined([one, LifeFilter.open(replace(CAPS, epsilon=5.0))])


def test_pure_releases_are_admitted_to_their_exact_sum() -> None:
    """Tables of epsilon 1 fit three times under a cap of 3, though the Renyi sum alone would refuse the third."""
    table = [ReleasePlan.counts(cells=1, dimensions=4, noise=1.0)]
    account = LifeFilter.open(PrivacyCost(3.0, 3.0, 1e-5))
    for _ in range(3):
        assert account.admits(table)
        account = account.charged(table)
    assert not account.admits(table)
    assert account.spent().epsilon == pytest.approx(3.0)
    # One Gaussian release ends pure privacy: from then on the Renyi sum decides, and it is used up.
    assert not account.admits([ReleasePlan.vector(1.0, 2, noise=1e4)])
    # The other way round: after a Gaussian the pure sum is infinite and admits nothing by itself.
    gaussian = LifeFilter.open(PrivacyCost(3.0, 3.0, 1e-5)).charged([ReleasePlan.vector(1.0, 2, noise=50.0)])
    assert gaussian.admits(table)
    assert not gaussian.charged(table).admits(table)
