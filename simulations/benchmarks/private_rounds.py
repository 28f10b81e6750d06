"""Private full-gradient rounds on bench A, in plain memory: what they do to the gap at which epsilon.

    python -m equipoise.simulations.benchmarks.private_rounds --seeds 0 --seeds 1 --seeds 2 --seeds 3

A feasibility study of the mathematics in `equipoise.common` (space, whitening, private_step), not of the product: no
agent, ledger, lattice or secure sum, and noise comes from a seeded generator so that a row repeats. Six hospitals of
300 patients; each seed has its own data and base model. Settings were chosen on seeds from 100 on, so that seeds below
are new to them. Budgets are Gaussian differential privacy (Dong, Roth & Su 2022, arXiv:1905.02383), exact for full
batches: mu^2 = mu_counts^2 + mu_mask^2 + T / sigma^2, at delta 1e-5, add or remove one patient.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.optimize import brentq
from scipy.stats import norm, rankdata
from torch import Tensor, nn

from equipoise.common.files import write_whole
from equipoise.common.losses import cell_index
from equipoise.common.models import normalise, resnet_small
from equipoise.common.private_step import CollapseGuard, Descent, contributions, joint_bound, round_weights, split_total
from equipoise.common.space import Kind, Space
from equipoise.common.study import ImageInputs, ModelSpec
from equipoise.common.study_simulation import Recipe
from equipoise.common.whitening import Whitening, check_pool, pool_gradients, whiten
from equipoise.simulations.pretrain import pretrain
from equipoise.simulations.synthetic import (
    ImageSet,
    diverse_pool,
    hospital_set,
    hospitals_of,
    joint_test,
    stream,
    vendor_pool,
    vendor_set,
)

Mode = Literal["none", "once", "local"]
Pool = Literal["U1", "U2"]
Figures = dict[str, float]
Vector = NDArray[np.float64]

CACHE = Path(tempfile.gettempdir()) / "private-rounds"
RESULTS = Path(__file__).parent / "results"
HOSPITALS, PATIENTS, DELTA = 6, 300, 1e-5
INPUTS = ImageInputs(kind="image", size=32, channels=3, mean=0.5, std=0.25)
MODEL = ModelSpec(factory="equipoise.common.models:resnet_small", head="head.")
COUNTS_SHARE, MASK_SHARE = 0.03, 0.15  # of mu^2; a mask only where the space is `whole`


@dataclass(frozen=True)
class Settings:
    """One design of private rounds."""

    space: Kind
    beta: float
    damp: float
    directions: int | None
    rounds: int
    lr: float
    percentile: float = 60.0
    memory: float = 0.5  # weight of the newest sums of scores

    @property
    def mask_share(self) -> float:
        """Share of mu^2 that is set aside for a mask."""
        return MASK_SHARE if self.space == "whole" else 0.0


SETTINGS = {
    "head": Settings("head", beta=1.0, damp=0.01, directions=24, rounds=10, lr=1.5),
    "whole": Settings("whole", beta=0.9, damp=0.1, directions=32, rounds=10, lr=0.4),
}
ARMS: tuple[tuple[Mode, float | None], ...] = (("none", None), ("once", 3), ("local", 3), ("once", 1), ("local", 1))


@dataclass(frozen=True)
class Noise:
    """Standard deviations relative to one patient's bound, and how many hospitals add them."""

    counts: float
    rounds: float
    times: int

    @classmethod
    def of(cls, mode: Mode, epsilon: float | None, settings: Settings) -> Noise:
        """The noise of a budget; `none` adds none."""
        if mode == "none" or epsilon is None:
            return cls(0.0, 0.0, 1)
        mu = gaussian_mu(epsilon, DELTA)
        share = 1 - COUNTS_SHARE - settings.mask_share
        sigma = (settings.rounds / share) ** 0.5 / mu
        return cls(1 / (mu * COUNTS_SHARE**0.5), sigma, HOSPITALS if mode == "local" else 1)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu at which mu-Gaussian privacy is (epsilon, delta)-privacy (Dong, Roth & Su 2022, corollary 2.13)."""

    def excess(mu: float) -> float:
        first, second = norm.cdf(-epsilon / mu + mu / 2), norm.cdf(-epsilon / mu - mu / 2)
        return float(first - np.exp(epsilon) * second - delta)

    return float(brentq(excess, 1e-3, 20))


@dataclass
class Bench:
    """One seed's base model, patients, test set and pools, decoded."""

    seed: int
    state: dict[str, Tensor]

    @classmethod
    def open(cls, seed: int, cache: Path) -> Bench:
        """Bench A at a seed; the base model is trained once and kept in `cache`."""
        file = cache / f"bench-A-{seed}.safetensors"
        if not file.exists():
            cache.mkdir(parents=True, exist_ok=True)
            save_file(pretrain(MODEL, INPUTS, vendor_set("A", seed).as_split(), Recipe(), seed), file)
        return cls(seed, load_file(file))

    def model(self) -> nn.Module:
        """The base model, in a module of its own."""
        model = resnet_small().eval()
        model.load_state_dict(self.state)
        return model

    @cached_property
    def cohort(self) -> tuple[Tensor, Tensor, Tensor]:
        """All hospitals' training patients: inputs, label, group."""
        sets = [
            hospital_set(hospital, PATIENTS, stream(self.seed, "hospital", index, "train"))
            for index, hospital in enumerate(hospitals_of(HOSPITALS))
        ]
        return (
            torch.cat([_inputs(part.images) for part in sets]),
            torch.from_numpy(np.concatenate([part.label for part in sets])),
            torch.from_numpy(np.concatenate([part.group for part in sets])),
        )

    @cached_property
    def test(self) -> tuple[Tensor, ImageSet]:
        """The joint test set."""
        drawn = joint_test(self.seed, HOSPITALS)
        return _inputs(drawn.images), drawn

    def pool(self, name: Pool) -> Tensor:
        """Unlabelled public images."""
        return _inputs(diverse_pool(self.seed, HOSPITALS) if name == "U2" else vendor_pool("A", self.seed))

    def figures(self, model: nn.Module) -> Figures:
        """What the test patients say of a model."""
        inputs, drawn = self.test
        with torch.no_grad():
            logits = torch.cat([model(x) for x in torch.split(inputs, 256)]).double().numpy()
        return figures_of(logits, drawn.label, drawn.group)


