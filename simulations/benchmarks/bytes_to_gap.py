"""How many bytes a hospital moves until the gap has fallen by half: dense averages, supports, heads, whitened rounds.

    python -m equipoise.simulations.benchmarks.bytes_to_gap --seeds 5

Bench A without noise, six hospitals of 300 patients. Every row is one run by the real agents on the in-process grid,
scored on the joint test patients; bytes are those of the whole messages that a hospital received and sent, the
vendor's model included. A run's number of rounds is fixed before it starts, as in a study, so a curve is made of runs
of 1, 2, 4, 8 and 16 rounds. Learning rates of the averages were chosen by one rule on seed 100, which is not reported:

    python -m equipoise.simulations.benchmarks.bytes_to_gap --choose

Resumable: a row that is in results/bytes-to-gap.json is not run again. `evidence` puts it into docs/evidence.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from equipoise.common.files import write_whole
from equipoise.common.models import resnet_small
from equipoise.common.parts import bits_of, parts_of
from equipoise.common.streams import numpy_stream
from equipoise.quiet import quiet_flower
from equipoise.server.rundir import RunFolder
from equipoise.simulations.benchmarks.origin import commit, origin
from equipoise.simulations.benchmarks.private_designs import Design
from equipoise.simulations.benchmarks.private_outcome import CACHE, HOSPITALS, score, trained
from equipoise.simulations.benchmarks.private_rounds import relative

Json = dict[str, Any]
FILE = Path(__file__).parent / "results" / "bytes-to-gap.json"
ROUNDS = (1, 2, 4, 8, 16)
RATES = (0.003, 0.01, 0.03, 0.1)
TARGET = 0.5  # share of the base model's gap that has to go
DENSE = "averages, whole model"
CHOOSE_SEED, CHOOSE_ROUNDS = 100, 8


@dataclass(frozen=True)
class Arm:
    """A method whose rounds are counted.

    Attributes:
        rounds: keys of the method's parameters that a number of rounds is written to.
        lr: of the averages, chosen on seed 100; None where the method's default was chosen on such seeds already.
        support: whether a random half of the model's parts is drawn for each seed, which alone move and travel.
    """

    name: str
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    lr: float | None = None
    whitened: bool = False
    support: bool = False

    def design(self, rounds: int, seed: int, lr: float | None = None) -> Design:
        """The study's method for a number of rounds."""
        rate = self.lr if lr is None else lr
        parameters = dict(self.parameters)
        if self.whitened:
            parameters |= {"whitened": {"rounds": rounds}} if self.method != "private_head" else {"rounds": rounds}
        elif self.method == "swift":
            extractor = (rounds + 1) // 2
            parameters |= {"rounds": {"extractor": extractor, "head": rounds - extractor}, "lr": rate}
        elif self.support:
            parameters |= {"rounds": rounds, "chosen": {"bits": half_of_parts(seed), "lr": rate}}
        else:
            parameters |= {"rounds": rounds, "lr": rate}
        return Design(self.name, self.method, "none", parameters=parameters)


SUPPORT = {"balance": "cells", "tying": "parts", "outside": True}
ARMS = (
    Arm(DENSE, "fine_tune", {"step": "fedavg", "loss": "cells"}, lr=0.01),
    Arm("averages, a random half of the parts", "fairtune", SUPPORT, lr=0.01, support=True),
    Arm("averages, head alone", "fine_tune", {"step": "fedavg", "loss": "cells", "part": "head"}, lr=0.03),
    Arm("averages, SWiFT", "swift", {"step": "fedavg"}, lr=0.03),
    Arm("whitened rounds, whole model, no mask", "fine_tune", {"step": "whitened", "loss": "cells"}, whitened=True),
    Arm("whitened rounds, SWiFT", "swift", {"step": "whitened"}, whitened=True),
    Arm("whitened rounds, head (private_head)", "private_head", whitened=True),
)


