"""Secure sums for tests: cohorts, a run of the protocol with sites that drop out, and what the server saw of it.

Tests import it as `tests.secure`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.client.secure_session import Asked, Contribution, Peers, SecureSessions
from equipoise.client.secure_store import SessionStore
from equipoise.common.errors import SecureSumError
from equipoise.common.secure_sum.coordinator import Coordinator
from equipoise.common.secure_sum.keys import Identity
from equipoise.common.secure_sum.layout import noise_in, parts_of, rooms_of
from equipoise.common.secure_sum.messages import Consents, Delivery, KeyList, Reply, Stage, split_request
from equipoise.common.secure_sum.reply import pack_reply
from equipoise.common.secure_sum.site import SecureSite
from equipoise.common.secure_sum.terms import Part, Terms
from equipoise.common.secure_sum.threshold import threshold
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from equipoise.common.wire import PROTOCOL, pack, split_bundles, unpack
from tests.memory_store import MemoryStore

Points = Mapping[str, NDArray[np.int64]]
QUERY = "5a" * 32
STUDY = "5" * 64
PARTS = {"table": Part(6, 32, 10**6), "vector": Part(5, 64, 2**50)}
IDENTITIES = [Identity(bytes([number + 1]) * 32) for number in range(24)]
NEVER = len(Stage)  # the stage at which a site drops out that does not


def site_names(count: int) -> tuple[str, ...]:
    """Names of `count` sites."""
    return tuple(f"site-{number:02}" for number in range(count))


def identities(count: int) -> dict[str, Identity]:
    """The identity of each of `count` sites; the same in every test."""
    return dict(zip(site_names(count), IDENTITIES, strict=False))


def make_terms(count: int, **changes: Any) -> Terms:
    """Terms of a release of `count` sites, with the least quorum."""
    given: dict[str, Any] = {
        "study": STUDY,
        "run": "run",
        "number": 0,
        "attempt": 0,
        "query": QUERY,
        "cohort": {site: identity.public for site, identity in identities(count).items()},
        "colluding": 1,
        "quorum": threshold(count),
        "honest": None,
        "parts": PARTS,
        **changes,
    }
    return Terms(**given)


def draw_points(terms: Terms, seed: int = 0) -> dict[str, dict[str, NDArray[np.int64]]]:
    """A contribution of each site within reach, the largest and the least integers included."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for site in terms.sites:
        drawn[site] = {name: rng.integers(-part.reach, part.reach + 1, part.size) for name, part in terms.parts.items()}
        for name, part in terms.parts.items():
            if part.size:
                drawn[site][name][0] = rng.choice([-part.reach, part.reach])
    return drawn


def plain_sum(points: Mapping[str, Points], sites: Sequence[str]) -> dict[str, list[int]]:
    """The sum over `sites` in Python's integers."""
    first = next(iter(points.values()))
    return {
        name: [sum(int(points[site][name][place]) for site in sites) for place in range(first[name].size)]
        for name in first
    }


@dataclass
class Release:
    """The protocol between one coordinator and its sites, stage by stage, without a network.

    Attributes:
        seen: every byte that the server received.
    """

    terms: Terms
    points: Mapping[str, Points]
    sides: dict[str, SecureSite] = field(default_factory=dict)
    coordinator: Coordinator = field(init=False)
    seen: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.coordinator = Coordinator(self.terms)
        known = {identity.public: identity for identity in IDENTITIES}
        self.identities = {site: known[key] for site, key in self.terms.cohort.items()}
        for site, identity in self.identities.items():
            self.sides.setdefault(site, SecureSite(self.terms, site, identity))

    def answer(self, site: str, sites: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> Reply:
        """What `site` replies to a request of the present stage."""
        side, stage = self.sides[site], self.coordinator.stage
        if stage is Stage.ADVERTISE:
            return side.advertise()
        if stage is Stage.SHARE:
            return side.share(KeyList.of(sites, arrays))
        if stage is Stage.INPUT:
            return side.mask(Delivery.of(site, sites, arrays), self.points[site])
        if stage is Stage.CONSISTENCY:
            return side.consent(sites)
        return side.unmask(Consents.of(sites, arrays))

    def stage(self, absent: Sequence[str] = (), twist: Callable[[str, bytes], bytes] | None = None) -> bool:
        """Run the present stage without the sites in `absent`; whether the sum is complete."""
        for site in self.coordinator.asked:
            if site not in absent:
                reply = self.answer(site, *self.coordinator.request(site))
                data = pack_reply(self.terms, site, self.identities[site], reply)
                self.seen.append(data)
                self.coordinator.receive(site, twist(site, data) if twist else data)
        return self.coordinator.advance()

    def run(self, dropping: Mapping[str, int] | None = None) -> dict[str, NDArray[np.int64]]:
        """Run to the end; `dropping` gives the stage from which on a site is silent."""
        gone = dropping or {}
        for stage in Stage:
            self.stage([site for site, when in gone.items() if when <= stage])
        return self.coordinator.total()


class SecureDoor:
    """A site's door that answers secure releases, and nothing else: a stand-in for the agent around the real sessions.

    Args:
        site: its name.
        keys: everybody's identity keys, as the site pins them.
        points: what it contributes.
        patients: declared patients of all sites.
        store: where the sessions keep their state.

    Attributes:
        contributed: how often the contribution was asked for.
        seen: what it has sent.
    """

    def __init__(
        self,
        site: str,
        keys: Mapping[str, bytes],
        points: Points,
        patients: int = 0,
        store: SessionStore | None = None,
    ) -> None:
        self.site, self.points, self.patients = site, points, patients
        self.contributed = 0
        self.seen: list[bytes] = []
        self._known: dict[str, Any] = {}
        identity = {identity.public: identity for identity in IDENTITIES}[keys[site]]
        self.sessions = SecureSessions(site, identity, Peers(keys), store if store is not None else MemoryStore())

    def answer(self, request: bytes) -> bytes:
        """The reply to a stage, or a code."""
        header, arrays = unpack(request)
        message, own, rest = split_request(header, arrays)
        self._known.update(split_bundles(rest))
        if not {header["study"], header["plan"], *header["inputs"].values()} <= set(self._known):
            return self._code("need_inputs")
        inputs = {role: self._known[digest] for role, digest in header["inputs"].items()}
        plan = StudyPlan.from_bundle(self._known[header["plan"]])
        query = plan.entries[header["index"]].query.with_inputs(**inputs)
        rooms = rooms_of(query, noise_in(query), len(message["terms"]["cohort"]), self.patients)
        study = Study.model_validate_json(self._known[header["study"]]["json"].tobytes()).hash
        asked = Asked(study, header["run"], header["release"], query.digest, parts_of(query, rooms), query.plan.honest)
        try:
            reply = self.sessions.answer(asked, message, own, self._contribute)
        except SecureSumError as error:
            return self._code(error.code)
        self.seen.append(reply)
        return reply

    def restart(self) -> None:
        """Lose what an agent holds in memory: the inputs received."""
        self._known = {}

    def _contribute(self) -> Contribution:
        self.contributed += 1
        return Contribution(self.points, {"ledger": f"head of {self.site}"})

    def _code(self, code: str) -> bytes:
        return pack({"protocol": PROTOCOL, "code": code, "site": self.site}, {})
