"""What an audit costs: 100,000 scored patients at 20 sites, three attributes.

    python -m equipoise.simulations.benchmarks.audit_cost --date 2026-01-31

Sites have the scores in a table, so there is no forward pass: everything measured is what the evaluation itself takes.
Measured from outside, on whole processes, in CPU seconds of the process and its children: `equipoise evaluate`, the
start of the same program (its imports), and the report alone, made again from the run's released sums. Figures go to
results/audit_cost.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from equipoise.common.files import write_whole
from equipoise.simulations.benchmarks.origin import commit, machine
from equipoise.simulations.benchmarks.speed import EQUIPOISE, HERE, spend
from equipoise.simulations.sitefolder import write_site

SITES, PATIENTS = 20, 100_000
BOUNDS = {"evaluate_s": 5.0, "report_s": 2.0}
RESULTS = HERE / "results" / "audit_cost.json"
STUDY = {
    "study": "audit-cost",
    "inputs": {"kind": "score", "before": "risk", "scale": "logit"},
    "label": {"column": "died", "positive": 1},
    "attributes": [
        {"name": "sex", "levels": ["female", "male"], "primary": True},
        {"name": "origin", "levels": ["a", "b", "c", "d", "e"]},
        {"name": "age", "kind": "cut", "cuts": [40, 60, 80]},
    ],
    "privacy": {"mode": "none"},
    "evaluation": {"threshold": {"rule": "given:0.3"}},
    "simulation": {"hospitals": {"kind": "folders", "path": "sites"}, "workers": 1},
}
START = (
    "import time, equipoise.cli, equipoise.simulations.runner, equipoise.server.engine, equipoise.simulations.grid, "
    "equipoise.simulations.doors, equipoise.server.report.build"
)
REPORT = (
    "import sys, time; from pathlib import Path; from equipoise.server.rundir import RunFolder; "
    "from equipoise.server.report.build import build_report; run = RunFolder(Path(sys.argv[1])); "
    "began, cpu = time.monotonic(), time.process_time(); build_report(run); "
    "print(time.monotonic() - began, time.process_time() - cpu, file=open(sys.argv[2], 'w'))"
)


def write_sites(folder: Path) -> Path:
    """The study and its sites' tables; the score tells less about women."""
    rng = np.random.default_rng(0)
    header = ("patient", "risk", "died", "sex", "origin", "age")
    data = {"splits": {"train": 0, "validation": 0, "test": 1}, "split_key": "0" * 32, "synthetic": True}
    for site in range(SITES):
        n = PATIENTS // SITES
        died, woman = rng.random(n) < 0.2, rng.random(n) < 0.4
        risk = rng.normal(-1.5 + np.where(woman, 0.9, 2.0) * died, 1.0)
        origin, age = rng.choice(list("abcde"), n), rng.integers(18, 95, n)
        sex = np.where(woman, "female", "male")
        rows = zip((f"p{k}" for k in range(n)), risk, died.astype(int), sex, origin, age, strict=True)
        write_site(folder / "sites", f"site-{site + 1:02d}", header, rows, data=data)
    study = folder / "study.yaml"
    study.write_text(yaml.safe_dump(STUDY))
    return study


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """CPU seconds of every repeat."""
    study = write_sites(folder)
    whole, start, report = [], [], []
    for repeat in range(repeats):
        run = folder / f"run-{repeat}"
        whole.append(spend([*EQUIPOISE, "evaluate", study, "--out", run]).cpu_s)
        start.append(spend([sys.executable, "-c", START]).cpu_s)
        note = folder / "note"
        spend([sys.executable, "-c", REPORT, run, note])
        report.append([float(part) for part in note.read_text().split()])
    return {
        "patients": PATIENTS,
        "sites": SITES,
        "attributes": 3,
        "whole_cpu_s": whole,
        "start_cpu_s": start,
        "evaluate_cpu_s": [a - b for a, b in zip(whole, start, strict=True)],
        "report_wall_s": [wall for wall, _ in report],
        "report_cpu_s": [cpu for _, cpu in report],
    }


def main(
    date: Annotated[str, typer.Option(help="Date of the figures, as in 2026-01-31.")],
    repeats: Annotated[int, typer.Option(min=1, help="Audits, one after the other.")] = 3,
) -> None:
    """Measure and write the figures down."""
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), repeats)
    about = {"date": date, "commit": commit(), "machine": machine(), "bounds": BOUNDS}
    write_whole(RESULTS, json.dumps({**about, **figures}, indent=1).encode())
    beyond, report = median(figures["evaluate_cpu_s"]), median(figures["report_cpu_s"])
    print(f"evaluate {beyond:.2f} s of CPU beyond its start ({BOUNDS['evaluate_s']:g})")
    print(f"report {report:.2f} s of CPU ({BOUNDS['report_s']:g})")


if __name__ == "__main__":
    typer.run(main)
