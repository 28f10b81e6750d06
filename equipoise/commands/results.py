"""What commands that run or show a study have in common: where the run is, and how its result is printed."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from equipoise.common.study import Study


class Format(StrEnum):
    """How a result is printed."""

    TEXT = "text"
    JSON = "json"


class EngineName(StrEnum):
    """How a simulation runs its sites."""

    IN_PROCESS = "in-process"
    FLOWER = "flower"


FormatOption = Annotated[Format, typer.Option("--format", help="Print text, or JSON on stdout.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder of the run; runs/<study> by default.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the study, as in method.beta=0.7. Repeatable."),
]


def run_here(study: Study, out: Path | None, engine: EngineName, resume: bool, output: Format) -> None:
    """Run a study over hospitals on this machine, and print what came out."""
    from equipoise.quiet import quiet_flower

    quiet_flower()
    with importing():
        from equipoise.progress import ProgressBars
        from equipoise.server.rundir import RunFolder
        from equipoise.server.verify import write_seal
        from equipoise.simulations.heap import keep_freed_memory
        from equipoise.simulations.runner import simulate as run_study

    keep_freed_memory()
    folder = out if out is not None else Path("runs") / study.study
    with ProgressBars() as progress:
        report = run_study(study, folder, engine=engine.value, resume=resume, watchers=[progress], say=progress.say)
    write_seal(RunFolder(folder))
    print_report(report, output)


def print_report(report: Path, output: Format) -> None:
    """The result that lies beside `report`, and where the report is."""
    from equipoise.server.report.summary import summary_lines

    value: dict[str, Any] = json.loads(report.with_suffix(".json").read_text())
    if output is Format.JSON:
        typer.echo(json.dumps(value))
    else:
        for line in summary_lines(value):
            typer.echo(line)
    typer.echo(f"report: {report}", err=output is Format.JSON)


@contextmanager
def importing() -> Iterator[None]:
    """Heavy imports without the garbage collector, which would look again and again through what stays anyway."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
