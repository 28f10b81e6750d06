"""FairTune on four data sets, without privacy and at epsilon 8 and 3, beside plain and balanced fine-tuning and chance.

    python -m equipoise.simulations.benchmarks.fairtune_outcome heart --seeds 3

Every arm is a run of the real agents on the in-process grid; its model is then scored exactly on the test patients of
all hospitals (threshold 0.5), so that the figures speak of training alone. Resumable: a row that is in the results file
is not run again. Under noise the sites' draws do not repeat.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save

from equipoise.client.scores import patient_scores
from equipoise.client.workbench import View
from equipoise.common.config import read_yaml, validate
from equipoise.common.factory import load_factory
from equipoise.common.fairness.t_interval import half_width
from equipoise.common.files import write_whole
from equipoise.common.study import Study, Weights
from equipoise.common.study_file import pin_pool, pin_weights
from equipoise.common.study_plan import arms_of
from equipoise.common.study_privacy import PublicPool
from equipoise.common.study_simulation import Recipe
from equipoise.quiet import quiet_flower
from equipoise.server.rundir import Arm, RunFolder, Task
from equipoise.simulations.benchmarks.origin import commit, origin
from equipoise.simulations.benchmarks.private_rounds import figures_of
from equipoise.simulations.doors import open_hospital
from equipoise.simulations.hospitals import build_hospitals
from equipoise.simulations.pretrain import pretrain
from equipoise.simulations.runner import begin_run, start_run

RESULTS = Path(__file__).parent / "results"
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CACHE = Path(tempfile.gettempdir()) / "fairtune-outcome"
CONTROLS = ["plain", "balanced", "permuted"]
EPSILONS: tuple[float | None, ...] = (None, 8.0, 3.0)
# The same search everywhere: 9 candidates, 2.3 full runs.
SEARCH = {"name": "fairtune", "candidates": 9, "rounds": 9, "controls": CONTROLS}
STEPS: Mapping[str, Mapping[str, Any]] = {
    "synthetic": {"tying": "parts", "lr": {"low": 1e-3, "high": 3e-2, "start": 1e-2}},
    "heart": {"tying": "parts", "batch": 32, "lr": {"low": 3e-3, "high": 1e-1, "start": 3e-2}},
    "adult": {"tying": "parts", "batch": 256, "lr": {"low": 1e-2, "high": 3e-1, "start": 5e-2}},
    "ham10000": {"tying": "parts", "outside": True, "lr": {"low": 5e-4, "high": 2e-2, "start": 3e-3}},
}


def study_of(data: str, seed: int, epsilon: float | None) -> Study:
    """The study of a data set; its learning rates and search are declared above."""
    method = {**SEARCH, **STEPS[data]}
    document = read_yaml(CONFIGS / {"synthetic": "fairtune.yaml"}.get(data, f"{data}.yaml"))
    document["simulation"]["workers"] = 1
    private: dict[str, Any] = {"mode": "none"} if epsilon is None else {"mode": "local", "epsilon": epsilon}
    if epsilon is not None:
        method.pop("lr")  # whitened rounds have rates of their own
    return validate(Study, document | {"seed": seed, "method": method, "privacy": private}, data)


def prepared(data: str, seed: int, epsilon: float | None, cache: Path) -> tuple[Study, dict[str, Path]]:
    """The study with its base model and pool, both made once and kept in `cache`, and the hospitals."""
    study, here = study_of(data, seed, epsilon), cache / f"{data}-{seed}"
    hospitals = build_hospitals(study, here)
    base, pool = here / "base.safetensors", here / "pool.safetensors"
    if not base.exists():
        recipe = study.simulation.pretrain if study.simulation else Recipe()
        state = pretrain(study.model, study.inputs, hospitals.vendor_split(study), recipe, seed)
        write_whole(base, save(state))
    model = study.model.model_copy(update={"weights": Weights(path=str(base))})
    study = study.model_copy(update={"model": model})
    if epsilon is not None:
        if not pool.exists():
            if hospitals.pool is None:
                raise ValueError("no pool")
            write_whole(pool, save({"rows": hospitals.pool().contiguous()}))
        privacy = study.privacy.model_copy(update={"public_pool": PublicPool(path=str(pool))})
        study = pin_pool(study.model_copy(update={"privacy": privacy}), cache)
    declared = {site: open_hospital(study, [file]).split_patients("train") for site, file in hospitals.sites.items()}
    declared_sites = study.sites.model_copy(update={"declared_patients": declared})
    return pin_weights(study.model_copy(update={"sites": declared_sites}), cache), hospitals.sites


def scores_of(study: Study, sites: Mapping[str, Path], file: Path) -> dict[str, float]:
    """Exact figures of a model on all hospitals' test patients whose group is known."""
    network = load_factory(study.model.factory, study.model.arguments).eval()
    network.load_state_dict(load_file(file))
    parts = [open_hospital(study, [one]).split("test") for one in sites.values()]
    logits = np.concatenate([patient_scores(View(study, network, part)) for part in parts])
    label = np.concatenate([part.label.numpy() for part in parts])
    group = np.concatenate([part.groups[study.primary.name].numpy() for part in parts])
    known = group < len(study.primary.groups)
    figures: dict[str, float] = dict(figures_of(logits[known], label[known], group[known]))
    return figures


