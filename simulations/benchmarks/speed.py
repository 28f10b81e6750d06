"""How fast and how large equipoise is, against a plain PyTorch script that ends with the same weights.

    python -m equipoise.simulations.benchmarks.speed --date 2026-01-31

Everything is measured from outside, on whole processes that run one after the other: CPU seconds and peak memory as the
operating system counts them for the process and its children. The study and the script alternate, since on a shared
machine a ratio of neighbours means more than seconds do. Figures go to results/speed.json and docs/benchmarks.md.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from safetensors.numpy import load_file
from safetensors.torch import save_file

from equipoise.common.files import write_whole
from equipoise.common.study_file import load_study
from equipoise.simulations.benchmarks.origin import commit, machine
from equipoise.simulations.hospitals import build_hospitals
from equipoise.simulations.pretrain import pretrain

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEMO = ROOT / "configs" / "demo.yaml"
SEED = 1
EQUIPOISE = (sys.executable, "-c", "from equipoise.cli import main; main()")
BOUNDS = {"ratio": 1.05, "difference": 1e-4, "first_s": 3.0, "help_s": 0.7, "demo_s": 150.0, "demo_mib": 2048.0}
FEW, MANY = 20, 200
SMALL = {"patients": 12, "validation": 4, "test_each": 8}
# Measures a command from a small process of its own: a child's peak memory counts from what its parent held.
LAUNCHER = """
import json, resource, subprocess, sys, time
started = time.monotonic()
code = subprocess.call(sys.argv[2:])
wall, used = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as note:
    json.dump([used.ru_utime + used.ru_stime, wall, used.ru_maxrss], note)
sys.exit(code)
"""


@dataclass(frozen=True)
class Spent:
    """What a process and its children took: CPU and wall seconds, peak resident MiB, and when it started (epoch)."""

    cpu_s: float
    wall_s: float
    peak_mib: float
    started: float


def spend(command: Sequence[str | Path]) -> Spent:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryFile() as log, tempfile.NamedTemporaryFile() as note:
        launch = [sys.executable, "-S", "-c", LAUNCHER, note.name, *map(str, command)]
        started = time.time()
        code = subprocess.call(launch, stdout=log, stderr=log, cwd=ROOT)
        if code:
            log.seek(0)
            raise RuntimeError(f"{' '.join(map(str, command))} failed: {log.read().decode()[-2000:]}")
        cpu, wall, peak = json.load(note)
    # Linux counts resident memory in KiB, macOS in bytes.
    return Spent(cpu, wall, peak / (2**20 if sys.platform == "darwin" else 2**10), started)


def prepare(folder: Path, *sets: str) -> Path:
    """Write the demo's hospitals (changed by `sets`) below `folder`, without the vendor's own; gives their folder."""
    build_hospitals(load_study(DEMO, [f"seed={SEED}", *sets]), folder)
    return folder


def train_vendor(folder: Path) -> Path:
    """A vendor's weights, trained for two epochs; what they are worth does not matter here."""
    study = load_study(DEMO, [f"seed={SEED}", "simulation.pretrain.epochs=2"])
    if study.simulation is None:
        raise RuntimeError(f"{DEMO}: has no simulation")
    hospitals = build_hospitals(study, folder / "scratch")
    weights = folder / "vendor.safetensors"
    split = hospitals.vendor_split(study)
    save_file(pretrain(study.model, study.inputs, split, study.simulation.pretrain, SEED), weights)
    shutil.rmtree(folder / "scratch")
    return weights


def simulate(run: Path, hospitals: Path, weights: Path, *sets: str) -> Spent:
    """`equipoise simulate` of the demo with SWiFT alone, on hospitals that are there already."""
    shutil.rmtree(run, ignore_errors=True)
    given = [
        f"seed={SEED}",
        "method.controls=[]",
        f"model.weights={{path: {weights}}}",
        f"simulation.hospitals={{kind: folders, path: {hospitals}}}",
        *sets,
    ]
    sets_given = [part for one in given for part in ("--set", one)]
    return spend([*EQUIPOISE, "simulate", DEMO, "--out", run, *sets_given])


