"""What the secure sum costs beside Flower's SecAgg+: CPU seconds over a plain sum, and bytes, in one process.

    python -m equipoise.simulations.benchmarks.secure_sum --date 2026-01-31

Both protocols are driven in memory, stage by stage, without a network: ours through its two state machines and the
packing, signing and checking of every reply; SecAgg+ through Flower's own functions for each of its stages [1], with
its defaults (a modulus of 2^32, shares for every site) but for the threshold, which is ours. Its records and messages
are left out, which is to its advantage. What is compared is the excess over a plain sum of the same numbers, packed,
unpacked and added by the same library. Runs alternate: on a shared machine only a ratio of neighbours means something.

Reference:
    [1] flwr.client.mod.secure_aggregation.secaggplus_mod and flwr.server.workflow.SecAggPlusWorkflow, of the installed
        version.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from equipoise.common.files import write_whole
from equipoise.common.secure_sum.coordinator import Coordinator
from equipoise.common.secure_sum.keys import Identity
from equipoise.common.secure_sum.messages import Arrays, Consents, Delivery, KeyList, Reply, Stage
from equipoise.common.secure_sum.reply import pack_reply
from equipoise.common.secure_sum.site import SecureSite
from equipoise.common.secure_sum.terms import Part, Terms
from equipoise.common.secure_sum.threshold import threshold
from equipoise.common.wire import PROTOCOL, pack, unpack
from equipoise.simulations.benchmarks.meter import Meter, Spent
from equipoise.simulations.benchmarks.origin import commit, machine
from equipoise.simulations.benchmarks.secagg_plus import plain_flower, secagg_plus

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SITES = 10
BOUNDS = {"excess_64": 1.0, "excess_32": 0.5, "site_s": 1.0, "bytes": 1.1}
Numbers = NDArray[np.int64]


def names(count: int) -> list[str]:
    """Names of `count` sites."""
    return [f"site-{number:02}" for number in range(count)]


def terms_of(keys: dict[str, Identity], size: int, bits: int) -> Terms:
    """A release of one vector."""
    count = len(keys)
    part = Part(size, bits, (2 ** (bits - 1) - 1) // count)
    cohort = {site: key.public for site, key in keys.items()}
    least = max(threshold(count), -(-4 * count // 5))
    return Terms("0" * 64, "run", 0, 0, "0" * 64, cohort, 1, least, None, {"change": part})


def ours(drawn: Callable[[int], Numbers], count: int, size: int, bits: int) -> tuple[Spent, Numbers]:
    """One release; `drawn` gives the integers of a site, made anew so that no more than one site's are held."""
    keys = {site: Identity.generate() for site in names(count)}
    terms, meter = terms_of(keys, size, bits), Meter()
    coordinator = Coordinator(terms)
    sides = {site: meter.run("site", SecureSite, terms, site, keys[site]) for site in keys}
    sent = received = 0
    while coordinator.stage is not None:
        stage = coordinator.stage
        for number, site in enumerate(keys):
            listed, arrays = meter.run("server", coordinator.request, site)
            received += sum(array.nbytes for array in arrays.values())
            points = {"change": drawn(number)} if stage is Stage.INPUT else {}
            data = meter.run("site", _answer, sides[site], keys[site], stage, listed, arrays, points)
            sent += len(data)
            meter.run("server", coordinator.receive, site, data)
        meter.run("server", coordinator.advance)
    return Spent(meter.spent["site"], meter.spent["server"], sent, received), coordinator.total()["change"]


def _answer(
    side: SecureSite,
    identity: Identity,
    stage: Stage,
    listed: Sequence[str],
    arrays: Arrays,
    points: dict[str, Numbers],
) -> bytes:
    """A site's signed reply to one stage."""
    reply: Reply
    if stage is Stage.ADVERTISE:
        reply = side.advertise()
    elif stage is Stage.SHARE:
        reply = side.share(KeyList.of(listed, arrays))
    elif stage is Stage.INPUT:
        reply = side.mask(Delivery.of(side.site, listed, arrays), points)
    elif stage is Stage.CONSISTENCY:
        reply = side.consent(listed)
    else:
        reply = side.unmask(Consents.of(listed, arrays))
    return pack_reply(side.terms, side.site, identity, reply)


