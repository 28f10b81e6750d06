"""Zhang & Zhou: importance that no group dominates, wide layers of low rank, then fine-tuning (arXiv:2403.00625).

1. *Importance.* Each group's Fisher information, the mean over the group's patients of the squared gradient of the
   task loss, summed over each row of a layer.
2. *Neutralise.* The groups' values are joined so that a large group has no larger say: their mean (or maximum,
   geometric mean, minimum). `pooled` weighs groups by their patients, which is what the method removes.
3. *Factorise.* Each declared layer W becomes A B, the nearest product of a rank where row i weighs with the root of its
   importance (`equipoise.common.factors`).
4. *Fine-tune* the factors on the plain task loss. B stays, A moves: the mean of the hospitals' A B is then the mean of
   their A times B, which it is not where both factors move. Only left factors, the layers' biases and the head travel.

The paper's body was not at hand: the row relaxation, the exact neutraliser, ranks and layers are a reconstruction
(docs/methods.md, zhang_zhou). The vendor's head is trained already, so no warm-up precedes the importance. A head of
one output has rank 1 and is never factorised.

Federated exactly: the importance is one sum over patients by group. The rank is the smallest of a declared list that
keeps `energy` of the weighted squares of all layers together; a plan lists the rounds of each rank, since it may depend
on nothing else, and one of them is asked. Under noise patients' row sums are clipped in public units, values below
`floor` times their mean are raised to it, and the left factors move in whitened rounds whose filters are the B.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from equipoise.common import catalogue
from equipoise.common.cells import Cells, task_weights
from equipoise.common.classifier import Classifier
from equipoise.common.config import validate
from equipoise.common.errors import StudyError
from equipoise.common.factors import break_even, factorise, rank_for, singular
from equipoise.common.group_fisher import PatientFisher, Scale
from equipoise.common.layout import Layout
from equipoise.common.mask import SoftMask, units
from equipoise.common.methods.averaging import LocalSteps, averaged_round, check_labels, training_query
from equipoise.common.methods.method import Method, Outcome, Steps, changed, plain_and_balanced
from equipoise.common.methods.whitened import Course, TaskRounds, plan_rounds, run_rounds, without_bias
from equipoise.common.pool import Pool, network_of
from equipoise.common.query import MOST_RELEASES, Query, Sum
from equipoise.common.space import MIXED_KERNELS
from equipoise.common.streams import numpy_stream
from equipoise.common.study import Study

Vector = NDArray[np.float64]
Neutraliser = Literal["mean", "max", "geometric", "min", "pooled"]
NARROWEST = 16  # a layer with fewer rows or columns is not wide
TINY = 1e-12


class ZhangZhou(LocalSteps):
    """Parameters of Zhang & Zhou's method."""

    layers: list[str] | None = None  # names of weights; None: every hidden layer that is wide
    neutraliser: Neutraliser = "mean"
    ranks: list[float] = Field(default=[0.0625, 0.125, 0.25, 0.5], min_length=1)  # shares of a layer's full rank
    energy: float = Field(default=0.9, gt=0, le=1)
    floor: float = Field(default=1e-3, gt=0)  # of the mean importance of a layer
    importance: Literal["groups", "ones", "permuted"] = "groups"
    loss: Literal["plain", "classes", "cells"] = "plain"
    weight_cap: float = Field(default=4.0, gt=0)
    rounds: int = Field(default=10, ge=1, le=MOST_RELEASES)
    lr: float = Field(default=3e-3, gt=0)
    whitened: TaskRounds = TaskRounds()  # under noise


def plan(study: Study, model: Classifier) -> list[Query]:
    """Every query of a run, in order; the rounds of each rank, of which one rank is asked.

    Raises:
        StudyError: a declared layer is not there or not wide, or none is.
    """
    p = _parameters(study)
    layers = wide_layers(model, p.layers, mixed=study.privacy.private)
    start = [catalogue.cell_counts(study), catalogue.group_fisher(study, layers, "channel")]
    if study.privacy.private:
        return [*start, *plan_rounds(study, model, p.whitened, _course(p))]
    of_ranks = [_layout(model, layers, share) for share in sorted(p.ranks)]
    return [*start, *(_round_query(study, layout, p, r) for layout in of_ranks for r in range(p.rounds))]


