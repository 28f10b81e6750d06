"""Rounds on the task loss with one weight per cell, which a method may renew in every round.

What `reweighing`, `group_dro` and `fedfb` share: they differ in how cells are weighed, not in how models are trained.
A method that looks at the losses of the cells before it weighs them gets them as one more sum a round
(`catalogue.cell_losses`), of losses that are cut at `loss_cap`, so that a patient is bounded.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Protocol

import numpy as np
from pydantic import Field

from equipoise.common import catalogue
from equipoise.common.cells import Cells
from equipoise.common.classifier import Classifier
from equipoise.common.methods.averaging import (
    ExactRounds,
    LocalSteps,
    Step,
    Weighting,
    attendance,
    refuse_other_rounds,
    step_of,
)
from equipoise.common.methods.whitened import Course, TaskRounds, plan_rounds, run_rounds, without_bias
from equipoise.common.query import MOST_RELEASES, Query, Sum
from equipoise.common.study import Study

PHASE = "rounds"


class Reweighted(LocalSteps):
    """Parameters of the rounds."""

    weight_cap: float = Field(default=4.0, gt=0)
    step: Step | None = None  # left out: whitened where noise protects the patients, else fedavg
    rounds: int = Field(default=10, ge=1, le=MOST_RELEASES)  # of fedavg and full_gradient
    whitened: TaskRounds = TaskRounds()


class Weigher(Protocol):
    """How cells are weighed."""

    @property
    def weights(self) -> Cells:
        """Weight of each patient's cross-entropy by cell, (G + 1, 2), about 1 on average over the patients."""

    def see(self, losses: Cells) -> None:
        """Take in the mean losses by cell at the model that the next round starts from; 0 where nobody is."""


class Fixed:
    """Weights that stay as they are."""

    def __init__(self, weights: Cells) -> None:
        self.weights = weights

    def see(self, losses: Cells) -> None:
        """Nothing to learn."""


def with_unknown(known: Cells, counts: Cells) -> Cells:
    """Weights of all cells, (G + 1, 2): a patient of unknown group weighs what the average one of the label does.

    Args:
        known: weights of the declared groups' cells, (G, 2).
        counts: patients by cell, (G + 1, 2), at least 0.
    """
    of_label = counts[:-1].sum(axis=0)
    unknown = np.divide((known * counts[:-1]).sum(axis=0), of_label, out=np.zeros(2), where=of_label > 0)
    return np.vstack([known, unknown])


def plan_reweighted(study: Study, model: Classifier, p: Reweighted, loss_cap: float | None) -> list[Query]:
    """The queries of the rounds, planned; `loss_cap` is None for weights that stay.

    Raises:
        StudyError: a parameter is chosen that the rounds do not have.
    """
    refuse_other_rounds(study, p, {"rounds": "whitened.rounds"})
    asked = [] if loss_cap is None else [catalogue.cell_losses(study, PHASE, loss_cap)]
    if step_of(study, p.step) == "whitened":
        return plan_rounds(study, model, p.whitened, Course("whole", PHASE), asked)
    rounds = _exact(study, model, p)
    return [query for r in range(p.rounds) for query in (*asked, rounds.query(r))]


def run_reweighted(
    study: Study,
    model: Classifier,
    p: Reweighted,
    weigher: Weigher,
    counts: Cells,
    loss_cap: float | None,
    spread: float = np.inf,
) -> Generator[Query, Sum, tuple[Classifier, dict[str, Any]]]:
    """The classifier after the rounds, and what the report shows of them; `spread` as in `mean_losses`."""

    def weigh(now: Classifier) -> Generator[Query, Sum, tuple[Cells, Cells]]:
        if loss_cap is not None:
            total = yield catalogue.cell_losses(study, PHASE, loss_cap).with_inputs(**now.inputs())
            weigher.see(mean_losses(study, total, counts, spread))
        weights = np.minimum(np.where(counts > 0, weigher.weights, 0.0), p.weight_cap)
        return weights, np.zeros_like(weights)

    if step_of(study, p.step) == "whitened":
        course = Course("whole", PHASE, weigh=weigh)
        return (yield from run_rounds(study, model, p.whitened, course, counts))
    rounds = _exact(study, model, p)
    for round_ in range(p.rounds):
        weighting = Weighting(*(yield from weigh(model)))
        model, _, _ = yield from rounds.advance(model, round_, weighting)
    return model, {}


def mean_losses(study: Study, total: Sum, counts: Cells, spread: float = np.inf) -> Cells:
    """Mean loss by cell, in [0, cap]; noise can push a sum of few patients outside, where it says nothing.

    Args:
        spread: standard deviation of the cells' true means about the mean of all patients, as far as anybody knows
            before. Each mean goes towards the latter by the share of its own noise in both (Efron & Morris 1973);
            infinite for means as they were released. Without noise it is of no effect.
    """
    cap = float(total.query.parameters["cap"])
    present = counts * attendance(study, total.cohort)
    if "patients" in total.query.blocks:
        present = total.value("patients")
    sums, held = cap * total.value("losses"), present > 0
    losses = np.clip(np.divide(sums, present, out=np.zeros_like(present), where=held), 0.0, cap)
    of_all = float(np.clip(sums.sum() / max(float(present.sum()), 1.0), 0.0, cap))
    error = np.divide(cap * total.noise_variance**0.5, present, out=np.zeros_like(present), where=held)
    trust = 1 / (1 + (error / spread) ** 2)
    shrunk: Cells = trust * losses + (1 - trust) * of_all
    return shrunk


def weights_by_round(study: Study, title: str, trace: Sequence[Cells]) -> dict[str, Any]:
    """A table of the report: what each declared cell weighed in each round."""
    columns = ["round", *(f"{group}, label {y}" for group in study.primary.groups for y in (0, 1))]
    rows = [[str(t), *(f"{x:.3f}" for x in cells.ravel())] for t, cells in enumerate(trace, start=1)]
    return {"title": title, "columns": columns, "rows": rows}


def same_rounds(p: Reweighted, study: Study, loss: str) -> Study:
    """Fine-tuning in the rounds of `p`."""
    # In whitened rounds fine-tuning has no cap, and a number of rounds of their own.
    unknown = {"rounds", "weight_cap"} if p.step == "whitened" else set()
    given = p.model_dump(mode="json", include=set(Reweighted.model_fields) - unknown)
    return study.with_method("fine_tune", loss=loss, **{**given, "whitened": without_bias(p.whitened)})


def _exact(study: Study, model: Classifier, p: Reweighted) -> ExactRounds:
    return ExactRounds(study, model.layout(), step_of(study, p.step), p, PHASE)
