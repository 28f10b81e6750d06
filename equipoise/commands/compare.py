"""`equipoise compare`: several methods on one study, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from equipoise.commands.results import Format, FormatOption, Sets


def compare(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study, with a simulation part.")],
    methods: Annotated[
        str, typer.Option("--methods", metavar="A,B,...", help="Methods by name; `all` for all that can run.")
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Replicates, from the study's seed on.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder of the comparison; runs/compare-<study> by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on; methods and seeds may be added.")] = False,
    allow_group_thresholds: Annotated[
        bool, typer.Option("--allow-group-thresholds", help="Let group_thresholds decide by group.")
    ] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Let each method take the best of a few settings, on a seed of its own.")
    ] = False,
    sets: Sets = None,
    output: FormatOption = Format.TEXT,
) -> None:
    """Run several methods on the same base model, splits, seeds and privacy, and set them side by side."""
    from equipoise.common.study_file import load_study
    from equipoise.progress import ProgressBars
    from equipoise.quiet import quiet_flower

    quiet_flower()
    from equipoise.simulations.comparison import compare as run
    from equipoise.simulations.contenders import Comparison, methods_for

    study = load_study(study_file, list(sets or []))
    names = [name.strip() for name in methods.split(",") if name.strip()]
    wanted, left_out = methods_for(study, names, allow_group_thresholds)
    for name, reason in left_out.items():
        typer.echo(f"left out: {reason.removeprefix(f'--methods {name}: ')}", err=True)
    folder = out if out is not None else Path("runs") / f"compare-{study.study}"
    replicates = tuple(range(study.seed, study.seed + seeds))
    comparison = Comparison(study, tuple(wanted), replicates, allow_group_thresholds, tune)
    with ProgressBars() as progress:
        page = run(comparison, folder, resume=resume, watchers=[progress], say=progress.say, note=_note)
    value = json.loads(page.with_suffix(".json").read_text())
    if output is Format.JSON:
        typer.echo(json.dumps(value))
    else:
        from equipoise.server.report.side_by_side_page import summary_lines

        for line in summary_lines(value):
            typer.echo(line)
    typer.echo(f"page: {page}", err=output is Format.JSON)


def _note(line: str) -> None:
    typer.echo(line, err=True)
