"""Private re-fitting of the head: the last layer alone moves, in whitened rounds.

There is no mask in it, and it is not SWiFT: it is what a small privacy budget can always pay for, since a head has few
coordinates. Last-layer re-training as in Kirichenko et al. 2023 (DFR, arXiv:2204.02937), by private full-gradient
steps.
"""

from __future__ import annotations

from typing import Any

from equipoise.common import catalogue
from equipoise.common.cells import WITHOUT_GROUPS, Balance, BiasLoss
from equipoise.common.classifier import Classifier
from equipoise.common.config import validate
from equipoise.common.methods.averaging import check_labels
from equipoise.common.methods.method import Method, Outcome, Steps
from equipoise.common.methods.whitened import Course, HeadTaskRounds, plan_rounds, run_rounds, without_bias
from equipoise.common.query import Query
from equipoise.common.study import Study


class PrivateHead(HeadTaskRounds):
    """Parameters."""

    bias_loss: BiasLoss = "equalized_odds"
    balance: Balance = "cells"


def plan(study: Study, model: Classifier) -> list[Query]:
    """Every query of a run, in order."""
    p = _parameters(study)
    return [catalogue.cell_counts(study), *plan_rounds(study, model, p, _course(p))]


def run(study: Study, model: Classifier) -> Steps:
    """Cell counts, then rounds of the head."""
    p = _parameters(study)
    cells = yield catalogue.cell_counts(study)
    counts = cells.value("patients")
    check_labels(study, counts, by_group=p.beta < 1 or p.balance not in WITHOUT_GROUPS)
    model, notes = yield from run_rounds(study, model, p, _course(p), counts)
    return Outcome(model, notes)


def _parameters(study: Study) -> PrivateHead:
    return validate(PrivateHead, study.method.parameters, "method")


def _course(p: PrivateHead) -> Course:
    return Course("head", "head", p.bias_loss, p.balance)


def _fine_tuning(loss: str) -> Any:
    def build(study: Study) -> Study:
        p = _parameters(study)
        steps = {key: value for key, value in without_bias(p).items() if key in HeadTaskRounds.model_fields}
        return study.with_method("fine_tune", loss=loss, part="head", step="whitened", whitened=steps)

    return build


METHOD = Method(
    name="private_head",
    title="the last layer alone, re-fitted by private whitened full-gradient rounds, balanced over group and label",
    paper="after DFR: Kirichenko et al., ICLR 2023; whitened private rounds of this project (docs/methods.md)",
    travels="cell counts, one sum of clipped vectors a round",
    costs="10 rounds of a few numbers each",
    private="made for it",
    parameters=PrivateHead,
    plan=plan,
    run=run,
    shared=frozenset(),  # whitened rounds have rates of their own
    controls={"plain": _fine_tuning("plain"), "balanced": _fine_tuning("cells")},
)