def run(study: Study, model: Classifier) -> Steps:
    """Importance, factors, rounds."""
    p = _parameters(study)
    layers = wide_layers(model, p.layers)
    cells = yield catalogue.cell_counts(study)
    counts = cells.value("patients")
    check_labels(study, counts)
    importance = yield from _importance(study, model, layers, counts, p)
    share = chosen_rank(model, layers, importance, p)
    model = factorised(model, layers, importance, share)
    facts = [_savings(model, layers, importance, p, study.privacy.private)]
    if study.privacy.private:
        filters = {
            name: pair.right.astype(np.float64).reshape(pair.rank, *layers.shapes[name][1:])
            for name, pair in model.factors.items()
        }
        mask = _only(model, layers)
        model, notes = yield from run_rounds(study, model, p.whitened, _course(p, filters), counts, mask)
        return Outcome(model, {**notes, "facts": facts})
    weights = {"task": task_weights(counts, "none" if p.loss == "plain" else p.loss, p.weight_cap)}
    layout = model.layout_of(_trained(model, layers))
    for round_ in range(p.rounds):
        query = _round_query(study, layout, p, round_)
        model, _, _ = yield from averaged_round(study, model, query, layout, None, weights)
    return Outcome(model, {"facts": facts})


def neutralised(fisher: Vector, patients: Vector, how: Neutraliser) -> Vector:
    """Importance of each unit, (units,), from the groups' Fisher information.

    Args:
        fisher: mean squared gradients by group, (G, units), at least 0.
        patients: patients by group, (G,); a group of nobody has no say.
    """
    known, n = fisher[patients > 0], patients[patients > 0]
    if how == "max":
        return np.asarray(known.max(axis=0))
    if how == "min":
        return np.asarray(known.min(axis=0))
    if how == "geometric":
        return np.asarray(np.exp(np.log(known + TINY * known.max(initial=1.0)).mean(axis=0)))
    shares = n / n.sum() if how == "pooled" else np.full(len(n), 1 / len(n))
    return np.asarray(shares @ known)


def wide_layers(model: Classifier, declared: list[str] | None, mixed: bool = False) -> Layout:
    """The weights to factorise.

    Args:
        mixed: whether only those will do that whitened rounds move by filters (`equipoise.common.space`).

    Raises:
        StudyError: a declared one is no matrix of the extractor that factors make smaller, or there is none.
    """
    shapes = model.layout("extractor").shapes
    possible = {
        name: shape
        for name, shape in shapes.items()
        if len(shape) >= 2 and break_even(shape) >= 1 and (_is_mixed(shape) or not mixed)
    }
    if declared is None:
        wide = {name: shape for name, shape in possible.items() if min(_flat(shape)) >= NARROWEST and _is_mixed(shape)}
        if not wide:
            raise StudyError(
                f"method.layers: the model has no hidden layer of at least {NARROWEST} rows and columns; name layers"
            )
        return Layout(wide)
    for name in declared:
        if name not in possible:
            raise StudyError(
                f"method.layers: {name!r} is no weight of the extractor that two factors make smaller"
                f"{' and whitened rounds can move' if mixed else ''}; there are: {', '.join(possible)}"
            )
    return Layout({name: possible[name] for name in declared})


def _is_mixed(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or shape[2:] in MIXED_KERNELS


def rank_of(shape: tuple[int, ...], share: float) -> int:
    """The rank at a share of the full rank: at least 1, and never one at which the factors are the larger."""
    return max(1, min(int(share * min(_flat(shape))), break_even(shape)))


def chosen_rank(model: Classifier, layers: Layout, importance: Mapping[str, Vector], p: ZhangZhou) -> float:
    """The smallest share at which the layers together keep `energy` of their weighted squares; else the largest."""
    state = model.state
    squares = {name: singular(state[name], importance[name])[1] ** 2 for name in layers.shapes}
    total = sum(float(values.sum()) for values in squares.values())
    for share in sorted(p.ranks):
        kept = sum(float(v[: rank_of(layers.shapes[name], share)].sum()) for name, v in squares.items())
        if kept >= p.energy * total * (1 - TINY):
            return share
    return max(p.ranks)


def factorised(model: Classifier, layers: Layout, importance: Mapping[str, Vector], share: float) -> Classifier:
    """The classifier with the layers as products."""
    state = model.state
    return model.factorised(
        {name: factorise(state[name], importance[name], rank_of(shape, share)) for name, shape in layers.shapes.items()}
    )


def _importance(
    study: Study, model: Classifier, layers: Layout, counts: Cells, p: ZhangZhou
) -> Generator[Query, Sum, dict[str, Vector]]:
    """The weight d of each row of each layer: the root of its neutralised importance, above the floor."""
    query = catalogue.group_fisher(study, layers, "channel")
    patients = np.maximum(counts[:-1].sum(axis=1), 0.0)
    if study.privacy.private:
        fisher = PatientFisher(network_of(study, model), layers, "channel")
        scale = Scale.from_pool(fisher, layers, Pool.of(study).batches())
        total = yield query.with_inputs(**model.inputs(), units=scale.arrays)
        sums = scale.energies(total.value("energies"), layers, "channel")
    else:
        total = yield query.with_inputs(**model.inputs())
        sums = total.value("energies")
    means = np.maximum(sums[:-1], 0.0) / np.maximum(patients, 1.0)[:, None]
    joined = neutralised(means, patients, p.neutraliser)
    ends = np.cumsum(list(units(layers, "channel").values()))[:-1]
    found = {}
    for name, values in zip(layers.shapes, np.split(joined, ends), strict=True):
        average = float(values.mean())
        rows = np.sqrt(np.maximum(values, p.floor * average)) if average > 0 else np.ones(len(values))
        if p.importance == "permuted":
            rows = rows[numpy_stream(study.seed, "permuted importance", name).permutation(len(rows))]
        found[name] = np.ones(len(rows)) if p.importance == "ones" else rows
    return found


def _trained(model: Classifier, layers: Layout) -> list[str]:
    """What moves: the layers' left factors and biases, and the head, in the model's order."""
    biases = {name.removesuffix("weight") + "bias" for name in layers.shapes}
    head = set(model.layout("head").shapes)
    return [name for name in model.parameters if name in layers or name in biases or name in head]


def _layout(model: Classifier, layers: Layout, share: float) -> Layout:
    """Layout of what moves, at a rank; it depends on shapes alone."""
    shapes = model.layout().shapes
    left = {name: (shape[0], rank_of(shape, share)) for name, shape in layers.shapes.items()}
    return Layout({name: left.get(name, shapes[name]) for name in _trained(model, layers)})


def _only(model: Classifier, layers: Layout) -> SoftMask:
    """1 for what moves and 0 for the rest."""
    moved = set(_trained(model, layers))
    return SoftMask({n: np.full(s, float(n in moved)) for n, s in model.layout().shapes.items()})


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], int(np.prod(shape[1:]))