def _pack(points: Numbers, dtype: type[np.generic]) -> bytes:
    return pack({"protocol": PROTOCOL}, {"change": points.astype(dtype)})


def _add(total: NDArray[Any], data: bytes) -> None:
    total += unpack(data)[1]["change"]


def plain(drawn: Callable[[int], Numbers], count: int, size: int, bits: int) -> Spent:
    """The same integers, of the same width, packed, unpacked and added without any protection."""
    meter, sent = Meter(), 0
    dtype: type[np.generic] = np.int32 if bits == 32 else np.int64
    total = np.zeros(size, dtype=dtype)
    for number in range(count):
        points = drawn(number)
        data = meter.run("site", _pack, points, dtype)
        sent += len(data)
        meter.run("server", _add, total, data)
    return Spent(meter.spent["site"], meter.spent["server"], sent, 0)


def draw_integers(size: int, bits: int) -> Callable[[int], Numbers]:
    """Integers of a site, the same whenever they are asked for."""
    most = (2 ** (bits - 1) - 1) // SITES
    return lambda number: np.random.default_rng(number).integers(-most, most + 1, size)


def draw_floats(size: int) -> Callable[[int], NDArray[np.float32]]:
    """Weights of a site, the same whenever they are asked for."""
    return lambda number: np.random.default_rng(number).normal(0, 1, size).astype(np.float32)


def beside(size: int, pairs: int) -> dict[str, Any]:
    """All four, in turn."""
    rows = []
    floats = draw_floats(size)
    mean = sum(floats(number).astype(np.float64) for number in range(SITES)) / SITES
    for _ in range(pairs):
        row: dict[str, float] = {}
        theirs, found = secagg_plus(floats, SITES, size)
        if np.abs(found - mean).max() > 1e-4:
            raise RuntimeError("SecAgg+ was driven wrongly: its mean is another")
        row["secagg_plus_s"], row["plain_flower_s"] = theirs.total_s, plain_flower(floats, SITES, size).total_s
        for bits in (32, 64):
            drawn = draw_integers(size, bits)
            spent, total = ours(drawn, SITES, size, bits)
            if (total != sum(drawn(number) for number in range(SITES))).any():
                raise RuntimeError("the secure sum is another than the plain one")
            row[f"ours_{bits}_s"], row[f"plain_{bits}_s"] = spent.total_s, plain(drawn, SITES, size, bits).total_s
            bare = SITES * size * bits // 8
            row[f"bytes_{bits}"] = (spent.sent + spent.received) / bare
        excess = row["secagg_plus_s"] - row["plain_flower_s"]
        for bits in (32, 64):
            row[f"excess_{bits}"] = (row[f"ours_{bits}_s"] - row[f"plain_{bits}_s"]) / excess
        rows.append(row)
    return {
        "sites": SITES,
        "parameters": size,
        "runs": rows,
        **{key: median(row[key] for row in rows) for key in rows[0]},
    }


def large(size: int, repeats: int) -> dict[str, Any]:
    """A vector as wide as a ResNet-18, modulo 2^64: CPU seconds a site (least of the repeats, and all of them)."""
    seconds, server, ratio = [], [], 0.0
    for _ in range(repeats):
        spent, _total = ours(draw_integers(size, 64), SITES, size, 64)
        seconds.append(spent.sites_s / SITES)
        server.append(spent.server_s)
        ratio = (spent.sent + spent.received) / (SITES * size * 8)
    return {"sites": SITES, "parameters": size, "site_s": min(seconds), "all_site_s": seconds, "server_s": min(server),
            "bytes": ratio}  # fmt: skip


