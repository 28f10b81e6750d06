"""What private studies do to the gap, through the program itself: site agents, plans, ledgers, noise on the lattice.

    python -m equipoise.simulations.benchmarks.private_outcome utility --seeds 5 --draws 3

Bench A or C, each seed with data and a base model of its own; every row is one run of the method by the real agents on
the in-process grid, scored exactly on the joint test patients (1,600, no noise), so that the figures speak of training
alone. `once` and `pooled` are a simulation's oracles: all patients at one site, with its noise added once, or without
noise; `alone` is each hospital by itself, the mean over their models. Noise comes from the sites' cryptographic
generators and does not repeat; data, base models and pools do. Resumable: a row that is in the results file is not run
again. What a sweep is made of stands in `private_designs`.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import load_file, save

from equipoise.common.fairness.t_interval import half_width
from equipoise.common.files import write_whole
from equipoise.common.models import resnet_small
from equipoise.common.study import Study, Weights
from equipoise.common.study_file import pin_pool, pin_weights
from equipoise.common.study_privacy import PublicPool
from equipoise.quiet import quiet_flower
from equipoise.server.rundir import Arm, RunFolder, Task
from equipoise.simulations.benchmarks.origin import commit, origin
from equipoise.simulations.benchmarks.planted_base import planted_base
from equipoise.simulations.benchmarks.private_designs import MODES, SWEEPS, Design
from equipoise.simulations.benchmarks.private_rounds import Figures, figures_of, relative
from equipoise.simulations.hospitals import Hospitals, build_hospitals
from equipoise.simulations.pretrain import pretrain
from equipoise.simulations.runner import begin_run, start_run, with_keys
from equipoise.simulations.synthetic import ImageSet, concatenate, hospital_tests, joint_test

RESULTS = Path(__file__).parent / "results"
CACHE = Path(tempfile.gettempdir()) / "private-outcome"
HOSPITALS = 6


def study_of(design: Design, seed: int) -> Study:
    """The study of a design; without an epsilon the whitened rounds run without noise."""
    method = {"name": design.method, **design.parameters}
    if design.method == "swift":
        method.setdefault("step", "whitened")
    privacy: dict[str, Any] = {"mode": "none"}
    if design.epsilon is not None:
        privacy = {"mode": MODES.get(design.mode, design.mode), "epsilon": design.epsilon}
    if design.mode == "distributed":
        privacy["secure_sum"] = True
    return Study.model_validate(
        {
            "study": "private-outcome",
            "seed": seed,
            "model": {"factory": "equipoise.common.models:resnet_small", "head": "head."},
            "inputs": {"kind": "image", "size": 32, "mean": 0.5, "std": 0.25},
            "label": {"column": "malignant", "positive": 1},
            "attributes": [{"name": "tone", "levels": ["light", "dark"], "primary": True}],
            "method": method,
            "privacy": privacy,
            "sites": {"minimum": 3 if design.mode == "distributed" else 1},
            "simulation": {
                "hospitals": {
                    "kind": "synthetic",
                    "bench": design.bench,
                    "count": HOSPITALS,
                    "patients": design.patients,
                    "validation": 0,
                    "test": 4,
                    "pool": design.pool,
                },
                "workers": 1,
            },
        }
    )


@lru_cache(maxsize=4)
def _hospitals(bench: str, patients: int, pool: str, seed: int, cache: Path) -> Hospitals:
    design = Design("", "private_head", "none", bench=bench, patients=patients, pool=pool)  # type: ignore[arg-type]
    return build_hospitals(study_of(design, seed), cache / f"hospitals-{patients}-{seed}")


def prepared(design: Design, seed: int, cache: Path) -> tuple[Study, Hospitals]:
    """The study with its base model and pool, both made once and kept in `cache`."""
    study = study_of(design, seed)
    hospitals = _hospitals(design.bench, design.patients, design.pool, seed, cache)
    made = f"planted-{design.planted}" if design.planted else design.bench
    base, pool = cache / f"base-{made}-{seed}.safetensors", cache / f"pool-{design.pool}-{seed}.safetensors"
    if not base.exists():
        recipe = study.simulation.pretrain if study.simulation else None
        if recipe is None:
            raise ValueError("no recipe")
        if design.planted:
            state = planted_base(study, design.planted, seed)
        else:
            state = pretrain(study.model, study.inputs, hospitals.vendor_split(study), recipe, seed)
        write_whole(base, save(state))
    if not pool.exists():
        if hospitals.pool is None:
            raise ValueError("no pool")
        write_whole(pool, save({"rows": hospitals.pool()}))
    model = study.model.model_copy(update={"weights": Weights(path=str(base))})
    # Without noise the pool is needed all the same: it whitens the directions.
    privacy = study.privacy.model_copy(update={"public_pool": PublicPool(path=str(pool))})
    study = study.model_copy(update={"model": model, "privacy": privacy})
    return pin_pool(pin_weights(study, cache), cache), hospitals


def trained(design: Design, seed: int, cache: Path, folder: Path) -> list[RunFolder]:
    """The design's method run by the sites' agents: once, or in mode `alone` once a hospital."""
    study, hospitals = prepared(design, seed, cache)
    each = {site: [file] for site, file in hospitals.sites.items()}
    if design.mode in ("once", "pooled"):
        return [run_study(study, {"together": list(hospitals.sites.values())}, HOSPITALS * design.patients, folder)]
    if design.mode == "alone":
        return [run_study(study, {site: files}, design.patients, folder / site) for site, files in each.items()]
    return [run_study(study, each, design.patients, folder)]


def run_study(study: Study, files: dict[str, list[Path]], patients: int, folder: Path) -> RunFolder:
    """The study's method at some sites, each of which has its own or several hospitals' patients."""
    declared = dict.fromkeys(files, patients)
    study = study.model_copy(update={"sites": study.sites.model_copy(update={"declared_patients": declared})})
    run = RunFolder(folder)
    study = with_keys(study, files, run)
    task = Task(study, (Arm(study.method.name, study),), tuple(files), (), {})
    begin_run(run, task, files)
    start_run(study, run, task, "in-process")
    return run


@lru_cache(maxsize=4)
def _test(seed: int, unseen: bool) -> ImageSet:
    return concatenate(hospital_tests(seed, HOSPITALS + 2)[HOSPITALS:]) if unseen else joint_test(seed, HOSPITALS)


def score(file: Path, seed: int, unseen: bool = False) -> Figures:
    """Figures of a model on the joint test patients, or on those of two devices that no hospital has."""
    return figures_on(file, _test(seed, unseen))


def figures_on(file: Path, drawn: ImageSet) -> Figures:
    """Figures of a model on some patients."""
    model = resnet_small().eval()
    model.load_state_dict(load_file(file))
    images = torch.from_numpy(np.ascontiguousarray(drawn.images)).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = torch.cat([model((x.float() / 255 - 0.5) / 0.25) for x in torch.split(images, 256)])
    return figures_of(logits.double().numpy(), drawn.label, drawn.group)


def rows(
    designs: Sequence[Design], seeds: Sequence[int], draws: int, cache: Path, known: set[str]
) -> Iterator[dict[str, Any]]:
    """One row for every design, seed and draw that is not known yet."""
    for seed in seeds:
        for design in designs:
            for draw in range(1 if design.epsilon is None else draws):
                key = f"{design.name} | {seed} | {draw}"
                if key not in known:
                    which = {"key": key, "design": design.name, "seed": seed, "draw": draw}
                    yield which | _row(design, seed, cache) | {"commit": commit()}


def _row(design: Design, seed: int, cache: Path) -> dict[str, Any]:
    begun = time.process_time()
    with tempfile.TemporaryDirectory(prefix="private-outcome-") as folder:
        runs = trained(design, seed, cache, Path(folder) / "run")
        base, after = _figures(runs, seed)
        further = {}
        if design.unseen:
            further = dict(zip(("unseen_base", "unseen_after"), _figures(runs, seed, unseen=True), strict=True))
        parts = [part for run in runs for part in _parts(run)]
    return {
        "base": base,
        "after": after,
        **further,
        **relative(base, after),
        "collapsed": any(part["collapsed"] for part in parts),
        "guard_blind": any(part["guard_blind"] for part in parts),
        "cpu_s": round(time.process_time() - begun, 1),
    }


def _figures(runs: Sequence[RunFolder], seed: int, unseen: bool = False) -> tuple[Figures, Figures]:
    """Of the base model, and the mean over the runs' models."""
    base = score(runs[0].path / "base.safetensors", seed, unseen)
    each = [score(run.path / "model.safetensors", seed, unseen) for run in runs]
    return base, {key: float(np.mean([figures[key] for figures in each])) for key in base}


