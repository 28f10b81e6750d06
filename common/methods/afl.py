"""AFL: the worst mix of hospitals decides (Mohri, Sivek & Suresh, ICML 2019, arXiv:1902.00146). Between hospitals.

    lambda <- Pi(lambda + eta_lambda F),     theta <- theta - eta sum_k lambda_k g_k

with F_k and g_k the mean loss of hospital k and its gradient, Pi the projection onto the simplex, one gradient a round;
the result is the mean of the iterates. The coordinator sees **every hospital's own loss** in every round: a secure sum
conceals nothing of it, and a hospital has to allow it (`caps.site_results`). Patients' groups play no part, and there
is no private form.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from equipoise.common import catalogue
from equipoise.common.classifier import Classifier
from equipoise.common.config import Strict, validate
from equipoise.common.methods.group_dro import onto_simplex
from equipoise.common.methods.method import Method, Outcome, Steps, plain_and_balanced, refuse_privacy
from equipoise.common.query import MOST_RELEASES, Query
from equipoise.common.study import Study


class Afl(Strict):
    """Parameters of AFL."""

    lr: float = Field(default=0.1, gt=0)
    eta: float = Field(default=0.1, gt=0)  # step of the weights
    rounds: int = Field(default=20, ge=1, le=MOST_RELEASES)


def plan(study: Study, model: Classifier) -> list[Query]:
    """One query a round.

    Raises:
        StudyError: the study is private.
    """
    p = _parameters(study)
    refuse_privacy(study, "it follows every hospital's own loss; choose group_dro, which follows the losses of groups")
    return [catalogue.site_gradient(study, model.layout())] * p.rounds


def run(study: Study, model: Classifier) -> Steps:
    """Rounds; the mean of the iterates."""
    p = _parameters(study)
    sites, layout = catalogue.sites_of(study), model.layout()
    shares = np.array([study.sites.declared_patients[site] for site in sites]) / catalogue.declared_total(study)
    held = shares > 0  # a hospital of nobody has no loss of 0 either, and no say
    reached, rows = [], []
    for round_ in range(p.rounds):
        query = catalogue.site_gradient(study, layout)
        total = yield query.with_inputs(**model.inputs(), shares={"shares": shares})
        present = held & np.array([site in total.cohort for site in sites])
        losses = total.value("losses")
        rows.append([str(round_ + 1), *(f"{share:.3f}" for share in shares)])
        weight = float(shares[present].sum())
        if weight > 0:
            model = model.moved(layout, -p.lr * total.value("gradient") / weight)
        # A hospital that did not answer has no loss of 0, which would cost it its say: it keeps its place.
        if present.any():
            losses = np.where(present, losses, losses[present].mean())
            shares, before = np.zeros_like(shares), shares
            shares[held] = onto_simplex((before + p.eta * losses)[held])
        reached.append(layout.flatten(model.state))
    mean = model.with_values(layout.split(np.mean(reached, axis=0)))
    facts = {"title": "Weight of each hospital", "columns": ["round", *sites], "rows": rows}
    return Outcome(mean, {"facts": [facts]})


def _parameters(study: Study) -> Afl:
    return validate(Afl, study.method.parameters, "method")


def _fine_tuning(study: Study, loss: str) -> Study:
    p = _parameters(study)
    return study.with_method("fine_tune", loss=loss, step="full_gradient", rounds=p.rounds, lr=p.lr, momentum=0.0)


METHOD = Method(
    name="afl",
    title="the mix of hospitals with the largest loss decides: evens out hospitals, not groups of patients",
    paper="AFL: Mohri, Sivek & Suresh, ICML 2019, arXiv:1902.00146",
    travels="a weighed gradient of the model a round, a sum; and each hospital's own loss, which the coordinator sees",
    costs="20 rounds of one gradient of the whole model",
    private="none: it follows every hospital's own loss",
    parameters=Afl,
    plan=plan,
    run=run,
    shared=frozenset(),  # one gradient a round has a rate of its own
    controls=plain_and_balanced(_fine_tuning),
)
