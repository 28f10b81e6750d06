"""The doors of simulated hospitals: the real site agent, opened from the files that the simulation wrote.

The same function opens a door in this process and in a Ray actor, which shares nothing with it but files.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections import OrderedDict
from functools import cache
from pathlib import Path

import torch

from equipoise.client.agent import SiteAgent
from equipoise.client.bundles import BundleStore
from equipoise.client.cohort import Cohort, Split
from equipoise.client.cohort_store import CohortStore, Patients
from equipoise.client.ledger import Ledger
from equipoise.client.secure_session import Peers, SecureSessions
from equipoise.client.secure_store import FolderStore
from equipoise.common.canonical import digest_json
from equipoise.common.errors import TranscriptError
from equipoise.common.files import write_whole
from equipoise.common.query import SplitName
from equipoise.common.secure_sum.keys import Identity, parse_key
from equipoise.common.sitefile import load_site
from equipoise.common.study import Study
from equipoise.server.rundir import RunFolder

MOST_OPEN = 64  # ledgers of one process


class PooledCohort:
    """Several hospitals' patients as if they were one's (control `pooled`)."""

    def __init__(self, cohorts: list[Patients]) -> None:
        self._cohorts = cohorts

    @property
    def patients(self) -> int:
        """Number of patients, all splits together."""
        return sum(cohort.patients for cohort in self._cohorts)

    @property
    def bytes_held(self) -> int:
        """Size of the rows that are decoded so far."""
        return sum(cohort.bytes_held for cohort in self._cohorts)

    def split_patients(self, name: SplitName) -> int:
        """Number of patients in a split."""
        return sum(cohort.split_patients(name) for cohort in self._cohorts)

    @property
    def fingerprint(self) -> str:
        """Digest of all hospitals' data."""
        return digest_json([cohort.fingerprint for cohort in self._cohorts])

    def members(self) -> list[tuple[str, str]]:
        """(identifier, split) of every patient, hospital after hospital."""
        return [
            (f"{index}/{patient}", split)
            for index, cohort in enumerate(self._cohorts)
            for patient, split in cohort.members()
        ]

    def split(self, name: SplitName) -> Split:
        """The patients of all hospitals in a split, hospital after hospital."""
        parts = [cohort.split(name) for cohort in self._cohorts]
        starts = [sum(part.patients for part in parts[:index]) for index in range(len(parts))]
        return Split(
            inputs=torch.cat([part.inputs for part in parts]),
            patient=torch.cat([part.patient + start for part, start in zip(parts, starts, strict=True)]),
            label=torch.cat([part.label for part in parts]),
            groups={name: torch.cat([part.groups[name] for part in parts]) for name in parts[0].groups},
        )


@cache
def cohorts() -> CohortStore:
    """This process's opened cohorts."""
    return CohortStore(Cohort)


@cache
def bundles() -> BundleStore:
    """This process's received inputs, shared by its simulated sites."""
    return BundleStore()


class Awake:
    """Keeps the ledgers of the sites that were asked last open, and lets the others rest.

    An open ledger is two files and 0.2 MiB; a simulation may have a thousand sites, and a process 1,024 files.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._sites: OrderedDict[int, weakref.ref[SiteAgent]] = OrderedDict()
        self._lock = threading.Lock()

    def asked(self, site: SiteAgent) -> None:
        """`site` has answered."""
        resting = []
        with self._lock:
            self._sites[id(site)] = weakref.ref(site)
            self._sites.move_to_end(id(site))
            while len(self._sites) > self._most:
                resting.append(self._sites.popitem(last=False)[1]())
        for one in resting:
            if one is not None:
                one.ledger.rest()


class SimulatedSite(SiteAgent):
    """The real agent, one of many in a process."""

    def answer(self, request: bytes) -> bytes:
        """See `SiteAgent.answer`."""
        try:
            return super().answer(request)
        finally:
            awake().asked(self)


@cache
def awake() -> Awake:
    """This process's open ledgers."""
    return Awake(MOST_OPEN)


def write_hospitals_file(folder: Path, hospitals: dict[str, list[Path]]) -> None:
    """Note which site files each simulated site of a run stands for (several for `pooled`)."""
    value = {site: [str(file) for file in files] for site, files in hospitals.items()}
    write_whole(folder / "hospitals.json", json.dumps(value, indent=1).encode())


def remembered_heads(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """What the simulated sites of the run in `folder` remember: site -> (run, transcript head) of every request.

    Raises:
        TranscriptError: a row of a ledger was changed.
    """
    remembered = {}
    for file in sorted((folder / "sites").glob("*/ledger.sqlite")):
        ledger = Ledger(file, durable=False)
        try:
            broken, entries = ledger.broken_entry(), ledger.entries()
        finally:
            ledger.close()
        if broken is not None:
            raise TranscriptError(f"{file}: entry {broken.seq} ({broken.kind}) was changed in the ledger")
        remembered[file.parent.name] = [
            (entry.body["run"], entry.body["head"]) for entry in entries if entry.kind in ("release", "close")
        ]
    return remembered


def open_hospital(study: Study, files: list[Path]) -> Patients:
    """The patients behind one simulated site."""
    opened = [cohorts()(study, load_site(file)) for file in files]
    return opened[0] if len(opened) == 1 else PooledCohort(opened)


def site_identity(folder: Path, site: str) -> Identity:
    """The identity key of one simulated site of the run in `folder`; made at the first call."""
    file = folder / "sites" / site / "identity.key"
    if not file.exists():
        write_whole(file, Identity.generate().private)
    return Identity(file.read_bytes())


def _sessions(study: Study, site: str, folder: Path) -> SecureSessions | None:
    if not study.privacy.secure_sum:
        return None
    keys = {name: parse_key(text) for name, text in study.sites.keys.items()}
    peers = Peers(keys, study.sites.minimum, study.sites.colluding)
    return SecureSessions(site, site_identity(folder, site), peers, FolderStore(folder / "sites" / site / "secure"))


def open_site(site: str, folder: str) -> SiteAgent:
    """The agent of one simulated site of the run in `folder`."""
    run = RunFolder(Path(folder))
    study = run.task().study
    files = [Path(file) for file in json.loads((run.path / "hospitals.json").read_text())[site]]
    pooled = CohortStore(lambda study, _: open_hospital(study, files))
    return SimulatedSite(
        load_site(files[0]).model_copy(update={"site": site}),
        run.path / "sites" / site,
        approved=frozenset([study.hash]),
        bundles=bundles(),
        open_cohort=pooled if len(files) > 1 else cohorts(),
        scratch=True,
        sessions=_sessions(study, site, run.path),
    )