def _parts(run: RunFolder) -> list[Any]:
    """Notes on the training: whitened rounds are one part, averages of DP-SGD have several."""
    notes = json.loads((run.path / "notes.json").read_text())
    return list(notes["dp_sgd"].values()) if "dp_sgd" in notes else [notes["rounds"]]


def summary(found: Sequence[Mapping[str, Any]], designs: Sequence[Design]) -> list[dict[str, Any]]:
    """By design: mean over runs, 95 % t-interval over the seeds' means, and the extreme runs of every figure."""
    table = []
    for design in designs:
        mine = [row for row in found if row["design"] == design.name]
        if not mine:
            continue
        line: dict[str, Any] = {"design": design.name, "runs": len(mine)}
        line["collapsed"] = sum(row["collapsed"] for row in mine)
        for key in (k for k in mine[0] if k.endswith(("_fall", "_change"))):
            line[key] = _over_seeds([(row["seed"], row[key]) for row in mine])
        for key in mine[0]["after"]:
            line[key] = _over_seeds([(row["seed"], row["after"][key]) for row in mine])
        table.append(line)
    return table


def _over_seeds(values: Sequence[tuple[int, float]]) -> dict[str, float]:
    """Draws of one seed share its data, so the interval is over the seeds' means."""
    seeds = sorted({seed for seed, _ in values})
    means = [float(np.mean([v for s, v in values if s == seed])) for seed in seeds]
    every = [v for _, v in values]
    line = {"mean": float(np.mean(every)), "least": min(every), "most": max(every)}
    if len(means) > 2:
        half = half_width(means)
        line |= {"low": float(np.mean(means)) - half, "high": float(np.mean(means)) + half}
    return {key: round(value, 4) for key, value in line.items()}


