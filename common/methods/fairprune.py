"""FairPrune: weights that serve the better-off group and not the other are set to 0 (Wu et al., MICCAI 2022).

    s_k = 1/2 theta_k^2 (h_k of the worse-off group - beta h_k of the better-off group)

with h the diagonal curvature of the loss, here the empirical Fisher information of each group: the mean over the
group's patients of the squared gradient. The smallest share `ratio` of all scores is pruned, in one step and without
training. Federated exactly: one sum over patients by group, divided by the group's patients at the coordinator.

Biases and normalisations are left alone: pruning them would shift whole layers. The better-off group is the one with
the larger AUC on the validation patients, or the one that the study names; with more than two groups the best and the
worst are compared. There is no private form: the scores rank single weights, and under noise the ranking is random.

After Yawen Wu et al., arXiv:2203.02110, and the defaults of FairTune's comparison (ratio 0.35, beta 0.33).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from equipoise.common import catalogue
from equipoise.common.cells import Cells
from equipoise.common.classifier import Classifier
from equipoise.common.config import Strict, validate
from equipoise.common.errors import DataError, StudyError
from equipoise.common.fairness.auc import auc_by_group
from equipoise.common.fairness.tables import hybrid_edges
from equipoise.common.layout import Layout
from equipoise.common.methods.averaging import check_labels
from equipoise.common.methods.method import Method, Outcome, Steps, changed, plain_and_balanced, refuse_privacy
from equipoise.common.query import Query, Sum
from equipoise.common.streams import numpy_stream
from equipoise.common.study import Study

Vector = NDArray[np.float64]


class FairPrune(Strict):
    """Parameters of FairPrune."""

    ratio: float = Field(default=0.35, ge=0, lt=1)
    beta: float = Field(default=0.33, ge=0)
    better_off: str = "auto"  # or a group of the primary attribute
    scores: Literal["groups", "permuted"] = "groups"


def plan(study: Study, model: Classifier) -> list[Query]:
    """Every query of a run, in order.

    Raises:
        StudyError: the study is private, or names a group that it does not have.
    """
    p = _parameters(study)
    refuse_privacy(study, "it ranks single weights, and the noise would rank them; choose dfr, private_head or swift")
    if p.better_off != "auto" and p.better_off not in study.primary.groups:
        known = ", ".join(study.primary.groups)
        raise StudyError(f"method.better_off={p.better_off}: no such group; write auto or one of {known}")
    histogram = [catalogue.score_histogram(study, "validation", "base")] if p.better_off == "auto" else []
    return [
        catalogue.cell_counts(study),
        *histogram,
        catalogue.group_fisher(study, prunable(model), "parameter"),
    ]


def run(study: Study, model: Classifier) -> Steps:
    """Counts, who is better off, Fisher information by group; then the smallest scores are 0."""
    p = _parameters(study)
    cells = yield catalogue.cell_counts(study)
    counts = cells.value("patients")
    check_labels(study, counts)
    better, worse = yield from _compared_groups(study, model, p, counts)
    layout = prunable(model)
    total = yield catalogue.group_fisher(study, layout, "parameter").with_inputs(**model.inputs())
    sums, patients = total.value("energies"), counts.sum(axis=1)
    weights = layout.flatten(model.state)
    scores = saliency(weights, sums[worse] / patients[worse], sums[better] / patients[better], p.beta)
    if p.scores == "permuted":
        scores = scores[numpy_stream(study.seed, "permuted scores").permutation(len(scores))]
    kept = keep(scores, p.ratio)
    groups = study.primary.groups
    rows = [
        ["better-off group", groups[better]],
        ["worse-off group", groups[worse]],
        ["weights set to 0", f"{int((~kept).sum())} of {len(kept)}"],
    ]
    facts = {"title": "Pruning", "columns": ["what", "value"], "rows": rows}
    return Outcome(model.with_values(layout.split(weights * kept)), {"facts": [facts]})


def saliency(weights: Vector, worse: Vector, better: Vector, beta: float) -> Vector:
    """Scores of the weights, from the mean squared gradients of the worse-off and of the better-off group."""
    scores: Vector = 0.5 * weights**2 * (worse - beta * better)
    return scores


def keep(scores: Vector, ratio: float) -> NDArray[np.bool_]:
    """False for the smallest share `ratio` of the scores (rounded down); of equal ones the first go."""
    pruned = np.argsort(scores, kind="stable")[: int(ratio * len(scores))]
    kept = np.ones(len(scores), dtype=bool)
    kept[pruned] = False
    return kept


def prunable(model: Classifier) -> Layout:
    """The weights of layers that multiply: matrices and filters, without biases and normalisations."""
    shapes = model.layout().shapes
    return Layout({name: shape for name, shape in shapes.items() if len(shape) >= 2})


def _compared_groups(
    study: Study, model: Classifier, p: FairPrune, counts: Cells
) -> Generator[Query, Sum, tuple[int, int]]:
    """Indices of the better-off and of the worse-off group, which both have training patients."""
    groups = study.primary.groups
    present = np.flatnonzero(counts[:-1].sum(axis=1) > 0)
    if len(present) < 2:
        raise DataError(f"fairprune: fewer than two groups of {study.primary.name} have training patients at any site")
    if p.better_off != "auto":
        better = groups.index(p.better_off)
        others = [g for g in present if g != better]
        if better not in present or len(present) != 2:
            raise DataError(
                f"fairprune: better_off={p.better_off} needs exactly one other group; write better_off: auto"
            )
        return better, int(others[0])
    edges = hybrid_edges(None, study.score_bins)
    query = catalogue.score_histogram(study, "validation", "base")
    total = yield query.with_inputs(**model.inputs(), edges={"edges": edges})
    aucs = {g: auc_by_group(total.count(study.primary.name), groups)[g].value for g in present}
    rising = sorted((auc, int(g)) for g, auc in aucs.items() if auc is not None)
    if len(rising) < 2 or rising[0][0] == rising[-1][0]:
        what = "fewer than two groups can be told" if len(rising) < 2 else "all groups is the same"
        raise DataError(
            f"fairprune: the AUC of {what} on the validation patients ({study.primary.name}); name the better-off "
            "group in method.better_off"
        )
    return rising[-1][1], rising[0][1]


def _parameters(study: Study) -> FairPrune:
    return validate(FairPrune, study.method.parameters, "method")


METHOD = Method(
    name="fairprune",
    title="weights that serve the better-off group and not the other are set to 0; nothing is trained",
    paper="FairPrune: Wu et al., MICCAI 2022, arXiv:2203.02110",
    travels="cell counts, a histogram of validation scores, once two numbers a weight and group",
    costs="one pass with gradients; the sum has as many numbers as the model for each group",
    private="none: it ranks single weights, and noise would rank them",
    parameters=FairPrune,
    plan=plan,
    run=run,
    tuned={"ratio": (1 / 3, 2.0)},
    controls={
        "permuted": changed(scores="permuted"),
        **plain_and_balanced(lambda study, loss: study.with_method("fine_tune", loss=loss)),
    },
)