def _inputs(images: NDArray[np.uint8]) -> Tensor:
    return normalise(INPUTS, torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous())


def figures_of(logits: Vector, label: NDArray[np.int64], group: NDArray[np.int64]) -> Figures:
    """Gaps in the mean form at score 0.5 and at the median score, AUCs and balanced accuracy."""

    def rates(positive: NDArray[np.bool_]) -> Vector:
        return np.array([[positive[(group == a) & (label == y)].mean() for y in (0, 1)] for a in (0, 1)])

    def auc(chosen: NDArray[np.bool_]) -> float:
        ranks, positive = rankdata(logits[chosen]), label[chosen] == 1
        count = int(positive.sum())
        area = (ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(ranks) - count))
        return float(area)

    at_half, matched = rates(logits > 0), rates(logits > np.median(logits))
    recall = [(logits[label == 0] <= 0).mean(), (logits[label == 1] > 0).mean()]
    return {
        "equalized_odds_mean": float(np.abs(at_half[1] - at_half[0]).mean()),
        "equalized_odds_mean_rate_matched": float(np.abs(matched[1] - matched[0]).mean()),
        "auc": auc(np.ones(len(label), dtype=np.bool_)),
        "worst_group_auc": min(auc(group == 0), auc(group == 1)),
        "balanced_accuracy": float(np.mean(recall)),
    }


@dataclass(frozen=True)
class Start:
    """What is public before the first round."""

    space: Space
    whitening: Whitening
    problems: tuple[str, ...]

    @classmethod
    def of(cls, bench: Bench, settings: Settings, pool: Pool) -> Start:
        """The space of the base model, whitened with the pool."""
        model, images = bench.model(), bench.pool(pool)
        space = Space.of(model, settings.space, head=MODEL.head, seed=bench.seed)
        logits, gradients = pool_gradients(space, model, torch.split(images, 100))
        whitening = whiten(
            logits, gradients, directions=settings.directions, damp=settings.damp, percentile=settings.percentile
        )
        return cls(space, whitening, check_pool(images, logits, gradients, whitening.directions).problems)


def private_rounds(
    bench: Bench, start: Start, settings: Settings, noise: Noise, rng: np.random.Generator
) -> tuple[nn.Module, CollapseGuard]:
    """The model after the rounds, and the guard's state."""
    inputs, label, group = bench.cohort
    cell, patient = cell_index(group, label), torch.arange(len(label))
    basis, clip = start.whitening.basis, start.whitening.clip
    by_cell = np.bincount(cell.numpy(), minlength=4).astype(np.float64)
    counts = np.zeros((3, 2))  # light, dark, unknown
    counts[:2] = (by_cell + noise.counts * noise.times**0.5 * rng.standard_normal(4)).reshape(2, 2)
    sd = noise.rounds * noise.times**0.5 * joint_bound(clip)
    descent = Descent.start(start.whitening.directions, rounds=settings.rounds, lr=settings.lr)
    guard, scores = CollapseGuard(), None
    for point in range(settings.rounds):
        model = _moved(bench, start, descent.u)
        logits, gradients = _whitened_gradients(start, model, inputs)
        task, bias = round_weights(counts, None if scores is None else scores.sums)
        vectors = contributions(logits, gradients, patient, label, cell, task, bias, beta=settings.beta, clip=clip)
        total = vectors.sum(axis=0) + sd * rng.standard_normal(vectors.shape[1])
        gradient, released = split_total(total, basis.shape[1], clip, counts, sd)
        scores = released.blended(scores, settings.memory)
        guard = guard.watched(point, scores)
        if guard.collapsed:
            break
        descent = descent.stepped(gradient, counts.sum())
    return _moved(bench, start, guard.outcome(descent)), guard


