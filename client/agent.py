"""The site agent: the only door to a hospital's data.

Bytes come in, bytes go out. Behind the door are the cohort, the policy and the ledger; in a simulation the same object
runs in the process of the grid. Whatever goes wrong, the answer is a generic code; the reason stays in the site's log.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.client.bundles import BundleStore
from equipoise.client.cohort_store import CohortStore, Patients
from equipoise.client.computations import COMPUTATIONS
from equipoise.client.frozen import HeadInputs
from equipoise.client.ledger import Charge, Ledger
from equipoise.client.policy import check_cohort, check_queries, check_study, life_caps
from equipoise.client.release import NO_LIMIT, release
from equipoise.client.request import Request
from equipoise.client.scores import ScoreCache
from equipoise.client.secure_session import Asked, Contribution, SecureSessions
from equipoise.client.workplace import Workplace
from equipoise.common.canonical import canonical_json, sha256
from equipoise.common.config import validate
from equipoise.common.errors import EquipoiseError, RefusedError, SecureSumError, StorageError
from equipoise.common.privacy.accounting import PrivacyCost
from equipoise.common.query import SPLITS, Arrays, Query
from equipoise.common.secure_sum.keys import parse_key
from equipoise.common.secure_sum.layout import noise_in, parts_of, rooms_of
from equipoise.common.secure_sum.messages import split_request
from equipoise.common.secure_sum.terms import Terms
from equipoise.common.sitefile import Site
from equipoise.common.study import Study
from equipoise.common.study_plan import STUDY, Entry, StudyPlan
from equipoise.common.wire import PROTOCOL, pack, split_bundles, unpack

LONGEST_NAME = 200  # of a run; what a server sends may stand in a ledger that is only ever added to
Opener = Callable[[Study, Site], Patients]


class SiteAgent:
    """One hospital's agent.

    Args:
        site: the site file.
        state: folder of the ledger and the log.
        approved: hashes of the studies that the hospital approved.
        bundles: store of the inputs received; agents of one process may share it.
        open_cohort: opens the cohort and keeps it; agents of one process may share it.
        scratch: a simulated site: privacy mode none is allowed, nothing is charged against a cap, and the ledger does
            not wait for the disk.
        check_plan: what a plan has to pass (tests of single queries pass another).
        sessions: the site's part in secure sums; None where it has no identity key or no pinned peers.
    """

    def __init__(
        self,
        site: Site,
        state: Path,
        approved: Container[str],
        bundles: BundleStore | None = None,
        open_cohort: Opener | None = None,
        scratch: bool = False,
        check_plan: Callable[[Site, Study, StudyPlan, bool], None] = check_queries,
        sessions: SecureSessions | None = None,
    ) -> None:
        self.site = site
        self.ledger = Ledger(state / "ledger.sqlite", durable=not scratch)
        self._log = state / "agent.log.jsonl"
        self._approved = approved
        self._bundles = bundles if bundles is not None else BundleStore()
        self._open_cohort = open_cohort if open_cohort is not None else CohortStore()
        self._scratch = scratch
        self._scores, self._heads = ScoreCache(), HeadInputs()
        self._fingerprint = ""  # of the data that these were computed from
        self._studies: dict[str, tuple[Study, str]] = {}  # with its hash, which takes time to work out
        self._plans: dict[tuple[str, str], StudyPlan] = {}
        self._check_plan = check_plan
        self._sessions = sessions
        self._checked: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def answer(self, request: bytes) -> bytes:
        """The sealed reply to one request, or a reply that holds a generic code and nothing else."""
        try:
            with self._lock:
                return self._release(request)
        except _MissingInputsError:
            return self._code("need_inputs")
        except EquipoiseError as error:
            self._note(error.code, str(error))
            return self._code(_code_of(error))
        except Exception as error:
            # The network must not learn what failed on which patient; the site's own log keeps all of it.
            self._note("internal", f"{type(error).__name__}: {error}")
            return self._code(_code_of(error))

    def _release(self, request: bytes) -> bytes:
        header, arrays = unpack(request)
        asked = Request("", str(header["run"]), int(header["release"]), str(header["head"]))
        if max(len(asked.run), len(asked.head)) > LONGEST_NAME:
            raise RefusedError(f"a run or a head of more than {LONGEST_NAME} characters")
        if header.get("close"):
            return self._close(header, asked)
        message, secure, rest = split_request(header, arrays)
        self._bundles.add(split_bundles(rest), {header["study"], header["plan"], *header["inputs"].values()})
        study, own_hash = self._study(header["study"])
        if own_hash not in self._approved:
            raise RefusedError(f"study {study.study}: hash {own_hash} is no longer approved at {self.site.site} (E121)")
        asked = replace(asked, study=own_hash)
        entry = self._entry(study, header, asked)
        inputs = self._inputs(study, asked, header["inputs"])
        # The store has held each bundle against its digest.
        query = entry.query.with_inputs(dict(header["inputs"]), **inputs)
        if bool(study.privacy.secure_sum) != (message is not None):
            raise RefusedError("a study goes through the secure sum or it does not, as it was approved")
        if message is not None:
            return self._in_secure_sum(study, header["plan"], message, secure, asked, entry, query)
        sealed = self.ledger.recall(asked, query.digest)
        if sealed is not None:
            return sealed
        try:
            charge, points = self._contribute(study, header["plan"], asked, entry, query)
        except _FailedError as failed:
            # That it failed leaves, and may hang on patients and noise: it is all that this charge pays for, and what
            # the same request gets from now on.
            self.ledger.seal(failed.charge, self._code(_code_of(failed.reason)))
            raise failed.reason from None
        reply = pack(
            {
                "protocol": PROTOCOL,
                "code": "ok",
                "site": self.site.site,
                "release": asked.number,
                "query": query.digest,
                "ledger": charge.head,
            },
            points,
        )
        self.ledger.seal(charge, reply)
        return reply

    def _contribute(
        self, study: Study, plan: str, asked: Request, entry: Entry, query: Query, most: Mapping[str, int] = NO_LIMIT
    ) -> tuple[Charge, dict[str, NDArray[np.int64]]]:
        """The site's integers for a query, charged; nothing of them has left yet.

        Raises:
            _FailedError: the computation failed after it was charged.
        """
        account = self.site.data.account if entry.account == STUDY else f"control {entry.account}"
        caps = None if self._scratch or not study.privacy.private else life_caps(self.site)
        self._begin(study, plan, entry, asked, account, caps)
        cohort = self._patients(study, asked, query)
        charge = self.ledger.reserve(asked, query, account, caps)
        if cohort.fingerprint != self._fingerprint:
            self._scores, self._heads = ScoreCache(), HeadInputs()
            self._fingerprint = cohort.fingerprint
        try:
            split = cohort.split(query.split)
            place = Workplace(study, self.site.site, query, split, self._scores, asked.number, self._heads)
            return charge, release(charge, query, COMPUTATIONS[query.name](place), most)
        except StorageError:
            raise  # of the disk, and not of patients: it may be tried again
        except Exception as reason:
            if not query.private:
                raise
            raise _FailedError(charge, reason) from None

    def _in_secure_sum(
        self,
        study: Study,
        plan: str,
        message: Any,
        arrays: Arrays,
        asked: Request,
        entry: Entry,
        query: Query,
    ) -> bytes:
        """The reply to one stage of a release through the secure sum; such a study knows no other way."""
        if self._sessions is None:
            raise RefusedError(f"{self.site.site}: no identity key or no pinned peers; `equipoise site pin` pins them")
        terms = Terms.from_json(message.get("terms") if isinstance(message, dict) else None)
        _check_company(study, terms)
        patients = sum(study.sites.declared_patients.values())
        rooms = rooms_of(query, noise_in(query), len(terms.cohort), patients)
        parts = parts_of(query, rooms)
        most = {name: room.bound_steps for name, room in rooms.items()}
        # The session holds the terms against this. The attempt is the coordinator's count; each one costs.
        held = Asked(asked.study, asked.run, asked.number, query.digest, parts, query.plan.honest)
        asked = replace(asked, attempt=terms.attempt)
        charges: list[Charge] = []

        def contribute() -> Contribution:
            try:
                charge, points = self._contribute(study, plan, asked, entry, query, most)
            except _FailedError as failed:
                raise failed.reason from None  # the session lets nobody ask this attempt again
            charges.append(charge)
            return Contribution(points, {"ledger": charge.head})

        reply = self._sessions.answer(held, message, arrays, contribute)
        for charge in charges:
            # The session keeps the reply; the ledger notes that it was made.
            self.ledger.seal(charge, reply, keep=False)
        return reply

    def _close(self, header: Mapping[str, Any], asked: Request) -> bytes:
        """Write down the last head of an arm of an approved study; nothing is computed."""
        if header["study"] not in self._approved:
            raise RefusedError(f"study hash {header['study']} is not approved at {self.site.site}")
        self.ledger.end_run(replace(asked, study=str(header["study"])), done=bool(header["done"]))
        if self._sessions is not None:
            self._sessions.end(str(header["study"]), asked.run)
        return self._code("ok")

    def _begin(
        self, study: Study, digest: str, entry: Entry, asked: Request, account: str, caps: PrivacyCost | None
    ) -> None:
        """Reserve the whole plan, before data are read; the first release of a run does it for all."""
        plan = self._plans[asked.study, digest]
        plans = {split: plan.plans(split, entry.account) for split in SPLITS} if study.privacy.private else {}
        self.ledger.begin_study(asked.study, asked.whole_run, account, digest, plans, caps)

    def _patients(self, study: Study, asked: Request, query: Query) -> Patients:
        """The cohort, once it is known to be the one that the run began with, and large enough."""
        cohort = self._open_cohort(study, self.site)
        if not self._scratch:
            check_cohort(self.site, cohort, query)
            self.ledger.pin_data(asked.study, asked.whole_run, cohort.fingerprint)
            self.ledger.register(self.site.data.account, cohort.members(), cohort.fingerprint)
            if study.privacy.private:
                # Patients who turn out to be another account's, or in another split, have spent more than was known.
                self.ledger.check_caps(self.site.data.account, life_caps(self.site))
        return cohort

    def _entry(self, study: Study, header: Mapping[str, Any], asked: Request) -> Entry:
        """The query that the request names, from the plan that the site has checked."""
        digest = str(header["plan"])
        if (asked.study, digest) not in self._plans:
            bundle = self._bundles.get(digest)
            if bundle is None:
                raise _MissingInputsError
            plan = StudyPlan.from_bundle(bundle)
            self._check_plan(self.site, study, plan, self._scratch)
            self._plans[asked.study, digest] = plan
        entries, index = self._plans[asked.study, digest].entries, header["index"]
        if not isinstance(index, int) or not 0 <= index < len(entries):
            raise RefusedError(f"query {index!r} is not one of the {len(entries)} of the plan")
        entry = entries[index]
        if asked.run.partition("/")[2] != entry.arm:
            raise RefusedError(f"query {index} belongs to {entry.arm}, not to run {asked.run!r}")
        return entry

    def _study(self, digest: str) -> tuple[Study, str]:
        """The study in the bundle called `digest`, once it has passed the site's policy, and its hash."""
        if digest not in self._studies:
            bundle = self._bundles.get(digest)
            if bundle is None:
                raise _MissingInputsError
            study, own_hash = _read_study(bundle["json"].tobytes())
            check_study(self.site, study, self._approved, self._scratch)
            self._studies[digest] = study, own_hash
        return self._studies[digest]

    def _inputs(self, study: Study, asked: Request, digests: Mapping[str, str]) -> dict[str, Arrays]:
        """The query's inputs; the vendor's file among them must be the one in the approved study."""
        inputs: dict[str, Arrays] = {}
        for role, digest in digests.items():
            bundle = self._bundles.get(digest)
            if bundle is None:
                raise _MissingInputsError
            if role.endswith(".base") and (asked.study, digest) not in self._checked:
                weights = study.model.weights
                if weights is None or sha256(bundle["file"].tobytes()) != weights.sha256:
                    raise RefusedError(f"{role}: the weights are not those of the approved study (E121)")
                self._checked.add((asked.study, digest))
            inputs[role] = bundle
        return inputs

    def _code(self, code: str) -> bytes:
        return pack({"protocol": PROTOCOL, "code": code, "site": self.site.site}, {})

    def _note(self, code: str, reason: str) -> None:
        row = {"time": time.time(), "site": self.site.site, "code": code, "reason": reason}
        try:
            with self._log.open("ab") as log:
                log.write(canonical_json(row) + b"\n")
        except OSError:
            # The disk is full or gone: the refusal itself still has to reach the server.
            return


