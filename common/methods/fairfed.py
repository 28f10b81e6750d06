"""FairFed: hospitals whose own gap is far from the global one weigh less (Ezzeldin et al., AAAI 2023).

arXiv:2110.00857. In each round, at the present model: the global gap F between two groups (of true positive rates, or
of selection rates) from sums over all patients; each hospital's deviation D_k = |F_k - F|, or |accuracy_k - accuracy|
where it lacks a group; then

    w_k <- w_k - beta (D_k - mean D),   held at 0 or above, brought to sum 1,      theta <- sum_k w_k theta_k

from w_k = n_k / n. The coordinator sees **every hospital's own deviation** in every round, and a hospital has to allow
that (`caps.site_results`). It weighs down atypical hospitals, and these are often the ones that hold the minority's
patients. There is no private form: noise on the gap of a small hospital is larger than what D_k differs by.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from equipoise.common import catalogue
from equipoise.common.cells import task_weights
from equipoise.common.classifier import Classifier
from equipoise.common.config import validate
from equipoise.common.errors import StudyError
from equipoise.common.methods.averaging import LocalSteps, averaged_round, check_labels, training_query
from equipoise.common.methods.method import Method, Outcome, Steps, plain_and_balanced, refuse_privacy
from equipoise.common.query import MOST_RELEASES, Query
from equipoise.common.study import Study

Metric = Literal["equal_opportunity", "demographic_parity"]


class FairFed(LocalSteps):
    """Parameters of FairFed."""

    metric: Metric = "equal_opportunity"
    beta: float = Field(default=0.5, ge=0)
    loss: Literal["plain", "classes", "cells", "independent"] = "plain"  # each hospital's own training
    weight_cap: float = Field(default=4.0, gt=0)
    rounds: int = Field(default=10, ge=1, le=MOST_RELEASES)


def plan(study: Study, model: Classifier) -> list[Query]:
    """Every query of a run, in order.

    Raises:
        StudyError: the study is private, or its primary attribute has more than two groups.
    """
    p = _parameters(study)
    refuse_privacy(study, "noise on a small hospital's own gap would decide its weight; choose reweighing or group_dro")
    if len(study.primary.groups) != 2:
        raise StudyError(
            f"method.name=fairfed: it compares two groups, and {study.primary.name} has {len(study.primary.groups)}; "
            "choose another primary attribute or group_dro"
        )
    rounds = [
        query
        for r in range(p.rounds)
        for query in (
            catalogue.cell_decisions(study),
            catalogue.site_deviation(study, p.metric),
            _round_query(study, model, p, r),
        )
    ]
    return [catalogue.cell_counts(study), *rounds]


def run(study: Study, model: Classifier) -> Steps:
    """Counts; then in each round gap, deviations, weights, training."""
    p = _parameters(study)
    cells = yield catalogue.cell_counts(study)
    counts = cells.value("patients")
    check_labels(study, counts)
    task = task_weights(counts, "none" if p.loss == "plain" else p.loss, p.weight_cap)
    sites = catalogue.sites_of(study)
    shares = np.array([study.sites.declared_patients[site] for site in sites]) / catalogue.declared_total(study)
    rows = []
    for round_ in range(p.rounds):
        total = yield catalogue.cell_decisions(study).with_inputs(**model.inputs())
        gap, accuracy = global_gap(total.value("patients"), p.metric)
        query = catalogue.site_deviation(study, p.metric)
        answer = yield query.with_inputs(**model.inputs(), reference={"values": np.array([gap, accuracy])})
        # A hospital of nobody deviates from nothing, which would be taken for perfect: it keeps its weight of 0.
        present = np.array([site in answer.cohort and study.sites.declared_patients[site] > 0 for site in sites])
        shares = reweighed(shares, answer.value("deviation"), present, p.beta)
        rows.append([str(round_ + 1), f"{gap:+.3f}", *(f"{share:.3f}" for share in shares)])
        by_site = dict(zip(sites, shares.tolist(), strict=True))
        query = _round_query(study, model, p, round_)
        model, _, _ = yield from averaged_round(study, model, query, model.layout(), None, {"task": task}, by_site)
    facts = {"title": "Global gap, and weight of each hospital", "columns": ["round", "gap", *sites], "rows": rows}
    return Outcome(model, {"facts": [facts]})


def global_gap(decisions: NDArray[np.float64], metric: Metric) -> tuple[float, float]:
    """The gap (first group less second) and the accuracy over all patients, from counts[g, y, decision].

    0 where a group has nobody to count.
    """
    known = decisions[:2, 1] if metric == "equal_opportunity" else decisions[:2].sum(axis=1)
    n = known.sum(axis=1)
    gap = float(known[0, 1] / n[0] - known[1, 1] / n[1]) if n.min() > 0 else 0.0
    right = decisions[:, 0, 0].sum() + decisions[:, 1, 1].sum()
    return gap, float(right / max(decisions.sum(), 1.0))


def reweighed(
    shares: NDArray[np.float64], deviations: NDArray[np.float64], present: NDArray[np.bool_], beta: float
) -> NDArray[np.float64]:
    """The hospitals' next weights, which sum to 1; one that is not `present` keeps its own before that."""
    if not present.any():
        return shares
    moved = shares.copy()
    moved[present] -= beta * (deviations[present] - deviations[present].mean())
    moved = np.maximum(moved, 0.0)
    return moved / moved.sum() if moved.sum() > 0 else shares


def _round_query(study: Study, model: Classifier, p: FairFed, round_: int) -> Query:
    return training_query(study, model.layout(), "rounds", p, 1.0, round_)


def _parameters(study: Study) -> FairFed:
    return validate(FairFed, study.method.parameters, "method")


def _fine_tuning(study: Study, loss: str) -> Study:
    given = {k: v for k, v in _parameters(study).model_dump().items() if k not in ("metric", "beta", "loss")}
    return study.with_method("fine_tune", loss=loss, step="fedavg", **given)


METHOD = Method(
    name="fairfed",
    title="hospitals whose own gap between two groups is far from the global one weigh less in the average",
    paper="FairFed: Ezzeldin et al., AAAI 2023, arXiv:2110.00857",
    travels="decisions by cell and one change of the model a round, sums; and how far each hospital's own gap is from "
    "the global one, which the coordinator sees",
    costs="10 rounds of the whole model, and two more passes over the patients in each",
    private="none: noise on a small hospital's own gap would decide its weight",
    parameters=FairFed,
    plan=plan,
    run=run,
    controls=plain_and_balanced(_fine_tuning),
)
