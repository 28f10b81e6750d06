"""Attempts at a run: each `submit` and `resume` is a run of its own for Flower, and the same run for the sites."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.common.canonical import canonical_json
from equipoise.common.errors import StorageError, StudyError
from equipoise.common.files import append_line
from equipoise.server.coordinator import CONNECTION, Coordinator
from equipoise.server.deployment import FOLDER, in_progress, read_state
from equipoise.server.rounds import read_rounds
from equipoise.server.rundir import RunFolder

_LOOK_S = 1.0
_LOST_S = 90.0


@dataclass(frozen=True)
class Attempt:
    """An attempt at a run: Flower's number of it, and when it was asked for (epoch seconds)."""

    number: str
    began: float


def attempts(run: RunFolder) -> list[Attempt]:
    """The attempts, oldest first."""
    file = run.path / FOLDER / "flower.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [Attempt(str(row["run_id"]), float(row["time"])) for row in rows]


def start_attempt(coordinator: Coordinator, run: RunFolder, approval_wait_s: float, track: Sequence[str]) -> str:
    """Start one at the SuperLink; Flower's number of it.

    Raises:
        StorageError: a process works on the run already.
        UnreachableError: the SuperLink does not answer.
    """
    if in_progress(run.path):
        raise StorageError(f"{run.path}: the run is in progress; stop it first (equipoise stop {run.name})")
    (run.path / FOLDER).mkdir(exist_ok=True)
    began = time.time()  # before it starts: what it writes of itself is later
    number = coordinator.start(run.path, approval_wait_s, track)
    append_line(run.path / FOLDER / "flower.jsonl", canonical_json({"run_id": number, "time": began}))
    return number


def stop_attempt(coordinator: Coordinator, run: RunFolder) -> None:
    """Stop the last attempt.

    Raises:
        StudyError: there was none.
        UnreachableError: the SuperLink does not answer, or has ended it already.
    """
    made = attempts(run)
    if not made:
        raise StudyError(f"{run.path}: was never started")
    coordinator.flower("stop", made[-1].number, CONNECTION)


def describe_run(run: RunFolder) -> dict[str, Any]:
    """How a run stands, as JSON values."""
    made = attempts(run)
    working = in_progress(run.path)
    state = read_state(run.path)
    working = working or in_progress(run.path)  # it may have begun, or ended, between two looks
    if made and state.get("time", 0.0) < made[-1].began:
        state = {}  # what an earlier attempt said of itself
    shown = state.get("state", "starting")
    if not working and shown not in ("finished", "failed"):
        lost = bool(made) and time.time() - made[-1].began > _LOST_S
        shown = "interrupted" if state or lost else "starting"
    rounds = read_rounds(run.path / "rounds.jsonl")
    report = run.path / "report.html"
    return {
        "run": run.name,
        "study": run.task().study.hash,
        "state": shown,
        "detail": state.get("detail", ""),
        "exit_code": state.get("exit_code", 0),
        "sites": state.get("sites", {}),
        "releases": len(rounds),
        "planned": len(run.plan().entries),
        "last": rounds[-1]["query"] if rounds else "",
        "attempts": len(made),
        "report": str(report) if report.exists() else "",
    }


def status_lines(found: dict[str, Any]) -> Iterator[str]:
    """The lines of `equipoise status`."""
    yield f"run {found['run']}: {found['state']}" + (f": {found['detail']}" if found["detail"] else "")
    yield f"  study hash  {found['study']}"
    yield f"  releases    {found['releases']} of at most {found['planned']}" + (
        f", last {found['last']}" if found["last"] else ""
    )
    for site, decision in sorted(found["sites"].items()):
        yield f"  {site:<20} {decision}"
    if found["report"]:
        yield f"  report      {found['report']}"
    if found["state"] in ("interrupted", "failed"):
        yield f"  go on with `equipoise resume {found['run']}`"


def wait_for_end(coordinator: Coordinator, run: RunFolder, say: Callable[[str], None]) -> int:
    """Wait until the last attempt has ended, telling what changes; its exit code."""
    last = attempts(run)[-1]
    shown = ""
    while True:
        found = describe_run(run)
        line = next(status_lines(found))
        if line != shown:
            say(line)
            shown = line
        if found["state"] == "finished":
            say(f"report: {found['report']}")
            return 0
        if found["state"] == "failed" and not in_progress(run.path):
            return int(found["exit_code"]) or 1
        if found["state"] == "interrupted":
            say(
                f"run {run.name}: attempt {last.number} ended without a word; `equipoise logs {run.name} --flower` has "
                f"Flower's log of it; then `equipoise resume {run.name}`"
            )
            return 1
        time.sleep(_LOOK_S)
