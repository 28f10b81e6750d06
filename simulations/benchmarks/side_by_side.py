"""Every method on every benchmark, exact and at epsilon 8, 3 and 1: `equipoise compare`, and docs/comparison.md.

    python -m equipoise.simulations.benchmarks.side_by_side heart heart-epsilon-8 --out runs/side-by-side

Resumable: a run that is there is kept. The figures go to results/compare-<case>.json; without a case only the page is
written again from what lies there.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from equipoise.common.evaluation import BASE
from equipoise.common.files import write_whole
from equipoise.common.study_file import load_study
from equipoise.quiet import quiet_flower
from equipoise.server.report.side_by_side import MATCHED, findings, over_seeds, seeds_text, widening
from equipoise.server.report.side_by_side_page import cell_text, tuned_by
from equipoise.simulations.benchmarks import operating_points
from equipoise.simulations.benchmarks.origin import commit, machine, origin

Json = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
PAGE = "docs/comparison.md"
SEEDS = 5
FEWER = 3  # where a run is long
SWIFT, BALANCED = "swift", "fine_tune"


@dataclass(frozen=True)
class Case:
    """A benchmark.

    Attributes:
        config: name of the study in configs/.
        epsilon: None without privacy.
        seeds: how many.
        left_out: methods that are not run.
        tune: whether every method takes the best of three learning rates.
    """

    config: str
    epsilon: float | None
    seeds: int
    left_out: tuple[str, ...] = ()
    tune: bool = False

    @property
    def assignments(self) -> list[str]:
        """`--set` of the command."""
        private = [] if self.epsilon is None else ["privacy.mode=local", f"privacy.epsilon={self.epsilon:g}"]
        return ["simulation.workers=1", *private]


CASES = {
    name if epsilon is None else f"{name}-epsilon-{epsilon}": Case(name, epsilon, seeds)
    for name, seeds in (("bench-a", SEEDS), ("heart", SEEDS), ("adult", FEWER), ("ham10000", FEWER))
    for epsilon in (None, 8, 3, 1)
} | {"heart-tuned": Case("heart", None, SEEDS, ("fairtune",), tune=True)}  # 27 candidates, three times
TITLES = {
    "bench-a": "Synthetic dermoscopy, bench A",
    "heart": "UCI Heart Disease by sex",
    "adult": "Adult by sex",
    "ham10000": "HAM10000 by age",
}
INTRODUCTION = """# Methods side by side

