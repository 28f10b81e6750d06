"""A release: one query on its way through the sites to its sum.

A release has stages; in each, every site gets one request and gives one reply. The plain release has one stage. (The
secure sum has five.) Replies are added as they come, so that what is held does not grow with the number of sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from equipoise.common.canonical import digest_arrays
from equipoise.common.errors import QuorumError
from equipoise.common.query import Arrays, Query, Sum
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from equipoise.common.wire import PROTOCOL, pack, pack_bundles, unpack

NEED_INPUTS = "need_inputs"


class Release(Protocol):
    """What the engine drives: `requests`, then `receive` for every reply, until `advance` says it is done."""

    query: Query

    def requests(self) -> Mapping[str, bytes]:
        """The request of each site in the present stage."""

    def receive(self, site: str, payload: bytes | None, code: str | None) -> None:
        """Take one site's reply, or the code that came in its place."""

    def advance(self) -> bool:
        """End the stage; whether the release is complete."""

    def total(self) -> Sum:
        """The sum, once complete."""


@dataclass
class Delivered:
    """Input bundles that each site is known to hold, by digest."""

    held: dict[str, set[str]] = field(default_factory=dict)

    def missing(self, site: str, digests: Sequence[str]) -> tuple[str, ...]:
        """Those of `digests` that `site` may lack."""
        known = self.held.get(site, set())
        return tuple(digest for digest in digests if digest not in known)

    def note(self, site: str, digests: Sequence[str]) -> None:
        """`site` answered a request with these inputs."""
        self.held.setdefault(site, set()).update(digests)

    def forget(self, site: str) -> None:
        """`site` lost its inputs (it restarted)."""
        self.held.pop(site, None)


@dataclass(frozen=True)
class Briefing:
    """What every request of a release carries.

    Attributes:
        header: run, release, transcript's head, study, plan and the query's place in it.
        bundles: study, plan and inputs by digest; a site is sent those that it may lack.
    """

    header: Mapping[str, Any]
    bundles: Mapping[str, Arrays]

    @classmethod
    def of(cls, study: Study, plan: StudyPlan, query: Query, run: str, number: int, head: str) -> Briefing:
        """The briefing for release `number` of `run`."""
        document = study_bundle(study)
        digest = digest_arrays(document)
        roles = {**query.inputs, "study": document, "plan": plan.bundle}
        digests = {**query.input_digests, "study": digest, "plan": plan.digest}
        header = {
            "protocol": PROTOCOL,
            "run": run,
            "release": number,
            "stage": 0,
            "head": head,
            "study": digest,
            "plan": plan.digest,
            "index": query.index,
            "inputs": query.input_digests,
        }
        return cls(header, {digests[role]: arrays for role, arrays in roles.items()})


class Attendance:
    """Who is asked in a stage, who has answered, and why the others have not.

    Args:
        sites: the sites that the stage asks.
        delivered: inputs that sites hold.
        digests: inputs of the release.
    """

    def __init__(self, sites: Sequence[str], delivered: Delivered, digests: Sequence[str]) -> None:
        self.sites = tuple(sorted(sites))
        self.asking = set(self.sites)
        self.answered: list[str] = []
        self._codes: dict[str, str] = {}
        self._delivered, self._digests = delivered, tuple(digests)

    def missing(self, site: str) -> tuple[str, ...]:
        """Digests of the inputs that `site` has to be sent."""
        return self._delivered.missing(site, self._digests)

    def note(self, site: str, code: str | None) -> None:
        """`site` has answered well, or with a code; one that lacks inputs is asked once more, with all of them."""
        self.asking.discard(site)
        if code is None:
            self.answered.append(site)
            self._delivered.note(site, self._digests)
            return
        if code == NEED_INPUTS and site not in self._codes:
            self._delivered.forget(site)
            self.asking.add(site)
        self._codes[site] = code

    def shortfall(self, needed: int) -> str | None:
        """What to say where fewer than `needed` sites have answered; None where enough have."""
        if len(self.answered) >= needed:
            return None
        failed = ", ".join(f"{site}: {self._codes[site]}" for site in self.sites if site not in self.answered)
        return f"{len(self.answered)} of {len(self.sites)} sites answered, {needed} are needed ({failed})"