def half_of_parts(seed: int) -> list[str]:
    """A random half of the model's parts outside the head, from a public stream."""
    names = [bit.name for bit in bits_of(parts_of(resnet_small(), "head."), "parts", outside=True)]
    chosen = numpy_stream(seed, "bytes_to_gap", "support").permutation(len(names))[: len(names) // 2]
    return sorted(names[index] for index in chosen)


def run_row(arm: Arm, rounds: int, seed: int, cache: Path, lr: float | None = None) -> Json:
    """One run: what it did to the gap, and the bytes that a hospital moved, the mean over hospitals."""
    with tempfile.TemporaryDirectory(prefix="bytes-to-gap-") as folder:
        (run,) = trained(arm.design(rounds, seed, lr), seed, cache, Path(folder) / "run")
        base, after = (score(run.path / name, seed) for name in ("base.safetensors", "model.safetensors"))
        moved = bytes_of(run)
    return {
        "arm": arm.name,
        "rounds": rounds,
        "seed": seed,
        **moved,
        "base": base,
        "after": after,
        **relative(base, after),
        "commit": commit(),
    }


def bytes_of(run: RunFolder) -> dict[str, int]:
    """Bytes down and up by hospital of all releases of a run."""
    rows = [json.loads(line) for line in (run.path / "rounds.jsonl").read_text().splitlines()]
    return {way: round(sum(sum(row[way].values()) for row in rows) / HOSPITALS) for way in ("bytes_down", "bytes_up")}


def rows(seeds: Sequence[int], cache: Path, known: set[tuple[str, int, int]]) -> Iterator[Json]:
    """Every row that is not known yet."""
    for seed in seeds:
        for arm in ARMS:
            for rounds in ROUNDS:
                if (arm.name, rounds, seed) not in known:
                    yield run_row(arm, rounds, seed, cache)


def choose(cache: Path) -> Iterator[str]:
    """For every average the rate at which the gap falls most on seed 100 without loss of balanced accuracy."""
    for arm in ARMS:
        if arm.whitened:
            continue
        found = {lr: run_row(arm, CHOOSE_ROUNDS, CHOOSE_SEED, cache, lr) for lr in RATES}
        kept = {lr: row for lr, row in found.items() if held(row)}
        best = max(kept, key=lambda lr: float(kept[lr]["equalized_odds_mean_fall"]), default=None)
        falls = {lr: round(row["equalized_odds_mean_fall"], 3) for lr, row in found.items()}
        yield f"{arm.name}: {best} (falls {falls}, of these kept {sorted(kept)})"


def held(row: Json) -> bool:
    """Whether the model decides no worse than the vendor's."""
    return bool(row["after"]["balanced_accuracy"] >= row["base"]["balanced_accuracy"])


def bytes_to_target(found: Sequence[Json], arm: str, seed: int) -> float | None:
    """Least bytes at which a run of this seed has reached the target; None where none has."""
    reached = [
        row["bytes_down"] + row["bytes_up"]
        for row in found
        if (row["arm"], row["seed"]) == (arm, seed) and row["equalized_odds_mean_fall"] >= TARGET and held(row)
    ]
    return min(reached, default=None)


def by_round(curve: Sequence[Json]) -> float | None:
    """Bytes up of one more round, from the two longest runs; None where there are no two."""
    if len(curve) < 2:
        return None
    before, last = curve[-2:]
    return float((last["bytes_up"] - before["bytes_up"]) / (last["rounds"] - before["rounds"]))


def summary(found: Sequence[Json]) -> list[Json]:
    """By arm: bytes and fall after each number of rounds, and the bytes to the target beside dense averages'."""
    seeds = sorted({row["seed"] for row in found})
    dense = {seed: bytes_to_target(found, DENSE, seed) for seed in seeds}
    table = []
    for arm in ARMS:
        curve = []
        for rounds in ROUNDS:
            mine = [row for row in found if (row["arm"], row["rounds"]) == (arm.name, rounds)]
            if mine:
                falls = [row["equalized_odds_mean_fall"] for row in mine if held(row)]
                curve.append(
                    {
                        "rounds": rounds,
                        "bytes_down": float(np.mean([row["bytes_down"] for row in mine])),
                        "bytes_up": float(np.mean([row["bytes_up"] for row in mine])),
                        "runs": len(mine),
                        "held": len(falls),
                        "fall": round(float(np.mean(falls)), 4) if falls else None,
                        "least": round(min(falls), 4) if falls else None,
                        "most": round(max(falls), 4) if falls else None,
                    }
                )
        each = {seed: bytes_to_target(found, arm.name, seed) for seed in seeds}
        reached = {seed: value for seed, value in each.items() if value is not None}
        ratios = [value / other for seed, value in reached.items() if (other := dense[seed]) is not None]
        table.append(
            {
                "arm": arm.name,
                "lr": arm.lr,
                "curve": curve,
                "bytes_up_a_round": by_round(curve),
                "seeds": len(seeds),
                "reached": len(reached),
                "bytes": [min(reached.values()), float(np.median(list(reached.values()))), max(reached.values())]
                if reached
                else None,
                "of_dense": [min(ratios), float(np.median(ratios)), max(ratios)] if ratios else None,
            }
        )
    return table


def section(result: Json) -> str:
    """The section of docs/evidence.md."""
    heads = (
        "rounds of",
        "bytes to half of the gap, median (least to most)",
        "of dense averages'",
        "reached",
    )
    falls = tuple(f"fall, {rounds} rounds" if rounds > 1 else "fall, 1 round" for rounds in ROUNDS)
    lines = [f"| {' | '.join((*heads, *falls, 'bytes up a round'))} |", "|---" * (len(heads) + len(falls) + 1) + "|"]
    for row in result["summary"]:
        moved, share = row["bytes"], row["of_dense"]
        cells = [
            row["arm"] + ("" if row["lr"] is None else f", rate {row['lr']:g}"),
            "-" if moved is None else f"{moved[1] / 1e6:.2f} MB ({moved[0] / 1e6:.2f} to {moved[2] / 1e6:.2f})",
            "-" if share is None else f"{share[1]:.2f} ({share[0]:.2f} to {share[2]:.2f})",
            f"{row['reached']} of {row['seeds']}",
            *map(_fall, row["curve"]),
            f"{row['bytes_up_a_round'] / 1e3:,.1f} kB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    table, seeds = "\n".join(lines), sorted({row["seed"] for row in result["rows"]})
    return f"""## Bytes until half of the gap is gone

Bench A without noise. What a hospital receives and sends, whole messages, the vendor's model (0.71 MB) included; all
sums through the same 64-bit lattice. A run's rounds are fixed before it starts, so the falls are those of runs of so
many rounds: mean over seeds [least, most]. A run counts where its balanced accuracy is no lower than the vendor's
model's; the others, where a gap closes because the model decides alike for everybody, are named by their number
(*lost*) and not in the mean. *Reached*: the seeds in which a run that counts cut its gap by half; bytes are of those
seeds. *Dense averages*: federated averaging of the whole model on the
task loss with balanced cells. A random half of the parts is drawn anew for each seed; the others do not move and do
not travel. Rates of averages were chosen on seed 100, of {", ".join(f"{rate:g}" for rate in RATES)}.

{table}

Where runs of averages are lost, the rate that is best on seed 100 is too large on other seeds: one seed is little to
choose by. SWiFT with the default of 0.003 stands under Bench A. In whitened rounds the bytes are nearly all on the way
down, where the whole model is sent each round.

`{result["command"]}`, commit {result["commit"]}, {result["machine"]}, seeds {seeds}.
"""


def _fall(at: Json) -> str:
    lost = at["runs"] - at["held"]
    words = f"{lost} lost" if lost else ""
    if at["fall"] is None:
        return words
    fall = f"{100 * at['fall']:.0f} % [{100 * at['least']:.0f}, {100 * at['most']:.0f}]"
    return f"{fall}, {words}" if lost else fall


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Seeds from 0 on.")] = 5,
    cache: Annotated[Path, typer.Option(help="Folder of base models, pools and hospitals.")] = CACHE,
    choosing: Annotated[bool, typer.Option("--choose", help="Print the learning rates that seed 100 chooses.")] = False,
) -> None:
    """Run what is missing and write results/bytes-to-gap.json, row by row."""
    quiet_flower()
    torch.set_num_threads(1)
    if choosing:
        for line in choose(cache):
            print(line, flush=True)
        return
    found: list[Json] = json.loads(FILE.read_text())["rows"] if FILE.exists() else []
    known = {(row["arm"], row["rounds"], row["seed"]) for row in found}
    for row in rows(range(seeds), cache, known):
        found.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        write_whole(FILE, json.dumps(document(found), indent=1).encode())
    write_whole(FILE, json.dumps(document(found), indent=1).encode())
    print(FILE)


def document(found: Sequence[Json]) -> Json:
    """The results file."""
    seeds = len({row["seed"] for row in found})
    return {
        "command": f"python -m equipoise.simulations.benchmarks.bytes_to_gap --seeds {seeds}",
        **origin(found),
        "target": TARGET,
        "summary": summary(found),
        "rows": list(found),
    }


if __name__ == "__main__":
    typer.run(main)