def main(
    sweep: Annotated[str, typer.Argument(help=", ".join(SWEEPS))],
    seeds: Annotated[int, typer.Option(help="Seeds from `first` on.")] = 5,
    first: Annotated[int, typer.Option(help="First seed; those from 100 on are for choosing settings.")] = 0,
    draws: Annotated[int, typer.Option(help="Noise draws of each seed.")] = 3,
    only: Annotated[str, typer.Option(help="Designs whose name contains this.")] = "",
    cache: Annotated[Path, typer.Option(help="Folder of base models, pools and hospitals.")] = CACHE,
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Run a sweep and write private-outcome-<sweep>.json, row by row."""
    if sweep not in SWEEPS:
        raise typer.BadParameter(f"{sweep}: no such sweep; there are {', '.join(SWEEPS)}")
    quiet_flower()
    torch.set_num_threads(1)
    file = results / f"private-outcome-{sweep}.json"
    found: list[Any] = json.loads(file.read_text())["rows"] if file.exists() else []
    designs = [design for design in SWEEPS[sweep] if only in design.name]
    command = ["python", "-m", "equipoise.simulations.benchmarks.private_outcome", sweep]
    command += ["--seeds", str(seeds), *(["--first", str(first)] if first else []), "--draws", str(draws)]
    command += ["--only", only] if only else []
    for row in rows(designs, range(first, first + seeds), draws, cache, {row["key"] for row in found}):
        found.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        write_whole(file, json.dumps(_document(sweep, found, command), indent=1).encode())
    write_whole(file, json.dumps(_document(sweep, found, command), indent=1).encode())
    print(file)


def _document(sweep: str, found: Sequence[Mapping[str, Any]], command: Sequence[str]) -> dict[str, Any]:
    return {
        "sweep": sweep,
        "command": shlex.join(command),
        **origin(found),
        "delta": 1e-5,
        "designs": [asdict(design) for design in SWEEPS[sweep]],
        "summary": summary(found, SWEEPS[sweep]),
        "rows": list(found),
    }


if __name__ == "__main__":
    typer.run(main)