class PlainRelease:
    """One stage: every site sends its integers and the server adds them."""

    def __init__(
        self,
        study: Study,
        plan: StudyPlan,
        query: Query,
        run: str,
        number: int,
        head: str,
        sites: Sequence[str],
        delivered: Delivered,
    ) -> None:
        self.query = query
        self._study = study
        self._number = number
        self._witness: dict[str, str] = {}
        self._briefing = Briefing.of(study, plan, query, run, number, head)
        self._attendance = Attendance(sites, delivered, tuple(self._briefing.bundles))
        self._points = {name: np.zeros(block.shape, dtype=np.int64) for name, block in query.blocks.items()}

    def requests(self) -> Mapping[str, bytes]:
        """One request per site; sites that lack the same inputs share one object."""
        packed: dict[tuple[str, ...], bytes] = {}
        requests = {}
        for site in sorted(self._attendance.asking):
            missing = self._attendance.missing(site)
            if missing not in packed:
                bundles = {digest: self._briefing.bundles[digest] for digest in missing}
                packed[missing] = pack_bundles(self._briefing.header, bundles)
            requests[site] = packed[missing]
        return requests

    def receive(self, site: str, payload: bytes | None, code: str | None) -> None:
        """Check one reply and add it; a reply that fails a check counts as a site that did not answer."""
        self._attendance.note(site, code if payload is None else self._take(site, payload))

    def advance(self) -> bool:
        """Done once no site is left to be asked again; then the quorum must hold.

        Raises:
            QuorumError: fewer sites answered than the study needs.
        """
        if self._attendance.asking:
            return False
        # A share of the study's sites, not of those that connected: of these a share was left out already.
        sites = len(self._study.sites.declared_patients) or len(self._attendance.sites)
        shortfall = self._attendance.shortfall(quorum(self._study, sites))
        if shortfall is not None:
            raise QuorumError(
                f"release {self._number} ({self.query.name}): {shortfall}; see the sites' own logs, then resume the "
                "run (E150)"
            )
        return True

    def total(self) -> Sum:
        """The exact sum over the sites that answered."""
        return Sum(self.query, tuple(sorted(self._attendance.answered)), self._points, self._witness)

    def _take(self, site: str, payload: bytes) -> str | None:
        """Add a reply's integers; the code of what is wrong with it, or None."""
        try:
            header, points = unpack(payload)
        except QuorumError:
            return "malformed"
        if header.get("code") != "ok":
            return str(header.get("code"))[:32]
        expected = (site, self._number, self.query.digest)
        if (header.get("site"), header.get("release"), header.get("query")) != expected:
            return "mismatched"
        if set(points) != set(self.query.blocks):
            return "malformed"
        for name, block in self.query.blocks.items():
            if points[name].dtype != np.int64 or points[name].shape != block.shape:
                return "malformed"
            if not _within(points[name], block.site_bound / block.step):
                return "out_of_range"
        # The bound has room for the patients of all sites, so their sum has to keep it too. Each of the two addends is
        # below 2^62 or equal to it: what would wrap around int64 lands outside the bound and is found here.
        sums = {name: self._points[name] + array for name, array in points.items()}
        if not all(_within(sums[name], block.site_bound / block.step) for name, block in self.query.blocks.items()):
            return "out_of_range"
        self._points = sums
        self._witness[site] = str(header.get("ledger", ""))[:64]
        return None


def quorum(study: Study, sites: int) -> int:
    """Least number of sites that must answer, of `sites` that the study has."""
    return study.sites.least(sites)


def close_request(study: Study, run: str, number: int, head: str, done: bool) -> bytes:
    """The message that ends an arm: it asks nothing and leaves the transcript's last head with the site.

    With `done` the whole run is over, and the site frees what its plan reserved and did not ask.
    """
    header = {"protocol": PROTOCOL, "run": run, "release": number, "head": head, "study": study.hash}
    return pack({**header, "close": True, "done": done}, {})


def study_bundle(study: Study) -> Arrays:
    """The study as the sites get it: without its simulation part and without the coordinator's paths."""
    rendered = study.model_copy(update={"simulation": None})
    weights, pool = rendered.model.weights, rendered.privacy.public_pool
    if weights is not None:
        named = {"weights": weights, "after": rendered.model.after}
        bare = rendered.model.model_copy(
            update={role: one.model_copy(update={"path": ""}) for role, one in named.items() if one is not None}
        )
        rendered = rendered.model_copy(update={"model": bare})
    if pool is not None:
        privacy = rendered.privacy.model_copy(update={"public_pool": pool.model_copy(update={"path": ""})})
        rendered = rendered.model_copy(update={"privacy": privacy})
    text = rendered.model_dump_json(by_alias=True, exclude={"simulation"})
    return {"json": np.frombuffer(text.encode(), dtype=np.uint8)}


def _within(points: NDArray[np.int64], bound: float) -> bool:
    if not points.size:
        return True
    # Compared as Python integers: abs() of the least int64 would wrap.
    return int(points.max()) <= bound and -int(points.min()) <= bound
