"""`equipoise plan`: what a study asks of every site, before anything is read."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from safetensors.torch import save

from equipoise.common import evaluation
from equipoise.common.classifier import Classifier
from equipoise.common.methods import METHOD_CONTROLS, control_of, resolve
from equipoise.common.models import load_factory
from equipoise.common.query import Query
from equipoise.common.study import Study


def full_plan(study: Study) -> list[tuple[str, Query]]:
    """Every query that a study and its controls may ask of a site: (arm, query), in order.

    Shapes come from the model's factory alone; neither weights nor data are read.
    """
    network = load_factory(study.model.factory, study.model.arguments)
    model = Classifier.of(save(network.state_dict()), network, study.model.head)
    arms = {study.method.name: study}
    for name in study.method.controls:
        variant = control_of(study, name) if name in METHOD_CONTROLS else None
        if variant is not None:
            arms[name] = variant
    asked = [(name, query) for name, arm in arms.items() for query in resolve(arm).plan(arm, model)]
    models = [evaluation.BASE, *arms]
    return asked + [("evaluation", query) for query in evaluation.plan(study, models, study.method.name)]


def describe_plan(study: Study) -> list[dict[str, Any]]:
    """The plan as rows: arm, phase, query, split, how many times, bytes that a site sends, and what it costs."""
    rows = []
    for (arm, phase, name, split), queries in groupby(
        full_plan(study), key=lambda row: (row[0], row[1].phase, row[1].name, row[1].split)
    ):
        asked = [query for _, query in queries]
        rows.append(
            {
                "arm": arm,
                "phase": phase,
                "query": name,
                "split": split,
                "times": len(asked),
                "bytes_up": sum(8 * _size(query) for query in asked),
                "epsilon": "not private",
            }
        )
    return rows


def _size(query: Query) -> int:
    total = 0
    for block in query.blocks.values():
        size = 1
        for length in block.shape:
            size *= length
        total += size
    return total