def _moved(bench: Bench, start: Start, u: Vector) -> nn.Module:
    model = bench.model()
    with torch.no_grad():
        for name, change in start.space.weight_changes(start.whitening.basis @ u).items():
            model.get_parameter(name).add_(torch.from_numpy(change).float())
    return model


def _whitened_gradients(start: Start, model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    basis, logits, gradients = torch.from_numpy(start.whitening.basis), [], []
    for x in torch.split(inputs, 100):
        z, dz = start.space.logit_gradients(model, x)
        logits.append(z)
        gradients.append(dz.double() @ basis)
    return torch.cat(logits), torch.cat(gradients)


def relative(base: Figures, after: Figures) -> Figures:
    """Relative falls of both gaps; changes of the others."""
    falls = {f"{key}_fall": 1 - after[key] / base[key] for key in base if key.startswith("equalized_odds")}
    return {**falls, **{f"{key}_change": after[key] - base[key] for key in base if "auc" in key}}


def rows(
    bench: Bench, settings: Settings, pool: Pool, arms: tuple[tuple[Mode, float | None], ...], draws: int
) -> Iterator[dict[str, object]]:
    """One row for each arm and noise draw, and one for the base model."""
    base = bench.figures(bench.model())
    yield {"seed": bench.seed, "mode": "base", **base}
    start = Start.of(bench, settings, pool)
    for mode, epsilon in arms:
        for draw in range(draws if mode != "none" else 1):
            rng = stream(bench.seed, "private_rounds_study", draw)
            begun = time.process_time()
            model, guard = private_rounds(bench, start, settings, Noise.of(mode, epsilon, settings), rng)
            after = bench.figures(model)
            yield {
                "seed": bench.seed,
                "mode": mode,
                "epsilon": epsilon,
                "draw": draw,
                **after,
                **relative(base, after),
                "collapsed": guard.collapsed,
                "guard_blind": guard.blind,
                "pool_problems": list(start.problems),
                "cpu_s": round(time.process_time() - begun, 1),
            }


def summary(found: list[dict[str, object]]) -> list[dict[str, object]]:
    """Mean, least and largest of every figure by arm."""
    table: list[dict[str, object]] = []
    for mode, epsilon in dict.fromkeys((row["mode"], row.get("epsilon")) for row in found):
        mine = [row for row in found if (row["mode"], row.get("epsilon")) == (mode, epsilon)]
        line: dict[str, object] = {"mode": mode, "epsilon": epsilon, "runs": len(mine)}
        for key, first in mine[0].items():
            if isinstance(first, float) and key not in ("epsilon", "cpu_s"):
                values = np.array([row[key] for row in mine], dtype=np.float64)
                line[key] = {name: round(float(f(values)), 4) for name, f in _STATISTICS.items()}
        table.append(line)
    return table


_STATISTICS: dict[str, Callable[[Vector], np.floating]] = {
    "mean": np.mean,
    "sd": np.std,
    "least": np.min,
    "largest": np.max,
}


def main(
    seeds: Annotated[list[int], typer.Option(help="Seeds; those from 100 on are for choosing settings.")],
    space: Annotated[str, typer.Option(help="head or whole.")] = "whole",
    pool: Annotated[str, typer.Option(help="U2, diverse, or U1, the vendor's own.")] = "U2",
    draws: Annotated[int, typer.Option(help="Noise draws an arm.")] = 1,
    cache: Annotated[Path, typer.Option(help="Folder of base models.")] = CACHE,
) -> None:
    """Run the arms and write results/private-rounds-<space>-<pool>.json."""
    if space not in SETTINGS or pool not in ("U1", "U2"):
        raise typer.BadParameter(f"--space {space} --pool {pool}: expected head or whole, U1 or U2")
    torch.set_num_threads(1)
    settings, found = SETTINGS[space], []
    for seed in seeds:
        for row in rows(Bench.open(seed, cache), settings, "U2" if pool == "U2" else "U1", ARMS, draws):
            print(json.dumps(row), file=sys.stderr, flush=True)
            found.append(row)
    value = {"settings": asdict(settings), "pool": pool, "delta": DELTA, "rows": found, "summary": summary(found)}
    file = RESULTS / f"private-rounds-{space}-{pool}.json"
    write_whole(file, json.dumps(value, indent=1).encode())
    print(file)


if __name__ == "__main__":
    typer.run(main)
