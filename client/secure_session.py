"""A site's part in secure releases between their stages: what it agreed to, what it has answered, what it must forget.

The rules that make a release safe to repeat stand here; the protocol itself is `common/secure_sum/site.py`.

- The terms of a release are checked against the site's own file and its own arithmetic before a key is made: every
  site of the cohort is pinned with the very key that the terms give, there are enough of them, and what is summed is
  what the site has approved.
- A stage that comes again is answered with the same bytes; another request in its place is refused.
- The contribution is asked for once, after the others' shares have been checked, by a call that charges the ledger. If
  the agent dies between that call and the sealed reply, the contribution is lost: the site drops out of this release,
  which the charge has paid for, and nothing of it has left. Everywhere else a restarted agent goes on.
- A run has one release open at a time. A release number has one cohort for ever. A new attempt at it, with fresh keys
  and a fresh contribution, is refused once this site has helped to unmask the number; beginning it deletes the
  secrets of the attempt before, so that no two of them can be unmasked (`common/secure_sum/terms.py`).
- Secrets are deleted with the last answer, with the next release and with the end of the run. The replies stay until
  the next release or the end, so that a server that was restarted gets them again, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.client.secure_store import SessionStore
from equipoise.common.canonical import canonical_json, digest_arrays, digest_json
from equipoise.common.errors import RefusedError, SecureSumError
from equipoise.common.secure_sum.keys import Identity
from equipoise.common.secure_sum.messages import Arrays, Consents, Delivery, KeyList, Reply, Stage, names
from equipoise.common.secure_sum.reply import pack_reply
from equipoise.common.secure_sum.site import SecureSite
from equipoise.common.secure_sum.terms import Part, Terms, run_of
from equipoise.common.secure_sum.threshold import LEAST_SITES

State = Literal["open", "taken", "done"]


@dataclass(frozen=True)
class Peers:
    """The sites that this one computes with, from its own file.

    Attributes:
        keys: site -> public identity key, itself included; no other site counts.
        minimum: least number of sites in a cohort.
        colluding: how many of them, at least, a release must withstand acting as one with the server.
    """

    keys: Mapping[str, bytes]
    minimum: int = LEAST_SITES
    colluding: int = 1


@dataclass(frozen=True)
class Asked:
    """What the agent knows of a release from the approved study, against which its terms are held.

    Attributes:
        study, run, number: the release; the study by its hash.
        query: digest of the query.
        parts: its integers, from `common/secure_sum/layout.py`.
        honest: shares of the noise, from the query's release plan; None where the site adds all of it.
    """

    study: str
    run: str
    number: int
    query: str
    parts: Mapping[str, Part]
    honest: int | None = None


@dataclass(frozen=True)
class Contribution:
    """What a site adds to the sum, charged.

    Attributes:
        points: block -> int64 lattice points, noise included.
        fields: texts that go to the server beside the masked integers, signed with them.
    """

    points: Mapping[str, NDArray[np.int64]]
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Record:
    """What the store holds of a run: its latest release."""

    terms: Terms
    state: State
    requests: Mapping[str, str]  # stage -> digest of the request that was answered
    side: Mapping[str, Any] | None  # None once there is no secret any more

    def to_bytes(self) -> bytes:
        return canonical_json(
            {"terms": self.terms.to_json(), "state": self.state, "requests": self.requests, "side": self.side}
        )

    @staticmethod
    def from_bytes(data: bytes) -> _Record:
        value = json.loads(data)
        return _Record(Terms.from_json(value["terms"]), value["state"], value["requests"], value["side"])


class SecureSessions:
    """All secure releases of one site.

    Args:
        site: the site's name.
        identity: its identity key.
        peers: whom it computes with.
        store: where the state lies between stages.
    """

    def __init__(self, site: str, identity: Identity, peers: Peers, store: SessionStore) -> None:
        if peers.keys.get(site) != identity.public:
            raise RefusedError(f"peers.keys: {site} is not listed under its own identity key {identity.text}")
        self._site, self._identity, self._peers, self._store = site, identity, peers, store

    def answer(
        self, asked: Asked, message: Mapping[str, Any], arrays: Arrays, contribute: Callable[[], Contribution]
    ) -> bytes:
        """The signed reply to one stage of a release.

        Args:
            asked: the release, as the agent knows it from the approved study.
            message: the part `secure` of the request's header: terms, stage, sites.
            arrays: the request's arrays of the secure sum.
            contribute: called at most once a release and attempt; charges the ledger and gives the integers.

        Formal guarantee:
            Unit: the site. If the server and at most `terms.colluding` other sites of the cohort act as one, what they
            learn of this site's contribution to a release is what follows from the sum over at least `terms.quorum`
            sites, and from their own contributions; and they learn one such sum of a release number. Under the
            assumptions of docs/secure-sum.md.

        Edge cases:
            A request that fails a check changes nothing. Whatever `contribute` raises is passed on, and the site has
            dropped out of this attempt.

        Raises:
            SecureSumError: the request is refused; its code depends on nothing about patients.
            RefusedError: the contribution does not keep the bound of the terms; nothing was sent.
            StorageError: the state could not be written; nothing was sent.
        """
        terms, stage, sites = self._read(message)
        self._check(terms, asked)
        record = self._record(terms, stage)
        request = _request_digest(terms, stage, sites, arrays)
        if str(int(stage)) in record.requests:
            return self._again(record, stage, request)
        if record.side is None or record.state == "taken":
            raise SecureSumError("lost", f"{self._site}: the contribution to release {terms.number} is lost")
        side = SecureSite.from_json(terms, self._site, self._identity, record.side)
        fields: Mapping[str, str] = {}
        reply: Reply
        if stage is Stage.ADVERTISE:
            reply = side.advertise()
        elif stage is Stage.SHARE:
            reply = side.share(KeyList.of(sites, arrays))
        elif stage is Stage.INPUT:
            delivery = Delivery.of(self._site, sites, arrays)
            side.open_shares(delivery)  # raises before anything is charged
            self._store.write(terms.study_run, replace(record, state="taken").to_bytes())
            given = contribute()
            fields = given.fields
            try:
                reply = side.mask(delivery, given.points)
            except SecureSumError as error:
                raise RefusedError(f"release {terms.number}: {error}; nothing was sent") from None
        elif stage is Stage.CONSISTENCY:
            reply = side.consent(sites)
        else:
            reply = side.unmask(Consents.of(sites, arrays))
        data = pack_reply(terms, self._site, self._identity, reply, fields)
        self._store.write_reply(terms.study_run, stage, data)
        over = stage is Stage.UNMASK
        answered = _Record(
            terms,
            "done" if over else "open",
            {**record.requests, str(int(stage)): request},
            None if over else side.to_json(),
        )
        self._store.write(terms.study_run, answered.to_bytes())
        return data

    def end(self, study: str, run: str) -> None:
        """The run is over, or is given up here: delete what is secret and what was sent; its numbers stay used."""
        data = self._store.read(run_of(study, run))
        if data is not None:
            self._forget(_Record.from_bytes(data))

    def _read(self, message: Mapping[str, Any]) -> tuple[Terms, Stage, tuple[str, ...]]:
        if not isinstance(message, dict) or set(message) != {"terms", "stage", "sites"}:
            raise SecureSumError("malformed", "a request of the secure sum has other parts than terms, stage and sites")
        terms = Terms.from_json(message["terms"])
        if type(message["stage"]) is not int or message["stage"] not in list(Stage):
            raise SecureSumError("malformed", "a request of the secure sum names no stage")
        return terms, Stage(message["stage"]), names(message["sites"], terms.sites)

    def _check(self, terms: Terms, asked: Asked) -> None:
        """Hold the terms of the server against the approved study and against the site's own file."""
        stated = (terms.study, terms.run, terms.number, terms.query, dict(terms.parts), terms.honest)
        if stated != (asked.study, asked.run, asked.number, asked.query, dict(asked.parts), asked.honest):
            raise SecureSumError("mismatched", f"{self._site}: the terms of the secure sum are of another release")
        for site, key in terms.cohort.items():
            if self._peers.keys.get(site) != key:
                raise SecureSumError(
                    "unknown_peer", f"{site} is not pinned in peers.keys of {self._site} with this key"
                )
        if self._site not in terms.cohort:
            raise SecureSumError("unknown_peer", f"{self._site} itself is not in the cohort")
        if len(terms.cohort) < self._peers.minimum or terms.colluding < self._peers.colluding:
            raise SecureSumError(
                "too_few",
                f"{len(terms.cohort)} sites, {terms.colluding} of which may collude: peers of {self._site} asks for "
                f"{self._peers.minimum} and {self._peers.colluding}",
            )

    def _record(self, terms: Terms, stage: Stage) -> _Record:
        """The record of this very attempt; a first stage may begin it, and end what was open before."""
        data = self._store.read(terms.study_run)
        last = None if data is None else _Record.from_bytes(data)
        if last is not None:
            if last.terms.digest == terms.digest:
                return last
            self._check_successor(last, terms)
        if stage is not Stage.ADVERTISE:
            raise SecureSumError("out_of_order", f"{self._site} has no part in this attempt at release {terms.number}")
        if last is not None:
            self._forget(last)
        fresh = SecureSite(terms, self._site, self._identity)
        return _Record(terms, "open", {}, fresh.to_json())

    def _check_successor(self, last: _Record, terms: Terms) -> None:
        before, same = last.terms, terms.number == last.terms.number
        if same and terms.lasting != before.lasting:
            raise SecureSumError("other_cohort", f"release {terms.number} has other terms already; it has one cohort")
        if (terms.number, terms.attempt) < (before.number, before.attempt):
            raise SecureSumError("past", f"{self._site}: release {terms.number}, attempt {terms.attempt} is over")
        if same and last.state == "done":
            raise SecureSumError("finished", f"{self._site} has helped to unmask release {terms.number} already")

    def _again(self, record: _Record, stage: Stage, request: str) -> bytes:
        """The reply that was given to this very request."""
        if record.requests[str(int(stage))] != request:
            raise SecureSumError("changed", f"stage {stage.name} was asked before, with another request")
        reply = self._store.read_reply(record.terms.study_run, stage)
        if reply is None:
            raise SecureSumError("past", f"{self._site}: the run is over, its replies are deleted")
        return reply

    def _forget(self, record: _Record) -> None:
        self._store.write(record.terms.study_run, replace(record, side=None).to_bytes())
        self._store.drop_replies(record.terms.study_run)


def _request_digest(terms: Terms, stage: Stage, sites: tuple[str, ...], arrays: Arrays) -> str:
    """Digest of what an answer depends on. Any threshold of consents has the same answer, so they are left out."""
    content = {} if stage is Stage.UNMASK else {"sites": list(sites), "arrays": digest_arrays(arrays)}
    return digest_json({"terms": terms.digest, "stage": int(stage), **content})
