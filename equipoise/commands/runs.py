"""`equipoise submit`, `status`, `logs`, `stop`, `resume`: a study's run at a coordinator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from equipoise.commands.coordinator import HERE, FolderOption

if TYPE_CHECKING:
    from equipoise.server.coordinator import Coordinator
    from equipoise.server.rundir import RunFolder

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, or its folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait until the run has ended; its exit code is this one's.")]
ApprovalOption = Annotated[float, typer.Option(help="Hours to wait for the sites' approvals.")]
TrackOption = Annotated[
    list[str] | None, typer.Option("--track", help="Also write rounds to tensorboard or mlflow. Repeatable.")
]


def submit(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study; no simulation part is used.")],
    folder: FolderOption = HERE,
    name: Annotated[str | None, typer.Option(help="Name of the run; the study's by default.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the study. Repeatable.")
    ] = None,
    approval_hours: ApprovalOption = 168.0,
    track: TrackOption = None,
    wait: WaitOption = False,
) -> None:
    """Propose a study to the enrolled sites, and run it once they have approved it."""
    from equipoise.server.attempts import start_attempt, wait_for_end
    from equipoise.server.coordinator import Coordinator
    from equipoise.server.submission import prepare_run

    coordinator = Coordinator(folder)
    run = prepare_run(coordinator, study, list(sets or []), name)
    start_attempt(coordinator, run, approval_hours * 3600, list(track or []))
    typer.echo(f"run {run.name} is started; study hash {run.task().study.hash}")
    if wait:
        raise typer.Exit(wait_for_end(run, _say))


def status(run: RunArgument, folder: FolderOption = HERE, as_json: JsonOption = False) -> None:
    """Show how a run stands: its state, its releases, what each site decided."""
    from equipoise.server.attempts import describe_run, status_lines
    from equipoise.server.coordinator import Coordinator

    coordinator = Coordinator(folder)
    found = describe_run(_run(coordinator, run))
    if as_json:
        typer.echo(json.dumps(found))
        return
    for line in status_lines(found):
        typer.echo(line)


def logs(
    run: RunArgument,
    folder: FolderOption = HERE,
    flower: Annotated[bool, typer.Option("--flower", help="Also Flower's own log of the last attempt.")] = False,
) -> None:
    """Print the coordinator's audit log of a run, after checking its chain."""
    from equipoise.common.audit import check_rows, read_rows
    from equipoise.server.attempts import attempts
    from equipoise.server.coordinator import Coordinator
    from equipoise.server.deployment import FOLDER

    coordinator = Coordinator(folder)
    found = _run(coordinator, run)
    file = found.path / FOLDER / "audit.jsonl"
    check_rows(file)
    for row in read_rows(file):
        typer.echo(json.dumps({key: value for key, value in row.items() if key not in ("previous", "hash")}))
    made = attempts(found)
    if flower and made:
        typer.echo(coordinator.log(made[-1].number))


def stop(run: RunArgument, folder: FolderOption = HERE) -> None:
    """Stop a run; `resume` goes on where it was."""
    from equipoise.server.attempts import stop_attempt
    from equipoise.server.coordinator import Coordinator

    coordinator = Coordinator(folder)
    stop_attempt(coordinator, _run(coordinator, run))
    typer.echo(f"run {run} is stopped; `equipoise resume {run}` goes on with it")


def resume(
    run: RunArgument,
    folder: FolderOption = HERE,
    approval_hours: ApprovalOption = 168.0,
    track: TrackOption = None,
    wait: WaitOption = False,
) -> None:
    """Go on with a run that failed, was stopped, or whose coordinator crashed; nothing is asked or paid twice."""
    from equipoise.server.attempts import start_attempt, wait_for_end
    from equipoise.server.coordinator import Coordinator
    from equipoise.server.verify import is_sealed

    coordinator = Coordinator(folder)
    found = _run(coordinator, run)
    if is_sealed(found):
        typer.echo(f"run {found.name} has ended; nothing is left to do, and nothing was changed")
        return
    start_attempt(coordinator, found, approval_hours * 3600, list(track or []))
    typer.echo(f"run {found.name} goes on")
    if wait:
        raise typer.Exit(wait_for_end(found, _say))


def _run(coordinator: Coordinator, run: str) -> RunFolder:
    from equipoise.server.rundir import RunFolder

    path = Path(run) if (Path(run) / "task.json").exists() else coordinator.runs / run
    found = RunFolder(path)
    found.task()
    return found


def _say(line: str) -> None:
    typer.echo(line, err=True)
