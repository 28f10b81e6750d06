"""Does it carry over? A hospital and its device, left out of the training, as the test.

    python -m equipoise.simulations.benchmarks.left_out --seeds 12

Bench A without noise: six hospitals of 300 patients, each with a device of its own. Seed s leaves hospital s mod 6 out.
Each method is trained without it and, beside that, with it, and both models are scored on 1,600 new patients of that
hospital, a quarter in each cell. So the first says what a hospital gets from a model that others have repaired, and the
difference what its own part in the training is worth to it. Parameters are those of configs/bench-a.yaml, for
private_head its defaults; nothing was chosen here. Resumable: a row that is in results/left-out.json is not run again.
`evidence` puts it into docs/evidence.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from equipoise.common.fairness.t_interval import half_width
from equipoise.common.files import write_whole
from equipoise.quiet import quiet_flower
from equipoise.simulations.benchmarks.origin import commit, origin
from equipoise.simulations.benchmarks.private_designs import Design
from equipoise.simulations.benchmarks.private_outcome import CACHE, HOSPITALS, figures_on, prepared, run_study
from equipoise.simulations.synthetic import ImageSet, draw_set, hospitals_of, stream

Json = dict[str, Any]
FILE = Path(__file__).parent / "results" / "left-out.json"
TEST = 1600
FIRST_SEEDS = range(6)  # those that were run and looked at first
GAP, WORST, AUC = "equalized_odds_mean", "worst_group_auc", "auc"
AVERAGES: Json = {"step": "fedavg", "lr": 0.003}
PLAIN = Design("plain fine-tuning", "fine_tune", "none", parameters={**AVERAGES, "rounds": 10, "loss": "plain"})
DESIGNS = (
    PLAIN,
    Design("balanced cells", "fine_tune", "none", parameters={**AVERAGES, "rounds": 10, "loss": "cells"}),
    Design("swift", "swift", "none", parameters={**AVERAGES, "rounds": {"extractor": 5, "head": 5}, "beta": 0.5}),
    Design("group_dro", "group_dro", "none", parameters={"lr": 0.003, "rounds": 10}),
    Design("private_head", "private_head", "none"),
)
HEADS = (
    "method",
    "gap, trained without the hospital",
    "with it",
    "without minus with",
    "fall of the gap, without",
    "minus plain's, without",
    "worst-group AUC without, change",
    "AUC without, change",
)


def left_out_test(seed: int, index: int) -> ImageSet:
    """New patients of one hospital, a quarter of each label and group, from its own device."""
    rng = stream(seed, "left out", index)
    cells = rng.permutation(np.arange(TEST) % 4)
    return draw_set(cells // 2, cells % 2, np.full(TEST, hospitals_of(HOSPITALS)[index].device), rng)


def row_of(design: Design, seed: int, cache: Path) -> Json:
    """One method, trained without the seed's hospital and with it."""
    index = seed % HOSPITALS
    study, hospitals = prepared(design, seed, cache)
    test, out = left_out_test(seed, index), list(hospitals.sites)[index]
    found: Json = {}
    for name in ("without", "with"):
        files = {site: [file] for site, file in hospitals.sites.items() if name == "with" or site != out}
        with tempfile.TemporaryDirectory(prefix="left-out-") as folder:
            run = run_study(study, files, design.patients, Path(folder) / "run")
            found["base"] = figures_on(run.path / "base.safetensors", test)
            found[name] = figures_on(run.path / "model.safetensors", test)
    return {"design": design.name, "seed": seed, "left_out": out, **found, "commit": commit()}


def rows(seeds: Sequence[int], cache: Path, known: set[tuple[str, int]]) -> Iterator[Json]:
    """Every row that is not known yet."""
    for seed in seeds:
        for design in DESIGNS:
            if (design.name, seed) not in known:
                yield row_of(design, seed, cache)


def summary(found: Sequence[Json]) -> list[Json]:
    """By method: means and 95 % t-intervals over the seeds that every method has, differences paired by seed."""
    by_key = {(row["design"], row["seed"]): row for row in found}
    names = [design.name for design in DESIGNS]
    seeds = sorted({row["seed"] for row in found if all((name, row["seed"]) in by_key for name in names)})
    table = []
    for name in names:
        mine = [by_key[name, seed] for seed in seeds]
        plain = [by_key[PLAIN.name, seed] for seed in seeds]
        figures = {
            "base": [row["base"][GAP] for row in mine],
            "without": [row["without"][GAP] for row in mine],
            "with": [row["with"][GAP] for row in mine],
            "without_less_with": [row["without"][GAP] - row["with"][GAP] for row in mine],
            "fall": [1 - row["without"][GAP] / row["base"][GAP] for row in mine],
            "less_plain": [one["without"][GAP] - two["without"][GAP] for one, two in zip(mine, plain, strict=True)],
            "worst_change": [row["without"][WORST] - row["base"][WORST] for row in mine],
            "auc_change": [row["without"][AUC] - row["base"][AUC] for row in mine],
        }
        table.append({"design": name, "seeds": seeds, **{key: _interval(values) for key, values in figures.items()}})
    return table


