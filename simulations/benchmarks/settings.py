"""Does it hold elsewhere? Bench A with other numbers of hospitals and of patients, with a group missing at some
hospitals or at each, and the other benches.

    python -m equipoise.simulations.benchmarks.settings --seeds 5

SWiFT with the parameters of configs/bench-a.yaml and four of its controls; nothing was chosen anew. The hospitals'
shares of dark-skinned patients, their prevalences and their devices differ among themselves in every setting
(`simulations/synthetic.py`). Each setting is a run of `outcome`, resumable like it; `evidence` makes one table of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from equipoise.simulations.benchmarks import outcome

STUDY = Path("configs/bench-a.yaml")
CONTROLS = "method.controls=[no_mask,plain,balanced,auc_noise]"
HOSPITALS = "simulation.hospitals."
SETTINGS = {
    "bench-a": ("6 hospitals of 300 patients, as above", ()),
    "bench-a-4-hospitals": ("4 hospitals of 300", (f"{HOSPITALS}count=4",)),
    "bench-a-16-hospitals": ("16 hospitals of 300", (f"{HOSPITALS}count=16",)),
    "bench-a-100-patients": ("6 hospitals of 100", (f"{HOSPITALS}patients=100",)),
    "bench-a-1000-patients": ("6 hospitals of 1,000", (f"{HOSPITALS}patients=1000",)),
    "bench-a-3-single-group": ("6 of 300, 3 with one group alone", (f"{HOSPITALS}single_group=3",)),
    "bench-a-6-single-group": ("6 of 300, each with one group alone", (f"{HOSPITALS}single_group=6",)),
    "bench-b": ("bench B: the vendor saw no dark-skinned patient with the disease", (f"{HOSPITALS}bench=B",)),
    "bench-c": ("bench C: between A and B", (f"{HOSPITALS}bench=C",)),
}
COLUMNS = ("base", "swift", "no_mask", "plain", "balanced")


def section(results: Path) -> str:
    """The table of the settings whose results are there; empty where only the first is."""
    found = {name: json.loads(file.read_text()) for name in SETTINGS if (file := results / f"{name}.json").exists()}
    if len(found) < 2:
        return ""
    rows = [_row(SETTINGS[name][0], value) for name, value in found.items()]
    commands = [f"`{value['command']}`, commit {value['commit']}" for value in found.values()]
    missing = [label for name, (label, _) in SETTINGS.items() if name not in found]
    seeds = [value["seeds"] for value in found.values()]
    return "\n".join(
        [
            "## Other hospitals, other patients: SWiFT without privacy",
            "",
            "Bench A and its kin, with the parameters of bench A; nothing was chosen anew. Gaps at the declared",
            "rule, and SWiFT's gap minus that of plain fine-tuning and of balanced cells, paired by seed;",
            "brackets as above, not widened for",
            f"{len(found)} settings. Seeds {'; '.join(sorted({', '.join(map(str, one)) for one in seeds}))}: the rows",
            "share them, and those of bench A with six hospitals the vendor's models and the devices of the test, so",
            "rows are not independent." + (f" Not run yet: {'; '.join(missing)}." if missing else ""),
            "",
            f"| setting | {' | '.join(f'gap, {name}' for name in COLUMNS)} | swift minus plain | swift minus balanced "
            "| worst-group AUC, base | worst-group AUC, swift | verdicts |",
            f"|{'---|' * (len(COLUMNS) + 6)}",
            *rows,
            "",
            *(f"{command}." for command in commands),
            "",
        ]
    )


def _row(label: str, value: dict[str, Any]) -> str:
    table = value["over_seeds"]
    cells = [_text(table[name]["gap"]) for name in COLUMNS]
    cells += [_text(table[name]["gap_method_minus_this"]) for name in ("plain", "balanced")]
    cells += [_text(table[name]["worst_group_auc"]) for name in ("base", "swift")]
    verdicts = [f"{value['verdicts'].count(word)} {word}" for word in sorted(set(value["verdicts"]))]
    return f"| {label} | {' | '.join([*cells, ', '.join(verdicts)])} |"


def _text(figure: dict[str, float] | None) -> str:
    return "-" if figure is None else f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def main(
    seeds: Annotated[int, typer.Option(min=3, help="Seeds 0 to this, of every setting.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/outcome"),
) -> None:
    """Run every setting but the first, which `outcome configs/bench-a.yaml` runs with all controls."""
    for name, (_, sets) in SETTINGS.items():
        if sets:
            outcome.main(STUDY, seeds, out, [CONTROLS, f"study={name}", *sets])


if __name__ == "__main__":
    typer.run(main)