Written by `python -m equipoise.simulations.benchmarks.side_by_side` from the files `compare-*.json` in
`simulations/benchmarks/results/`, which the same command makes with [equipoise
compare](commands.md#equipoise-compare); a test checks that they agree. Within a seed every method starts from the
same base model and is measured on the same test patients. No method was tuned, but where a heading says so: the
study's own has the parameters of its file in `configs/`, the others their defaults, and the study's learning rate where
it means the same in them. Nor do all train equally long: *rounds* are those of training, of all phases together, and
plain and balanced fine-tuning (`fine_tune`) have those of the study's own method. *MB sent* is what a hospital sends in
the training, means over hospitals and seeds. Brackets hold 95 % t-intervals over
seeds; they are not widened for the number of methods. *Gap minus plain's* is paired by seed, below 0 where the method's
gap is smaller than after plain fine-tuning. Under privacy each method has the whole epsilon to itself, and the figures
are exact ones, which only a simulation can show. No table of a paper is reproduced.

What a number means here: these are small models, few hospitals and, but for bench A, no more patients than the
public data have. An order of methods on one data set is no order on another.
"""
GATE_WORDS = "gates of the runs: pass / fail / undecided"
HEADS = (
    "rounds",
    "MB sent",
    "gap",
    "matched rate",
    "gap minus plain's",
    "worst-group AUC",
    "AUC",
    "balanced accuracy",
    GATE_WORDS,
)


def page() -> str:
    """The whole page, from the results that are there."""
    parts = [INTRODUCTION]
    for name, case in CASES.items():
        file = RESULTS / f"compare-{name}.json"
        if file.exists():
            parts.append(_section(case, json.loads(file.read_text())))
    if operating_points.RESULT.exists():
        parts.append(operating_points.section(json.loads(operating_points.RESULT.read_text())))
    return "\n".join(parts)


def _section(case: Case, value: Json) -> str:
    gap = value["study"]["evaluation"]["primary"]
    how = "without privacy" if case.epsilon is None else f"epsilon {case.epsilon:g}"
    how += ", three settings tried of a method" if case.tune else ""
    rounds = {row["name"]: _rounds(row["parameters"], case.epsilon is not None) for row in value["methods"]}
    sent = {row["name"]: row.get("megabytes_up") for row in value["methods"]}
    rows = [f"| {' | '.join(('model', *HEADS))} |", f"|{'---|' * (len(HEADS) + 1)}"]
    for name, row in value["table"].items():
        figures = row["figures"]
        versus = figures[gap].get("versus_plain")
        cells = [
            rounds[name],
            "-" if sent[name] is None else _megabytes(sent[name]),
            cell_text(figures[gap]["value"]),
            cell_text(figures[gap + MATCHED]["value"]),
            "-" if versus is None else cell_text(versus, change=True),
            *(cell_text(figures[f]["value"]) for f in ("worst_group_auc", "auc", "balanced_accuracy")),
            "-" if name == BASE else _judged(row["gates"]),
        ]
        rows.append(f"| {seeds_text(name, value)} | {' | '.join(cells)} |")
    left_out = [f"{row['name']} (seed {row['seed']}): {row['reason']}" for row in value["skipped"]]
    notes = [
        f"Gap: `{gap}`. Seeds {', '.join(map(str, value['seeds']))}.",
        *findings(value),
        *versus_balanced(value),
        *([tuned_by(value)] if case.tune else []),
        *(["Not run: " + "; ".join(left_out) + "."] if left_out else []),
        *([f"Left out for its length: {', '.join(case.left_out)}."] if case.left_out else []),
        *(["Methods without a private form are refused and not in the table."] if case.epsilon is not None else []),
        *([_took(value)] if "took" in value else []),
        *([f"`{value['command']}`, commit {value['commit']}."] if "commit" in value else []),
    ]
    return "\n".join([f"## {TITLES[case.config]}, {how}", "", *rows, "", *notes, ""])


def _took(value: Json) -> str:
    """Of a case that was run in one go."""
    runs = (len(value["methods"]) - 1) * len(value["seeds"])  # the base model is no run
    took = value["took"]
    where = f"one process, commit {took['commit']}, {took['machine']['cpu']}"
    minutes = round(took["minutes"])
    return f"All {runs} runs in one go took {minutes} minute{'' if minutes == 1 else 's'} ({where})."


def _megabytes(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def versus_balanced(value: Json) -> list[str]:
    """The study's own method beside fine-tuning on balanced cells, the simplest that knows the groups."""
    gap, seeds = value["study"]["evaluation"]["primary"], value["per_seed"].values()
    if any(name not in value["table"] for name in (SWIFT, BALANCED)):
        return []
    pairs = [(seed[SWIFT]["figures"][gap], seed[BALANCED]["figures"][gap]) for seed in seeds]
    apart = over_seeds([None if one is None or two is None else one - two for one, two in pairs])
    factor = widening(value["study"].get("resplit"), len(seeds))
    text = f"{SWIFT}'s {gap} minus that of {BALANCED} (balanced cells): {cell_text(apart, change=True)}"
    if factor > 1 and apart["low"] is not None:
        ends = {end: apart["mean"] + factor * (apart[end] - apart["mean"]) for end in ("low", "high")}
        text += f"; {factor:.1f} times as wide, {cell_text({**apart, **ends}, change=True)}"
    return [text + "."]


def _rounds(parameters: Json, private: bool) -> str:
    """Rounds of training of a method with these parameters; in brackets where a round has several local epochs."""
    whitened = [parameters[key]["rounds"] for key in ("whitened", "whitened_head") if key in parameters]
    rounds = parameters.get("rounds")
    if private and whitened and "candidates" not in parameters:
        return str(sum(whitened))
    if rounds is None:
        return "-"
    epochs = parameters.get("local_epochs", 1)
    total = sum(rounds.values()) if isinstance(rounds, dict) else rounds
    return f"{total}" + (f" (of {epochs} epochs)" if epochs > 1 and not private else "")


def _judged(gates: Json) -> str:
    """Over all gates and seeds."""
    return " / ".join(str(sum(gate[word] for gate in gates.values())) for word in ("pass", "fail", "undecided"))


def run(name: str, folder: Path) -> Path:
    """Run a case, or what is missing of it; the file of its figures."""
    quiet_flower()
    from equipoise.simulations.comparison import compare
    from equipoise.simulations.contenders import Comparison, methods_for

    case = CASES[name]
    study = load_study(Path("configs") / f"{case.config}.yaml", case.assignments)
    methods = [m for m in methods_for(study, ["all"], allow_group_thresholds=True)[0] if m not in case.left_out]
    wanted = Comparison(study, tuple(methods), tuple(range(case.seeds)), allow_group_thresholds=True, tune=case.tune)
    place = folder / name
    resumed, begun = (place / "compared.json").exists(), time.monotonic()
    made: list[str] = []

    def note(line: str) -> None:
        made.append(line)
        print(line, file=sys.stderr, flush=True)

    found = compare(wanted, place, resume=resumed, note=note)
    value = json.loads(found.with_suffix(".json").read_text())
    value |= {"command": f"python -m equipoise.simulations.benchmarks.side_by_side {name}", **origin()}
    file = RESULTS / f"compare-{name}.json"
    if not resumed:
        value["took"] = {"minutes": (time.monotonic() - begun) / 60, "commit": commit(), "machine": machine()}
    elif file.exists():
        before = json.loads(file.read_text())
        if "took" in before:
            value["took"] = before["took"]  # the time of the day on which all of it was run
        value["commit"] = f"{before['commit']}, some runs again at {commit()}" if made else before["commit"]
    write_whole(file, json.dumps(value, indent=1).encode())
    return file


def main(
    cases: Annotated[list[str] | None, typer.Argument(help=f"Of: {', '.join(CASES)}.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/side-by-side"),
) -> None:
    """Run the named cases one after the other, and write docs/comparison.md from all results that are there."""
    for name in cases or []:
        if name not in CASES:
            raise typer.BadParameter(f"no case {name!r}; there are: {', '.join(CASES)}")
    for name in cases or []:
        print(run(name, out))
        write_whole(Path(PAGE), page().encode())
    write_whole(Path(PAGE), page().encode())


if __name__ == "__main__":
    typer.run(main)