def difference(first: Path, second: Path) -> float:
    """|first - second| / |second| over all weights of two safetensors files."""
    one, other = load_file(first), load_file(second)
    if one.keys() != other.keys():
        raise RuntimeError(f"{first} and {second} hold other tensors")
    a, b = (
        np.concatenate([state[name].ravel().astype(np.float64) for name in sorted(state)]) for state in (one, other)
    )
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def compare(folder: Path, weights: Path, pairs: int) -> dict[str, Any]:
    """Study and script in turn: CPU seconds, their ratios, the difference of the weights, seconds to the first sum."""
    hospitals = prepare(folder / "hospitals")
    plain_out = folder / "plain.safetensors"
    plain: list[str | Path] = [
        sys.executable,
        HERE / "plain_swift.py",
        hospitals,
        weights,
        plain_out,
        "--seed",
        str(SEED),
    ]
    rows = []
    for _ in range(pairs):
        study, script = simulate(folder / "run", hospitals, weights, "simulation.workers=1"), spend(plain)
        first = json.loads((folder / "run" / "rounds.jsonl").read_text().splitlines()[0])
        rows.append(
            {
                "study": asdict(study),
                "script": asdict(script),
                "ratio": study.cpu_s / script.cpu_s,
                "first_s": first["time"] - study.started,
                "difference": difference(folder / "run" / "model.safetensors", plain_out),
            }
        )
        print(f"study {study.cpu_s:.1f} s, script {script.cpu_s:.1f} s of CPU", file=sys.stderr, flush=True)
    bare, compiler = (
        min(spend([sys.executable, "-c", code]).cpu_s for _ in range(2))
        for code in ("import torch", "import torch, torch._dynamo")
    )
    ratios = [row["ratio"] for row in rows]
    return {
        "pairs": rows,
        "ratio_median": median(ratios),
        "ratio_least": min(ratios),
        "ratio_worst": max(ratios),
        "compiler_import_s": compiler - bare,
        "ratio_without_compiler": median(
            row["study"]["cpu_s"] / (row["script"]["cpu_s"] - compiler + bare) for row in rows
        ),
        "first_s_median": median(row["first_s"] for row in rows),
        "first_s_least": min(row["first_s"] for row in rows),
        "difference_worst": max(row["difference"] for row in rows),
    }


def small_sites(folder: Path, weights: Path, count: int) -> dict[str, Any]:
    """A short study over `count` small sites; every site has the same number of patients whatever `count` is."""
    kind = f"kind: synthetic, count: {count}, patients: {SMALL['patients']}, validation: {SMALL['validation']}"
    sets = f"simulation.hospitals={{{kind}, test: {SMALL['test_each'] * count}}}"
    hospitals = prepare(folder / f"hospitals-{count}", sets)
    spent = simulate(folder / f"run-{count}", hospitals, weights, "method.rounds={extractor: 2, head: 2}")
    rounds = (folder / f"run-{count}" / "rounds.jsonl").read_text().splitlines()
    return {"sites": count, "releases": len(rounds), **asdict(spent)}


def measure(folder: Path, pairs: int) -> dict[str, Any]:
    """All figures."""
    helps = [spend([*EQUIPOISE, "--help"]).wall_s for _ in range(5)]
    weights = train_vendor(folder)
    compared = compare(folder, weights, pairs)
    few, many = (small_sites(folder, weights, count) for count in (FEW, MANY))
    demo = spend([*EQUIPOISE, "simulate", DEMO, "--out", folder / "demo"])
    return {
        "compared": compared,
        "help_s_median": median(helps),
        "help_s_least": min(helps),
        "demo": asdict(demo),
        "small_sites": {"few": few, "many": many, "memory_ratio": many["peak_mib"] / few["peak_mib"]},
    }


