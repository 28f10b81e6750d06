"""Do intervals hold what they say? Coverage and width of every kind, in worlds where the truth is known.

    python -m equipoise.simulations.benchmarks.coverage --replications 2000

Each world (`coverage_worlds`) is drawn again and again; each draw is tabled as hospitals do, once exactly and once
for every epsilon and place of the noise, and the figures are those of a report (`coverage_batch`). Written
down: how often the interval holds the truth, its mean width beside that of an oracle, and in which share of the draws
there was a figure at all (coverage is that of the figures that a report would print).

The **oracle** knows what no report can: the standard deviation of the estimate, sampling and noise together (taken from
the replications), and gives estimate +- 1.96 of it. For a gap or a worst group it knows those of all pairs (or groups),
and instead of Bonferroni's the exact simultaneous quantile; its limits are formed and cut at 0 like the report's.
Rates and differences of exact tables are not drawn but enumerated.

Resumable: results/coverage.json is written after each world, and worlds that are there with as many replications are
not drawn again. Noise: `once`, one noise in the sum; `local`, a whole noise from each hospital (shares, of which those
of some hospitals suffice, lie between). Epsilon is that of each table. The changes of gaps, which take longest, are
made for a tenth of the draws, of exact tables and of `local` noise at epsilon 1.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.stats import binom

from equipoise.common.fairness.auc_change import auc_gap_change, worst_group_auc_change
from equipoise.common.fairness.change import gap_change
from equipoise.common.fairness.contrasts import gap_contrasts
from equipoise.common.fairness.estimate import LEVEL, Estimate
from equipoise.common.fairness.intervals import newcombe, wilson
from equipoise.common.fairness.joint import pairs_of_joint
from equipoise.common.fairness.noise import HistogramNoise, anchored
from equipoise.common.fairness.tables import Counts, Floats, Table, counts_after
from equipoise.common.files import write_whole
from equipoise.common.streams import stream_seed
from equipoise.simulations.benchmarks.coverage_batch import (
    Aucs,
    Figure,
    Rates,
    Z,
    auc_change,
    coarse_sums,
    difference,
    largest_gap,
    paired_change,
)
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
FEWEST = 50  # figures, below which a coverage is not written down
_EODDS, _WORST = "equalized_odds_difference", "worst_group_auc"
CHANGES = (f"{_EODDS}_change", "auc_gap_change", f"{_WORST}_change")


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


@dataclass(frozen=True)
class Tables:
    """What reaches the server in one setting: tables (R, G + 1, ...) of R draws, and the variances of their noise."""

    before: Table
    after: Table
    scores: HistogramNoise
    joint: Counts
    pair: Counts
    variances: Floats
    sums: Floats | None


def released(sample: Sample, setting: Setting, rng: np.random.Generator) -> Tables:
    """The tables of a sample with the setting's noise."""
    exact = setting.shares == 0
    joint = sample.joint if exact else sample.joint + noise(sample.joint.shape, setting.epsilon, setting.shares, rng)
    blur = 0.0 if exact else noise_variance(setting.epsilon, setting.shares)
    pairs, summed = pairs_of_joint(joint.reshape(-1, *joint.shape[2:]), BEFORE, AFTER)
    pair = pairs[0].reshape(*joint.shape[:3], 2, 2)
    variances = np.broadcast_to(blur * summed[0].astype(np.float64), pair.shape[1:])
    if exact:
        return Tables(*sample.fine, HistogramNoise(0.0, 0.0), joint, pair, variances, sample.sums)
    noisy = [hist + noise(hist.shape, setting.epsilon, setting.shares, rng) for hist in sample.coarse]
    (before, scores), (after, _) = (anchored(hist, blur, pair, variances) for hist in noisy)
    return Tables(before, after, scores, joint, pair, variances, None)


def figures(tables: Tables) -> dict[str, Figure]:
    """Every figure of every draw but the changes of gaps; the minority is the last group."""
    counts, of_counts = counts_after(tables.pair)[:, :-1], counts_after(tables.variances)[:-1]
    tpr, fpr = (Rates(rate, counts, of_counts) for rate in ("tpr", "fpr"))
    last = counts.shape[1] - 1
    after, before = (Aucs(hist[:, :-1], tables.scores) for hist in (tables.after, tables.before))
    rows = tables.after.shape[1]
    of_all = HistogramNoise(tables.scores.cell * rows, tables.scores.total * rows)
    if tables.sums is None:
        sums, total = coarse_sums(tables.joint[:, last])
    else:
        sums, total = tables.sums[:, last], tables.before[:, last].sum(axis=-1).astype(np.float64)
    return {
        "tpr": tpr.of_group(last),
        "fpr": fpr.of_group(last),
        "tpr_difference": difference(tpr, last, 0),
        _EODDS: largest_gap([tpr, fpr]),
        "tpr_change": paired_change(tables.pair[:, last, 1], tables.variances[last, 1]),
        "auc": after.of_group(last),
        "auc of all": Aucs(tables.after.sum(axis=1, keepdims=True), of_all).of_group(0),
        "auc_gap": after.gap(),
        _WORST: after.worst(),
        "auc_change": auc_change(before, after, last, sums, total),
        "oracle: rates": (np.concatenate([tpr.shares, fpr.shares], axis=1),) * 3,
        "oracle: aucs": (after.value,) * 3,
    }


