"""Queries of a site's own training: plain steps, fair weights, or DP-SGD."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from equipoise.common.catalogue.size import (
    GRADIENT_BOUND,
    ROUNDS,
    UPDATE_BOUND,
    declared_total,
    expected_patients,
    groups_of,
)
from equipoise.common.errors import StudyError
from equipoise.common.layout import Layout
from equipoise.common.privacy.plan import ReleasePlan
from equipoise.common.private_step import joint_bound
from equipoise.common.query import MOVED, Block, Query
from equipoise.common.study import Study


def private_training(
    study: Study, layout: Layout, phase: str, parameters: Mapping[str, Any], batch: int, epochs: int
) -> Query:
    """A site's weighted change of the trained tensors after steps of DP-SGD, and its noised sums of scores by cell.

    Inputs: the model, `weights` (`task` and `bias` by cell), `clip` (C, public), `mask`. `parameters`: beta, lr,
    momentum, weight_decay, flips, round. A step takes each patient with the same probability at every site, by which
    an average site's step has `batch` patients and a round takes each patient `epochs` times; both are in the plan, in
    units of C, so that it depends on shapes alone. The site multiplies its change by its declared share. `scores` are
    summed over the steps (`equipoise.client.private_training`).

    Raises:
        StudyError: noise in shares, which do not compose through a site's own steps, or no declared patients.
    """
    if study.privacy.mode == "distributed":
        raise StudyError(
            "privacy.mode=distributed: federated averaging has noise in every step of a hospital, and shares of noise "
            "do not add up through them; write mode: local, or step: whitened"
        )
    shape = (groups_of(study), 2)
    declared = expected_patients(study)
    rate = min(1.0, batch * len(declared) / sum(declared))
    plan = ReleasePlan.dp_sgd(
        joint_bound(1.0), layout.size + math.prod(shape), noise=1.0, rate=rate, steps=max(1, round(epochs / rate))
    )
    names = list(layout.shapes)
    return Query(
        name="private_training",
        kind="site_update",
        split="train",
        phase=phase,
        parameters={
            "attribute": study.primary.name,
            "tensors": names,
            "sizes": [math.prod(layout.shapes[name]) for name in names],
            **parameters,
        },
        blocks={MOVED: Block.real((layout.size,), UPDATE_BOUND, 1), "scores": Block.noisy(shape, plan)},
        budget=ROUNDS,
    ).under(plan)


def local_training(study: Study, layout: Layout, phase: str, parameters: Mapping[str, Any]) -> Query:
    """A site's weighted change of the trained tensors after local epochs. Inputs: the model, `weights`, `mask`.

    `parameters`: beta, lr, momentum, weight_decay, epochs, batch, flips, round, and what some methods add. With
    `stream`, sites draw their shuffles from the public stream of that name, so that candidates that are compared meet
    the patients in the same order. With `sizes`, tensors whose mask is 0 do not travel (`Query.with_inputs`). The site
    multiplies its change by its declared share of the patients, or by its own of the input `shares` (one a hospital, in
    the order of `sites_of`), so that the sum is the federated average. `patients` and `scores` are the site's patients
    and their sums of scores by cell after its steps (`equipoise.client.moving_bias`), from which the next round's gaps
    are taken.
    """
    return Query(
        name="local_training",
        kind="site_update",
        split="train",
        phase=phase,
        parameters={"attribute": study.primary.name, "tensors": list(layout.shapes), **parameters},
        blocks={
            "change": Block.real((layout.size,), UPDATE_BOUND, 1),
            "patients": Block.counts((groups_of(study), 2)),
            "scores": Block.real((groups_of(study), 2), 1.0, declared_total(study)),
        },
    )


def fair_training(study: Study, layout: Layout, parameters: Mapping[str, Any]) -> Query:
    """q-FFL's two sums over hospitals: p F^q (change after local epochs), and p (q F^(q-1) |change|^2 / lr + F^q).

    p is the hospital's declared share and F its mean task loss at the received model. Inputs: the model, `weights`.
    `parameters` are those of `local_training`, and q. No hospital's own figure is shown.
    """
    blocks = {
        "change": Block.real((layout.size,), UPDATE_BOUND, 1),
        "curvature": Block.real((1,), GRADIENT_BOUND, 1),
    }
    names = {"attribute": study.primary.name, "tensors": list(layout.shapes), **parameters}
    return Query("fair_training", "site_update", "train", "rounds", names, blocks)
