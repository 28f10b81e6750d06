"""What methods that weigh hospitals ask of each: own losses, own gaps, updates weighed by them.

`site_gradient` and `site_deviation` put a figure of this hospital alone into a place of its own. They run only where
the site file allows it (`caps.site_results`).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from equipoise.client.contribution import Contribution, Fills, Totals
from equipoise.client.scores import patient_scores
from equipoise.client.training import train_locally
from equipoise.client.workplace import Workplace, nothing
from equipoise.common.catalogue import declared_total, groups_of, sites_of
from equipoise.common.fairness.tables import decide
from equipoise.common.losses import row_shares

BATCH = 64
EVEN = 0.0  # logit of a score of one half


def site_gradient(place: Workplace) -> Contribution:
    """This hospital's mean gradient times its share, and its mean loss at its place."""
    study, split, query, layout = place.study, place.split, place.query, place.layout
    if not split.patients:
        return nothing(query)
    view = place.view_for(layout.shapes)
    parameters = [view.model.get_parameter(name) for name in layout.shapes]
    weight = row_shares(split.patient, split.patients) / split.patients
    mean, gradient = 0.0, np.zeros(layout.size)
    for start in range(0, len(split.patient), BATCH):
        rows = slice(start, start + BATCH)
        z = view.model(view.rows(rows))
        entropy = functional.binary_cross_entropy_with_logits(
            z, split.label[split.patient[rows]].to(z.dtype), reduction="none"
        )
        loss = (entropy * weight[rows].to(z.dtype)).sum()
        mean += float(loss.detach())
        found = torch.autograd.grad(loss, parameters)
        gradient += layout.flatten(dict(zip(layout.shapes, found, strict=True)))
    own = sites_of(study).index(place.site)
    share = float(query.inputs["shares"]["shares"][own])
    return Totals({"gradient": share * gradient, "losses": _at(own, mean, len(sites_of(study)))})


def fair_training(place: Workplace) -> Contribution:
    """This hospital's part of q-FFL's numerator and denominator."""
    study, split, query = place.study, place.split, place.query
    if not split.patients:
        return nothing(query)
    view = place.view_for(query.parameters["tensors"], query.parameters["flips"])
    logits = view.logits().double()
    entropy = functional.binary_cross_entropy_with_logits(logits, split.label[split.patient].double(), reduction="none")
    loss = float((entropy * row_shares(split.patient, split.patients)).sum()) / split.patients
    change, _ = train_locally(
        view,
        place.layout,
        query.parameters,
        query.inputs["weights"],
        None,
        place.generator("local training"),
    )
    q, lr = query.parameters["q"], query.parameters["lr"]
    share = study.sites.declared_patients[place.site] / declared_total(study)
    # F^(q-1) for a loss of 0 and q < 1 would be infinite; such a hospital has nothing to ask for.
    steepness = q * max(loss, 1e-10) ** (q - 1) if q > 0 else 0.0
    curvature = steepness * float(change @ change) / lr + loss**q
    return Totals({"change": share * loss**q * change, "curvature": np.array([share * curvature])})


def cell_decisions(place: Workplace) -> Contribution:
    """The cell (group, label, decision) of each training patient."""
    decision = _decisions(place).astype(np.int64)
    group = place.group(place.study.primary.name)
    shape = (groups_of(place.study), 2, 2)
    return Fills({"patients": np.ravel_multi_index((group, place.label, decision), shape)[:, None]})


def site_deviation(place: Workplace) -> Contribution:
    """How far this hospital's gap is from the global one; where it has none, how far its accuracy is."""
    study = place.study
    own = sites_of(study).index(place.site)
    if not place.split.patients:
        return nothing(place.query)
    gap, accuracy = place.query.inputs["reference"]["values"]
    group, label, decision = place.group(study.primary.name), place.label, _decisions(place)
    chosen = label == 1 if place.query.parameters["metric"] == "equal_opportunity" else np.full(len(label), True)
    rates = [decision[chosen & (group == g)] for g in (0, 1)]
    if all(len(rate) for rate in rates):
        deviation = abs(float(rates[0].mean() - rates[1].mean()) - float(gap))
    else:
        deviation = abs(float((decision == label).mean()) - float(accuracy))
    return Totals({"deviation": _at(own, deviation, len(sites_of(study)))})


def _decisions(place: Workplace) -> NDArray[np.bool_]:
    return decide(patient_scores(place.view()), EVEN)


def _at(place: int, value: float, size: int) -> NDArray[np.float64]:
    vector = np.zeros(size)
    vector[place] = value
    return vector
