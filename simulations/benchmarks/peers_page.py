"""docs/benchmarks-peers.md, from the figures of `equipoise.simulations.benchmarks.peers`."""

from __future__ import annotations

from itertools import pairwise
from math import log
from statistics import median
from typing import Any

NAMES = {"equipoise": "equipoise simulate", "plain": "plain PyTorch", "pfl": "pfl", "flower": "Flower with Ray"}
DONE_BY_ALL = {"local training", "imports", "counts and evaluation at the sites", "reading the hospitals"}


def page(result: dict[str, Any]) -> str:
    """The page, in Markdown."""
    compared, on, found = result["compared"], result["machine"], result["versions"]
    pfl, flower, parts = found["pfl"], found["flower"], result["parts"]
    return f"""# Simulation beside its peers

Written by `{result["command"]}` on {result["date"]}, commit {result["commit"]};
the figures behind it are in [simulations/benchmarks/results/peers.json](../simulations/benchmarks/results/peers.json).
Machine: {on["cpu"]}, {on["cores"]} cores, {on["system"]}; Python {on["python"]}, torch {on["torch"]},
NumPy {on["numpy"]}; pfl {pfl["pfl"]} with torch {pfl["torch"]}; flwr {flower["flwr"]} and ray {flower["ray"]} with
torch {flower["torch"]}.

The machine is shared with other work: wall-clock seconds say little, and CPU seconds rise where others fill the caches.
So the sides alternate, and what counts is the ratio of neighbours. CPU seconds are those of a process and of all that
it starts; Ray's daemons and workers, for which nobody waits, are counted one by one. Memory is what all processes hold
together, shared pages counted once.

## The same work, {compared["rounds"]} rounds

The definition is that of pfl's benchmark of CIFAR-10: fifty sites a round, 50 images of 32 x 32 each, batches of 10,
one local epoch of SGD without momentum, plain means. Three things differ: the images are synthetic, so that nothing is
downloaded; the network is a residual one of 174,265 parameters, with one output; the learning rate is 0.01. pfl draws
its fifty from a thousand users; equipoise draws none, since every hospital takes part in every round, so here there are
fifty sites and all take part. Network, images, order of the batches and averaging are the same on all sides.

{_sides(result)}

*Weights apart*: largest distance from the plain script's final weights, as a share of the way that those went from the
start. Sums in another order round otherwise, and steps make more of it: Flower, whose replies come in no fixed order,
ends {_flowers_ends(compared)} away in different turns. The program refuses to write a page above
{result["bounds"]["difference"]:g}; a test shows that a round more or less is farther than that.

All sides read the sites' tables and PNG images, train, and evaluate the vendor's model and their own on every site's
test patients.

- `equipoise simulate` is the whole command with one worker: besides, site agents with their policy and ledger, a sealed
  reply for each release, messages through Flower's protobuf, integer sums, the transcript and the report.
- [peer_plain.py](../simulations/benchmarks/yardsticks/peer_plain.py) is a script and nothing else. It is frozen.
- [peer_pfl.py](../simulations/benchmarks/yardsticks/peer_pfl.py) is pfl's `SimulatedBackend` and `FederatedAveraging`
  in one process.
- [peer_flower.py](../simulations/benchmarks/yardsticks/peer_flower.py) is Flower's `FedAvg`, with two actors of one CPU
  each.

{_verdict(result)}

## Where equipoise's seconds go

One more run with clocks in it, {parts["total_s"]:.1f} s of CPU, of which local training is what the plain script does
too. That script's start (torch, and the compiler that `torch.optim` loads) takes {parts["plain_start_s"]:.1f} s.

| part | CPU seconds | ms by site and round |
|---|---|---|
{_parts(result)}

## Ever more sites

Small sites of 10 training and 2 test images, one round, two evaluated models; all sites answer every release.

| sites | releases | CPU seconds | by site and release, ms | of the sites added, ms | peak memory, MiB |
|---|---|---|---|---|---|
{_many(result)}

{_growth(result)}
"""


