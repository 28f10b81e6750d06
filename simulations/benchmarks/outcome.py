"""Outcome over seeds: what a method and its controls do to the gap, on data and base models that are new each time.

    python -m equipoise.simulations.benchmarks.outcome configs/bench-a.yaml --seeds 5

Resumable: a seed whose run is complete is not run again. The figures go to results/<study>.json, which docs/evidence.md
quotes. Intervals are t-intervals over seeds; differences between arms are paired by seed.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from equipoise.common.fairness.t_interval import half_width
from equipoise.common.files import write_whole
from equipoise.common.study_file import load_study
from equipoise.quiet import quiet_flower
from equipoise.simulations.benchmarks.origin import commit, origin

RESULTS = Path(__file__).parent / "results"
BASE = "base"
COMMIT = "commit.txt"  # in a run's folder: what made it


def figures_of(report: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Per model: the declared gap at both operating points, AUC, worst-group AUC and balanced accuracy of one run.

    `local_only` is the mean over its hospitals' models.
    """
    attribute, metric = report["study"]["primary"], report["study"]["evaluation"]["primary"]
    figures: dict[str, dict[str, float | None]] = {}
    for name, model in report["models"].items():
        own = model["attributes"][attribute]
        figures[name] = {
            "gap": own["points"]["rule"]["gaps"][metric]["value"],
            "gap_rate_matched": own["points"]["base_rate"]["gaps"][metric]["value"],
            "auc": model["auc"]["value"],
            "worst_group_auc": own["worst_group_auc"]["value"],
            "balanced_accuracy": model["points"]["rule"]["balanced_accuracy"]["value"],
        }
    alone = [figures.pop(name) for name in list(figures) if name.startswith("local_only/")]
    if alone:
        figures["local_only"] = {key: _mean([row[key] for row in alone]) for key in alone[0]}
    return figures


def summarise(seeds: list[dict[str, dict[str, float | None]]], method: str) -> dict[str, Any]:
    """Mean and 95 % t-interval over seeds of every figure, of its change against the base, and of method - control."""
    table: dict[str, Any] = {}
    for name in seeds[0]:
        row: dict[str, Any] = {}
        for key in seeds[0][name]:
            row[key] = _interval([seed[name][key] for seed in seeds])
            if name != BASE:
                row[f"{key}_change"] = _interval([_minus(seed[name][key], seed[BASE][key]) for seed in seeds])
            if name not in (BASE, method):
                row[f"{key}_method_minus_this"] = _interval(
                    [_minus(seed[method][key], seed[name][key]) for seed in seeds]
                )
        if name != BASE:
            for key in (key for key in ("gap", "gap_rate_matched") if key in seeds[0][name]):
                row[f"{key}_cut"] = _interval([_cut(seed[name][key], seed[BASE][key]) for seed in seeds])
        table[name] = row
    return table


def _interval(values: list[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    mean, n = float(np.mean(known)), len(known)
    half = half_width(known)
    limits = {"low": round(mean - half, 4), "high": round(mean + half, 4)} if n > 1 else {}
    return {"mean": round(mean, 4), **limits, "worst": round(max(known), 4), "least": round(min(known), 4)}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _cut(after: float | None, before: float | None) -> float | None:
    return None if after is None or not before else 1 - after / before


def main(
    study_file: Path,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 to this, each with its own data and base model.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/outcome"),
    sets: Annotated[list[str] | None, typer.Option("--set")] = None,
) -> None:
    """Run a study for several seeds and write its table."""
    quiet_flower()
    from equipoise.simulations.comparison import resplit_of
    from equipoise.simulations.hospitals import build_hospitals
    from equipoise.simulations.runner import simulate

    reports, commits = [], []
    name = ""
    for seed in range(seeds):
        study = load_study(study_file, [*(sets or []), f"seed={seed}"])
        name = study.study
        folder = out / f"{name}-{seed}"
        done = folder / "report.json"
        if not done.exists():
            print(f"{name}: seed {seed}", file=sys.stderr, flush=True)
            simulate(study, folder, resume=(folder / "task.json").exists())
            write_whole(folder / COMMIT, commit().encode())
        reports.append(json.loads(done.read_text()))
        made_by = folder / COMMIT
        commits.append({"commit": made_by.read_text() if made_by.exists() else "unknown"})
    with tempfile.TemporaryDirectory(prefix="outcome-") as place:
        resplit = resplit_of(study, build_hospitals(study, Path(place)))
    method = reports[0]["study"]["method"]["name"]
    per_seed = [figures_of(report) for report in reports]
    value = {
        "study": name,
        "command": shlex.join(
            ["python", "-m", "equipoise.simulations.benchmarks.outcome", str(study_file), "--seeds", str(seeds)]
            + [part for one in sets or [] for part in ("--set", one)]
        ),
        **origin(commits),
        "method": method,
        "metric": reports[0]["study"]["evaluation"]["primary"],
        "resplit": resplit,
        "parameters": reports[0]["study"]["method"]["parameters"],
        "seeds": list(range(seeds)),
        "verdicts": [report["verdict"]["outcome"] for report in reports],
        "headlines": [report["summary"]["headline"] for report in reports],
        "per_seed": per_seed,
        "over_seeds": summarise(per_seed, method),
    }
    write_whole(RESULTS / f"{name}.json", json.dumps(value, indent=1).encode())
    print(RESULTS / f"{name}.json")


if __name__ == "__main__":
    typer.run(main)
