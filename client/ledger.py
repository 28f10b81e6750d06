"""The site's ledger: every release it ever made and what it cost, chained (`equipoise.client.chain`).

Kinds of entries, in the order in which a study makes them:

    patients  the set of patients that an account stands for (keyed hashes lie beside, in `member`)
    join mix  two sets turned out to overlap; the splits of a set turned out not to be disjoint
    data      the fingerprint of the data that a run began with, to which it is held
    study     a run of a study begins: its whole plan is reserved, or refused where it does not fit under the caps
    release   one query is about to be computed: charged, whatever then happens
    seal      the reply as it will leave, by its digest; the reply itself lies in `sealed` until the run goes on
    close     the last transcript head of an arm; with `done`, what the run's plan did not ask is given back

A release is written before anything is computed of its patients, who by then are read and counted, and sealed before
its first byte leaves. A request that comes again gets
the sealed reply, byte for byte, a bounded number of times. A number is used once: another query under it, or the same
after its reply was let go, is refused. Every `release` keeps the head of the coordinator's transcript as the request
named it, and the reply names the head of the ledger, so each side can show that the other was set back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from equipoise.client.accounts import Account, Accounts
from equipoise.client.chain import Chain, Entry
from equipoise.client.members import TABLES, Members
from equipoise.client.request import Request
from equipoise.common.canonical import sha256
from equipoise.common.errors import RefusedError
from equipoise.common.privacy.accounting import PrivacyCost
from equipoise.common.privacy.plan import ReleasePlan
from equipoise.common.query import Query, SplitName

_SEALED = (
    "CREATE TABLE IF NOT EXISTS sealed (study TEXT NOT NULL, run TEXT NOT NULL, number INTEGER NOT NULL, "
    "attempt INTEGER NOT NULL, query TEXT NOT NULL, attempts INTEGER NOT NULL, sent INTEGER NOT NULL, reply BLOB, "
    "PRIMARY KEY (study, run, number, attempt)) STRICT"
)
_THIS = "WHERE study = ? AND run = ? AND number = ? AND attempt = ?"
MOST_ATTEMPTS = 16  # of a computation that broke off before it was sealed
MOST_RESENDS = 64  # of one sealed reply
_FROM_THE_LEDGER = object()


class Charge:
    """Leave to make one release: given by `Ledger.reserve` alone, and used up by it."""

    def __init__(self, request: Request, query: str, head: str, token: object) -> None:
        if token is not _FROM_THE_LEDGER:
            raise RefusedError("a charge comes from the ledger; nothing can be released without one")
        self.request = request
        self.head = head  # of the ledger, with this release written down
        self._query = query
        self._used = False

    def use(self, query: str) -> None:
        """Use it for the query with this digest.

        Raises:
            RefusedError: it was given for another query, or is used up.
        """
        if self._used or query != self._query:
            raise RefusedError("a charge pays for one release of one query; nothing was sent")
        self._used = True


class Ledger:
    """The releases of one site.

    Args:
        path: the SQLite file; made if missing.
        durable: wait for the disk at every write. A simulation, whose sites are scratch, does not.
    """

    def __init__(self, path: Path, durable: bool = True) -> None:
        self._forget()
        self._chain = Chain(path, (_SEALED, *TABLES), self._take_in, self._forget, durable)

    def close(self) -> None:
        """Close the file."""
        self._chain.close()

    def rest(self) -> None:
        """Close the file until it is next needed."""
        self._chain.rest()

    def begin_study(
        self,
        study: str,
        run: str,
        account: str,
        plan: str,
        plans: Mapping[SplitName, Sequence[ReleasePlan]],
        caps: PrivacyCost | None,
    ) -> None:
        """Reserve all that a run may ask of an account; does nothing where the run has begun already.

        Args:
            study, run: hash of the study, name of the run.
            account: who pays.
            plan: digest of the study's plan.
            plans: split -> release plans, those with noise.
            caps: the most that the account may ever spend; None where it is charged to nobody (a simulation).

        Raises:
            RefusedError: it does not fit under the caps, the run has ended, or it began with another plan.
        """
        with self._chain.lock:
            if self._begun.get((study, run, account)) == plan and (study, run) not in self._done:
                return  # whatever another process did since, `reserve` takes in
        with self._chain.writing():
            if (study, run) in self._done:
                raise RefusedError(f"run {run} of study {study[:12]} has ended; start another run")
            begun = self._begun.get((study, run, account))
            if begun is not None:
                if begun != plan:
                    raise RefusedError(f"run {run} began with another plan; a run keeps the plan that it began with")
                return
            if caps is not None:
                self._admit(account, plans, caps)
            reserved = {
                split: {
                    "events": [one.event.to_json() for one in listed],
                    "events_if_others_collude": [one.event_if_others_collude.to_json() for one in listed],
                }
                for split, listed in plans.items()
                if listed
            }
            self._chain.append(kind="study", study=study, run=run, account=account, plan=plan, reserved=reserved)

    def _admit(self, account: str, plans: Mapping[Any, Sequence[ReleasePlan]], caps: PrivacyCost) -> None:
        self._accounts.account(account).check_room(account, plans, caps)

    def runs(self) -> dict[tuple[str, str], bool]:
        """Hash of the study and name of every run that has begun -> whether it has ended."""
        with self._chain.lock:
            self._chain.catch_up()
            return {begun[:2]: begun[:2] in self._done for begun in self._begun}

    def check_caps(self, account: str, caps: PrivacyCost) -> None:
        """Whether what an account has spent and reserved is still within the caps.

        Raises:
            RefusedError: it is not (accounts joined, splits mixed, or the caps were lowered).
        """
        with self._chain.lock:
            self._chain.catch_up()
            self._admit(account, {split: [] for split in self._accounts.account(account).splits}, caps)

    def recall(self, request: Request, query: str) -> bytes | None:
        """The sealed reply to this very request, or None where nothing was sealed.

        Raises:
            RefusedError: the number was another query, its reply was let go, or it was sent too often.
        """
        with self._chain.writing():
            found = self._chain.db.execute(
                f"SELECT query, attempts, sent, reply FROM sealed {_THIS}",  # noqa: S608
                request.place,
            ).fetchone()
            if found is None:
                return None
            asked, attempts, sent, reply = found
            name = f"run {request.run}: release {request.number}"
            if asked != query:
                raise RefusedError(f"{name} was another query before; a number is used once")
            if reply is None and sent:
                raise RefusedError(f"{name} was answered, and its reply was let go when the run went on")
            if reply is None:
                if attempts >= MOST_ATTEMPTS:
                    raise RefusedError(f"{name} broke off {attempts} times; it is not tried again")
                return None
            if sent > MOST_RESENDS:
                raise RefusedError(f"{name} was sent {sent} times; it is not sent again")
            self._chain.db.execute(f"UPDATE sealed SET sent = sent + 1 {_THIS}", request.place)  # noqa: S608
        return bytes(reply)

    def reserve(self, request: Request, query: Query, account: str, caps: PrivacyCost | None = None) -> Charge:
        """Write the release down, charged, before anything is computed.

        Args:
            request: which release.
            query: what is asked, from the approved plan.
            account: who pays.
            caps: the most that the account may spend; a further attempt at a release costs more than was reserved.

        Raises:
            RefusedError: the run did not begin or has ended, the query was asked already, another process used the
                number for another query or sealed its reply, or a further attempt does not fit under the caps.
        """
        with self._chain.writing():
            if (request.study, request.whole_run) in self._done:
                raise RefusedError(f"run {request.whole_run} has ended; it may ask nothing more")
            if (request.study, request.whole_run, account) not in self._begun:
                raise RefusedError(f"run {request.whole_run}: nothing is reserved for it at account {account!r}")
            place = (request.study, request.whole_run, query.index)
            if self._asked.get(place, request.place[:3]) != request.place[:3]:
                raise RefusedError(f"run {request.run}: query {query.index} of the plan was asked already")
            db = self._chain.db
            known = db.execute(f"SELECT query, sent FROM sealed {_THIS}", request.place).fetchone()  # noqa: S608
            if known is None:
                # What a broken-off attempt did not charge is still reserved.
                paid = self._accounts.was_paid(request.study, request.whole_run, query.index)
                if paid and query.private and caps is not None:
                    self._admit(account, {query.split: [query.plan]}, caps)
                # The replies of earlier releases are in the coordinator's transcript by now.
                let_go = "UPDATE sealed SET reply = NULL WHERE study = ? AND run = ? AND reply IS NOT NULL"
                db.execute(let_go, request.place[:2])
                db.execute("INSERT INTO sealed VALUES (?, ?, ?, ?, ?, 1, 0, NULL)", (*request.place, query.digest))
                self._chain.append(
                    kind="release",
                    **_named(request),
                    head=request.head,
                    account=account,
                    index=query.index,
                    query=query.digest,
                    name=query.name,
                    split=query.split,
                    event=query.plan.event.to_json(),
                    event_if_others_collude=query.plan.event_if_others_collude.to_json(),
                )
            else:
                # It was charged when it was first tried, and nothing left the door.
                name = f"run {request.run}: release {request.number}"
                if known[0] != query.digest:
                    raise RefusedError(f"{name} was another query before; a number is used once")
                if known[1]:
                    raise RefusedError(f"{name} was sealed by another process meanwhile; ask again")
                db.execute(f"UPDATE sealed SET attempts = attempts + 1 {_THIS}", request.place)  # noqa: S608
            return Charge(request, query.digest, self._chain.head, _FROM_THE_LEDGER)

    def seal(self, charge: Charge, reply: bytes, keep: bool = True) -> None:
        """Write down the reply, before it is sent; kept here unless whoever made it keeps it.

        Raises:
            RefusedError: another process sealed a reply to the same request: one charge pays for one draw of the noise.
        """
        with self._chain.writing():
            kept = f"UPDATE sealed SET reply = ?, sent = 1 {_THIS} AND sent = 0"  # noqa: S608
            if self._chain.db.execute(kept, (reply if keep else None, *charge.request.place)).rowcount == 0:
                name = f"run {charge.request.run}: release {charge.request.number}"
                raise RefusedError(f"{name} was sealed by another process meanwhile; ask again")
            self._chain.append(kind="seal", **_named(charge.request), reply=sha256(reply))

    def end_run(self, request: Request, done: bool) -> None:
        """Note the last head of an arm; with `done` the run is over, and what it did not ask is given back."""
        with self._chain.writing():
            run = request.study, request.whole_run
            # Of a run that asked nothing there is nothing to note, however often it is ended.
            if run not in self._done and any(begun[:2] == run for begun in self._begun):
                self._chain.append(kind="close", **_named(request), head=request.head, done=done)

    def pin_data(self, study: str, run: str, fingerprint: str) -> None:
        """Hold a run to the data that it began with.

        Raises:
            RefusedError: the data changed since.
        """
        with self._chain.writing():
            begun = self._data.get((study, run))
            if begun is None:
                self._chain.append(kind="data", study=study, run=run, fingerprint=fingerprint)
            elif begun != fingerprint:
                raise RefusedError(
                    f"run {run}: the data changed since the run began; put them back, or end the run and approve "
                    "another study"
                )

    def register(self, account: str, patients: Iterable[tuple[str, str]], fingerprint: str) -> None:
        """Note the patients of an account and their splits: overlapping accounts join, moved patients mix its splits.

        Args:
            account: the account that the site file names.
            patients: (identifier, split) of every patient; only keyed hashes are kept.
            fingerprint: of the data; data that are registered already are not read again.
        """
        with self._chain.writing():
            members = Members(self._chain.db)
            if members.fingerprint(account) == fingerprint:
                return
            tags = members.tags(patients)
            overlapping, moved = members.known(tags)
            digest = sha256(b"".join(sorted(tags)))
            self._chain.append(
                kind="patients", account=account, patients=len(tags), set=digest, fingerprint=fingerprint
            )
            mine = self._accounts.name(account)
            for other in sorted({self._accounts.name(name) for name in overlapping} - {mine}):
                self._chain.append(kind="join", into=account, account=other)
            if moved:
                self._chain.append(kind="mix", account=account, moved=moved)
            members.keep(account, tags, fingerprint, moved > 0)

    @property
    def head(self) -> str:
        """Hash of the last entry."""
        with self._chain.lock:
            self._chain.catch_up()
            return self._chain.head

    def account(self, name: str) -> Account:
        """What an account has spent and reserved, up to now."""
        with self._chain.lock:
            self._chain.catch_up()
            return self._accounts.account(name)

    def account_names(self) -> list[str]:
        """Accounts that there are; joined ones under the name that they have now."""
        with self._chain.lock:
            self._chain.catch_up()
            return sorted(self._accounts.by_name)

    def entries(self) -> list[Entry]:
        """All entries, oldest first.

        Raises:
            StorageError: the file is damaged.
        """
        return self._chain.entries()

    def broken_entry(self) -> Entry | None:
        """The first entry that does not fit its hash or the entry before it; None where the chain holds."""
        return self._chain.broken()

    def _take_in(self, entry: Entry) -> None:
        body = entry.body
        if entry.kind == "study":
            self._begun[body["study"], body["run"], body["account"]] = body["plan"]
        if entry.kind == "close" and body["done"]:
            self._done.add((body["study"], body["run"].partition("/")[0]))
        if entry.kind == "release":
            asked = (body["study"], body["run"].partition("/")[0], body["index"])
            self._asked[asked] = (body["study"], body["run"], body["number"])
        if entry.kind == "data":
            self._data[body["study"], body["run"]] = body["fingerprint"]
        self._accounts.apply(body)

    def _forget(self) -> None:
        """Nothing is known yet, or what was taken in was rolled back."""
        self._accounts = Accounts()
        self._begun: dict[tuple[str, str, str], str] = {}
        self._done: set[tuple[str, str]] = set()
        self._asked: dict[tuple[str, str, int | None], tuple[str, str, int]] = {}
        self._data: dict[tuple[str, str], str] = {}


def _named(request: Request) -> dict[str, Any]:
    return {"study": request.study, "run": request.run, "number": request.number, "attempt": request.attempt}
