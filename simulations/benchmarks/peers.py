"""What a simulation costs, beside a plain PyTorch script, Apple's pfl and Flower with Ray, all on the same work.

    python -m equipoise.simulations.benchmarks.peers --date 2026-01-31

The work (peers.yaml): federated averaging over fifty sites of fifty images. Each side is a process of its own, and runs
alone; the sides alternate, since on a shared machine a ratio of neighbours means more than seconds do. pfl and Flower
have environments of their own, made at the first run, which downloads them. Figures go to results/peers.json and
docs/benchmarks-peers.md. A run that was broken off goes on with the turn that it was at. Linux only: what Ray starts is
counted process by process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer

from equipoise.common.files import write_whole
from equipoise.common.study_file import load_study
from equipoise.simulations.benchmarks.origin import commit, machine
from equipoise.simulations.benchmarks.peers_page import page
from equipoise.simulations.benchmarks.process_tree import spend_tree
from equipoise.simulations.benchmarks.speed import EQUIPOISE, difference, spend, train_vendor
from equipoise.simulations.hospitals import build_hospitals

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STUDY = HERE / "peers.yaml"
COMMON = ("torch==2.13.0", "safetensors==0.8.0", "pillow==13.0.0")
PINS = {
    "pfl": (*COMMON, "pfl==0.6.0"),
    "flower": (*COMMON, "flwr[simulation]==1.41.0", "ray==2.55.1"),
}
SILENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
BOUNDS = {"plain": 1.05, "pfl": 1.00, "flower": 0.50, "difference": 0.05, "memory_exponent": 0.05}
COUNTS = (20, 100, 300, 1000)
SMALL_ROUNDS, SMALL_PATIENTS = 1, 10


def environment(cache: Path, name: str) -> Path:
    """The interpreter of a peer's virtual environment in `cache`, which is made where it is missing or of other pins.

    Raises:
        subprocess.CalledProcessError: pip could not install.
    """
    folder, pins = cache / name, "\n".join(PINS[name])
    python, stamp = folder / "bin" / "python", folder / "pins.txt"
    if not stamp.exists() or stamp.read_text() != pins:
        print(f"installing {name} into {folder}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS[name]], check=True)
        stamp.write_text(pins)
    return python


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """What is installed for an interpreter."""
    code = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    found = subprocess.run([python, "-c", code, *packages], check=True, capture_output=True, text=True)
    result: dict[str, str] = json.loads(found.stdout)
    return result


def prepare(folder: Path, *sets: str) -> Path:
    """Write the study's hospitals below `folder`, which it gives back."""
    study = load_study(STUDY, [f"model.weights={{path: {folder / 'vendor.safetensors'}}}", *sets])
    build_hospitals(study, folder / "hospitals")
    return folder


def settings_of(folder: Path, rounds: int) -> list[str]:
    """What is set in the study file, so that it runs on what `prepare` wrote."""
    return [
        f"method.rounds={rounds}",
        f"model.weights={{path: {folder / 'vendor.safetensors'}}}",
        f"simulation.hospitals={{kind: folders, path: {folder / 'hospitals'}}}",
    ]


def study_options(folder: Path, rounds: int) -> list[str | Path]:
    """The study file and the options by which `equipoise simulate` runs it."""
    sets = [part for one in settings_of(folder, rounds) for part in ("--set", one)]
    return [STUDY, "--out", folder / "run", *sets]


def peer(folder: Path, rounds: int, side: str, python: Path | str) -> list[str | Path]:
    """The command of a peer's script, which writes `folder/SIDE.safetensors` and, of its decisions, `SIDE.json`."""
    files = (folder / "hospitals", folder / "vendor.safetensors", folder / f"{side}.safetensors")
    return [python, HERE / "yardsticks" / f"peer_{side}.py", *files, "--rounds", str(rounds)]


def run_side(folder: Path, rounds: int, side: str, python: Path | str) -> dict[str, Any]:
    """One side's run: what it spent."""
    settings = {**os.environ, **SILENT, "FLWR_HOME": str(folder / "flower")}
    if side == "equipoise":
        shutil.rmtree(folder / "run", ignore_errors=True)
        spent = spend_tree([*EQUIPOISE, "simulate", *study_options(folder, rounds)], settings, ROOT)
        shutil.copy(folder / "run" / "model.safetensors", folder / "equipoise.safetensors")
    else:
        settings.pop("PYTHONPATH", None)
        spent = spend_tree(peer(folder, rounds, side, python), settings, folder)
    print(f"{side}: {spent.cpu_s:.1f} s of CPU, {spent.peak_mib:.0f} MiB", file=sys.stderr, flush=True)
    return asdict(spent)


