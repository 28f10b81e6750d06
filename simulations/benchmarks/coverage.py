"""Do intervals hold what they say? Coverage and width of every kind, in worlds where the truth is known.

    python -m equipoise.simulations.benchmarks.coverage --replications 2000

Each world (`coverage_worlds`) is drawn again and again; each draw is tabled as hospitals do, once exactly and once
for every epsilon and place of the noise, and the figures are made by the functions that make them in a report. Written
down: how often the interval holds the truth, its mean width beside that of an oracle, and in which share of the draws
there was a figure at all (coverage is that of the figures that a report would print).

The **oracle** knows what no report can: the standard deviation of the estimate, sampling and noise together (taken from
the replications), and gives estimate +- 1.96 of it. For a gap or a worst group it knows those of all pairs (or groups),
and instead of Bonferroni's the exact simultaneous quantile; its limits are formed and cut at 0 like the report's.
Rates and differences of exact tables are not drawn but enumerated.

Resumable: results/coverage.json is written after each world, and worlds that are there with as many replications are
not drawn again. Noise: `once`, one noise in the sum; `local`, a whole noise from each hospital (shares, of which those
of some hospitals suffice, lie between). Epsilon is that of each table. The changes of gaps, which take longest, are
made for exact tables and for `local` noise at epsilon 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy.stats import binom

from equipoise.common.fairness.auc import auc_by_group, auc_gap, overall_auc, worst_group_auc
from equipoise.common.fairness.auc_change import auc_change_by_group, auc_gap_change, worst_group_auc_change
from equipoise.common.fairness.change import gap_change, rate_change_by_group
from equipoise.common.fairness.contrasts import gap_contrasts
from equipoise.common.fairness.estimate import LEVEL, Estimate
from equipoise.common.fairness.intervals import newcombe, normal_quantile, wilson
from equipoise.common.fairness.joint import pairs_of_joint
from equipoise.common.fairness.noise import HistogramNoise, anchored
from equipoise.common.fairness.rates import gap, rate_by_group
from equipoise.common.fairness.reference import difference
from equipoise.common.fairness.tables import Counts, Floats, Table, counts_after
from equipoise.common.files import write_whole
from equipoise.common.streams import stream_seed
from equipoise.simulations.benchmarks.coverage_worlds import (
    AFTER,
    BEFORE,
    Sample,
    Sampler,
    World,
    noise,
    noise_variance,
    worlds,
)

RESULTS = Path(__file__).parent / "results" / "coverage.json"
EPSILONS = (0.5, 1.0, 3.0)
FEWEST = 100  # figures, below which a coverage is not written down
Z = normal_quantile(LEVEL)
_EODDS, _WORST = "equalized_odds_difference", "worst_group_auc"


@dataclass(frozen=True)
class Setting:
    """Where the noise of a table comes from: none, or `shares` times discrete Laplace noise of scale 1 / epsilon."""

    name: str
    epsilon: float = math.inf
    shares: float = 0.0


def settings(world: World) -> list[Setting]:
    """Exact tables, and each epsilon with the noise added once or by each hospital."""
    places = {"once": 1.0} | {f"local, {sites} sites": float(sites) for sites in world.sites}
    noisy = [Setting(f"{place}, epsilon {e:g}", e, shares) for place, shares in places.items() for e in EPSILONS]
    return [Setting("exact"), *noisy]


def figures(
    sample: Sample, setting: Setting, rng: np.random.Generator
) -> Iterator[tuple[str, Estimate | tuple[Estimate, ...]]]:
    """Every figure of one draw, made from its tables as a report makes it; the minority is the last group."""
    joint, sums, blur = sample.joint, sample.sums, 0.0
    before: Table
    after: Table
    before, after = sample.fine
    scores: float | HistogramNoise = 0.0
    exact = setting.shares == 0
    if not exact:
        joint = joint + noise(joint.shape, setting.epsilon, setting.shares, rng)
        blur = noise_variance(setting.epsilon, setting.shares)
    pairs, summed = pairs_of_joint(joint, BEFORE, AFTER)
    pair: Counts = pairs[0]
    variances: Floats = blur * summed[0].astype(np.float64)
    if not exact:
        noisy = [hist + noise(hist.shape, setting.epsilon, setting.shares, rng) for hist in sample.coarse]
        (before, scores), (after, _) = (anchored(hist, blur, pair, variances) for hist in noisy)
    counts, of_counts = counts_after(pair), counts_after(np.broadcast_to(variances, pair.shape))
    last = len(pair) - 2
    tprs, fprs = (rate_by_group(rate, counts, noise=of_counts)[:-1] for rate in ("tpr", "fpr"))
    yield "tpr by group", tprs
    yield "fpr by group", fprs
    yield "tpr", tprs[last]
    yield "fpr", fprs[last]
    yield "tpr_difference", difference("tpr", counts, last, 0, noise=of_counts)
    yield _EODDS, gap(_EODDS, counts, noise=of_counts)
    yield "tpr_change", rate_change_by_group("tpr", pair, noise=variances)[last]
    aucs = auc_by_group(after, noise=scores)[:-1]
    yield "auc by group", aucs
    yield "auc", aucs[last]
    yield "auc of all", overall_auc(after, noise=scores)
    yield "auc_gap", auc_gap(after, noise=scores)
    yield _WORST, worst_group_auc(after, noise=scores)
    if exact:
        yield "auc_change", auc_change_by_group(before, after, sums=sums)[last]
    else:
        yield "auc_change", auc_change_by_group(before, after, joint=joint, noise=scores)[last]
    if last > 3 or not (exact or (setting.shares > 1 and setting.epsilon == 1)):
        return
    yield f"{_EODDS}_change", gap_change(_EODDS, pair, noise=variances)
    if exact:
        yield "auc_gap_change", auc_gap_change(before, after, sums=sums)
        yield f"{_WORST}_change", worst_group_auc_change(before, after, sums=sums)
    else:
        yield "auc_gap_change", auc_gap_change(before, after, joint=joint, noise=scores)
        yield f"{_WORST}_change", worst_group_auc_change(before, after, joint=joint, noise=scores)


def truths(world: World) -> dict[str, float]:
    """What each figure of `figures` estimates."""
    (tpr_before, fpr_before), (tpr, fpr) = world.rates("before"), world.rates("after")
    auc_before, auc = world.aucs("before"), world.aucs("after")
    eodds = [max(float(np.ptp(t)), float(np.ptp(f))) for t, f in ((tpr_before, fpr_before), (tpr, fpr))]
    positives = np.array([group.positives for group in world.groups])
    return {
        "tpr": float(tpr[-1]),
        "fpr": float(fpr[-1]),
        "tpr_difference": float(tpr[-1] - tpr[0]),
        _EODDS: eodds[1],
        "tpr_change": float(tpr[-1] - tpr_before[-1]),
        "auc": float(auc[-1]),
        "auc of all": float(positives @ auc) / float(positives.sum()),  # negatives are alike in all groups
        "auc_gap": float(np.ptp(auc)),
        _WORST: float(auc.min()),
        "auc_change": float(auc[-1] - auc_before[-1]),
        f"{_EODDS}_change": eodds[1] - eodds[0],
        "auc_gap_change": float(np.ptp(auc) - np.ptp(auc_before)),
        f"{_WORST}_change": float(auc.min() - auc_before.min()),
    }


def simulate(world: World, replications: int) -> dict[str, Any]:
    """Coverage, width and the oracle's width of every figure in every setting of a world."""
    sampler = Sampler(world)
    rng = np.random.default_rng(stream_seed(0, "coverage", world.name))
    found: dict[str, dict[str, list[Floats]]] = {setting.name: {} for setting in settings(world)}
    for _ in range(replications):
        sample = sampler.draw(rng)
        for setting in settings(world):
            for name, estimates in figures(sample, setting, rng):
                rows = estimates if isinstance(estimates, tuple) else (estimates,)
                numbers = np.array([[one.value, one.low, one.high] for one in rows], dtype=np.float64)
                if any(one.reason.startswith("without") for one in rows):
                    numbers[:] = np.nan  # a gap that speaks of fewer groups estimates something else
                found[setting.name].setdefault(name, []).append(numbers)
    truth = truths(world)
    return {
        "replications": replications,
        "truth": truth,
        "settings": {
            name: summarise({figure: np.stack(rows) for figure, rows in of_setting.items()}, truth, world)
            for name, of_setting in found.items()
        },
    }


