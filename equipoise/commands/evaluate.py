"""`equipoise evaluate`: measure a classifier, or two, and train nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from equipoise.commands.results import EngineName, Format, FormatOption, OutOption, ResumeOption, Sets, run_here

NameOption = Annotated[str | None, typer.Option(help="With --coordinator: name of the run; the study's by default.")]


def evaluate(
    study_file: Annotated[Path, typer.Argument(metavar="EVAL.yaml", help="A study without `method`.")],
    out: OutOption = None,
    resume: ResumeOption = False,
    coordinator: Annotated[
        Path | None, typer.Option(help="The coordinator's folder: propose it to the enrolled sites instead.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="With --coordinator: name of the run; the study's by default.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="With --coordinator: wait until the run has ended.")] = False,
    sets: Sets = None,
    output: FormatOption = Format.TEXT,
) -> None:
    """Measure a classifier, or two, by group and hospital: from weights, or from scores that a table has."""
    from equipoise.commands.runs import submit
    from equipoise.common.errors import StudyError
    from equipoise.common.study_file import load_study

    changes = list(sets or [])
    study = load_study(study_file, changes)
    if study.method.name != "audit":
        raise StudyError(
            f"{study_file}: method.name={study.method.name}: evaluate trains nothing; leave `method` out, or simulate"
        )
    here = {"--out": out is not None, "--resume": resume, "--format": output is not Format.TEXT}
    elsewhere = {"--name": name is not None, "--wait": wait}
    without_effect = [option for option, given in (elsewhere if coordinator is None else here).items() if given]
    if without_effect:
        remedy = "give --coordinator" if coordinator is None else "leave --coordinator out"
        raise StudyError(f"{', '.join(without_effect)}: no effect here; leave it out, or {remedy}")
    if coordinator is not None:
        submit(study_file, coordinator, name, changes, wait=wait)
        return
    run_here(study, out, EngineName.IN_PROCESS, resume, output)