def changes_of_gaps(tables: Tables, draws: int) -> dict[str, Figure]:
    """The changes of gaps in the first draws, one after the other: they take a bootstrap each."""
    found: dict[str, list[Estimate]] = {name: [] for name in CHANGES}
    for k in range(min(draws, len(tables.pair))):
        blur: float | HistogramNoise = tables.scores if tables.sums is None else 0.0
        found[CHANGES[0]].append(gap_change(_EODDS, tables.pair[k], noise=tables.variances))
        exact = tables.sums is not None
        pairing = {"sums": tables.sums[k]} if tables.sums is not None else {}
        joint = None if exact else tables.joint[k]
        for name, change in ((CHANGES[1], auc_gap_change), (CHANGES[2], worst_group_auc_change)):
            found[name].append(change(tables.before[k], tables.after[k], joint=joint, noise=blur, **pairing))
    rows = {
        name: np.array([[one.value, one.low, one.high] for one in estimates], dtype=np.float64).reshape(-1, 3)
        for name, estimates in found.items()
    }
    return {name: (row[:, 0], row[:, 1], row[:, 2]) for name, row in rows.items()}


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
    chunk = max(1, min(500, 2_000_000 // len(sampler.label)))
    found: dict[str, dict[str, list[Floats]]] = {setting.name: {} for setting in settings(world)}
    for start in range(0, replications, chunk):
        sample = sampler.draw(min(chunk, replications - start), rng)
        for setting in settings(world):
            tables = released(sample, setting, rng)
            made = figures(tables)
            if len(world.groups) <= 4 and (setting.shares == 0 or (setting.shares > 1 and setting.epsilon == 1)):
                made |= changes_of_gaps(tables, max(replications // 10 - start, 0))
            for name, figure in made.items():
                found[setting.name].setdefault(name, []).append(np.stack(figure))
    truth = truths(world)
    return {
        "replications": replications,
        "truth": truth,
        "settings": {
            name: summarise({figure: np.concatenate(rows, axis=1) for figure, rows in made.items()}, truth, world)
            for name, made in found.items()
        },
    }


def summarise(drawn: dict[str, Floats], truth: dict[str, float], world: World) -> dict[str, Any]:
    """By figure: coverage, mean width, the oracle's, their ratio, draws, share of draws with a figure, bias.

    Args:
        drawn: figure -> (3, R) value, low, high, nan where there was no figure; `oracle: ...` -> (3, R, parts).
        truth: figure -> number.
        world: for the true rates and AUCs of the groups.
    """
    summary = {}
    for name, value in truth.items():
        if name not in drawn or drawn[name].shape[1] == 0:
            continue
        values, low, high = drawn[name]
        there = np.isfinite(values)
        summary[name] = {"draws": len(values), "estimable": float(there.mean())}
        if there.sum() < FEWEST:
            continue
        width = float((high - low)[there].mean())
        inside = (low[there] <= value + 1e-12) & (value - 1e-12 <= high[there])
        oracle = oracle_width(name, drawn, there, world)
        summary[name] |= {
            "coverage": float(inside.mean()),
            "width": width,
            "oracle_width": oracle,
            "ratio": width / oracle,
            "bias": float(values[there].mean()) - value,
        }
    return summary


def oracle_width(name: str, drawn: dict[str, Floats], there: NDArray[np.bool_], world: World) -> float:
    """Mean width of the oracle's interval over the draws `there`."""
    sides = {
        _EODDS: ("oracle: rates", np.concatenate(world.rates("after")), 2),
        "auc_gap": ("oracle: aucs", world.aucs("after"), 1),
        _WORST: ("oracle: aucs", world.aucs("after"), 1),
    }
    if name not in sides:
        return 2 * Z * float(drawn[name][0, there].std())
    parts, truth, blocks = sides[name]
    groups = len(world.groups)
    contrasts = -np.eye(groups) if name == _WORST else gap_contrasts([groups] * blocks, "max")
    values = drawn[parts][0, there] @ contrasts.T
    errors = values - contrasts @ truth
    spread = errors.std(axis=0)
    quantile = np.quantile((np.abs(errors) / spread).max(axis=1), LEVEL)
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
    replications: Annotated[int, typer.Option(min=10, help="Draws of each world.")] = 2000,
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
