"""How long a deployed round trip takes, and what a round costs against the number of sites.

    python -m equipoise.simulations.benchmarks.deployed --date 2026-01-31

Everything runs as it is deployed, on loopback: a SuperLink, SuperNodes and site agents, each a process, over TLS.
Beside it, in turn and on the same machine, runs Flower's plain way: its own programs, `FedAvg` over as many numbers,
nothing of equipoise. Figures go to results/deployed.json and docs/benchmarks-deployed.md.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
import yaml

from equipoise.common.config import read_yaml
from equipoise.common.files import write_whole
from equipoise.server.coordinator import CONNECTION, Coordinator
from equipoise.simulations.benchmarks.origin import commit, machine
from equipoise.simulations.benchmarks.processes import Meter, free_mib
from equipoise.simulations.benchmarks.speed import (
    DEMO,
    EQUIPOISE,
    HERE,
    ROOT,
    SEED,
    SMALL,
    prepare,
    spend,
    train_vendor,
)
from equipoise.simulations.loopback import Deployment

BOUND_S = 4.5
SITES, ROUNDS, PARAMETERS = 4, 5, 174_265
LEAST_MIB_A_SITE = 450  # what has to be free for a site's processes before they are started
_APP = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "plain"
version = "0.1.0"
description = "Flower's plain way."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "equipoise"
fab-include = ["plain_app/*.py"]

[tool.flwr.app.components]
serverapp = "plain_app.both:server"
clientapp = "plain_app.both:client"

[tool.flwr.app.config]
sites = 0
rounds = 0
parameters = 0
out = ""
"""
_BOTH = (
    "from equipoise.simulations.benchmarks import plain_flower\n\n"
    "server = plain_flower.server\n"
    "client = plain_flower.client\n"
)


def hospitals_of(folder: Path, count: int) -> dict[str, Path]:
    """Folders of `count` small sites; a site has the same patients however many there are."""
    kind = f"kind: synthetic, count: {count}, patients: {SMALL['patients']}, validation: {SMALL['validation']}"
    place = prepare(folder, f"simulation.hospitals={{{kind}, test: {SMALL['test_each'] * count}}}")
    return {path.name: path for path in sorted(place.iterdir()) if (path / "site.yaml").exists()}


def study_of(folder: Path, weights: Path, sites: Sequence[str], method: Mapping[str, Any], secure: bool) -> Path:
    """A study of the demo's for these sites."""
    value = read_yaml(DEMO)
    del value["simulation"]
    value |= {
        "seed": SEED,
        "method": dict(method),
        "model": {**value["model"], "weights": {"path": str(weights)}},
        "privacy": {"mode": "none", "secure_sum": secure},
        "sites": {"minimum": 3, "quorum": 1.0, "declared_patients": dict.fromkeys(sites, SMALL["patients"])},
    }
    file = folder / f"study-{len(sites)}-{secure}.yaml"
    file.write_text(yaml.safe_dump(value))
    return file


def run_ours(there: Deployment, study: Path, name: str) -> list[dict[str, Any]]:
    """Carry out a study; the rows of its releases."""
    there.submit(study, "--name", name)
    log = there.coordinator / "runs" / name / "rounds.jsonl"
    there.wait(lambda: log.exists() or all(map(there.pending, there.cohorts)), 300, "the sites are asked")
    if any(map(there.pending, there.cohorts)):
        there.approve(patience=300)
    found = there.until(name, "finished", "failed", patience=3000)
    if found["state"] != "finished":
        raise RuntimeError(str(found["detail"]))
    return [json.loads(line) for line in log.read_text().splitlines()]


