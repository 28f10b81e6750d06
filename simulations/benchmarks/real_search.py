"""Does any trained method debias real images? The methods on HAM10000 behind a strong vendor's network.

    python -m equipoise.simulations.benchmarks.real_search tune
    python -m equipoise.simulations.benchmarks.real_search report --seeds 10

`tune` runs a grid for each method on seed 100, which is never reported, and keeps for each the setting with the
smallest sum of the gap and the rate-matched gap, on that seed's test patients, among those that lose at most 0.01 of
the worst group's AUC. `report` runs those on seeds 0 and up, whose splits and vendor's networks are their own; the
lesions are the same ones, dealt anew. The rule of a pass was declared before the search: over seeds, the 95 %
t-interval of the gap's change is below 0, the worst group's AUC falls by at most 0.01 on average, and the gap is
smaller than that of plain fine-tuning and of noise at equal AUC, with intervals paired by seed. Resumable; figures go
to results/real-search.json, and `evidence` puts them into docs/evidence.md. EQUIPOISE_DATA names the public data; the
network's weights come with the package that `lite_network` names.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from scipy.stats import t as student

from equipoise.common.files import write_whole
from equipoise.common.methods import METHODS
from equipoise.quiet import quiet_flower
from equipoise.simulations.benchmarks.embeddings import embedded, table_study
from equipoise.simulations.benchmarks.origin import commit, origin
from equipoise.simulations.benchmarks.outcome import figures_of, summarise
from equipoise.simulations.comparison import patients_in
from equipoise.simulations.doors import open_hospital
from equipoise.simulations.hospitals import build_hospitals

Json = dict[str, Any]
FILE = Path(__file__).parent / "results" / "real-search.json"
TUNING_SEED = 100
PRIMARIES = ("age", "sex")
MOST_LOSS = 0.01  # of the worst group's AUC
RATES = (0.003, 0.01, 0.03, 0.1)
CONTROLS = ("plain", "auc_noise")
TUNED, BALANCED = "tuned plain", "balanced"
"""Two more to compare with, of the whole classifier: plain fine-tuning, and that on balanced cells, each at the rate
chosen as the methods' were."""
PLAIN_FAMILY, BALANCED_FAMILY = "fine_tune, plain", "fine_tune on balanced cells"
COMMAND = "python -m equipoise.simulations.benchmarks.real_search"


@dataclass(frozen=True)
class Setting:
    """A method with parameters; `name` tells settings of one method apart."""

    name: str
    method: str
    parameters: Mapping[str, Any]

    @property
    def spec(self) -> Json:
        """The study's `method`, with the controls that this method has."""
        own = [control for control in CONTROLS if control == "auc_noise" or control in METHODS[self.method].controls]
        return {"name": self.method, **self.parameters, "controls": own}


def settings() -> list[Setting]:
    """The whole search: every method that trains, over its rates, and the bias's share where it has one."""
    rounds = {"extractor": 5, "head": 5}
    found = [
        Setting(f"swift, beta {beta:g}, rate {lr:g}", "swift", {"beta": beta, "lr": lr, "rounds": rounds})
        for beta in (0.9, 0.7, 0.5, 0.3)
        for lr in RATES
    ]
    found += [
        Setting(f"private_head, beta {beta:g}, rate {lr:g}", "private_head", {"beta": beta, "lr": lr})
        for beta in (1.0, 0.9, 0.7, 0.5)
        for lr in (0.1, 0.4, 1.5)
    ]
    found += [
        Setting(f"swift in whitened rounds, beta {beta:g}, rate {lr:g}", "swift", whitened(beta, lr))
        for beta in (0.9, 0.7, 0.5)
        for lr in (0.1, 0.4)
    ]
    for method in ("reweighing", "group_dro", "fedfb", "fairfed", "zhang_zhou", "fedprox", "q_ffl", "afl"):
        found += [Setting(f"{method}, rate {lr:g}", method, {"lr": lr}) for lr in RATES]
    found += [Setting(f"bmft, rate {lr:g}", "bmft", {"lr": lr}) for lr in RATES]
    for family, loss in ((BALANCED_FAMILY, "cells"), (PLAIN_FAMILY, "plain")):
        found += [Setting(f"{family}, rate {lr:g}", "fine_tune", {"loss": loss, "lr": lr}) for lr in RATES]
    found += [Setting(name, name, {}) for name in ("dfr", "fairprune", "fairtune")]
    return found


def whitened(beta: float, lr: float) -> Json:
    """SWiFT's parameters in whitened rounds."""
    return {"step": "whitened", "whitened": {"beta": beta, "lr": lr}}


def run(setting: Setting, primary: str, seed: int, out: Path) -> Json:
    """One run: figures of the base model, the method, and its controls."""
    from equipoise.simulations.runner import simulate

    place = embedded(seed, out)
    folder = out / "run"
    shutil.rmtree(folder, ignore_errors=True)
    simulate(table_study(seed, place, primary, setting.spec), folder)
    report = json.loads((folder / "report.json").read_text())
    figures = figures_of(report)
    figures["method"] = figures.pop(setting.method)
    key = {"setting": setting.name, "method": setting.method, "primary": primary, "seed": seed}
    return {**key, "figures": figures, "commit": commit()}


