"""What a data set has spent of its privacy, from the entries of the ledger.

An account belongs to a set of patients. Its splits are disjoint patients, so each pays for its own releases (parallel
composition) as long as membership never changes. Sets that turn out to overlap join into one account, at the larger
spend; splits that turn out to mix fall together, at their sum.

A study's whole plan is reserved before its first release; each release then moves its own cost from what is reserved
to what is charged; what a finished study did not ask is given back. Costs are Renyi curves at fixed orders, for two
observers (`equipoise.common.privacy.life`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.common.errors import RefusedError
from equipoise.common.privacy.accounting import ORDERS, PrivacyCost, rdp_curve
from equipoise.common.privacy.events import Event
from equipoise.common.privacy.life import LifeFilter
from equipoise.common.privacy.plan import ReleasePlan

Curve = NDArray[np.float64]
Body = Mapping[str, Any]
NOT_SPLIT = "all"  # what can no longer be told apart by split


@dataclass(frozen=True)
class Spend:
    """Renyi cost at each of accounting.ORDERS, in the view of an honest majority and if all others collude."""

    honest: Curve
    alone: Curve

    @classmethod
    def nothing(cls) -> Spend:
        """Nothing spent."""
        return cls(np.zeros(len(ORDERS)), np.zeros(len(ORDERS)))

    @classmethod
    def of(cls, honest: Sequence[Event], alone: Sequence[Event]) -> Spend:
        """The cost of events, as each observer sees them."""
        return cls(rdp_curve(honest, ORDERS), rdp_curve(alone, ORDERS))

    def plus(self, other: Spend) -> Spend:
        """Both, on the same patients."""
        return Spend(self.honest + other.honest, self.alone + other.alone)

    def less(self, other: Spend) -> Spend:
        """What is left after `other` was taken out; never below nothing, and infinite where it was."""
        return Spend(_less(self.honest, other.honest), _less(self.alone, other.alone))

    def larger(self, other: Spend) -> Spend:
        """The larger at each order: both, on disjoint patients."""
        return Spend(np.maximum(self.honest, other.honest), np.maximum(self.alone, other.alone))


@dataclass(frozen=True)
class Account:
    """One set of patients.

    Attributes:
        charged: split -> what left the door. `all` holds what splits that mixed have spent together.
        reserved: run -> split -> what an unfinished study may still ask.
        unprotected: releases without noise (synthetic data, or a signed exception); no epsilon covers them.
    """

    charged: Mapping[str, Spend] = field(default_factory=dict)
    reserved: Mapping[str, Mapping[str, Spend]] = field(default_factory=dict)
    unprotected: int = 0

    def spent(self, split: str, *, with_reserved: bool = True) -> Spend:
        """What patients of a split have spent, what is reserved included."""
        total = self.charged.get(NOT_SPLIT, Spend.nothing())
        if split != NOT_SPLIT:
            total = total.plus(self.charged.get(split, Spend.nothing()))
        if with_reserved:
            for splits in self.reserved.values():
                for name in {split, NOT_SPLIT} & set(splits):
                    total = total.plus(splits[name])
        return total

    @property
    def splits(self) -> list[str]:
        """Splits that have spent or reserved anything."""
        names = {*self.charged, *(name for splits in self.reserved.values() for name in splits)}
        return sorted(names - {NOT_SPLIT}) or [NOT_SPLIT]

    def filter(self, split: str, caps: PrivacyCost) -> LifeFilter:
        """The life filter of the patients of a split, under the site's caps."""
        spent = self.spent(split)
        return LifeFilter(caps, tuple(spent.honest.tolist()), tuple(spent.alone.tolist()))

    def check_room(self, name: str, plans: Mapping[Any, Sequence[ReleasePlan]], caps: PrivacyCost) -> None:
        """Whether releases by split fit under the caps beside what is spent and reserved; `name` is for the message.

        Raises:
            RefusedError: they do not.
        """
        for split, listed in plans.items():
            if not self.filter(split, caps).admits(listed):
                raise RefusedError(
                    f"the study's releases on {split} do not fit under caps.epsilon={caps.epsilon:g} (and "
                    f"{caps.epsilon_if_others_collude:g} if all others collude) beside what account {name!r} has "
                    "spent and reserved (`equipoise ledger show`); decline the study, or raise the caps knowingly "
                    "(E170)"
                )

    def mixed(self) -> Account:
        """The account once its splits are no longer disjoint."""
        reserved = {run: {NOT_SPLIT: _total(splits.values())} for run, splits in self.reserved.items()}
        return replace(self, charged={NOT_SPLIT: _total(self.charged.values())}, reserved=reserved)

    def joined(self, other: Account) -> Account:
        """One account for two sets that were disjoint and now overlap: no patient has paid on both yet."""
        charged = dict(self.charged)
        for split, spend in other.charged.items():
            charged[split] = spend.larger(charged[split]) if split in charged else spend
        reserved = {**self.reserved, **other.reserved}
        return Account(charged, reserved, self.unprotected + other.unprotected)


