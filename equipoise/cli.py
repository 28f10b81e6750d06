"""The command line. Data go to stdout, progress and errors to stderr; heavy imports wait until a command needs them."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from typer.core import TyperGroup

from equipoise import __version__
from equipoise.commands import agent, compare, coordinator, evaluate, ledger, runs, site
from equipoise.commands.results import (
    EngineName,
    Format,
    FormatOption,
    OutOption,
    ResumeOption,
    Sets,
    importing,
    print_report,
    run_here,
)
from equipoise.common.errors import EquipoiseError, StorageError

if TYPE_CHECKING:
    from equipoise.common.study import Study


class _Commands(TyperGroup):
    """The commands; Ctrl-C says how to go on, before typer turns it into a silent exit code 130."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            goes_on = ctx.invoked_subcommand in ("simulate", "evaluate", "compare")
            typer.echo("stopped; go on with --resume" if goes_on else "stopped", err=True)
            if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
                # Flower's threads would keep the process until the last deadline; what is written needs no end.
                os._exit(130)
            raise


app = typer.Typer(
    name="equipoise",
    cls=_Commands,
    help="Hospitals measure and reduce the demographic bias of a classifier together, without pooling patient data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 ok, 2 study or option, 3 data, 4 model, 5 refused by a site, 6 too few sites, 7 transcript, "
    "8 storage, 9 not reached, 130 interrupted.",
)


app.add_typer(ledger.app, name="ledger")
app.add_typer(site.app, name="site")
app.add_typer(coordinator.app, name="coordinator")
for command in (
    agent.agent,
    compare.compare,
    evaluate.evaluate,
    runs.submit,
    runs.status,
    runs.logs,
    runs.stop,
    runs.resume,
):
    app.command()(command)


StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study; see configs/ for some that run.")]
MethodOption = Annotated[str | None, typer.Option("--method", help="Another method, with its own defaults.")]
AllowOption = Annotated[
    bool,
    typer.Option(
        "--allow-group-thresholds",
        help="Let group_thresholds decide by group: the attribute is needed at use, and equal scores are not treated "
        "alike.",
    ),
]


@app.command()
def simulate(
    study_file: StudyFile,
    out: OutOption = None,
    resume: ResumeOption = False,
    engine: Annotated[EngineName, typer.Option(help="The in-process grid, or Flower's simulation with Ray.")] = (
        EngineName.IN_PROCESS
    ),
    method: MethodOption = None,
    allow_group_thresholds: AllowOption = False,
    sets: Sets = None,
    output: FormatOption = Format.TEXT,
) -> None:
    """Debias a classifier over simulated hospitals and write the report."""
    run_here(_study(study_file, method, sets, allow_group_thresholds), out, engine, resume, output)


@app.command()
def pretrain(
    study_file: StudyFile,
    out: Annotated[Path, typer.Option(help="The safetensors file to write.")] = Path("vendor.safetensors"),
    sets: Sets = None,
) -> None:
    """Train the vendor's classifier on the vendor's data of a simulated study."""
    from safetensors.torch import save

    from equipoise.common.canonical import sha256
    from equipoise.common.errors import StudyError
    from equipoise.common.files import write_whole
    from equipoise.common.study_file import load_study
    from equipoise.simulations.hospitals import build_hospitals
    from equipoise.simulations.preflight import check_study
    from equipoise.simulations.pretrain import pretrain as train

    study = load_study(study_file, list(sets or []))
    if study.simulation is None:
        raise StudyError(f"{study_file}: `simulation` is missing; it says which vendor's data to train on")
    check_study(study)
    hospitals = build_hospitals(study, out.parent / f"{out.stem}-hospitals")
    split = hospitals.vendor_split(study)
    data = save(train(study.model, study.inputs, split, study.simulation.pretrain, study.seed))
    write_whole(out, data)
    typer.echo(f"{out}: trained on {split.patients} patients; sha256 {sha256(data)}")


