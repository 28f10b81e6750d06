"""The ServerApp of a deployment: proposes the study, carries out the run, writes the report.

Beside the run's own files it keeps `deployment/`: `state.json`, which `equipoise status` shows; `audit.jsonl`, who was
asked what and what came; `flower.jsonl`, Flower's number of every attempt; `lock`, held while a process works on it;
`turn`, held by a command that starts or stops an attempt.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from equipoise.common.audit import AuditLog
from equipoise.common.errors import EquipoiseError, StorageError
from equipoise.common.files import write_whole
from equipoise.common.query import Query
from equipoise.server.coordinator import Coordinator
from equipoise.server.engine import Finished, Watcher
from equipoise.server.orphan import end_without_superlink
from equipoise.server.proposal import propose
from equipoise.server.release import quorum
from equipoise.server.report.build import build_report
from equipoise.server.run import run_task
from equipoise.server.rundir import RunFolder
from equipoise.server.transport import Transport
from equipoise.server.verify import is_sealed, write_seal

FOLDER = "deployment"
_PROBE_S = 0.5
_ROOM_BYTES = 4096

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry out the run whose folder the configuration names, over the sites that its coordinator has let in."""
    end_without_superlink()
    config = context.run_config
    trackers = [name for name in str(config.get("track", "")).split(",") if name]
    folder, coordinator = RunFolder(Path(str(config["folder"]))), Coordinator(Path(str(config["coordinator"])))
    wait_s = float(config.get("approval-wait-s", 7 * 86400.0))
    carry_out(grid, folder, coordinator.nodes, wait_s, trackers, str(context.run_id))


def carry_out(
    grid: Grid,
    folder: RunFolder,
    nodes: Mapping[str, int],
    approval_wait_s: float,
    trackers: Sequence[str] = (),
    attempt: str = "",
) -> None:
    """The whole of a deployed run; what is done already is replayed, and a run that has ended stays as it is.

    Args:
        grid: with the nodes of all sites, those of other studies too.
        folder: the run's.
        nodes: node id of each site that was let in.
        approval_wait_s: seconds until a site that has not decided is left out.
        trackers: who else is told of the rounds.
        attempt: Flower's number of it, which `state.json` names.

    Raises:
        EquipoiseError: see `equipoise.common.errors`; its line is in `deployment/state.json` too.
        StorageError: another process works on the run.
    """
    with _locked(folder):
        if is_sealed(folder):
            return
        audit = AuditLog(folder.path / FOLDER / "audit.jsonl")
        note = _Notes(folder, audit, attempt)
        try:
            note.state("connecting")
            _carry_out(grid, folder, nodes, approval_wait_s, note, trackers)
            note.state("finished")
        except EquipoiseError as error:
            note.failed(str(error), type(error).exit_code)
            raise
        except Exception as error:
            note.failed(f"{type(error).__name__}; `equipoise logs --flower` has Flower's log of it", 1)
            raise


def _carry_out(
    grid: Grid,
    folder: RunFolder,
    nodes: Mapping[str, int],
    approval_wait_s: float,
    note: _Notes,
    trackers: Sequence[str],
) -> None:
    task = folder.task()
    folder.mend()
    study = task.study
    transport = Transport(grid)
    transport.connect(task.sites, study.sites.deadline_s, quorum(study, len(task.sites)), nodes)
    note.state("waiting for approval")
    propose(transport, study, folder.name, len(task.sites), approval_wait_s, note.decisions)
    note.state("running")
    watchers: list[Watcher] = [note]
    if trackers:
        from equipoise.server.trackers import open_trackers

        watchers += open_trackers(trackers, folder)
    run_task(folder, transport, watchers)
    build_report(folder)
    write_seal(folder)


class _Notes:
    """Writes down how the run stands; a watcher of its releases."""

    def __init__(self, folder: RunFolder, audit: AuditLog, attempt: str) -> None:
        self._file = folder.path / FOLDER / "state.json"
        self._audit = audit
        self._attempt = attempt
        self._sites: dict[str, str] = {}

    def state(self, state: str, detail: str = "", code: int = 0) -> None:
        self._audit.append("state", state=state, detail=detail)
        # Padded to the size of a block, which `failed` can write again on a disk that is full.
        write_whole(self._file, self._value(state, detail, code).ljust(_ROOM_BYTES))

    def failed(self, detail: str, code: int) -> None:
        """The last word of an attempt; on a full disk it takes the place of the word before."""
        try:
            self.state("failed", detail, code)
        except StorageError:
            with self._file.open("r+b") as file:
                file.write(self._value("failed", detail, code).ljust(_ROOM_BYTES))

    def _value(self, state: str, detail: str, code: int) -> bytes:
        value = {"attempt": self._attempt, "state": state, "detail": detail, "exit_code": code, "sites": self._sites}
        return json.dumps({**value, "time": time.time()}, indent=1).encode()

    def decisions(self, states: Mapping[str, str]) -> None:
        self._sites = dict(states)
        self._audit.append("decisions", sites=self._sites)
        self.state("waiting for approval")

    def began(self, run: str, query: Query, number: int, planned: int, sites: Sequence[str]) -> None:
        self._audit.append("asked", run=run, release=number, query=query.name, phase=query.phase, sites=list(sites))

    def answered(self, site: str) -> None:
        """The line of the release names who answered."""

    def finished(self, run: str, release: Finished) -> None:
        if not release.replayed:
            self._audit.append(
                "released",
                run=run,
                release=release.number,
                query=release.query.name,
                digest=release.query.digest,
                sites=list(release.cohort),
                bytes_up=dict(release.bytes_up),
            )


def read_state(folder: Path) -> dict[str, Any]:
    """What `state.json` says; empty where no attempt has begun."""
    try:
        value = json.loads((folder / FOLDER / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def in_progress(folder: Path) -> bool:
    """Whether a process works on the run now."""
    try:
        with (folder / FOLDER / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextmanager
def _locked(folder: RunFolder) -> Iterator[None]:
    place = folder.path / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        end = time.monotonic() + _PROBE_S
        while True:
            try:
                # The system lets go of it when the process ends, however it ends.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                # `in_progress` holds it for a moment in every `equipoise status`.
                if time.monotonic() > end:
                    raise StorageError(
                        f"{folder.path}: another process works on this run; stop it first (equipoise stop)"
                    ) from None
                time.sleep(_PROBE_S / 10)
        yield
