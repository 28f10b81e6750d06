"""A ledger and what is written into it: queries, runs and requests that cost little to make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from equipoise.client.ledger import Charge, Ledger
from equipoise.client.request import Request
from equipoise.common.privacy.accounting import PrivacyCost
from equipoise.common.privacy.plan import ReleasePlan
from equipoise.common.query import Block, Query, SplitName

STUDY = "5" * 64
CAPS = PrivacyCost(epsilon=3.0, epsilon_if_others_collude=3.0, delta=1e-5)


def opened(folder: Path, durable: bool = True) -> Ledger:
    """The ledger of a site below `folder`."""
    return Ledger(folder / "site" / "ledger.sqlite", durable)


def vector(index: int = 0, split: SplitName = "train", noise: float = 20.0) -> Query:
    """A planned query of one vector a patient under Gaussian noise."""
    plan = ReleasePlan.vector(1.0, 3, noise)
    query = Query("whitened_gradient", "patient_sum", split, "rounds", {}, {"x": Block.noisy((3,), plan)})
    return query.under(plan).placed(index)


def table(index: int = 0, split: SplitName = "test", noise: float = 20.0, cells: int = 1) -> Query:
    """A planned query of a table under Laplace noise."""
    plan = ReleasePlan.counts(cells, 6, noise)
    query = Query("cell_counts", "patient_sum", split, "counts", {}, {"n": Block.counts((3, 2), cells)})
    return query.under(plan).placed(index)


def open_count(index: int = 0) -> Query:
    """A planned query without noise."""
    return Query("cell_statistics", "patient_sum", "train", "counts", {}, {"n": Block.counts((3, 2))}).placed(index)


def by_split(queries: Sequence[Query]) -> Mapping[SplitName, list[ReleasePlan]]:
    """What a study with these queries reserves."""
    splits: tuple[SplitName, ...] = ("train", "validation", "test")
    return {split: [q.plan for q in queries if q.split == split and q.private] for split in splits}


def begin(
    ledger: Ledger, queries: Sequence[Query], run: str = "run", caps: PrivacyCost | None = None, **changes: Any
) -> None:
    """Begin a run that may ask `queries`."""
    named = {"study": STUDY, "account": "main", "plan": "p" * 64, **changes}
    ledger.begin_study(run=run, plans=by_split(queries), caps=caps, **named)


def request(number: int = 0, run: str = "run", arm: str = "swift", head: str = "head") -> Request:
    """The coordinator's name for a release."""
    return Request(STUDY, f"{run}/{arm}", number, head)


def reserve(ledger: Ledger, query: Query, asked: Request | None = None, account: str = "main") -> Charge:
    """Charge a query of a run that has begun."""
    return ledger.reserve(request(query.index or 0) if asked is None else asked, query, account)


def answer(
    ledger: Ledger,
    query: Query,
    asked: Request | None = None,
    account: str = "main",
    compute: Callable[[], bytes] = lambda: b"reply",
) -> bytes:
    """One request as the agent treats it, once the run has begun and the data are known."""
    wanted = request(query.index or 0) if asked is None else asked
    sealed = ledger.recall(wanted, query.digest)
    if sealed is not None:
        return sealed
    charge = ledger.reserve(wanted, query, account)
    reply = compute()
    ledger.seal(charge, reply)
    return reply


def kinds(ledger: Ledger) -> list[str]:
    """What stands in the ledger, in order."""
    return [entry.kind for entry in ledger.entries()]