def page(result: dict[str, Any]) -> str:
    """docs/benchmarks.md."""
    compared, sites, on = result["compared"], result["small_sites"], result["machine"]
    few, many, demo = sites["few"], sites["many"], result["demo"]
    study = median(row["study"]["cpu_s"] for row in compared["pairs"])
    script = median(row["script"]["cpu_s"] for row in compared["pairs"])
    rows = [
        (
            "CPU seconds of a simulated study / of the plain script, median of alternated pairs",
            f"{compared['ratio_median']:.2f} ({compared['ratio_least']:.2f} to {compared['ratio_worst']:.2f}; "
            f"{study:.1f} s / {script:.1f} s)",
            f"{BOUNDS['ratio']:.2f}",
        ),
        ("difference of their weights, relative", f"{compared['difference_worst']:.1e}", f"{BOUNDS['difference']:.0e}"),
        (
            "seconds from the command to the first released sum, weights given, median (least)",
            f"{compared['first_s_median']:.1f} ({compared['first_s_least']:.1f})",
            f"{BOUNDS['first_s']:g}",
        ),
        (
            "seconds of `equipoise --help`, median (least)",
            f"{result['help_s_median']:.2f} ({result['help_s_least']:.2f})",
            f"{BOUNDS['help_s']:g}",
        ),
        (
            "the demo (pretraining, SWiFT, no_mask, plain, auc_noise), seconds",
            f"{demo['wall_s']:.0f}",
            f"{BOUNDS['demo_s']:g}",
        ),
        ("the demo, peak memory, MiB", f"{demo['peak_mib']:.0f}", f"{BOUNDS['demo_mib']:.0f}"),
        (
            f"peak memory, {few['sites']} and {many['sites']} small sites, MiB",
            f"{few['peak_mib']:.0f} and {many['peak_mib']:.0f} (x {sites['memory_ratio']:.2f})",
            "flat",
        ),
        (
            f"CPU seconds by site and release, {many['sites']} small sites",
            f"{many['cpu_s'] / many['sites'] / many['releases']:.4f}",
            "",
        ),
    ]
    table = "\n".join(f"| {what} | {figure} | {bound} |" for what, figure, bound in rows)
    return f"""# Speed and memory

Written by `{result["command"]}` on {result["date"]}, commit {result["commit"]}; the figures behind it are in
[simulations/benchmarks/results/speed.json](../simulations/benchmarks/results/speed.json).
Machine: {on["cpu"]}, {on["cores"]} cores, {on["system"]}; Python {on["python"]}, torch {on["torch"]},
flwr {on["flwr"]}, NumPy {on["numpy"]}.

| figure | measured | bound |
|---|---|---|
{table}

The study is the demo with SWiFT alone (six hospitals of 300 training patients, five rounds of each phase), one worker,
on hospitals and weights that are there already. Its seconds are those of the whole command: messages through Flower's
protobuf, integer sums, ledgers, transcript, the evaluation of both models on 1,600 test patients, and the report.
[plain_swift.py](../simulations/benchmarks/plain_swift.py) reads the same files and only trains; it is frozen. It uses
`torch.optim.SGD` and `torch.func.vmap`, as plain PyTorch does, which load torch's compiler:
{compared["compiler_import_s"]:.1f} s that the study avoids. Without them in the script's account the ratio would be
{compared["ratio_without_compiler"]:.2f}. Where only the head is trained, the study runs the extractor once a round, and
the script at every step. The small sites have {SMALL["patients"]} training patients each.
"""


def main(
    date: Annotated[str, typer.Option(help="Date of the figures, as in 2026-01-31.")],
    pairs: Annotated[int, typer.Option(min=1, help="Runs of the study and of the script, in turn.")] = 3,
) -> None:
    """Measure, print the page, write it and the figures."""
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), pairs)
    result = {
        "command": f"python -m equipoise.simulations.benchmarks.speed --date {date} --pairs {pairs}",
        "date": date,
        "commit": commit(),
        "machine": machine(),
        "bounds": BOUNDS,
        **figures,
    }
    write_whole(HERE / "results" / "speed.json", json.dumps(result, indent=1).encode())
    write_whole(ROOT / "docs" / "benchmarks.md", page(result).encode())
    print(page(result))


if __name__ == "__main__":
    typer.run(main)