def rows_of(data: str, seed: int, epsilon: float | None, draw: int, cache: Path) -> list[dict[str, Any]]:
    """One row for every arm, and one for the base model."""
    study, sites = prepared(data, seed, epsilon, cache)
    arms = tuple(Arm(name, variant) for name, variant in arms_of(study).items())
    begun = time.process_time()
    with tempfile.TemporaryDirectory(prefix="fairtune-") as folder:
        run = RunFolder(Path(folder) / "run")
        files = {site: [file] for site, file in sites.items()}
        task = Task(study, arms, tuple(files), (), {})
        begin_run(run, task, files)
        start_run(study, run, task, "in-process")
        key = {"data": data, "seed": seed, "epsilon": epsilon, "draw": draw, "commit": commit()}
        found = [{**key, "arm": "base", **scores_of(study, sites, run.path / "base.safetensors")}]
        for arm in arms:
            place = run.arm_folder(arm.name)
            row = {**key, "arm": arm.name, **scores_of(study, sites, place / "model.safetensors")}
            notes = json.loads((place / "notes.json").read_text())
            if "search" in notes:
                search = notes["search"]
                row["winner"], row["objective"] = search["winner"], search["objective"]
                row["below_floor"] = sum(not c["rungs"][0]["held"] for c in search["candidates"])
            found.append(row)
    found[-1]["cpu_s"] = round(time.process_time() - begun, 1)
    return found


def summary(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By data set, epsilon and arm: means over seeds, and the paired change against the base with a 95 % t-interval."""
    keys = list(dict.fromkeys((row["data"], row["epsilon"], row["arm"]) for row in found))
    table = []
    for data, epsilon, arm in keys:
        mine = [r for r in found if (r["data"], r["epsilon"], r["arm"]) == (data, epsilon, arm)]
        base = {
            (r["seed"], r["draw"]): r for r in found if (r["data"], r["epsilon"], r["arm"]) == (data, epsilon, "base")
        }
        line: dict[str, Any] = {"data": data, "epsilon": epsilon, "arm": arm, "runs": len(mine)}
        for figure in ("equalized_odds_mean", "worst_group_auc", "auc", "balanced_accuracy"):
            line[figure] = round(float(np.mean([row[figure] for row in mine])), 4)
            changes = [row[figure] - base[row["seed"], row["draw"]][figure] for row in mine]
            line[f"{figure}_change"] = _interval(changes)
        table.append(line)
    return table


def _interval(values: Sequence[float]) -> list[float]:
    """Mean, and with three runs or more the ends of its 95 % t-interval."""
    mean = float(np.mean(values))
    if len(values) < 3:
        return [round(mean, 4)]
    half = half_width(values)
    return [round(mean, 4), round(mean - half, 4), round(mean + half, 4)]


def main(
    data: Annotated[str, typer.Argument(help=", ".join(STEPS))],
    seeds: Annotated[int, typer.Option(help="Seeds from `first` on.")] = 3,
    first: Annotated[int, typer.Option(help="First seed; those from 100 on are for choosing settings.")] = 0,
    only: Annotated[str, typer.Option(help="none, 8 or 3; all of them where it is left out.")] = "",
    cache: Annotated[Path, typer.Option(help="Folder of base models, pools and hospitals.")] = CACHE,
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Run a data set and write fairtune-<data>.json, run by run."""
    if data not in STEPS:
        raise typer.BadParameter(f"{data}: no such data set; there are {', '.join(STEPS)}")
    quiet_flower()
    torch.set_num_threads(1)
    file = results / f"fairtune-{data}.json"
    found: list[Any] = json.loads(file.read_text())["rows"] if file.exists() else []
    for seed in range(first, first + seeds):
        for epsilon in EPSILONS:
            text = "none" if epsilon is None else f"{epsilon:g}"
            if (only and only != text) or any((r["seed"], r["epsilon"]) == (seed, epsilon) for r in found):
                continue
            found += rows_of(data, seed, epsilon, 0, cache)
            write_whole(file, json.dumps(_document(data, found), indent=1).encode())
            print(f"{data} seed {seed} epsilon {text}: done", file=sys.stderr, flush=True)
    print(file)


def _document(data: str, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "command": f"python -m equipoise.simulations.benchmarks.fairtune_outcome {data}",
        **origin(found),
        "delta": 1e-5,
        "method": {**SEARCH, **STEPS[data]},
        "summary": summary(found),
        "rows": list(found),
    }


if __name__ == "__main__":
    typer.run(main)