@dataclass
class Accounts:
    """All accounts of a ledger, brought up to date entry by entry."""

    by_name: dict[str, Account] = field(default_factory=dict)
    root: dict[str, str] = field(default_factory=dict)  # an account that joined -> the one it is now
    # Queries, by run and index, whose reservation was used.
    paid: set[tuple[str, int | None]] = field(default_factory=set)

    def account(self, name: str) -> Account:
        """The account called `name`, or the one it joined."""
        return self.by_name.get(self.name(name), Account())

    def name(self, name: str) -> str:
        """The account that `name` is now."""
        while name in self.root:
            name = self.root[name]
        return name

    def was_paid(self, study: str, run: str, index: int | None) -> bool:
        """Whether the reservation of a query has been used: another attempt at it is spent on top."""
        return (f"{study}:{run}", index) in self.paid

    def apply(self, body: Body) -> None:
        """Take in one entry of the ledger, in order."""
        kind = body["kind"]
        if kind == "study":
            self._reserve(body)
        elif kind == "release":
            self._charge(body)
        elif kind == "close":
            if body["done"]:
                self._finish(run_key(body))
        elif kind == "join":
            into, other = self.name(body["into"]), self.name(body["account"])
            if into != other:
                self.by_name[into] = self.account(into).joined(self.account(other))
                self.by_name.pop(other, None)
                self.root[other] = into
        elif kind == "mix":
            name = self.name(body["account"])
            self.by_name[name] = self.account(name).mixed()

    def _reserve(self, body: Body) -> None:
        name = self.name(body["account"])
        account = self.account(name)
        splits = {split: _spend(costs) for split, costs in body["reserved"].items()}
        self.by_name[name] = replace(account, reserved={**account.reserved, run_key(body): splits})

    def _charge(self, body: Body) -> None:
        name = self.name(body["account"])
        account = self.account(name)
        event = Event.from_json(body["event"])
        if event.law == "none":
            self.by_name[name] = replace(account, unprotected=account.unprotected + 1)
            return
        spend = Spend.of([event], [Event.from_json(body["event_if_others_collude"])])
        reserved = {run: dict(splits) for run, splits in account.reserved.items()}
        mine = reserved.get(run_key(body), {})
        # A split that mixed since the reservation pays from, and to, what is common.
        split = NOT_SPLIT if body["split"] not in mine and NOT_SPLIT in mine else body["split"]
        # What was reserved pays for a query once; another attempt at it is spent on top, or it would be paid with what
        # the queries to come were promised.
        query = run_key(body), body["index"]
        if split in mine and query not in self.paid:
            mine[split] = mine[split].less(spend)
        self.paid.add(query)
        charged = {**account.charged, split: account.charged.get(split, Spend.nothing()).plus(spend)}
        self.by_name[name] = replace(account, charged=charged, reserved=reserved)

    def _finish(self, run: str) -> None:
        for name, account in self.by_name.items():
            if run in account.reserved:
                kept = {other: splits for other, splits in account.reserved.items() if other != run}
                self.by_name[name] = replace(account, reserved=kept)


def _less(whole: Curve, part: Curve) -> Curve:
    finite = np.isfinite(whole)
    left = np.full_like(whole, np.inf)
    left[finite] = np.maximum(whole[finite] - part[finite], 0.0)
    return left


def run_key(body: Body) -> str:
    """The run of a study that an entry belongs to, whichever arm it speaks of."""
    return f"{body['study']}:{str(body['run']).partition('/')[0]}"


def _spend(costs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Spend:
    honest, alone = ([Event.from_json(event) for event in costs[key]] for key in ("events", "events_if_others_collude"))
    return Spend.of(honest, alone)


def _total(spends: Any) -> Spend:
    total = Spend.nothing()
    for spend in spends:
        total = total.plus(spend)
    return total