def _interval(values: Sequence[float]) -> Json:
    mean, n = float(np.mean(values)), len(values)
    if n < 3:
        return {"mean": mean}
    half = half_width(values)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def section(value: Json) -> str:
    """The section of docs/evidence.md."""
    table = value["summary"]
    base = table[0]["base"]
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|", f"| base | {_text(base)} |{' - |' * 6}"]
    for line in table:
        own = line["design"] == PLAIN.name
        cells = [
            _text(line["without"]),
            _text(line["with"]),
            _text(line["without_less_with"], change=True),
            _text(line["fall"], percent=True),
            "-" if own else _text(line["less_plain"], change=True),
            _text(line["worst_change"], change=True),
            _text(line["auc_change"], change=True),
        ]
        lines.append(f"| {line['design']} | {' | '.join(cells)} |")
    carried = [line["design"] for line in table if line["less_plain"].get("high", 0) < 0]
    worth = [line["design"] for line in table if line["without_less_with"].get("low", 0) > 0]
    late = sorted({row["seed"] for row in value["rows"]} - set(FIRST_SEEDS))
    fresh = {line["design"]: line for line in summary([row for row in value["rows"] if row["seed"] in late])}
    again = [name for name in carried if fresh[name]["less_plain"].get("high", 0) < 0]
    rows_text, seeds = "\n".join(lines), table[0]["seeds"]
    return f"""## A hospital that took no part

Bench A without noise. In each seed one of the six hospitals, whose device no other has, is left out, and the models are
scored on 1,600 new patients of it; beside that, the same with it in the training. Means over {len(seeds)} seeds,
which leave out each hospital as often, and 95 % t-intervals, not widened for {len(table)} methods. They speak of new
patients and trainings, not of other hospitals: there are six. Seeds 6 to 11 were run after seeds 0 to 5 had been looked
at, which alone showed no method clearly better than plain fine-tuning.

{rows_text}

At a hospital that took no part the gap is smaller than under plain fine-tuning for: {", ".join(carried) or "none"};
of these on seeds 6 to 11 alone for: {", ".join(again) or "none"}. With its own part in the training its gap is smaller,
the interval above 0, for: {", ".join(worth) or "none"}; of {len(table)} methods looked at one in twenty would be by
chance.
`{value["command"]}`, commit {value["commit"]}, {value["machine"]}, seeds {seeds}.
"""


def _text(figure: Json, change: bool = False, percent: bool = False) -> str:
    def one(value: float) -> str:
        return f"{100 * value:.0f}" if percent else f"{value:+.3f}" if change else f"{value:.3f}"

    unit = " %" if percent else ""
    if "low" not in figure:
        return one(figure["mean"]) + unit
    return f"{one(figure['mean'])}{unit} [{one(figure['low'])}, {one(figure['high'])}]"


def main(
    seeds: Annotated[
        int, typer.Option(min=1, help="Seeds from 0 on; a multiple of six leaves each out as often.")
    ] = 12,
    cache: Annotated[Path, typer.Option(help="Folder of base models, pools and hospitals.")] = CACHE,
) -> None:
    """Run what is missing and write results/left-out.json, row by row."""
    quiet_flower()
    torch.set_num_threads(1)
    found: list[Json] = json.loads(FILE.read_text())["rows"] if FILE.exists() else []
    for row in rows(range(seeds), cache, {(row["design"], row["seed"]) for row in found}):
        found.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        write_whole(FILE, json.dumps(document(found, seeds), indent=1).encode())
    write_whole(FILE, json.dumps(document(found, seeds), indent=1).encode())
    print(FILE)


def document(found: Sequence[Json], seeds: int) -> Json:
    """The results file."""
    command = f"python -m equipoise.simulations.benchmarks.left_out --seeds {seeds}"
    return {"command": command, **origin(found), "rows": list(found), "summary": summary(found)}


if __name__ == "__main__":
    typer.run(main)
