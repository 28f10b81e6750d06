"""Queries of integer tables, of patients by cell: exact, or with discrete noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from equipoise.common.catalogue.size import COUNTS, HISTOGRAM, SEARCH, TABLES, groups_of
from equipoise.common.privacy.plan import ReleasePlan
from equipoise.common.query import TEMPLATE_STEPS, Block, Query, SplitName
from equipoise.common.study import Study


def _table(
    study: Study,
    name: str,
    split: SplitName,
    phase: str,
    budget: str,
    parameters: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    cells: int,
) -> Query:
    """A query of integer tables of which a patient fills at most `cells` cells in all, one in each that it fills."""
    blocks = {block: Block.counts(shape, per_patient=cells) for block, shape in shapes.items()}
    query = Query(name, "patient_sum", split, phase, parameters, blocks, budget=budget)
    if not study.privacy.private:
        return query
    size = sum(block.size for block in blocks.values())
    return query.under(ReleasePlan.counts(cells, size, noise=TEMPLATE_STEPS, honest=study.honest_shares))


def cell_counts(study: Study) -> Query:
    """Patients by cell (group x label). No inputs."""
    shapes = {"patients": (groups_of(study), 2)}
    return _table(study, "cell_counts", "train", "counts", COUNTS, {"attribute": study.primary.name}, shapes, cells=1)


def score_histogram(study: Study, split: SplitName, model: str, bins: int | None = None) -> Query:
    """Patients by group, label and bin of the score. Inputs: the model, `edges`.

    For every attribute; under noise for the primary one alone, which the gates judge. `bins` are the study's unless a
    method needs others.
    """
    attributes = [study.primary] if study.privacy.private else study.attributes
    return _table(
        study,
        "score_histogram",
        split,
        "evaluation",
        HISTOGRAM,
        {"model": model, "attributes": [a.name for a in attributes]},
        {a.name: (len(a.groups) + 1, 2, bins or study.score_bins) for a in attributes},
        cells=len(attributes),
    )


def candidate_histogram(study: Study, bins: int) -> Query:
    """A `score_histogram` of a search's candidate on the validation patients, of the primary attribute alone.

    Searches release many, so their noise is Gaussian, whose cost adds up more slowly than Laplace's.
    """
    attribute = study.primary
    block = Block.counts((len(attribute.groups) + 1, 2, bins))
    parameters = {"model": "candidate", "attributes": [attribute.name]}
    query = Query(
        "score_histogram", "patient_sum", "validation", SEARCH, parameters, {attribute.name: block}, budget=SEARCH
    )
    if not study.privacy.private:
        return query
    plan = ReleasePlan.counts(
        1, block.size, noise=TEMPLATE_STEPS, mechanism="discrete_gaussian", honest=study.honest_shares
    )
    return query.under(plan)


def decision_table(study: Study, before: str, after: str, points: int) -> Query:
    """Patients by group, label and the interval of their score before and after, cut at the operating points.

    One cell a patient; the pair tables of all operating points are margins of it (`equipoise.common.fairness.joint`).
    Inputs: two models, `thresholds` (points, 2).
    """
    return _table(
        study,
        "decision_table",
        "test",
        "evaluation",
        TABLES,
        {"before": before, "after": after, "attributes": [a.name for a in study.attributes]},
        {a.name: (len(a.groups) + 1, 2, points + 1, points + 1) for a in study.attributes},
        cells=len(study.attributes),
    )
