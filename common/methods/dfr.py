"""DFR: deep feature re-weighting, the last layer fitted again on balanced cells (Kirichenko et al., ICLR 2023).

The extractor stays. Its outputs, standardised, are the features of a logistic regression with an L1 or L2 penalty in
which every cell (group x label) weighs alike; the penalty's weight 1/C is the one of a grid whose model has the best
worst-group accuracy on the validation patients.

Federated, and equal to the pooled fit: the regression is convex, and each Newton step needs only sums over patients of
the gradient and of p (1 - p) phi phi^T (Wu et al., J. Am. Med. Inform. Assoc. 2012;19, GLORE); under an L1 penalty the
coordinator minimises the quadratic model with the penalty (proximal Newton, Lee et al. 2014), which no site sees.

Different from the public code: cells are balanced by weights from global counts instead of 20 drawn subsets whose
coefficients are averaged, so that no hospital needs all cells; all training patients fit, and validation patients
choose C. Under noise the head is re-fitted by whitened rounds instead (`private_head`), once: no C is chosen.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from equipoise.common import catalogue
from equipoise.common.cells import Cells, task_weights
from equipoise.common.classifier import Classifier
from equipoise.common.config import Strict, validate
from equipoise.common.errors import StudyError
from equipoise.common.fairness.estimate import MINIMUM_PATIENTS
from equipoise.common.fairness.tables import Counts, counts_at, hybrid_edges
from equipoise.common.fairness.thresholds import nearest_edge
from equipoise.common.methods.averaging import check_labels
from equipoise.common.methods.method import Method, Outcome, Steps, plain_and_balanced
from equipoise.common.methods.whitened import Course, HeadTaskRounds, plan_rounds, run_rounds, without_bias
from equipoise.common.query import MOST_RELEASES, Query, Sum
from equipoise.common.study import Study

Vector = NDArray[np.float64]
Penalty = Literal["l1", "l2"]

TOLERANCE = 1e-4  # largest step of a standardised coefficient at which a fit has converged
SWEEPS = 200  # of coordinate descent on one quadratic model
LEAST_SPREAD = 1e-6  # of a feature; below it the feature says nothing, and is left out


class Dfr(Strict):
    """Parameters of DFR."""

    penalty: Penalty = "l1"
    inverse_penalties: list[float] = Field(default=[1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01], min_length=1)  # C
    weight_cap: float = Field(default=10.0, gt=0)
    newton_steps: int = Field(default=8, ge=1, le=MOST_RELEASES)  # for each C
    whitened: HeadTaskRounds = HeadTaskRounds()  # under noise


@dataclass(frozen=True)
class Scaler:
    """Standardised coordinates of a head.

    Attributes:
        mean, spread: of each feature over the patients, (d,); a spread of 0 where the feature hardly varies.
    """

    mean: Vector
    spread: Vector

    @classmethod
    def of(cls, total: Sum) -> Scaler:
        """From the released moments."""
        n = max(float(total.value("patients")[0]), 1.0)
        mean = total.value("sums") / n
        spread = np.sqrt(np.maximum(total.value("squares") / n - mean**2, 0.0))
        return cls(mean, np.where(spread > LEAST_SPREAD, spread, 0.0))

    @property
    def to_raw(self) -> Vector:
        """The matrix T with raw (weights, bias) = T @ standardised (weights, bias), (d + 1, d + 1)."""
        d = len(self.mean)
        inverse = np.divide(1.0, self.spread, out=np.zeros(d), where=self.spread > 0)
        matrix = np.zeros((d + 1, d + 1))
        matrix[:d, :d] = np.diag(inverse)
        matrix[d, :d] = -self.mean * inverse
        matrix[d, d] = 1.0
        return matrix


@dataclass(frozen=True)
class Curve:
    """The weighted mean loss near a point: value, gradient (d + 1,) and Hessian (d + 1, d + 1), standardised."""

    loss: float
    gradient: Vector
    hessian: Vector

    @classmethod
    def of(cls, total: Sum, scaler: Scaler) -> Curve:
        """From the released sums."""
        n = max(float(total.value("weight")[0]), 1e-12)
        size = len(scaler.mean) + 1
        upper = np.zeros((size, size))
        upper[np.triu_indices(size)] = total.value("hessian") / n
        hessian = upper + upper.T - np.diag(np.diag(upper))
        t = scaler.to_raw
        return cls(float(total.value("loss")[0]) / n, t.T @ (total.value("gradient") / n), t.T @ hessian @ t)


def penalised(loss: float, point: Vector, strength: float, penalty: Penalty) -> float:
    """The objective: mean loss + strength * |w|_1, or + strength / 2 * |w|_2^2; the bias is free."""
    w = point[:-1]
    return loss + strength * float(np.abs(w).sum() if penalty == "l1" else 0.5 * (w**2).sum())


def newton_step(curve: Curve, point: Vector, strength: float, penalty: Penalty) -> Vector:
    """The change of `point` that minimises the quadratic model of the loss plus the penalty, (d + 1,).

    L2 in closed form; L1 by coordinate descent with soft thresholds. A coordinate on which the loss does not depend
    stays.
    """
    live = np.diag(curve.hessian) > 0
    change = np.zeros_like(point)
    if penalty == "l2":
        ridge = np.full(len(point), strength)
        ridge[-1] = 0.0
        right = -(curve.gradient + ridge * point)
        change[live] = np.linalg.solve((curve.hessian + np.diag(ridge))[np.ix_(live, live)], right[live])
        return change
    slope = curve.gradient.copy()  # of the quadratic model at `change`
    for _ in range(SWEEPS):
        largest = 0.0
        for j in np.flatnonzero(live):
            bend, here = curve.hessian[j, j], point[j] + change[j]
            target = here - slope[j] / bend
            if j < len(point) - 1:
                target = np.sign(target) * max(abs(target) - strength / bend, 0.0)
            moved = target - here
            if moved != 0.0:
                change[j] += moved
                slope += curve.hessian[:, j] * moved
                largest = max(largest, abs(moved))
        if largest < TOLERANCE / 10:
            break
    return change


def plan(study: Study, model: Classifier) -> list[Query]:
    """Every query of a run, in order.

    Raises:
        StudyError: the head has no bias, which a fit on standardised features moves.
    """
    p = _parameters(study)
    counts = catalogue.cell_counts(study)
    if study.privacy.private:
        return [counts, *plan_rounds(study, model, p.whitened, _course())]
    if not any(name.endswith("bias") for name in model.layout("head").shapes):
        raise StudyError(
            "method.name=dfr: the model's head has no bias, which a fit on standardised features needs; give it one, "
            "or choose private_head or fine_tune with part: head"
        )
    newton = catalogue.head_curve(study, model.layout("head"))
    fit = [newton] * p.newton_steps + [catalogue.score_histogram(study, "validation", "candidate")]
    return [counts, catalogue.head_moments(study, model.layout("head")), *fit * len(p.inverse_penalties)]


def run(study: Study, model: Classifier) -> Steps:
    """Counts, features' moments, one fit for each C, the best on validation."""
    p = _parameters(study)
    cells = yield catalogue.cell_counts(study)
    counts = cells.value("patients")
    check_labels(study, counts)
    if study.privacy.private:
        model, notes = yield from run_rounds(study, model, p.whitened, _course(), counts)
        return Outcome(model, notes)
    weights = task_weights(counts, "cells", p.weight_cap)
    moments = yield catalogue.head_moments(study, model.layout("head")).with_inputs(**model.inputs())
    scaler = Scaler.of(moments)
    point, rows, found = np.zeros(len(scaler.mean) + 1), list[list[str]](), list[tuple[float, Classifier]]()
    # From the largest penalty on: the fits are then near each other, and each starts where the last ended.
    for c in sorted(p.inverse_penalties):
        point, steps = yield from _fit(study, model, scaler, weights, point, 1.0 / (c * counts.sum()), p)
        candidate = _with_head(model, scaler, point)
        query = catalogue.score_histogram(study, "validation", "candidate")
        edges = hybrid_edges(None, study.score_bins)
        total = yield query.with_inputs(**candidate.inputs(), edges={"edges": edges})
        accuracy = worst_group_accuracy(total.count(study.primary.name), nearest_edge(edges, 0.0))
        found.append((accuracy, candidate))
        kept = int((np.abs(point[:-1]) > 0).sum())
        rows.append([f"{c:g}", str(steps), str(kept), "not estimable" if np.isnan(accuracy) else f"{accuracy:.3f}"])
    accuracies = [accuracy for accuracy, _ in found]
    best = len(found) - 1 if np.isnan(accuracies).all() else int(np.nanargmax(accuracies))
    rows[best][0] += " (chosen)"
    columns = ["C", "Newton steps", "features used", "worst-group accuracy, validation"]
    return Outcome(found[best][1], {"facts": [{"title": "Fits of the head", "columns": columns, "rows": rows}]})


