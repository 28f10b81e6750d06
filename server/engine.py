"""The engine: drives a method's generator over the sites.

It owns what no method should care about: the plan as an upper bound, replay of what is in the transcript already,
quorum and deadlines, and what a run reports as it goes.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from equipoise.common.errors import QuorumError, TranscriptError
from equipoise.common.query import Query, Sum
from equipoise.common.secure_sum.keys import parse_key
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from equipoise.server.release import Delivered, PlainRelease, Release, close_request
from equipoise.server.secure_release import SecureCohort, SecureRelease
from equipoise.server.transcript import Transcript
from equipoise.server.transport import TIMEOUT, Transport

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Finished:
    """What a completed release took.

    Attributes:
        query: what was asked.
        number: its place in the run.
        cohort: sites that answered.
        seconds: wall time; 0 where replayed.
        bytes_down, bytes_up: bytes of the messages by site; empty where replayed.
        replayed: it was in the transcript already.
    """

    query: Query
    number: int
    cohort: tuple[str, ...]
    seconds: float
    bytes_down: dict[str, int]
    bytes_up: dict[str, int]
    replayed: bool


class Watcher(Protocol):
    """Looks on without effect on the result: progress, rounds.jsonl, trackers."""

    def began(self, run: str, query: Query, number: int, planned: int, sites: Sequence[str]) -> None:
        """A release begins."""

    def answered(self, site: str) -> None:
        """A site's reply came."""

    def finished(self, run: str, release: Finished) -> None:
        """A release is complete."""


class Engine:
    """Runs generators of queries against one set of sites.

    Args:
        study: the study, checked.
        plan: what it may ask, calibrated.
        transport: the line to connected sites; None to replay only (`equipoise verify`).
        watchers: lookers-on.
    """

    def __init__(
        self, study: Study, plan: StudyPlan, transport: Transport | None, watchers: Sequence[Watcher] = ()
    ) -> None:
        self._study = study
        self._plan = plan
        self._transport = transport
        self._watchers = watchers
        self._delivered = Delivered()
        keys = {site: parse_key(text) for site, text in study.sites.keys.items()}
        self._cohort = SecureCohort(keys, study.sites.colluding) if study.privacy.secure_sum else None

    def drive(self, steps: Generator[Query, Sum, ResultT], arm: str, transcript: Transcript) -> ResultT:
        """Run `steps` to its result; every query must stand in the plan of `arm`, in order.

        A method yields templates with their inputs; what is asked is the plan's own query, with its noise.

        Raises:
            TranscriptError: a query outside the plan, or a transcript that does not fit the run.
            QuorumError: too few sites answered.
            StorageError: a sum could not be stored.
        """
        plan = self._plan.arm(arm)
        place = 0
        number = 0
        try:
            template = next(steps)
            while True:
                place = _advance(plan, place, template)
                query = plan[place - 1].with_inputs(**template.inputs)
                total = transcript.replay(number, query)
                if total is None:
                    total = self._ask(query, number, len(plan), transcript)
                else:
                    self._tell(transcript.run, Finished(query, number, total.cohort, 0.0, {}, {}, replayed=True))
                number += 1
                template = steps.send(total)
        except StopIteration as end:
            if number < len(transcript.rows):
                raise TranscriptError(
                    f"{transcript.folder}: holds {len(transcript.rows)} releases, the run asks for {number}; "
                    "the study or the code changed; start a new run"
                ) from None
            self._close(number, transcript, done=False)
            result: ResultT = end.value
            return result

    def finish(self, transcript: Transcript) -> None:
        """Tell the sites that the whole run is over: they keep its last head and free what it reserved."""
        self._close(len(transcript.rows), transcript, done=True)

    def _close(self, number: int, transcript: Transcript, done: bool) -> None:
        """Tell the sites the transcript's last head, so that what they remember covers the last release too.

        A site that does not answer has the heads before it; nothing of the result depends on this.
        """
        if self._transport is None:
            return
        request = close_request(self._study, transcript.run, number, transcript.head, done)
        for _ in self._transport.ask(dict.fromkeys(self._transport.nodes, request), self._study.sites.deadline_s):
            pass

    def _ask(self, query: Query, number: int, planned: int, transcript: Transcript) -> Sum:
        if self._transport is None:
            raise TranscriptError(
                f"{transcript.folder}: release {number} ({query.name}) is missing; the transcript is truncated, or the "
                "run did not end: resume it"
            )
        # A release through the secure sum has one cohort, whoever is there: the others drop out at once.
        sites = list(self._transport.nodes if self._cohort is None else self._cohort.keys)
        for watcher in self._watchers:
            watcher.began(transcript.run, query, number, planned, sites)
        started = time.monotonic()
        release = self._begun(query, number, sites, transcript)
        down: dict[str, int] = dict.fromkeys(sites, 0)
        up: dict[str, int] = dict.fromkeys(sites, 0)
        while True:
            requests = release.requests()
            for site in sorted(set(requests) - set(self._transport.nodes)):
                release.receive(site, None, TIMEOUT)
            here = {site: request for site, request in requests.items() if site in self._transport.nodes}
            for reply in self._transport.ask(here, self._study.sites.deadline_s):
                release.receive(reply.site, reply.payload, reply.code)
                down[reply.site] += reply.bytes_down
                up[reply.site] += reply.bytes_up
                for watcher in self._watchers:
                    watcher.answered(reply.site)
            if self._advanced(release, number, transcript):
                break
        total = release.total()
        transcript.append(total)
        self._tell(
            transcript.run,
            Finished(query, number, total.cohort, time.monotonic() - started, down, up, replayed=False),
        )
        return total

    def _begun(self, query: Query, number: int, sites: Sequence[str], transcript: Transcript) -> Release:
        """The release of a query: plain, or through the secure sum where the study says so."""
        common = (self._study, self._plan, query, transcript.run, number, transcript.head, sites, self._delivered)
        if self._cohort is None:
            return PlainRelease(*common)
        return SecureRelease(*common, self._cohort, transcript.attempt(number))

    def _advanced(self, release: Release, number: int, transcript: Transcript) -> bool:
        try:
            return release.advance()
        except QuorumError:
            if isinstance(release, SecureRelease):
                # What the sites have sent of it can be used no more: whoever resumes the run begins another attempt.
                transcript.failed(number)
            raise

    def _tell(self, run: str, finished: Finished) -> None:
        for watcher in self._watchers:
            watcher.finished(run, finished)


def _advance(plan: Sequence[Query], place: int, query: Query) -> int:
    """The place in the plan after `query`, which must be one of those that are left."""
    for index in range(place, len(plan)):
        if plan[index].template == query.template:
            return index + 1
    raise TranscriptError(
        f"query {query.name!r} (phase {query.phase}) is not in what is left of the plan; a method may only ask "
        "what its plan lists, in order"
    )
