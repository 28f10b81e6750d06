"""FedProx: federated averaging with a pull towards the round's model (Li et al., MLSys 2020, arXiv:1812.06127).

Each hospital minimises its weighted task loss + (mu / 2) |w - w_t|^2 from the received w_t, so that hospitals whose
patients differ drift less between two averages. It aims at stable averages, not at groups: a control for methods that
claim a gain from federation itself. mu = 0 is federated averaging.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from equipoise.common import catalogue
from equipoise.common.cells import task_weights
from equipoise.common.classifier import Classifier
from equipoise.common.config import validate
from equipoise.common.methods.averaging import LocalSteps, averaged_round, check_labels, training_query
from equipoise.common.methods.method import LOCAL_STEPS, Method, Outcome, Steps, plain_and_balanced, refuse_privacy
from equipoise.common.query import MOST_RELEASES, Query
from equipoise.common.study import Study


class FedProx(LocalSteps):
    """Parameters of FedProx."""

    mu: float = Field(default=0.1, ge=0)
    loss: Literal["plain", "classes", "cells"] = "cells"
    weight_cap: float = Field(default=4.0, gt=0)
    local_epochs: int = Field(default=2, ge=1)
    rounds: int = Field(default=5, ge=1, le=MOST_RELEASES)


def plan(study: Study, model: Classifier) -> list[Query]:
    """Every query of a run, in order.

    Raises:
        StudyError: the study is private.
    """
    p = _parameters(study)
    refuse_privacy(
        study,
        "a whitened round is one step from the round's model, where its pull is 0, and averages of DP-SGD do not have "
        "it; choose fine_tune",
    )
    return [catalogue.cell_counts(study), *(_round_query(study, model, p, r) for r in range(p.rounds))]


def run(study: Study, model: Classifier) -> Steps:
    """Cell counts, then averages."""
    p = _parameters(study)
    cells = yield catalogue.cell_counts(study)
    counts = cells.value("patients")
    check_labels(study, counts, by_group=p.loss == "cells")
    task = task_weights(counts, "none" if p.loss == "plain" else p.loss, p.weight_cap)
    for round_ in range(p.rounds):
        query = _round_query(study, model, p, round_)
        model, _, _ = yield from averaged_round(study, model, query, model.layout(), None, {"task": task})
    return Outcome(model)


def _round_query(study: Study, model: Classifier, p: FedProx, round_: int) -> Query:
    return training_query(study, model.layout(), "rounds", p, 1.0, round_, proximal=p.mu)


def _parameters(study: Study) -> FedProx:
    return validate(FedProx, study.method.parameters, "method")


def _fine_tuning(study: Study, loss: str) -> Study:
    given = {key: value for key, value in _parameters(study).model_dump().items() if key not in ("mu", "loss")}
    return study.with_method("fine_tune", loss=loss, step="fedavg", **given)


METHOD = Method(
    name="fedprox",
    title="federated averaging in which hospitals are held near the common model; it looks at no group",
    paper="FedProx: Li et al., MLSys 2020, arXiv:1812.06127",
    travels="cell counts, one change of the model a round",
    costs="5 rounds of the whole model, two epochs each",
    private="none: a whitened round is one step, in which the pull is 0, and averages of DP-SGD do not have it",
    parameters=FedProx,
    plan=plan,
    run=run,
    shared=LOCAL_STEPS - {"local_epochs"},  # with one step there is nothing to pull back
    controls=plain_and_balanced(_fine_tuning),
)
