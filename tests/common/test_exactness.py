"""Federated equals pooled, for every way of parting the same patients over 1 to 12 sites.

The parts are drawn so that groups and classes are absent at sites, sites have one patient or none, and patients with
several rows stay whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from equipoise.common import catalogue
from equipoise.common.cells import bias_weights, task_weights
from equipoise.common.classifier import Classifier
from equipoise.common.evaluation import BASE
from equipoise.common.fairness.tables import hybrid_edges
from equipoise.common.mask import Granularity
from equipoise.common.methods import resolve
from equipoise.common.methods.averaging import Weighting
from equipoise.common.query import Block, Query
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from equipoise.server.engine import Engine
from equipoise.server.rundir import model_bytes
from equipoise.server.transcript import Transcript
from tests.tiny import (
    Memory,
    People,
    Post,
    add_up,
    classifier_of,
    contribution,
    declare,
    draw_people,
    make_agent,
    make_study,
    weights_file,
)

PARTITIONS = 50
PATIENTS = 90
WITHIN = {torch.float32: 1e-5, torch.float64: 1e-11}


def parts_of(people: People, seed: int) -> list[list[int]]:
    """A partition of the patients in which something is always missing somewhere."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 13))
    ways: list[Callable[[int], int]] = [
        lambda i: int(rng.integers(count)),
        lambda i: int(people.sex[i]) % count,  # a site for each group: all others lack it
        lambda i: int(people.label[i]) % count,  # a site for each class
        lambda i: int(2 * people.sex[i] + people.label[i]) % count,  # a site for each cell
        lambda i: min(i, count - 1),  # all sites but the last have one patient
    ]
    choose = ways[seed % len(ways)]
    sites: list[list[int]] = [[] for _ in range(count)]
    for i in rng.permutation(len(people)):
        sites[choose(int(i))].append(int(i))
    if seed % 3 == 0:
        sites.append([])  # an empty site
    return sites


def patients_weights(study: Study, model: Classifier, people: People) -> Weighting:
    """The weights that a run would use, from the pooled cells."""
    query = catalogue.cell_statistics(study).with_inputs(**model.inputs())
    cells = add_up(query, [contribution(study, query, people.split(range(len(people))))])
    counts, scores = cells.value("patients"), cells.value("scores")
    return Weighting(task_weights(counts, "cells", 4.0), bias_weights(counts, scores, "equalized_odds"))


def moved(model: Classifier) -> Classifier:
    """Another model, for tables of two."""
    layout = model.layout()
    return model.moved(layout, np.random.default_rng(1).normal(0, 0.2, layout.size))