@app.command()
def plan(
    study_file: StudyFile,
    method: MethodOption = None,
    allow_group_thresholds: AllowOption = False,
    sets: Sets = None,
    output: FormatOption = Format.TEXT,
) -> None:
    """Show what a study would ask of every site, before anything is read."""
    from equipoise.commands.plan_text import plan_lines
    from equipoise.common.methods import resolve
    from equipoise.server.plan import describe_plan

    study = _study(study_file, method, sets, allow_group_thresholds)
    resolve(study)
    found = describe_plan(study)
    if output is Format.JSON:
        typer.echo(json.dumps(found))
    else:
        for line in plan_lines(found):
            typer.echo(line)
    _say_what_is_not_planned(study)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")], output: FormatOption = Format.TEXT
) -> None:
    """Derive a run's models and report again from its released sums, and find any change."""
    from equipoise.server.rundir import RunFolder
    from equipoise.server.verify import verify as check
    from equipoise.simulations.doors import remembered_heads

    checked = check(RunFolder(folder), remembered_heads)
    if output is Format.JSON:
        typer.echo(json.dumps([row.__dict__ for row in checked]))
        return
    for row in checked:
        typer.echo(f"{row.what}: {row.detail}")
    typer.echo(f"{folder}: all of it follows from its released sums")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")], output: FormatOption = Format.TEXT
) -> None:
    """Write the report of a finished run again, from its stored sums alone."""
    from equipoise.server.report.build import FILES, build_report
    from equipoise.server.rundir import RunFolder
    from equipoise.server.verify import renew_seal

    run = RunFolder(folder)
    path = build_report(run)
    renew_seal(run, FILES)
    print_report(path, output)


@app.command()
def methods(output: FormatOption = Format.TEXT) -> None:
    """List the methods."""
    from equipoise.common.methods import METHODS

    rows = [
        {
            "name": m.name,
            "does": m.title,
            "paper": m.paper,
            "sends": m.travels,
            "costs": m.costs,
            "private form": m.private,
        }
        for m in METHODS.values()
    ]
    if output is Format.JSON:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row.pop('name')}\n  {row.pop('does')}")
        for key, text in row.items():
            typer.echo(f"  {key}: {text}")


@app.command()
def version(output: FormatOption = Format.TEXT) -> None:
    """Print the version."""
    typer.echo(json.dumps({"version": __version__}) if output is Format.JSON else f"equipoise {__version__}")


def _study(study_file: Path, method: str | None, sets: list[str] | None, allow_group_thresholds: bool = False) -> Study:
    """The study with `--method`, then `--set`, applied."""
    with importing():
        from equipoise.common.methods import METHOD_CONTROLS, METHODS
        from equipoise.common.study_file import load_study

    assignments = list(sets or [])
    if method in METHODS:
        # A control that only the study's own method has would be an error that the user did not make.
        known = load_study(study_file).method.controls
        kept = [name for name in known if name not in METHOD_CONTROLS or name in METHODS[method].controls]
        if kept != known:
            left_out = ", ".join(sorted(set(known) - set(kept)))
            typer.echo(f"controls without a meaning for {method} are left out: {left_out}", err=True)
        assignments.insert(0, f"method={json.dumps({'name': method, 'controls': kept})}")
    elif method is not None:
        assignments.insert(0, f"method.name={json.dumps(method)}")
    if allow_group_thresholds:
        assignments.append("method.allow_group_thresholds=true")
    return load_study(study_file, assignments)


def _say_what_is_not_planned(study: Study) -> None:
    """Name the models that only a simulation trains; what measures them at the sites is in the plan."""
    trained = [name for name in ("pooled", "local_only", "server_only") if name in study.method.controls]
    if not trained:
        return
    unknown = "local_only" in trained and not study.sites.declared_patients
    later = "; those of local_only need sites.declared_patients, which a simulation fills in" if unknown else ""
    typer.echo(
        f"not in the plan: the training of {', '.join(trained)}, which the simulation does itself (the queries that "
        f"measure these models are{later})",
        err=True,
    )


def main() -> None:
    """Run the command; an error that has a remedy is one line on stderr and a numbered exit code."""
    try:
        app()
    except EquipoiseError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        reason = error.strerror or type(error).__name__
        advice = "free some space" if error.errno == errno.ENOSPC else "correct the path or its permissions"
        typer.echo(f"error: {error.filename or 'disk'}: {reason}; {advice} and run it again", err=True)
        sys.exit(StorageError.exit_code)
