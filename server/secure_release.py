"""A release through the secure sum: five stages, the same sum as `PlainRelease`, and no site's part in it.

Like every release it is driven by `requests`, `receive` and `advance` and knows no transport. A site that fails in a
stage has dropped out; from the quorum (until the inputs are there) and the threshold (after that) on the release is
refused, with each site's code. It may then be tried again under the same number as the next attempt, or replayed from
its first stage by a server that was restarted: the sites answer what they have answered byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from equipoise.common.errors import QuorumError, SecureSumError, StudyError
from equipoise.common.query import Query, Sum
from equipoise.common.secure_sum.coordinator import Coordinator
from equipoise.common.secure_sum.layout import noise_in, parts_of, rooms_of
from equipoise.common.secure_sum.messages import SECURE, Stage
from equipoise.common.secure_sum.terms import Terms
from equipoise.common.secure_sum.threshold import threshold
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from equipoise.common.wire import pack
from equipoise.server.release import Attendance, Briefing, Delivered, quorum


@dataclass(frozen=True)
class SecureCohort:
    """The public facts of a study's secure sums.

    Attributes:
        keys: site -> public identity key, as the study declares it and each site pins it.
        colluding: sites that may act as one with the server.
    """

    keys: Mapping[str, bytes]
    colluding: int = 1


def terms_of(
    study: Study,
    query: Query,
    run: str,
    number: int,
    sites: Sequence[str],
    cohort: SecureCohort,
    attempt: int = 0,
) -> Terms:
    """The terms of one release.

    Raises:
        StudyError: a site has no key, a share of noise in a site's own update, or numbers that protect nobody.
    """
    unknown = sorted(set(sites) - set(cohort.keys))
    if unknown:
        raise StudyError(f"site {unknown[0]} has no identity key in the study; its agent prints it")
    if query.plan.honest is not None and query.kind != "patient_sum":
        raise StudyError(f"{query.name}: noise shares in a {query.kind}; use privacy.mode local, where a site adds all")
    patients = sum(study.sites.declared_patients.values())
    rooms = rooms_of(query, noise_in(query), max(len(sites), 1), patients)
    return Terms(
        study=study.hash,
        run=run,
        number=number,
        attempt=attempt,
        query=query.digest,
        cohort={site: cohort.keys[site] for site in sites},
        colluding=cohort.colluding,
        quorum=max(threshold(len(sites)), quorum(study, len(sites))),
        honest=query.plan.honest,
        parts=parts_of(query, rooms),
    )


class SecureRelease:
    """Five stages (`common/secure_sum`), of which the last gives the sum.

    Args:
        study, plan, query, run, number, head, sites, delivered: as for `PlainRelease`.
        cohort: the sites' keys.
        attempt: how often the release has failed before.

    Attributes:
        witness: site -> the texts that came with its integers.

    Raises:
        StudyError: the study's numbers protect nobody in a secure sum.
    """

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
        cohort: SecureCohort,
        attempt: int = 0,
    ) -> None:
        self.query = query
        self.terms = terms_of(study, query, run, number, sites, cohort, attempt)
        self._briefing = Briefing.of(study, plan, query, run, number, head)
        self._delivered = delivered
        self._coordinator = Coordinator(self.terms)
        self._attendance = self._call()

    @property
    def stage(self) -> Stage | None:
        """The present stage; None once the sum is there."""
        return self._coordinator.stage

    @property
    def witness(self) -> Mapping[str, Mapping[str, str]]:
        """Site -> the texts that came with its integers."""
        return self._coordinator.fields

    def requests(self) -> Mapping[str, bytes]:
        """One request for each site that the present stage still asks; those that are equal are one object."""
        packed: dict[tuple[object, ...], bytes] = {}
        requests = {}
        for site in sorted(self._attendance.asking):
            # What the shares sealed for one site are, nobody else is sent; all else is the same for all.
            key = (*self._attendance.missing(site), site if self.stage is Stage.INPUT else "")
            if key not in packed:
                packed[key] = self._request(site)
            requests[site] = packed[key]
        return requests

    def receive(self, site: str, payload: bytes | None, code: str | None) -> None:
        """Check one reply and take it in; a reply that fails a check counts as a site that did not answer."""
        if site not in self._attendance.asking:
            return  # it has answered this stage, or was never asked
        if payload is not None:
            try:
                self._coordinator.receive(site, payload)
                code = None
            except SecureSumError as error:
                code = error.code
        self._attendance.note(site, code)

    def advance(self) -> bool:
        """End the stage once no site is left to be asked again; whether the sum is there.

        Raises:
            QuorumError: too few sites are left, or one of them broke the protocol; no sum exists.
        """
        if self._attendance.asking:
            return False
        stage = self._coordinator.stage
        where = f"release {self.terms.number} ({self.query.name}), secure sum"
        if stage is not None:
            shortfall = self._attendance.shortfall(self._coordinator.needed)
            if shortfall is not None:
                raise QuorumError(
                    f"{where}, stage {stage.name}: {shortfall}; {self.terms.words}; see the sites' own logs, then "
                    "resume the run (E150)"
                )
        try:
            done = self._coordinator.advance()
        except QuorumError as error:
            raise QuorumError(f"{where}: {error}; see the sites' own logs, then resume the run") from None
        if not done:
            self._attendance = self._call()
        return done

    def total(self) -> Sum:
        """The exact sum over the sites whose integers are in it."""
        total = self._coordinator.total()
        points = {name: total[name].reshape(block.shape) for name, block in self.query.blocks.items()}
        witness = {site: fields.get("ledger", "") for site, fields in self._coordinator.fields.items()}
        return Sum(self.query, self._coordinator.cohort, points, witness)

    def _call(self) -> Attendance:
        return Attendance(self._coordinator.asked, self._delivered, tuple(self._briefing.bundles))

    def _request(self, site: str) -> bytes:
        listed, arrays = self._coordinator.request(site)
        stage = int(self._coordinator.stage or 0)
        header = {
            **self._briefing.header,
            "stage": stage,
            SECURE: {"terms": self.terms.to_json(), "stage": stage, "sites": list(listed)},
        }
        flat = {f"{SECURE}/{name}": array for name, array in arrays.items()}
        for digest in self._attendance.missing(site):
            flat |= {f"{digest}/{name}": array for name, array in self._briefing.bundles[digest].items()}
        return pack(header, flat)
