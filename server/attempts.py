"""Attempts at a run: each `submit` and `resume` is a run of its own for Flower, and the same run for the sites."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from equipoise.common.canonical import canonical_json
from equipoise.common.errors import StorageError, StudyError
from equipoise.common.files import append_line, drop_unfinished_line
from equipoise.server.coordinator import CONNECTION, Coordinator
from equipoise.server.deployment import FOLDER, in_progress, read_state
from equipoise.server.rounds import read_rounds
from equipoise.server.rundir import RunFolder
from equipoise.server.verify import is_sealed

_LOOK_S = 1.0
_LOST_S = 90.0


@dataclass(frozen=True)
class Attempt:
    """An attempt at a run.

    Attributes:
        number: Flower's.
        began: when it was asked for, in seconds of `time.monotonic`, which nobody sets back; it begins anew with the
            machine, and no attempt outlives that.
        stopped: `equipoise stop` ended it.
    """

    number: str
    began: float
    stopped: bool = False


def attempts(run: RunFolder) -> list[Attempt]:
    """The attempts, oldest first; a last line that a crash cut short is left out."""
    file = _file(run)
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    made = [Attempt(**json.loads(line)) for line in lines]
    # The last line of an attempt holds.
    return list({attempt.number: attempt for attempt in made}.values())


def _file(run: RunFolder) -> Path:
    return run.path / FOLDER / "flower.jsonl"


def _note(run: RunFolder, attempt: Attempt) -> None:
    append_line(_file(run), canonical_json(attempt.__dict__))


@contextmanager
def _turn(run: RunFolder) -> Iterator[None]:
    """Commands that start or stop attempts wait for each other: each acts on what the one before it wrote down."""
    (run.path / FOLDER).mkdir(exist_ok=True)
    with (run.path / FOLDER / "turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        drop_unfinished_line(_file(run))
        yield


def start_attempt(coordinator: Coordinator, run: RunFolder, approval_wait_s: float, track: Sequence[str]) -> str:
    """Start one at the SuperLink; Flower's number of it.

    Raises:
        StorageError: a process works on the run already, or is about to.
        UnreachableError: the SuperLink does not answer.
    """
    with _turn(run):
        if in_progress(run.path) or (attempts(run) and _standing(run)[0] == "starting"):
            raise StorageError(f"{run.path}: the run is in progress; stop it first (equipoise stop {run.name})")
        began = time.monotonic()
        number = coordinator.start(run.path, approval_wait_s, track)
        _note(run, Attempt(number, began))
    return number


def stop_attempt(coordinator: Coordinator, run: RunFolder) -> None:
    """Stop the last attempt.

    Raises:
        StudyError: there was none.
        UnreachableError: the SuperLink does not answer, or has ended it already.
    """
    with _turn(run):
        made = attempts(run)
        if not made:
            raise StudyError(f"{run.path}: was never started")
        coordinator.flower("stop", made[-1].number, CONNECTION)
        _note(run, replace(made[-1], stopped=True))


def _standing(run: RunFolder) -> tuple[str, dict[str, Any]]:
    """How a run stands, in a word, and what its last attempt said of itself."""
    if is_sealed(run):
        return "finished", {"sites": read_state(run.path).get("sites", {})}
    made = attempts(run)
    working = in_progress(run.path)
    state = read_state(run.path)
    working = working or in_progress(run.path)  # it may have begun, or ended, between two looks
    if made and state.get("attempt") != made[-1].number:
        state = {}  # what an earlier attempt said of itself
    shown = str(state.get("state", "starting"))
    if not working and shown not in ("finished", "failed"):
        lost = bool(made) and (made[-1].stopped or not 0 <= time.monotonic() - made[-1].began <= _LOST_S)
        shown = "interrupted" if state or lost else "starting"
    return shown, state


def describe_run(run: RunFolder) -> dict[str, Any]:
    """How a run stands, as JSON values."""
    shown, state = _standing(run)
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
        "attempts": len(attempts(run)),
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


def wait_for_end(run: RunFolder, say: Callable[[str], None]) -> int:
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