def page(result: dict[str, Any]) -> str:
    """The page of the figures."""
    small, wide, on = result["beside"], result["large"], result["machine"]
    spread = {bits: [row[f"excess_{bits}"] for row in small["runs"]] for bits in (32, 64)}
    ranges = {bits: f"{min(found):.2f} to {max(found):.2f}" for bits, found in spread.items()}
    rows = [
        ("SecAgg+ (Flower), CPU s of all sites and the server", f"{small['secagg_plus_s']:.2f}", ""),
        ("plain sum by Flower's functions, CPU s", f"{small['plain_flower_s']:.2f}", ""),
        ("secure sum modulo 2^64, CPU s", f"{small['ours_64_s']:.2f}", ""),
        ("plain sum of int64, CPU s", f"{small['plain_64_s']:.2f}", ""),
        ("secure sum modulo 2^32, CPU s", f"{small['ours_32_s']:.2f}", ""),
        ("plain sum of int32, CPU s", f"{small['plain_32_s']:.2f}", ""),
        ("excess over the plain sum modulo 2^64 / SecAgg+'s", f"{small['excess_64']:.2f} ({ranges[64]})", "1.0"),
        ("excess over the plain sum modulo 2^32 / SecAgg+'s", f"{small['excess_32']:.2f} ({ranges[32]})", "0.5"),
        ("bytes up and down / bare integers, 2^64", f"{small['bytes_64']:.4f}", "1.1"),
        ("bytes up and down / bare integers, 2^32", f"{small['bytes_32']:.4f}", "1.1"),
        ("11 M integers modulo 2^64: CPU s a site, least", f"{wide['site_s']:.2f}", "1.0"),
        ("11 M integers modulo 2^64: CPU s of the server", f"{wide['server_s']:.2f}", ""),
        ("11 M integers modulo 2^64: bytes / bare integers", f"{wide['bytes']:.4f}", "1.1"),
    ]
    table = "\n".join(f"| {what} | {figure} | {bound} |" for what, figure, bound in rows)
    return f"""# What the secure sum costs

Written by `{result["command"]}` on {result["date"]}, commit {result["commit"]}; the figures behind it are in
[simulations/benchmarks/results/secure_sum.json](../simulations/benchmarks/results/secure_sum.json).
Machine: {on["cpu"]}, {on["cores"]} cores, {on["system"]}; Python {on["python"]}, flwr {on["flwr"]}, cryptography
{on["cryptography"]}, NumPy {on["numpy"]}. Load average at the start: {result["load"]:.1f}.

| {small["sites"]} sites, {small["parameters"]:,} parameters unless said otherwise | median | at most |
|---|---|---|
{table}

Both protocols run in memory in one process, in turn ({len(small["runs"])} times; in brackets least to most): Flower's
own functions of each stage of SecAgg+ with its defaults and our threshold, and ours with the packing, signing and
checking of every reply. SecAgg+ clips and rounds weights to 22 bits and adds modulo 2^32; the secure sum is exact.
[Secure sum](secure-sum.md) says what each protects against.
"""


def main(
    date: Annotated[str, typer.Option(help="Date of the figures, as in 2026-01-31.")],
    pairs: Annotated[int, typer.Option(min=1, help="Runs of each protocol, in turn.")] = 5,
    parameters: Annotated[int, typer.Option(min=1, help="Length of the vector that is compared.")] = 1_000_000,
    wide: Annotated[int, typer.Option(min=1, help="Length of the large vector.")] = 11_000_000,
    repeats: Annotated[int, typer.Option(min=1, help="Runs with the large vector.")] = 3,
) -> None:
    """Measure, print the page, write it and the figures."""
    load = os.getloadavg()[0]
    result = {
        "command": f"python -m equipoise.simulations.benchmarks.secure_sum --date {date} --pairs {pairs} "
        f"--repeats {repeats}",
        "date": date,
        "commit": commit(),
        "load": load,
        "machine": {**machine(), "cryptography": version("cryptography"), "release": platform.release()},
        "bounds": BOUNDS,
        "beside": beside(parameters, pairs),
        "large": large(wide, repeats),
    }
    write_whole(HERE / "results" / "secure_sum.json", json.dumps(result, indent=1).encode())
    write_whole(ROOT / "docs" / "benchmarks-secure-sum.md", page(result).encode())
    print(page(result))


if __name__ == "__main__":
    typer.run(main)
