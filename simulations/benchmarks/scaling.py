"""What a study costs against the number of patients and of parameters, each with its fitted growth.

    python -m equipoise.simulations.benchmarks.scaling --date 2026-01-31

SWiFT over four hospitals, one worker, whole commands measured from outside (`speed`): mask, two rounds of each phase,
evaluation of both models, report. Patients: the demo's network, 100 to 3,000 training patients a hospital. Parameters:
twenty patients a hospital and a network of one wide layer, 0.1 to 25 million. How cost grows with the number of sites
is measured by `speed`, `peers` and `deployed`. Figures go to results/scaling.json and docs/benchmarks-scaling.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from equipoise.common.config import read_yaml
from equipoise.common.files import write_whole
from equipoise.simulations.benchmarks.origin import commit, machine
from equipoise.simulations.benchmarks.speed import HERE, ROOT, Spent, prepare, simulate, train_vendor

Json = dict[str, Any]
SITES = 4
PATIENTS = (100, 300, 1000, 3000)
WIDTHS = (32, 325, 1626, 8130)  # 0.1, 1, 5 and 25 million parameters
FEW = 20
FIGURES = ("cpu_s", "peak_mib")
PIXELS = 32
FACTORY = "equipoise.simulations.benchmarks.scaling:wide"
STEPS = "method.rounds={extractor: 2, head: 2}"


class Wide(nn.Module):
    """One fully connected layer over an image's pixels, and a linear head: parameters without arithmetic."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.extractor = nn.Sequential(nn.Flatten(), nn.Linear(3 * PIXELS * PIXELS, width), nn.ReLU())
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images, float (m, 3, 32, 32), to logits (m,)."""
        logit: Tensor = self.head(self.extractor(x))
        return logit.squeeze(1)


def wide(width: int) -> nn.Module:
    """A network of 3,074 parameters by unit of width."""
    return Wide(width)


FACTORIES = (wide,)


def hospitals_of(folder: Path, patients: int) -> Path:
    """Four hospitals of so many training patients; what they evaluate on is small and always the same."""
    sizes = f"patients: {patients}, validation: 8, test: {20 * SITES}"
    return prepare(folder, f"simulation.hospitals={{kind: synthetic, count: {SITES}, {sizes}}}")


def by_patients(folder: Path, counts: Sequence[int]) -> Iterator[Json]:
    """A row for each number of training patients a hospital."""
    vendor = train_vendor(folder)
    for count in counts:
        hospitals = hospitals_of(folder / f"patients-{count}", count)
        yield row_of(folder / "run", count, simulate(folder / "run", hospitals, vendor, STEPS))


def by_parameters(folder: Path, widths: Sequence[int]) -> Iterator[Json]:
    """A row for each width of the network."""
    hospitals = hospitals_of(folder / "few", FEW)
    for file in hospitals.glob("*/site.yaml"):  # a site imports no factory that its file does not name
        file.write_text(yaml.safe_dump({**read_yaml(file), "caps": {"models": [FACTORY]}}))
    for width in widths:
        torch.manual_seed(0)
        state = wide(width).state_dict()
        vendor = folder / "wide.safetensors"
        save_file(state, vendor)
        model = (f"model.factory={FACTORY}", f"model.arguments={{width: {width}}}")
        spent = simulate(folder / "run", hospitals, vendor, STEPS, *model)
        yield row_of(folder / "run", sum(tensor.numel() for tensor in state.values()), spent)


def row_of(run: Path, size: int, spent: Spent) -> Json:
    """What a run cost, and what it sent."""
    releases = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    up, down = (sum(sum(row[way].values()) for row in releases) for way in ("bytes_up", "bytes_down"))
    row = {"size": size, "releases": len(releases), "bytes_up": up, "bytes_down": down, **asdict(spent)}
    print(row, file=sys.stderr, flush=True)
    return row


def power(rows: Sequence[Mapping[str, float]], figure: str) -> float:
    """The power of the size by which a figure grows: least squares on logarithms."""
    sizes, values = (np.log([row[key] for row in rows]) for key in ("size", figure))
    return float(np.polyfit(sizes, values, 1)[0])


def page(result: Json) -> str:
    """docs/benchmarks-scaling.md."""
    on = result["machine"]
    return f"""# Growth with patients and parameters

Written by `{result["command"]}` on {result["date"]}, commit {result["commit"]}; the figures behind it are in
[simulations/benchmarks/results/scaling.json](../simulations/benchmarks/results/scaling.json).
Machine: {on["cpu"]}, {on["cores"]} cores, {on["system"]}; Python {on["python"]}, torch {on["torch"]}.

SWiFT over {SITES} hospitals in one process: the mask's sensitivities, two rounds of each phase, evaluation of both
models, report. Seconds are CPU seconds of the whole command. *Added* is what a further thousand patients, or a further
million parameters, of one hospital cost, from neighbouring rows. Growth with the number of hospitals stands in
[speed and memory](benchmarks.md) and in [a deployment](benchmarks-deployed.md).

## Training patients a hospital

{_table(result["patients"], "patients", 1000)}

## Parameters, {FEW} training patients a hospital

{_table(result["parameters"], "parameters", 1_000_000)}

Each hospital sends eight bytes a parameter and round: sums are exact, on a lattice of 64-bit integers.
"""


def _table(rows: Sequence[Json], what: str, unit: int) -> str:
    lines = [
        f"| {what} | CPU seconds | added | peak memory, MiB | MB up by hospital | MB down by hospital |",
        "|---|---|---|---|---|---|",
    ]
    added = [
        "",
        *(f"{unit * (b['cpu_s'] - a['cpu_s']) / (b['size'] - a['size']) / SITES:.2f}" for a, b in pairwise(rows)),
    ]
    for row, more in zip(rows, added, strict=True):
        up, down = (row[way] / SITES / 1e6 for way in ("bytes_up", "bytes_down"))
        lines.append(
            f"| {row['size']:,} | {row['cpu_s']:.1f} | {more} | {row['peak_mib']:.0f} | {up:.2f} | {down:.2f} |"
        )
    cpu, memory = (f"{power(rows, key):.2f}, between the last two rows {power(rows[-2:], key):.2f}" for key in FIGURES)
    lines += [
        "",
        f"CPU seconds grow as the number of {what} to the power {cpu}; memory as the power {memory}. A command's fixed "
        "cost weighs less in the last two.",
    ]
    return "\n".join(lines)


def main(
    date: Annotated[str, typer.Option(help="Date of the figures, as in 2026-01-31.")],
) -> None:
    """Measure, print the page, write it and the figures."""
    with tempfile.TemporaryDirectory(prefix="eq-bench-") as name:
        result = {
            "command": f"python -m equipoise.simulations.benchmarks.scaling --date {date}",
            "date": date,
            "commit": commit(),
            "machine": machine(),
            "patients": list(by_patients(Path(name), PATIENTS)),
            "parameters": list(by_parameters(Path(name), WIDTHS)),
        }
    write_whole(HERE / "results" / "scaling.json", json.dumps(result, indent=1).encode())
    write_whole(ROOT / "docs" / "benchmarks-scaling.md", page(result).encode())
    print(page(result))


if __name__ == "__main__":
    typer.run(main)
