"""Queries of one vector a patient: exact, or each clipped and Gaussian noise on the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from equipoise.common.catalogue.size import GRADIENT_BOUND, LOSSES, MASK, ROUNDS, declared_total, groups_of
from equipoise.common.layout import Layout
from equipoise.common.mask import Granularity, units
from equipoise.common.privacy.plan import ReleasePlan
from equipoise.common.private_step import joint_bound
from equipoise.common.query import Block, Query
from equipoise.common.space import Kind
from equipoise.common.study import Study


def _vector(
    study: Study,
    name: str,
    phase: str,
    budget: str,
    parameters: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    clip: float,
) -> Query:
    """A query of one vector a patient over the train split, of L2 norm at most `clip`, cut into blocks."""
    if not study.privacy.private:
        blocks = {block: Block.real(shape, clip, declared_total(study)) for block, shape in shapes.items()}
        return Query(name, "patient_sum", "train", phase, parameters, blocks, budget=budget)
    size = sum(math.prod(shape) for shape in shapes.values())
    plan = ReleasePlan.vector(clip, size, noise=clip, honest=study.honest_shares)
    blocks = {block: Block.noisy(shape, plan) for block, shape in shapes.items()}
    return Query(name, "patient_sum", "train", phase, parameters, blocks, budget=budget).under(plan)


def _with_patients(study: Study, query: Query) -> Query:
    """Without noise: and the patients by cell, so that sums over some sites are not divided by patients of all."""
    if study.privacy.private:
        return query
    return replace(query, blocks={**query.blocks, "patients": Block.counts((groups_of(study), 2))})


def block_sensitivities(study: Study, layout: Layout) -> Query:
    """Squared gradient norms by tensor, of the score and of the cross-entropy. Inputs: the model, `weights`, `units`.

    One vector a patient: weighted by cell, equalised by public units and clipped to norm 1
    (`equipoise.common.equalisation`), so that the plan depends on shapes alone.
    """
    tensors = len(layout.shapes)
    return _vector(
        study,
        "block_sensitivities",
        "mask",
        MASK,
        {"attribute": study.primary.name, "tensors": list(layout.shapes)},
        {"bias": (tensors,), "task": (tensors,)},
        clip=1.0,
    )


def whitened_gradient(study: Study, phase: str, space: Kind, rank: int, directions: int, beta: float) -> Query:
    """The gradient of the global loss in whitened directions, in units of the clip bound, and the scores by cell.

    Inputs: the model, `weights`, `basis` (basis V (D, k) and clip bound C, both public); `filters`, where some tensors
    have filters of their own; `mask`, where the space is masked. One clipped vector a patient
    (`equipoise.common.private_step.contributions`), divided by C: the plan depends on shapes alone. Without noise the
    patients of the sites that answer come with it, by cell.
    """
    query = _vector(
        study,
        "whitened_gradient",
        phase,
        ROUNDS,
        {"attribute": study.primary.name, "space": space, "rank": rank, "beta": beta},
        {"gradient": (directions,), "scores": (groups_of(study), 2)},
        clip=joint_bound(1.0),
    )
    return _with_patients(study, query)


def cell_losses(study: Study, phase: str, cap: float) -> Query:
    """Sums of the patients' cross-entropies by cell, each cut at `cap` and divided by it. Inputs: the model.

    Without noise the patients of the sites that answer come with it.
    """
    shape = (groups_of(study), 2)
    query = _vector(
        study, "cell_losses", phase, LOSSES, {"attribute": study.primary.name, "cap": cap}, {"losses": shape}, clip=1.0
    )
    return _with_patients(study, query)


def group_fisher(study: Study, layout: Layout, granularity: Granularity) -> Query:
    """Sums by group of the patients' squared gradients of the task loss. Inputs: the model; under noise, `units`.

    Under noise one vector a patient, in public units and clipped (`equipoise.common.group_fisher.Scale`), so that the
    plan depends on shapes alone.
    """
    shape = (groups_of(study), sum(units(layout, granularity).values()))
    parameters = {"attribute": study.primary.name, "granularity": granularity, "tensors": list(layout.shapes)}
    query = _vector(study, "group_fisher", "importance", MASK, parameters, {"energies": shape}, clip=1.0)
    if study.privacy.private:
        return query
    return replace(query, blocks={"energies": Block.real(shape, GRADIENT_BOUND, declared_total(study))})