def _sides(result: dict[str, Any]) -> str:
    compared, bounds = result["compared"], result["bounds"]
    heads = (
        "side",
        "CPU seconds, median",
        "peak memory, MiB",
        "processes",
        f"equipoise / this, median (least to greatest of {len(compared['rows'])})",
        "bound",
        "weights apart",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for side, name in NAMES.items():
        spent = [row["spent"][side] for row in compared["rows"]]
        cpu, memory = (median(one[key] for one in spent) for key in ("cpu_s", "peak_mib"))
        ratio, bound, apart = "1", "", "-"
        if side in compared["ratios"]:
            of = compared["ratios"][side]
            ratio = f"{of['median']:.2f} ({of['least']:.2f} to {of['greatest']:.2f})"
            bound = f"{bounds[side]:.2f}"
        if side != "plain":
            apart = f"{max(row['difference'][side] for row in compared['rows']):.1e}"
        most = max(one["processes"] for one in spent)
        lines.append(f"| {name} | {cpu:.1f} | {memory:.0f} | {most} | {ratio} | {bound} | {apart} |")
    return "\n".join(lines)


def _verdict(result: dict[str, Any]) -> str:
    bounds, ratios = result["bounds"], result["compared"]["ratios"]
    kept = [side for side in ratios if ratios[side]["median"] <= bounds[side]]
    missed = [side for side in ratios if side not in kept]
    text = ""
    if kept:
        text += f"Kept: the bound against {_listed([NAMES[side] for side in kept])}. "
    if missed:
        parts = {name: seconds for name, seconds in result["parts"]["parts"].items() if name not in DONE_BY_ALL}
        slowest = sorted(parts, key=lambda name: -parts[name])[:3]
        text += (
            f"Missed: the bound against {_listed([NAMES[side] for side in missed])}. What a training loop does not "
            f"have is what costs; most of it is {_listed(slowest)}."
        )
    return text.strip()


def _flowers_ends(compared: dict[str, Any]) -> str:
    found = [row["difference"]["flower"] for row in compared["rows"]]
    return f"{min(found):.1e} to {max(found):.1e}"


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _parts(result: dict[str, Any]) -> str:
    found, rounds = result["parts"], result["compared"]["rounds"]
    in_rounds = ("local training", "ledger and sealed replies", "messages", "integers", "the coordinator")
    lines = []
    for name, seconds in sorted(found["parts"].items(), key=lambda item: -item[1]):
        by_round = f"{1000 * seconds / rounds / 50:.2f}" if name.startswith(in_rounds) else ""
        lines.append(f"| {name} | {seconds:.2f} | {by_round} |")
    return "\n".join(lines)


def _many(result: dict[str, Any]) -> str:
    rows = result["many_sites"]["rows"]
    added = [None, *((b["cpu_s"] - a["cpu_s"]) / (b["sites"] - a["sites"]) / b["releases"] for a, b in pairwise(rows))]
    return "\n".join(
        f"| {row['sites']} | {row['releases']} | {row['cpu_s']:.1f} | "
        f"{1000 * row['cpu_s'] / row['sites'] / row['releases']:.1f} | "
        f"{'' if more is None else f'{1000 * more:.1f}'} | {row['peak_mib']:.0f} |"
        for row, more in zip(rows, added, strict=True)
    )


def _growth(result: dict[str, Any]) -> str:
    many, bound = result["many_sites"], result["bounds"]["memory_exponent"]
    first, last = many["rows"][0], many["rows"][-1]
    by_site = 1024 * (last["peak_mib"] - first["peak_mib"]) / (last["sites"] - first["sites"])

    def slope(figure: str) -> float:
        before, after = many["rows"][-2:]
        return log(after[figure] / before[figure]) / log(after["sites"] / before["sites"])

    flat = "which counts as flat" if many["memory_exponent"] <= bound else "which is not flat"
    costlier = ": there each added site costs more than the one before" if slope("cpu_s") > 1 else ""
    return (
        f"Peak memory grows as the number of sites to the power {many['memory_exponent']:.3f} (least squares on "
        f"logarithms), {flat} (bound {bound:g}): {by_site:.0f} KiB a site, decoded images included, on top of what "
        f"one site takes; between the last two rows alone the power is {slope('peak_mib'):.3f}. CPU seconds grow as "
        f"the power {many['cpu_exponent']:.2f} over all rows, since the start is paid once, and as "
        f"{slope('cpu_s'):.2f} between the last two{costlier}."
    )