def _savings(
    model: Classifier, layers: Layout, importance: Mapping[str, Vector], p: ZhangZhou, private: bool
) -> dict[str, Any]:
    """The table of ranks and bytes."""
    base = model.base
    rows, dense, thin = [], 0, 0
    for name, shape in layers.shapes.items():
        m, n = _flat(shape)
        pair = model.factors[name]
        squares = singular(base[name], importance[name])[1] ** 2
        kept = float(squares[: pair.rank].sum() / max(squares.sum(), TINY))
        wanted = rank_for(base[name], importance[name], p.energy)
        dense, thin = dense + m * n, thin + m * pair.rank
        rows.append([name, f"{m} x {n}", str(pair.rank), f"{kept:.3f}", str(wanted), str(m * n), str(m * pair.rank)])
    rest = sum(int(np.prod(model.layout().shapes[n])) for n in _trained(model, layers) if n not in layers)
    bytes_of = {"down": 4} if private else {"down": 4, "up": 8}
    for way, size in bytes_of.items():
        saved = 1 - (thin + rest) / max(dense + rest, 1)
        rows.append(
            [
                f"bytes {way} a round and hospital",
                f"dense {size * (dense + rest)}",
                f"factors {size * (thin + rest)}",
                f"saved {saved:.1%}",
                "",
                "",
                "",
            ]
        )
    columns = ["layer", "size", "rank", "weighted squares kept", f"rank for {p.energy:g}", "numbers", "that travel"]
    return {"title": "Factorised layers", "columns": columns, "rows": rows}


def _round_query(study: Study, layout: Layout, p: ZhangZhou, round_: int) -> Query:
    return training_query(study, layout, "rounds", p, 1.0, round_)


def _course(p: ZhangZhou, filters: Mapping[str, Vector] | None = None) -> Course:
    return Course("whole", "rounds", balance="none" if p.loss == "plain" else p.loss, filters=filters)


def _parameters(study: Study) -> ZhangZhou:
    return validate(ZhangZhou, study.method.parameters, "method")


def _fine_tuning(study: Study, loss: str) -> Study:
    p = _parameters(study)
    steps = {name: getattr(p, name) for name in ("rounds", "weight_cap", *LocalSteps.model_fields)}
    return study.with_method("fine_tune", loss=loss, whitened=without_bias(p.whitened), **steps)


METHOD = Method(
    name="zhang_zhou",
    title="wide layers factorised by importance in which every group has the same say, then fine-tuning of the factors",
    paper="Zhang & Zhou, arXiv:2403.00625 (a reconstruction: the paper's body was not at hand)",
    travels="cell counts, row sums of squared gradients by group, then a round's change of the left factors, biases "
    "and head, or (under noise) a round's sum of clipped vectors",
    costs="one pass with gradients, 10 rounds in which factors travel in the place of layers",
    private="clipped row sums in public units, whitened rounds of the left factors",
    parameters=ZhangZhou,
    plan=plan,
    run=run,
    controls={
        "no_mask": changed(importance="ones"),
        "permuted": changed(importance="permuted"),
        **plain_and_balanced(_fine_tuning),
    },
)