def summarise(drawn: dict[str, Floats], truth: dict[str, float], world: World) -> dict[str, Any]:
    """By figure: coverage, mean width, the oracle's, their ratio, share of draws with a figure, bias.

    Args:
        drawn: figure -> (replications, rows, 3) value, low, high; nan where there was no figure. A row a group for the
            figures `... by group`.
        truth: figure -> number.
        world: for the true rates and AUCs of the groups.
    """
    summary = {}
    for name, value in truth.items():
        if name not in drawn:
            continue
        values, low, high = drawn[name][:, 0].T
        there = np.isfinite(values)
        if there.sum() < FEWEST:
            summary[name] = {"estimable": float(there.mean())}
            continue
        width = float((high - low)[there].mean())
        inside = (low[there] <= value + 1e-12) & (value - 1e-12 <= high[there])
        oracle = oracle_width(name, drawn, there, world)
        summary[name] = {
            "estimable": float(there.mean()),
            "coverage": float(inside.mean()),
            "width": width,
            "oracle_width": oracle,
            "ratio": width / oracle,
            "bias": float(values[there].mean()) - value,
        }
    return summary


def oracle_width(name: str, drawn: dict[str, Floats], there: Any, world: World) -> float:
    """Mean width of the oracle's interval over the draws `there`."""
    sides = {
        _EODDS: (("tpr by group", "fpr by group"), np.concatenate(world.rates("after"))),
        "auc_gap": (("auc by group",), world.aucs("after")),
        _WORST: (("auc by group",), world.aucs("after")),
    }
    if name not in sides:
        return 2 * Z * float(drawn[name][there, 0, 0].std())
    parts, truth = sides[name]
    shares = np.concatenate([drawn[part][there, :, 0] for part in parts], axis=1)
    groups = len(world.groups)
    contrasts = -np.eye(groups) if name == _WORST else gap_contrasts([groups] * len(parts), "max")
    values = shares @ contrasts.T
    spread = (values - contrasts @ truth).std(axis=0)
    quantile = np.quantile((np.abs(values - contrasts @ truth) / spread).max(axis=1), LEVEL)
    low, high = ((values + sign * quantile * spread).max(axis=1) for sign in (-1, 1))
    if name != _WORST:
        low = np.maximum(low, 0.0)
    return float((high - low).mean())