def worst_group_accuracy(hist: Counts, edge: int) -> float:
    """The least accuracy over the cells of declared groups that have enough patients; NaN where none has."""
    counts = counts_at(hist, edge)[:-1]
    right, n = np.stack([counts[:, 0, 0], counts[:, 1, 1]], axis=1), counts.sum(axis=2)
    enough = n >= MINIMUM_PATIENTS
    return float((right[enough] / n[enough]).min()) if enough.any() else float("nan")


def _fit(
    study: Study, model: Classifier, scaler: Scaler, weights: Cells, start: Vector, strength: float, p: Dfr
) -> Generator[Query, Sum, tuple[Vector, int]]:
    """Minimise from `start`; a step that raises the objective is halved. The point and the number of steps asked."""
    point, change, reached = start, np.zeros_like(start), np.inf
    for asked in range(1, p.newton_steps + 1):
        query = catalogue.head_curve(study, model.layout("head"))
        here = _with_head(model, scaler, point + change)
        total = yield query.with_inputs(**here.inputs(), weights={"task": weights, "bias": np.zeros_like(weights)})
        curve = Curve.of(total, scaler)
        value = penalised(curve.loss, point + change, strength, p.penalty)
        if value > reached + 1e-12:
            change = change / 2
            continue
        point, reached = point + change, value
        change = newton_step(curve, point, strength, p.penalty)
        if np.abs(change).max() < TOLERANCE:
            return point, asked
    return point, p.newton_steps