def kept(folder: Path, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` measures, or has measured before a run was broken off: `folder/name.json`."""
    file = folder / f"{name}.json"
    if not file.exists():
        write_whole(file, json.dumps(work()).encode())
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def take_turns(folder: Path, rounds: int, number: int, pythons: Mapping[str, Path | str]) -> dict[str, Any]:
    """Each side once, every second time in the reverse order: what they spent, and how their weights differ.

    Differences are shares of the way that the plain script's weights went from the vendor's.
    """
    order = tuple(pythons)[:: -1 if number % 2 else 1]
    spent = {side: run_side(folder, rounds, side, pythons[side]) for side in order}
    plain, vendor = folder / "plain.safetensors", folder / "vendor.safetensors"
    moved = difference(vendor, plain)
    apart = {side: difference(folder / f"{side}.safetensors", plain) / moved for side in spent if side != "plain"}
    return {"spent": spent, "moved": moved, "difference": apart}


def side_by_side(folder: Path, rounds: int, pairs: int, pythons: Mapping[str, Path | str]) -> dict[str, Any]:
    """All sides, `pairs` times in turn: the ratios of equipoise's CPU seconds to the others' of the same turn."""
    rows = [kept(folder, f"turn-{n}", partial(take_turns, folder, rounds, n, pythons)) for n in range(pairs)]
    ratios = {}
    for side in pythons:
        if side != "equipoise":
            found = [row["spent"]["equipoise"]["cpu_s"] / row["spent"][side]["cpu_s"] for row in rows]
            ratios[side] = {"median": median(found), "least": min(found), "greatest": max(found)}
    apart = max(max(row["difference"].values()) for row in rows)
    return {"rounds": rounds, "rows": rows, "ratios": ratios, "difference": apart}


def parts(folder: Path, rounds: int) -> dict[str, Any]:
    """Where equipoise's seconds go, in one more run with clocks in it, and what its peers' start costs."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    module = "equipoise.simulations.benchmarks.peer_parts"
    files = (folder / "parts.json", STUDY, folder / "run")
    spend([sys.executable, "-m", module, *files, *settings_of(folder, rounds)])
    found: dict[str, Any] = json.loads((folder / "parts.json").read_text())
    start = "import torch, torch._dynamo, safetensors.torch"  # torch's optimisers load its compiler
    return {**found, "plain_start_s": min(spend([sys.executable, "-c", start]).cpu_s for _ in range(2))}


def small_sites(folder: Path, vendor: Path, count: int) -> dict[str, Any]:
    """A short study over `count` small sites, each with the same number of patients whatever `count` is."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        place = Path(scratch)
        shutil.copy(vendor, place / "vendor.safetensors")
        kind = f"kind: synthetic, count: {count}, patients: {SMALL_PATIENTS}, validation: 0, test: {2 * count}"
        prepare(place, f"simulation.hospitals={{{kind}}}")
        spent = spend([*EQUIPOISE, "simulate", *study_options(place, SMALL_ROUNDS)])
        releases = len((place / "run" / "rounds.jsonl").read_text().splitlines())
    print(f"{count} sites: {spent.cpu_s:.1f} s of CPU, {spent.peak_mib:.0f} MiB", file=sys.stderr, flush=True)
    return {"sites": count, "releases": releases, **asdict(spent)}


def many_sites(folder: Path, vendor: Path, counts: Sequence[int]) -> dict[str, Any]:
    """Ever more small sites: peak memory, CPU, and the powers of the number of sites by which both grow."""
    rows = [kept(folder, f"sites-{count}", partial(small_sites, folder, vendor, count)) for count in counts]
    sites = np.log([row["sites"] for row in rows])

    def power(figure: str) -> float:
        return float(np.polyfit(sites, np.log([row[figure] for row in rows]), 1)[0])

    return {"rows": rows, "memory_exponent": power("peak_mib"), "cpu_exponent": power("cpu_s")}


def measure(folder: Path, cache: Path, rounds: int, pairs: int) -> dict[str, Any]:
    """All figures; `folder` keeps those that are there already."""
    installed = {name: environment(cache, name) for name in PINS}
    pythons: dict[str, Path | str] = {"equipoise": sys.executable, "plain": sys.executable, **installed}
    vendor = folder / "vendor.safetensors"
    if not vendor.exists():
        train_vendor(folder)
    prepare(folder)
    return {
        "versions": {
            "pfl": versions(installed["pfl"], ("pfl", "torch", "numpy")),
            "flower": versions(installed["flower"], ("flwr", "ray", "torch", "numpy")),
        },
        "compared": side_by_side(folder, rounds, pairs, pythons),
        "parts": kept(folder, "parts", partial(parts, folder, rounds)),
        "many_sites": many_sites(folder, vendor, COUNTS),
    }


def default_cache() -> Path:
    """Where the peers' environments are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "equipoise" / "peers"


def main(
    date: Annotated[str, typer.Option(help="Date of the figures, as in 2026-01-31.")],
    pairs: Annotated[int, typer.Option(min=1, help="Runs of each side, in turn.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of federated averaging.")] = 6,
    cache: Annotated[Path | None, typer.Option(help="Folder of the peers' environments.")] = None,
    out: Annotated[Path, typer.Option(help="Where a run that is broken off goes on.")] = Path("runs/peers"),
) -> None:
    """Measure, print the page, write it and the figures."""
    came_from = commit()
    folder = (out / f"{came_from}-{rounds}").absolute()  # what other code measured stays out
    folder.mkdir(parents=True, exist_ok=True)
    figures = measure(folder, cache or default_cache(), rounds, pairs)
    if figures["compared"]["difference"] > BOUNDS["difference"]:
        raise SystemExit(f"the sides' weights differ by {figures['compared']['difference']:.1e}: not the same work")
    options = f"--date {date} --pairs {pairs} --rounds {rounds}"
    result = {
        "command": f"python -m equipoise.simulations.benchmarks.peers {options}",
        "date": date,
        "commit": came_from,
        "machine": machine(),
        "bounds": BOUNDS,
        **figures,
    }
    write_whole(HERE / "results" / "peers.json", json.dumps(result, indent=1).encode())
    write_whole(ROOT / "docs" / "benchmarks-peers.md", page(result).encode())
    shutil.rmtree(folder)
    print(page(result))


if __name__ == "__main__":
    typer.run(main)