SHARES = (0.05, 0.1, 0.158, 0.2, 0.5, 0.637, 0.758, 0.8, 0.9, 0.95)
TRIALS = (10, 20, 40, 50, 80, 100, 200, 600, 1000)
DIFFERENCES = (
    (10, 40, 0.9, 0.9),
    (20, 80, 0.9, 0.9),
    (200, 600, 0.9, 0.9),
    (20, 60, 0.637, 0.758),
    (50, 150, 0.637, 0.758),
    (100, 300, 0.637, 0.758),
    (200, 600, 0.637, 0.758),
    (20, 20, 0.8, 0.8),
    (50, 50, 0.8, 0.8),
    (200, 200, 0.8, 0.8),
    (40, 160, 0.158, 0.159),
)


def enumerated() -> dict[str, Any]:
    """Coverage and width of Wilson's and Newcombe's intervals by adding up all outcomes; nothing is drawn.

    The oracle gives +- 1.96 true standard deviations.
    """
    rates = []
    for n in TRIALS:
        limits = np.array([wilson(x, n) for x in range(n + 1)])
        for p in SHARES:
            chance = binom.pmf(np.arange(n + 1), n, p)
            inside = (limits[:, 0] <= p) & (p <= limits[:, 1])
            rates.append(_row({"n": n, "p": p}, chance, inside, limits, math.sqrt(p * (1 - p) / n)))
    differences = []
    for m, n, p, q in DIFFERENCES:
        chance = np.outer(binom.pmf(np.arange(m + 1), m, p), binom.pmf(np.arange(n + 1), n, q))
        likely = np.argwhere(chance > 1e-9)
        weight = chance[likely[:, 0], likely[:, 1]]
        limits = np.array([newcombe(int(x), m, int(y), n) for x, y in likely])
        inside = (limits[:, 0] <= p - q + 1e-12) & (p - q - 1e-12 <= limits[:, 1])
        spread = math.sqrt(p * (1 - p) / m + q * (1 - q) / n)
        differences.append(_row({"n": [m, n], "p": [p, q]}, weight, inside, limits, spread))
    return {"rates": rates, "differences": differences}


def _row(what: dict[str, Any], chance: Floats, inside: Any, limits: Floats, spread: float) -> dict[str, Any]:
    width, oracle = float(chance @ (limits[:, 1] - limits[:, 0])), 2 * Z * spread
    return {**what, "coverage": float(chance @ inside), "width": width, "oracle_width": oracle, "ratio": width / oracle}


def main(
    replications: Annotated[int, typer.Option(min=FEWEST, help="Draws of each world.")] = 2000,
    only: Annotated[str, typer.Option(help="Worlds whose name contains this.")] = "",
    out: Annotated[Path, typer.Option(help="The results file, continued where it is there.")] = RESULTS,
) -> None:
    """Draw every world that the results lack, or have with fewer draws."""
    results = json.loads(out.read_text()) if out.exists() else {"worlds": {}}
    if "enumerated" not in results:
        results["enumerated"] = enumerated()
    for world in worlds():
        have = results["worlds"].get(world.name, {}).get("replications", 0)
        if only in world.name and have < replications:
            results["worlds"][world.name] = simulate(world, replications)
            write_whole(out, json.dumps(results, indent=1).encode())
            print(f"{world.name}: {replications} draws", flush=True)
    write_whole(out, json.dumps(results, indent=1).encode())


if __name__ == "__main__":
    typer.run(main)