def _with_head(model: Classifier, scaler: Scaler, point: Vector) -> Classifier:
    """The classifier with a head in standardised coordinates."""
    return model.with_values(model.layout("head").split(scaler.to_raw @ point))


def _course() -> Course:
    return Course("head", "head", balance="cells")


def _parameters(study: Study) -> Dfr:
    return validate(Dfr, study.method.parameters, "method")


def _fine_tuning(study: Study, loss: str) -> Study:
    p = _parameters(study)
    whitened = without_bias(p.whitened)
    return study.with_method("fine_tune", loss=loss, part="head", rounds=10, weight_cap=p.weight_cap, whitened=whitened)


METHOD = Method(
    name="dfr",
    title="the last layer fitted again as a penalised logistic regression on balanced cells, by exact Newton steps",
    paper="DFR: Kirichenko et al., ICLR 2023, arXiv:2204.02937",
    travels="cell counts, moments of the head's inputs, then sums of gradients and curvatures of the head; histograms "
    "of validation scores",
    costs="up to 8 passes for each of 7 penalties, none with gradients of the extractor; the head alone moves",
    private="whitened rounds of the head, balanced, no penalty chosen",
    parameters=Dfr,
    plan=plan,
    run=run,
    tuned={},  # it chooses its penalty itself
    controls=plain_and_balanced(_fine_tuning),
)
