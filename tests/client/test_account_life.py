"""The life of a data set: what is ever charged to an account stays under both caps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from equipoise.client.accounts import NOT_SPLIT, Account, Accounts
from equipoise.common.errors import RefusedError
from equipoise.common.privacy.accounting import ORDERS, PrivacyCost, cost_of, epsilon_of_curve, rdp_curve
from equipoise.common.privacy.life import best_order
from equipoise.common.privacy.plan import ReleasePlan

DELTA = 1e-5
CAPS = PrivacyCost(epsilon=4.0, epsilon_if_others_collude=8.0, delta=DELTA)
STUDY = [ReleasePlan.counts(1, 4, noise=60.0), ReleasePlan.vector(1.0, 32, noise=18.0, releases=10)]
SHARED = [ReleasePlan.vector(1.0, 32, noise=18.0, releases=10, honest=9)]


class Book:
    """The accounts of one site under its caps, of which the main one is asked."""

    def __init__(self, caps: PrivacyCost = CAPS) -> None:
        self.caps, self.accounts = caps, Accounts()

    def admits(self, plans: Sequence[ReleasePlan], split: str = "train") -> bool:
        return self.account.filter(split, self.caps).admits(plans)

    def charge(self, plans: Sequence[ReleasePlan], split: str = "train") -> None:
        """Take in what a study that is let in writes."""
        self.account.check_room("main", {split: plans}, self.caps)
        for plan in plans:
            event, alone = plan.event.to_json(), plan.event_if_others_collude.to_json()
            body = {"kind": "release", "account": "main", "study": "s", "run": "r", "index": None, "split": split}
            self.accounts.apply({**body, "event": event, "event_if_others_collude": alone})

    def exhaust(self, plans: Sequence[ReleasePlan]) -> int:
        """How many such studies are let in."""
        studies = 0
        while self.admits(plans):
            self.charge(plans)
            studies += 1
        return studies

    @property
    def account(self) -> Account:
        return self.accounts.account("main")

    @property
    def epsilon(self) -> float:
        return epsilon_of_curve(self.account.spent("train").honest, self.caps.delta)

    @property
    def epsilon_if_others_collude(self) -> float:
        return epsilon_of_curve(self.account.spent("train").alone, self.caps.delta)


def test_studies_are_admitted_until_the_cap_and_no_further() -> None:
    book = Book()
    studies = book.exhaust(STUDY)
    assert studies > 5
    assert cost_of(STUDY * studies, DELTA).epsilon < book.epsilon <= CAPS.epsilon
    assert book.epsilon > 0.95 * CAPS.epsilon
    with pytest.raises(RefusedError, match=r"releases on train do not fit under caps\.epsilon=4 "):
        book.charge(STUDY)


def test_the_cap_for_collusion_refuses_by_itself() -> None:
    """Nine shares cost three times the mu if all others collude: that cap is the tighter one."""
    book, free = Book(), Book(replace(CAPS, epsilon_if_others_collude=1000.0))
    assert 0 < book.exhaust(SHARED) < free.exhaust(SHARED)
    assert book.epsilon < 0.8 * CAPS.epsilon
    assert book.epsilon_if_others_collude <= CAPS.epsilon_if_others_collude
    assert free.epsilon <= CAPS.epsilon


def test_the_guarantee_follows_from_the_sum_at_one_order_fixed_in_advance() -> None:
    """What is admitted keeps the Renyi sum at the cap's own order under a budget that converts to the cap."""
    book = Book()
    book.exhaust(STUDY)
    index, budget = best_order(CAPS.epsilon, DELTA)
    order, spent = ORDERS[index], book.account.spent("train").honest[index]
    assert spent <= budget < spent + rdp_curve([p.event for p in STUDY], [order]).sum()
    # Canonne, Kamath, Steinke 2020, Proposition 12: the delta that this much Renyi divergence gives at the cap.
    log_delta = (order - 1) * (budget - CAPS.epsilon) - math.log(order) + order * math.log1p(-1 / order)
    assert math.exp(log_delta) / (1 - 1 / order) == pytest.approx(DELTA, rel=1e-9)


def test_later_studies_may_be_chosen_after_earlier_results() -> None:
    """Whatever adversary splits the budget, the sum it gets away with is the same."""
    generator = np.random.default_rng(0)
    book = Book()
    for _ in range(600):
        study = [ReleasePlan.vector(1.0, 32, noise=float(generator.uniform(2, 60)))]
        if book.admits(study):
            book.charge(study)
    assert 0.98 * CAPS.epsilon < book.epsilon <= CAPS.epsilon


def test_a_charge_leaves_the_account_before_it_alone() -> None:
    book = Book()
    fresh = book.account
    book.charge(STUDY)
    assert not fresh.spent("train").honest.any()
    assert book.account.spent("train").honest.any()


def test_accounts_that_become_one() -> None:
    """Overlap: the larger spend at each order. Splits that are no longer disjoint: the sum."""
    one, two, both = Book(), Book(), Book()
    one.charge(STUDY)
    two.charge(SHARED)
    larger = one.account.joined(two.account).spent("train")
    for side in ("honest", "alone"):
        each = [getattr(book.account.spent("train"), side) for book in (one, two)]
        assert (getattr(larger, side) == np.maximum(*each)).all()
    both.charge(STUDY, "train")
    both.charge(SHARED, "test")
    mixed = both.account.mixed()
    one.charge(SHARED)
    for split in ("train", "test", NOT_SPLIT):
        assert mixed.spent(split).honest == pytest.approx(one.account.spent("train").honest)
        assert mixed.spent(split).alone == pytest.approx(one.account.spent("train").alone)


def test_pure_releases_are_admitted_to_their_exact_sum() -> None:
    """Tables of epsilon 1 fit three times under a cap of 3, though the Renyi sum alone would refuse the third."""
    table = [ReleasePlan.counts(cells=1, dimensions=4, noise=1.0)]
    book = Book(PrivacyCost(3.0, 3.0, DELTA))
    assert book.exhaust(table) == 3
    assert book.epsilon == pytest.approx(3.0)
    # One Gaussian release ends pure privacy: from then on the Renyi sum decides, and it is used up.
    assert not book.admits([ReleasePlan.vector(1.0, 2, noise=1e4)])
    # The other way round: after a Gaussian the pure sum is infinite and admits nothing by itself.
    gaussian = Book(PrivacyCost(3.0, 3.0, DELTA))
    gaussian.charge([ReleasePlan.vector(1.0, 2, noise=50.0)])
    assert gaussian.exhaust(table) == 1