@lru_cache(maxsize=2)  # the sites of a simulation are all sent the same study, which names every one of them
def _read_study(text: bytes) -> tuple[Study, str]:
    study = validate(Study, json.loads(text), "study received")
    return study, study.hash


def _check_company(study: Study, terms: Terms) -> None:
    """Hold the cohort and its numbers against the approved study.

    Otherwise the server could ask ever smaller parts of the cohort, in runs of one study, and take the sums apart.

    Raises:
        SecureSumError: `other_cohort`.
    """
    approved = {site: parse_key(text) for site, text in study.sites.keys.items()}
    least = max(terms.threshold, study.sites.least(len(approved)))
    if (dict(terms.cohort), terms.colluding, terms.quorum) != (approved, study.sites.colluding, least):
        raise SecureSumError(
            "other_cohort",
            f"the secure sum is asked of {len(terms.cohort)} sites, {terms.quorum} of which suffice and "
            f"{terms.colluding} of which may collude; the approved study has {len(approved)}, {least} and "
            f"{study.sites.colluding}",
        )


class _FailedError(Exception):
    """A private computation failed after it was charged."""

    def __init__(self, charge: Charge, reason: Exception) -> None:
        super().__init__(str(reason))
        self.charge, self.reason = charge, reason


def _code_of(error: Exception) -> str:
    """What the coordinator learns of a failure."""
    if isinstance(error, StorageError | SecureSumError):
        return error.code
    # What was wrong with the data or the cohort is about patients: to the server it is one refusal.
    return RefusedError.code if isinstance(error, EquipoiseError) else "internal"


class _MissingInputsError(Exception):
    """The request names inputs that the site does not hold; the server sends them all again."""