def start_plain(there: Deployment) -> None:
    """Flower's own programs, without what `equipoise site init` puts before them."""
    there.start_superlink()
    for site in there.cohorts:
        shutil.rmtree(there.site(site) / "bin")
        script = there.site(site) / "start-supernode.sh"
        script.write_text(script.read_text().replace("export FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "# "))
        there.enroll(site)
        there.start_supernode(site)


def run_plain(there: Deployment, rounds: int) -> list[float]:
    """Seconds of each round of Flower's plain way."""
    app, out = there.folder / "app", there.folder / "plain.json"
    out.unlink(missing_ok=True)
    write_whole(app / "pyproject.toml", _APP.encode())
    write_whole(app / "plain_app" / "__init__.py", b"")
    write_whole(app / "plain_app" / "both.py", _BOTH.encode())
    config = f"sites={len(there.cohorts)} rounds={rounds} parameters={PARAMETERS} out={json.dumps(str(out))}"
    Coordinator(there.coordinator).flower("run", str(app), CONNECTION, "-c", config)
    seconds: list[float] = there.wait(lambda: json.loads(out.read_text()), 900, "the plain rounds end")
    return seconds


def latency(folder: Path, weights: Path, turns: int) -> dict[str, Any]:
    """Round trips of equipoise, without and with the secure sum, and of Flower's plain way, in turn."""
    cohorts = hospitals_of(folder / "hospitals", SITES)
    method = {"name": "fine_tune", "rounds": ROUNDS, "part": "whole", "controls": []}
    studies = {secure: study_of(folder, weights, list(cohorts), method, secure) for secure in (False, True)}
    found: dict[str, list[float]] = {"equipoise": [], "secure": [], "plain": []}
    with Deployment(folder / "ours", cohorts) as ours, Deployment(folder / "plain", cohorts) as plain:
        ours.start()
        start_plain(plain)
        for turn in range(turns):
            found["plain"] += run_plain(plain, ROUNDS)
            for secure, key in ((False, "equipoise"), (True, "secure")):
                rows = run_ours(ours, studies[secure], f"{key}-{turn}")
                found[key] += [row["seconds"] for row in rows if row["query"] == "local_training"]
            print({key: round(median(values), 2) for key, values in found.items()}, file=sys.stderr, flush=True)
    return {
        "sites": SITES,
        "parameters": PARAMETERS,
        "load": os.getloadavg()[2],
        "round_trips": {key: [round(value, 3) for value in values] for key, values in found.items()},
        "median_s": {key: median(values) for key, values in found.items()},
    }


def load(folder: Path, weights: Path, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A study through the secure sum over more and more sites, each with its own processes while memory lasts."""
    method = {"name": "fine_tune", "rounds": 2, "part": "head", "controls": []}
    for count in counts:
        if free_mib() < count * LEAST_MIB_A_SITE:
            print(f"{count} sites: {free_mib():.0f} MiB are free, too few", file=sys.stderr, flush=True)
            break
        place = folder / f"load-{count}"
        cohorts = hospitals_of(place / "hospitals", count)
        study = study_of(place, weights, list(cohorts), method, secure=True)
        with Deployment(place / "d", cohorts) as there:
            there.start()
            meter = Meter(there)
            with meter.watching():
                before, began = meter.cpu_s(), time.monotonic()
                releases = run_ours(there, study, "load")
                wall, cpu = time.monotonic() - began, meter.cpu_s() - before
        yield {
            "sites": count,
            "releases": len(releases),
            "seconds_a_release": median(row["seconds"] for row in releases),
            "wall_s": wall,
            "cpu_s_a_release": cpu / len(releases),
            "peak_mib": meter.peak_mib,
            "server_peak_mib": meter.server_peak_mib,
            "load": os.getloadavg()[1],
            "commit": commit(),
        }


def load_in_process(folder: Path, weights: Path, counts: Sequence[int]) -> list[dict[str, Any]]:
    """The same study in one process: what the computation costs without Flower's processes."""
    rows = []
    for count in counts:
        cohorts = hospitals_of(folder / f"here-{count}", count)
        sets = [
            f"seed={SEED}", "method={name: fine_tune, rounds: 2, part: head, controls: []}",
            "privacy={mode: none, secure_sum: true}", f"model.weights={{path: {weights}}}", "simulation.workers=1",
            f"simulation.hospitals={{kind: folders, path: {next(iter(cohorts.values())).parent}}}",
        ]  # fmt: skip
        run = folder / f"run-{count}"
        spent = spend([*EQUIPOISE, "simulate", DEMO, "--out", run, *(part for one in sets for part in ("--set", one))])
        releases = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
        rows.append(
            {
                "sites": count,
                "releases": len(releases),
                "seconds_a_release": median(row["seconds"] for row in releases),
                **asdict(spent),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def page(result: dict[str, Any]) -> str:
    """docs/benchmarks-deployed.md."""
    on, fast = result["machine"], result["latency"]
    trips, medians = fast["round_trips"], fast["median_s"]
    span = {key: f"{min(values):.1f} to {max(values):.1f}" for key, values in trips.items()}
    rows = [
        ("a round trip (a release without the secure sum)", "equipoise", f"{BOUND_S:g}"),
        ("a release through the secure sum: five round trips", "secure", ""),
        ("a round of Flower's plain way", "plain", ""),
    ]
    table = "\n".join(
        f"| {what} | {len(trips[key])} | {medians[key]:.2f} | {span[key]} | {bound} |" for what, key, bound in rows
    )
    real = "\n".join(
        f"| {row['sites']} | {row['seconds_a_release']:.1f} | {row['cpu_s_a_release']:.1f} | {row['peak_mib']:.0f} | "
        f"{row['peak_mib'] / row['sites']:.0f} | {row['server_peak_mib']:.0f} | {row['load']:.0f} | {row['commit']} |"
        for row in result["load"]
    )
    here = "\n".join(
        f"| {row['sites']} | {row['seconds_a_release']:.3f} | {row['cpu_s']:.1f} | {row['peak_mib']:.0f} |"
        for row in result["load_in_process"]
    )
    return f"""# Speed and memory of a deployment

Written by `{result["command"]}` on {result["date"]}, commit {result["commit"]}; the figures behind it are in
[simulations/benchmarks/results/deployed.json](../simulations/benchmarks/results/deployed.json). A row of *Sites*
that was measured apart has a commit of its own; the command is the last one that measured anything.
Machine: {on["cpu"]}, {on["cores"]} cores, {on["system"]}; Python {on["python"]}, torch {on["torch"]},
flwr {on["flwr"]}. All processes of all sites share it, so that seconds are upper bounds; a site of its own is quicker.

## A round trip

Four sites, {fast["parameters"]:,} parameters, blocks of {ROUNDS} rounds of each kind, in turn. Load of the machine at
the end (mean of 15 minutes): {fast["load"]:.0f} on {on["cores"]} cores. What is above their number is others' work, and
all three are slower for it; the bound is for a machine without it. A round trip took
{medians["equipoise"] / medians["plain"]:.2f} of the time of a plain round, a release through the secure sum
{medians["secure"] / medians["plain"]:.1f} times as long as one.

| seconds | rounds | median | least to most | bound |
|---|---|---|---|---|
{table}

Flower's plain way is its own programs and `FedAvg` over as many float32 numbers
([plain_flower.py](../simulations/benchmarks/plain_flower.py)); its sites do nothing and load no torch. What makes the
difference is how often the two sides look for messages, and what a message's process loads (decisions
[0053](decisions/0053-a-lean-clientapp.md) and [0054](decisions/0054-a-quicker-look-while-a-run-goes-on.md)).

## Sites

A short study through the secure sum; every site has {SMALL["patients"]} patients for training, whatever their number.
A run over many sites takes long, so rows can be measured one by one (`--only load --counts N`).
With processes of its own for every site (a SuperNode, its executor, a site agent, and a process for each message):

| sites | seconds a release | CPU seconds a release | MiB of all | MiB by site | MiB of the ServerApp | load | commit |
|---|---|---|---|---|---|---|---|
{real}

Memory is proportional set size, at its peak; CPU is of all processes together; the load is the machine's. The same
study in one process:

| sites | seconds a release | CPU seconds of the whole | peak memory, MiB |
|---|---|---|---|
{here}
"""


def main(
    date: Annotated[str, typer.Option(help="Date of the figures, as in 2026-01-31.")],
    turns: Annotated[int, typer.Option(min=1, help="Blocks of rounds of each kind, in turn.")] = 2,
    counts: Annotated[str, typer.Option(help="Numbers of sites for the load, with processes of their own.")] = "4,8,16",
    only: Annotated[str, typer.Option(help="latency, load or in-process: measure this again, keep the rest.")] = "",
) -> None:
    """Measure, print the page, write it and the figures."""
    file = HERE / "results" / "deployed.json"
    kept: dict[str, Any] = json.loads(file.read_text()) if only and file.exists() else {}
    numbers = [int(count) for count in counts.split(",")]
    with tempfile.TemporaryDirectory(prefix="eq-bench-") as name:
        folder = Path(name)
        weights = train_vendor(folder)
        if only in ("", "latency"):
            (folder / "fast").mkdir()
            kept["latency"] = latency(folder / "fast", weights, turns)
        if only in ("", "in-process"):
            kept["load_in_process"] = load_in_process(folder, weights, sorted({*numbers, 32}))
        if only in ("", "load"):
            for row in load(folder, weights, numbers):
                print(row, file=sys.stderr, flush=True)
                others = [other for other in kept.get("load", []) if other["sites"] != row["sites"]]
                kept["load"] = sorted([*others, row], key=lambda one: int(one["sites"]))
                write_whole(file, json.dumps(kept, indent=1).encode())
    kept |= {
        "command": " ".join(
            [f"python -m equipoise.simulations.benchmarks.deployed --date {date} --turns {turns} --counts {counts}"]
            + ([f"--only {only}"] if only else [])
        ),
        "date": date,
        "commit": commit(),
        "machine": machine(),
    }
    write_whole(file, json.dumps(kept, indent=1).encode())
    if {"latency", "load", "load_in_process"} <= set(kept):
        write_whole(ROOT / "docs" / "benchmarks-deployed.md", page(kept).encode())
        print(page(kept))


if __name__ == "__main__":
    typer.run(main)
