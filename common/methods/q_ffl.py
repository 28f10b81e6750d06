"""q-FFL: hospitals with a large loss pull harder (Li et al., ICLR 2020, arXiv:1905.10497); it evens out hospitals.

It minimises sum_k p_k F_k^(q+1) / (q + 1), F_k the mean loss of hospital k. With theta_k after local epochs from theta
and L = 1 / lr:

    D_k = F_k^q L (theta - theta_k),   h_k = q F_k^(q-1) |L (theta - theta_k)|^2 + L F_k^q
    theta <- theta - sum_k p_k D_k / sum_k p_k h_k

q = 0 is federated averaging. The coordinator needs the two sums only, so no hospital's loss is shown. Patients' groups
play no part: a small spread of the hospitals' losses says nothing of men and women. There is no private form: F_k^q
multiplies a whole hospital's update, which no bound on a patient limits.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from equipoise.common import catalogue
from equipoise.common.classifier import Classifier
from equipoise.common.config import validate
from equipoise.common.methods.averaging import LocalSteps
from equipoise.common.methods.method import LOCAL_STEPS, Method, Outcome, Steps, plain_and_balanced, refuse_privacy
from equipoise.common.query import MOST_RELEASES, Query
from equipoise.common.study import Study


class QFfl(LocalSteps):
    """Parameters of q-FFL."""

    q: float = Field(default=1.0, ge=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)  # L = 1 / lr is the step of plain descent
    rounds: int = Field(default=10, ge=1, le=MOST_RELEASES)


def plan(study: Study, model: Classifier) -> list[Query]:
    """One query a round.

    Raises:
        StudyError: the study is private.
    """
    p = _parameters(study)
    refuse_privacy(
        study,
        "a hospital's loss multiplies its whole update, which no bound on a patient limits; choose group_dro",
    )
    return [_round_query(study, model, p, r) for r in range(p.rounds)]


def run(study: Study, model: Classifier) -> Steps:
    """Rounds."""
    p = _parameters(study)
    layout = model.layout()
    ones = np.ones((catalogue.groups_of(study), 2))
    for round_ in range(p.rounds):
        total = yield _round_query(study, model, p, round_).with_inputs(**model.inputs(), weights={"task": ones})
        curvature = float(total.value("curvature")[0])
        if curvature > 0:
            model = model.moved(layout, total.value("change") / curvature)
    return Outcome(model)


def _round_query(study: Study, model: Classifier, p: QFfl, round_: int) -> Query:
    parameters = {
        "q": p.q,
        "beta": 1.0,
        "lr": p.lr,
        "momentum": p.momentum,
        "weight_decay": p.weight_decay,
        "epochs": p.local_epochs,
        "batch": p.batch,
        "flips": p.flips,
        "round": round_,
    }
    return catalogue.fair_training(study, model.layout(), parameters)


def _parameters(study: Study) -> QFfl:
    return validate(QFfl, study.method.parameters, "method")


def _fine_tuning(study: Study, loss: str) -> Study:
    given = {key: value for key, value in _parameters(study).model_dump().items() if key != "q"}
    return study.with_method("fine_tune", loss=loss, step="fedavg", **given)


METHOD = Method(
    name="q_ffl",
    title="hospitals with a large loss pull harder: evens out hospitals, not groups of patients",
    paper="q-FFL: Li et al., ICLR 2020, arXiv:1905.10497",
    travels="one change of the model a round, weighed by a power of the hospital's loss, and one number; both are sums",
    costs="10 rounds of the whole model",
    private="none: a hospital's loss multiplies its whole update",
    parameters=QFfl,
    plan=plan,
    run=run,
    shared=LOCAL_STEPS - {"momentum"},  # its step is that of plain descent
    controls=plain_and_balanced(_fine_tuning),
)