def resplit(place: Path, primary: str) -> Json:
    """Training and test lesions, which every seed deals anew."""
    study = table_study(0, place, primary, {})
    cohorts = [open_hospital(study, [path]) for path in build_hospitals(study, place).sites.values()]
    return patients_in(cohorts)


def best(rows: Sequence[Json], primary: str) -> list[str]:
    """Of each family's settings that with the smallest gaps that keeps the worst group's AUC, or else loses least."""
    families: dict[str, list[Json]] = {}
    for row in rows:
        if row["primary"] == primary and row["seed"] == TUNING_SEED:
            families.setdefault(family_of(row["setting"]), []).append(row)
    return [min(family, key=_rank)["setting"] for family in families.values()]


def family_of(setting: str) -> str:
    """The method, with what makes it one of its own: whitened rounds, plain fine-tuning, balanced cells."""
    return PLAIN_FAMILY if setting.startswith(PLAIN_FAMILY) else setting.partition(",")[0]


def _rank(row: Json) -> tuple[float, float]:
    base, after = row["figures"]["base"], row["figures"].get("method", {})
    needed = [after.get(key) for key in ("worst_group_auc", "gap", "gap_rate_matched")]
    if any(figure is None for figure in needed):
        return inf, inf
    worst, gap, matched = needed
    return max(base["worst_group_auc"] - worst - MOST_LOSS, 0.0), gap + matched


def beside(rows: Sequence[Json], chosen: Sequence[str]) -> list[Json]:
    """The reported rows of one attribute, each with the figures of TUNED and BALANCED of its seed, but itself.

    Both train the whole classifier, at the rate that did best on the tuning seed by the rule of `best`. Plain
    fine-tuning is nobody's method: its own rows are left out.
    """
    references = {
        name: setting
        for name, family in ((TUNED, PLAIN_FAMILY), (BALANCED, BALANCED_FAMILY))
        for setting in chosen
        if family_of(setting) == family
    }
    figures_by_key = {(row["setting"], row["seed"]): row["figures"] for row in rows}
    found = []
    for row in rows:
        if row["seed"] == TUNING_SEED or family_of(row["setting"]) == PLAIN_FAMILY:
            continue
        others = {
            name: figures_by_key[setting, row["seed"]]["method"]
            for name, setting in references.items()
            if setting != row["setting"] and (setting, row["seed"]) in figures_by_key
        }
        found.append(row | {"figures": row["figures"] | others})
    return found


def judged(rows: Sequence[Json], looks: int = 1, factor: float = 1.0) -> Json:
    """Over the seeds of one setting: figures with intervals, and whether the declared rule holds, point by point.

    With `looks`, intervals are widened for so many settings that are looked at (Bonferroni) where they decide, with
    `factor` for what seeds share.
    """
    wider = factor * student.ppf(1 - 0.025 / looks, len(rows) - 1) / student.ppf(0.975, len(rows) - 1)
    over = summarise([row["figures"] for row in rows], "method")
    method = over["method"]
    points = {
        "gap falls": below_zero(method["gap_change"], wider),
        "worst group's AUC is kept": (method["worst_group_auc_change"] or {"mean": -inf})["mean"] >= -MOST_LOSS,
        **{
            f"beats {control}": below_zero(over[control]["gap_method_minus_this"], wider)
            for control in CONTROLS
            if control in over
        },
    }
    return {"over_seeds": over, "points": points, "passes": all(points.values()) and set(CONTROLS) <= set(over)}


def below_zero(figure: Json | None, wider: float) -> bool:
    """Whether an interval, made wider by a factor, lies below 0."""
    if figure is None or "high" not in figure:
        return False
    return float(figure["mean"] + wider * (figure["high"] - figure["mean"])) < 0


def main(
    what: Annotated[Literal["tune", "report"], typer.Argument(help="Choose settings, or run the chosen.")],
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 to this, of `report`.")] = 10,
    primary: Annotated[list[str] | None, typer.Option(help="age, sex; both by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the hospitals and the run at hand.")] = Path("runs/real-search"),
) -> None:
    """Run what is missing and write the figures after every run."""
    quiet_flower()
    value: Json = json.loads(FILE.read_text()) if FILE.exists() else {"rows": []}
    known = {(row["setting"], row["primary"], row["seed"]) for row in value["rows"]}
    everything = {setting.name: setting for setting in settings()}
    for attribute in primary or PRIMARIES:
        chosen = list(everything) if what == "tune" else value["chosen"][attribute]
        value["resplit"] = resplit(embedded(0, out.absolute()), attribute)
        for seed in (TUNING_SEED,) if what == "tune" else range(seeds):
            for name in chosen:
                if (name, attribute, seed) in known:
                    continue
                print(f"{attribute}, seed {seed}: {name}", file=sys.stderr, flush=True)
                value["rows"].append(run(everything[name], attribute, seed, out.absolute()))
                _write(value)
        if what == "tune":
            value["chosen"] = {**value.get("chosen", {}), attribute: best(value["rows"], attribute)}
            _write(value)


def _write(value: Json) -> None:
    reported = {row["seed"] for row in value["rows"]} - {TUNING_SEED}
    command = f"{COMMAND} report --seeds {max(reported, default=0) + 1}"
    write_whole(FILE, json.dumps({**value, "command": command, **origin(value["rows"])}, indent=1).encode())


if __name__ == "__main__":
    typer.run(main)
