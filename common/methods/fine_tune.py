"""Fine-tuning by the task loss alone: the controls that any debiasing has to beat.

`loss: plain` weighs every patient alike (more data, no fairness term); `classes` balances the labels; `cells` balances
group x label. `part: head` trains the last layer only. Rounds are federated averages (McMahan et al. 2017, FedAvg),
full-gradient steps, or whitened rounds, which are the default where noise protects the patients; averages are then of
DP-SGD (`equipoise.common.methods.private_averaging`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from equipoise.common import catalogue
from equipoise.common.cells import Balance, task_weights
from equipoise.common.classifier import Classifier
from equipoise.common.config import validate
from equipoise.common.methods.averaging import (
    ExactRounds,
    LocalSteps,
    Step,
    Weighting,
    check_labels,
    refuse_other_rounds,
    refuse_without_effect,
    step_of,
)
from equipoise.common.methods.method import Method, Outcome, Steps, changed
from equipoise.common.methods.private_averaging import Averages, DpSgd, Rounds
from equipoise.common.methods.whitened import Course, TaskRounds, plan_rounds, run_rounds
from equipoise.common.query import MOST_RELEASES, Query
from equipoise.common.study import Study

OF_A_BIAS_LOSS = ("whitened.beta", "whitened.smoothing", "dp_sgd.smoothing")


class FineTune(LocalSteps):
    """Parameters of plain and balanced fine-tuning."""

    loss: Literal["plain", "classes", "cells"] = "cells"
    part: Literal["whole", "head"] = "whole"
    weight_cap: float = Field(default=4.0, gt=0)
    step: Step | None = None
    rounds: int = Field(default=5, ge=1, le=MOST_RELEASES)  # of fedavg and full_gradient
    whitened: TaskRounds = TaskRounds()
    dp_sgd: DpSgd = DpSgd()  # of fedavg where noise protects the patients


def parameters_of(study: Study) -> FineTune:
    """The study's method keys, checked."""
    return validate(FineTune, study.method.parameters, "method")


def plan(study: Study, model: Classifier) -> list[Query]:
    """Every query of a run, in order.

    Raises:
        StudyError: a parameter is chosen that the rounds do not have.
    """
    p = parameters_of(study)
    refuse_without_effect(study, p, "rounds on the task loss alone", dict.fromkeys(OF_A_BIAS_LOSS, ""))
    refuse_other_rounds(study, p, {"rounds": "whitened.rounds", "weight_cap": ""}, {"weight_cap": ""})
    counts = catalogue.cell_counts(study)
    if step_of(study, p.step) == "whitened":
        return [counts, *plan_rounds(study, model, p.whitened, _course(p))]
    if _averages_noise(study, p):
        return [counts, *(_private(p).query(study, model, r) for r in range(p.rounds))]
    return [counts, *map(_exact(study, model, p).query, range(p.rounds))]


def run(study: Study, model: Classifier) -> Steps:
    """Cell counts, then rounds."""
    p = parameters_of(study)
    cells = yield catalogue.cell_counts(study)
    counts = cells.value("patients")
    check_labels(study, counts, by_group=p.loss == "cells")
    if step_of(study, p.step) == "whitened":
        model, notes = yield from run_rounds(study, model, p.whitened, _course(p), counts)
        return Outcome(model, notes)
    if _averages_noise(study, p):
        averages = Averages(study, model, counts)
        yield from averages.advance(_private(p))
        return Outcome(averages.model, {"dp_sgd": averages.notes})
    weighting = Weighting(task_weights(counts, _balance(p), p.weight_cap), np.zeros_like(counts))
    rounds = _exact(study, model, p)
    for round_ in range(p.rounds):
        model, _, _ = yield from rounds.advance(model, round_, weighting)
    return Outcome(model)


def _averages_noise(study: Study, p: FineTune) -> bool:
    return study.privacy.private and p.step == "fedavg"


def _private(p: FineTune) -> Rounds:
    return Rounds(p.part, p.rounds, 1.0, p, p.dp_sgd, balance=_balance(p))


def _balance(p: FineTune) -> Balance:
    return "none" if p.loss == "plain" else p.loss


def _course(p: FineTune) -> Course:
    return Course("head" if p.part == "head" else "whole", p.part, balance=_balance(p))


def _exact(study: Study, model: Classifier, p: FineTune) -> ExactRounds:
    return ExactRounds(study, model.layout(p.part), step_of(study, p.step), p, p.part)


METHOD = Method(
    name="fine_tune",
    title="plain, class-balanced or cell-balanced fine-tuning of the whole model or its head, by federated averaging",
    paper="FedAvg: McMahan et al., AISTATS 2017",
    travels="cell counts, one change of the trained tensors a round",
    costs="5 rounds of the whole model or its head",
    private="whitened rounds, or averages of local DP-SGD",
    parameters=FineTune,
    plan=plan,
    run=run,
    controls={
        "plain": changed(loss="plain"),
        "balanced": changed(loss="cells"),
        "head": changed(part="head"),
    },
)