def queries_of(study: Study, model: Classifier, people: People) -> list[Query]:
    """Every patient sum of the catalogue, ready to be asked."""
    weights = patients_weights(study, model, people).arrays()
    layout, after, edges = model.layout(), moved(model), hybrid_edges(None, study.score_bins)
    both = {**model.inputs("before"), **after.inputs("after")}
    thresholds = np.array([[0.0, 0.0], [edges[20], edges[31]], [-0.3, 0.4]])
    histograms = {}
    for role, one in (("before", model), ("after", after)):
        query = catalogue.score_histogram(study, "test", BASE).with_inputs(**one.inputs(), edges={"edges": edges})
        total = add_up(query, [contribution(study, query, people.split(range(len(people))))])
        histograms.update({f"{role}.{a.name}": total.count(a.name) for a in study.attributes})
    granularities: list[Granularity] = ["parameter", "channel", "tensor"]
    return [
        catalogue.cell_statistics(study).with_inputs(**model.inputs()),
        *(
            catalogue.sensitivities(study, layout, g).with_inputs(**model.inputs(), weights=weights)
            for g in granularities
        ),
        catalogue.gradient_sum(study, layout, "extractor", 0.4).with_inputs(**model.inputs(), weights=weights),
        catalogue.score_histogram(study, "test", BASE).with_inputs(**model.inputs(), edges={"edges": edges}),
        catalogue.decision_table(study, BASE, "swift", 3).with_inputs(**both, thresholds={"thresholds": thresholds}),
        catalogue.placement_sums(study, BASE, "swift").with_inputs(
            **both, edges={"edges": edges}, histograms=histograms
        ),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_sum_is_the_pooled_one(dtype: torch.dtype) -> None:
    file = weights_file(dtype=dtype)
    people = draw_people(PATIENTS, seed=3)
    study = declare(make_study(file=file), {"all": PATIENTS})
    queries = queries_of(study, classifier_of(study, file), people)
    pooled = {id(query): contribution(study, query, people.split(range(PATIENTS))) for query in queries}
    for seed in range(PARTITIONS):
        parts = parts_of(people, seed)
        assert sorted(i for part in parts for i in part) == list(range(PATIENTS))
        for query in queries:
            total = add_up(
                query, [contribution(study, query, people.split(part), f"s{k}") for k, part in enumerate(parts)]
            )
            for name, block in query.blocks.items():
                ours, theirs = total.points[name], pooled[id(query)][name]
                if block.step == 1.0:
                    assert (ours == theirs).all(), f"partition {seed}: {query.name}.{name} differs"
                    continue
                difference = np.linalg.norm(block.lattice.decode(ours - theirs))
                norm = np.linalg.norm(block.lattice.decode(theirs))
                assert difference <= WITHIN[dtype] * norm, f"partition {seed}: {query.name}.{name} {difference / norm}"


def run_over(
    people: People, parts: Sequence[Sequence[int]], folder: Path, study: Study, file: bytes, order: Any = None
) -> tuple[Classifier, Transcript]:
    """A whole run of the study's method by the engine, over agents in memory."""
    names = [f"s{k}" for k in range(len(parts))]
    study = declare(study, {name: len(part) for name, part in zip(names, parts, strict=True)})
    agents = {
        name: make_agent(name, Memory.everywhere(people.split(part)), folder, [study])
        for name, part in zip(names, parts, strict=True)
    }
    transcript = Transcript(folder / "transcript", study.hash, "run/swift")
    engine = Engine(study, StudyPlan.of(study), Post(agents, order))
    steps = resolve(study).run(study, classifier_of(study, file))
    return engine.drive(steps, "swift", transcript).classifier, transcript


FULL_GRADIENT = {
    "name": "swift",
    "step": "full_gradient",
    "lr": 0.5,
    "rounds": {"extractor": 3, "head": 2},
    "granularity": "channel",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factory", ["small", "conv"])
def test_a_full_gradient_run_over_eight_sites_ends_with_the_pooled_weights(
    tmp_path: Path, factory: str, dtype: torch.dtype
) -> None:
    people = draw_people(64, seed=5, images=factory == "conv")
    file = weights_file(factory, dtype=dtype)
    study = make_study(FULL_GRADIENT, file=file, factory=factory)
    # Site 0 has every patient of the second group but one, site 1 the other one, site 2 no positive patient.
    parts: list[list[int]] = [[] for _ in range(8)]
    second = [i for i in range(64) if people.sex[i] == 1]
    parts[0], parts[1] = second[:-1], second[-1:]
    for place, i in enumerate(i for i in range(64) if people.sex[i] != 1):
        parts[2 if not people.label[i] and place % 2 else 3 + place % 5].append(i)
    federated, _ = run_over(people, parts, tmp_path / "federated", study, file)
    pooled, _ = run_over(people, [range(64)], tmp_path / "pooled", study, file)
    layout = federated.layout()
    ours, theirs = layout.flatten(federated.state), layout.flatten(pooled.state)
    start = layout.flatten(federated.base)
    assert np.linalg.norm(theirs - start) > 0.05 * np.linalg.norm(start), "the run hardly moved"
    assert np.linalg.norm(ours - theirs) <= WITHIN[dtype] * np.linalg.norm(theirs)


@pytest.mark.parametrize("step", ["fedavg", "full_gradient"])
def test_the_order_of_the_sites_changes_no_bit(tmp_path: Path, step: str) -> None:
    people, file = draw_people(60, seed=8), weights_file()
    study = make_study({"name": "swift", "step": step, "lr": 0.1, "rounds": {"extractor": 2, "head": 2}}, file=file)
    parts = parts_of(people, seed=10)  # ten sites
    orders: list[Any] = [None, lambda sites: sites[::-1], lambda sites: sorted(sites, key=lambda s: s[::-1])]
    runs = [run_over(people, parts, tmp_path / str(k), study, file, order) for k, order in enumerate(orders)]
    (first, transcript), *others = runs
    assert model_bytes(first) != file
    for model, other in others:
        assert model_bytes(model) == model_bytes(first)
        assert [row.sums for row in other.rows] == [row.sums for row in transcript.rows]


def test_a_patient_with_several_rows_counts_as_one() -> None:
    file = weights_file()
    people = draw_people(40, seed=2)
    assert any(len(rows) > 1 for rows in people.rows)
    study = declare(make_study(file=file), {"all": 40})
    model = classifier_of(study, file)
    # The same patients, each row written three times: every mean over a patient's rows stays what it was.
    tripled = People(tuple(torch.cat([rows] * 3) for rows in people.rows), people.label, people.sex, people.age)
    for query in queries_of(study, model, people):
        once = contribution(study, query, people.split(range(40)))
        thrice = contribution(study, query, tripled.split(range(40)))
        for name, block in query.blocks.items():
            if block.step == 1.0:
                assert (once[name] == thrice[name]).all(), (query.name, name)
                if query.name == "score_histogram":
                    assert once[name].sum() == 40
            else:
                first, second = block.lattice.decode(once[name]), block.lattice.decode(thrice[name])
                assert np.linalg.norm(first - second) <= 1e-6 * np.linalg.norm(first), (query.name, name)


@pytest.mark.parametrize("logit", [0.7, 25.0, 40.0])
def test_a_patients_score_does_not_depend_on_the_rows_of_the_others(logit: float) -> None:
    # A score that is averaged in probabilities loses digits on its way back to the logit.
    file = weights_file()
    study = declare(make_study(file=file), {"all": 3})
    model = classifier_of(study, file)
    only_bias = {name: np.zeros_like(value) for name, value in model.base.items()}
    only_bias["head.bias"] = np.array([logit], dtype=np.float32)
    model = model.with_values(only_bias)
    edges = np.array([np.float32(logit) - 2.0, np.float32(logit), np.float32(logit) + 2.0])
    bins = catalogue.score_histogram(study, "test", BASE)
    shapes = {name: (block.shape[0], 2, 4) for name, block in bins.blocks.items()}
    blocks = {name: type(block).counts(shapes[name]) for name, block in bins.blocks.items()}
    query = type(bins)(**{**bins.__dict__, "blocks": blocks}).with_inputs(**model.inputs(), edges={"edges": edges})
    one, several = draw_people(1, seed=0, most_rows=1), draw_people(30, seed=1, most_rows=3)
    alone = contribution(study, query, one.split([0]))["sex"]
    both = People(
        (*one.rows, *several.rows),
        *(
            np.append(a, b)
            for a, b in zip((one.label, one.sex, one.age), (several.label, several.sex, several.age), strict=True)
        ),
    )
    together = contribution(study, query, both.split(range(31)))["sex"]
    others = contribution(study, query, several.split(range(30)))["sex"]
    assert (together == alone + others).all()


@pytest.mark.parametrize("patients", [1, 300, 2**13, 2**40])
@pytest.mark.parametrize("bound", [1.0, 5.0**0.5, 2.0**12])
def test_the_lattice_is_finer_than_two_to_the_minus_44_of_the_bound(patients: int, bound: float) -> None:
    block = Block.real((1,), bound, patients)
    assert block.step <= 2.0**-44 * block.site_bound
    if patients <= 2**13:
        assert block.step <= 2.0**-44 * bound  # of one patient's bound too
    assert block.site_bound / block.step <= 2.0**62
