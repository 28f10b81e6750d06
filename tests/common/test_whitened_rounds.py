"""Whitened rounds by the engine and real agents: partitions, masks, the guard, the pool, and what they ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from equipoise.common.canonical import sha256
from equipoise.common.classifier import Classifier
from equipoise.common.errors import DataError, StudyError
from equipoise.common.mask import SoftMask
from equipoise.common.methods import resolve
from equipoise.common.methods.method import Outcome
from equipoise.common.methods.whitened import Course, Whitened, plan_rounds, run_rounds
from equipoise.common.query import Sum
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from equipoise.common.study_privacy import PublicPool
from equipoise.server.engine import Engine
from equipoise.server.transcript import Transcript
from tests.driving import private_town, town
from tests.tiny import (
    WIDTH,
    Memory,
    People,
    Post,
    classifier_of,
    declare,
    draw_people,
    make_agent,
    make_study,
    weights_file,
)

FILE = weights_file()
PEOPLE = draw_people(48, seed=3)
NINE = np.array([[9.0, 9], [9, 9], [0, 0]])
WHOLE = {"whitened": {"rounds": 3, "directions": 6, "lr": 0.3}}


def with_pool(study: Study, folder: Path, rows: torch.Tensor | None = None) -> Study:
    """The study with a public pool of 60 rows nobody in particular has."""
    drawn = np.random.default_rng(5).uniform(-1, 1, (60, WIDTH)).astype(np.float32)
    content = save({"rows": torch.from_numpy(drawn) if rows is None else rows})
    file = folder / "pool.safetensors"
    file.write_bytes(content)
    pool = PublicPool(path=str(file), sha256=sha256(content))
    return study.model_copy(update={"privacy": study.privacy.model_copy(update={"public_pool": pool})})


def run_at(folder: Path, parts: Sequence[Sequence[int]], **method: Any) -> tuple[Outcome, Post, Classifier]:
    """The method over sites that hold these patients each, without noise."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"s{i}" for i in range(len(parts))]
    study = declare(make_study(method, file=FILE), {n: len(p) for n, p in zip(names, parts, strict=True)})
    study = with_pool(study, folder)
    agents = {
        name: make_agent(name, Memory.everywhere(PEOPLE.split(part)), folder, [study])
        for name, part in zip(names, parts, strict=True)
    }
    post, model, plan = Post(agents), classifier_of(study, FILE), StudyPlan.of(study)
    transcript = Transcript(folder / "transcript", study.hash, f"run/{study.method.name}")
    outcome = Engine(study, plan, post).drive(resolve(study).run(study, model), study.method.name, transcript)
    return outcome, post, model


def difference(one: Classifier, other: Classifier) -> float:
    return max(float(np.abs(one.state[name] - other.state[name]).max()) for name in one.parameters)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "private_head", "rounds": 3, "directions": 5},
        {"name": "swift", "step": "whitened", **WHOLE},
        {"name": "fine_tune", "step": "whitened", "loss": "cells", **WHOLE},
    ],
    ids=lambda method: method["name"],
)
def test_any_partition_of_the_patients_gives_the_pooled_model(tmp_path: Path, method: dict[str, Any]) -> None:
    everyone = list(range(len(PEOPLE)))
    women = [i for i in everyone if PEOPLE.sex[i] == 0]
    pooled, _, base = run_at(tmp_path / "pooled", [everyone], **method)
    # One site without women, one with women alone, one without anybody.
    parts = [[i for i in everyone if i not in women], women, []]
    split, _, _ = run_at(tmp_path / "split", parts, **method)
    moved = difference(pooled.classifier, base)
    assert moved > 1e-3
    assert difference(pooled.classifier, split.classifier) <= 1e-5 * max(moved, 1.0)


def test_the_head_alone_moves_in_its_space_and_everything_in_the_whole_one(tmp_path: Path) -> None:
    outcome, post, base = run_at(tmp_path / "head", [range(48)], name="private_head", rounds=2, directions=5)
    changed = {n for n in base.parameters if not np.array_equal(outcome.classifier.state[n], base.base[n])}
    assert changed == {"head.weight", "head.bias"}
    assert post.asked() == ["cell_counts", "whitened_gradient", "whitened_gradient"]
    outcome, post, base = run_at(tmp_path / "whole", [range(48)], name="swift", step="whitened", **WHOLE)
    changed = {n for n in base.parameters if not np.array_equal(outcome.classifier.state[n], base.base[n])}
    assert changed == set(base.parameters)
    assert post.asked() == ["cell_counts", "block_sensitivities", *["whitened_gradient"] * 3]
    assert [row["tensor"] for row in outcome.notes["mask"]] == list(base.parameters)


def test_a_tensor_with_mask_0_neither_moves_nor_travels(tmp_path: Path) -> None:
    study = with_pool(declare(make_study(file=FILE), {"s": 48}), tmp_path)
    model = classifier_of(study, FILE)
    values = {name: np.ones(shape) for name, shape in model.layout("whole").shapes.items()}
    values["extractor.0.weight"][:] = 0.0
    p, course = Whitened(rounds=2, directions=6), Course("whole", "whole")
    steps = run_rounds(study, model, p, course, NINE, SoftMask(values))
    query = next(steps)
    assert query.inputs["mask"]["extractor.0.weight"].max() == 0.0
    basis = query.inputs["basis"]["basis"]
    whole = _coordinates(study, model, p, course)
    assert len(basis) == whole - _coordinates_of("extractor.0.weight", study, model, p)
    result, _ = _answered(steps, query, gradient=1.0)
    assert np.array_equal(result.state["extractor.0.weight"], model.base["extractor.0.weight"])
    assert not np.array_equal(result.state["extractor.2.weight"], model.base["extractor.2.weight"])


def _coordinates(study: Study, model: Classifier, p: Whitened, course: Course) -> int:
    steps = run_rounds(study, model, p, course, np.ones((3, 2)))
    return len(next(steps).inputs["basis"]["basis"])


def _coordinates_of(name: str, study: Study, model: Classifier, p: Whitened) -> int:
    shape = model.layout("whole").shapes[name]
    return shape[0] * min(p.rank, int(np.prod(shape[1:])))


def _answered(steps: Any, query: Any, gradient: float, scores: Sequence[float] = (0.0,)) -> tuple[Classifier, Any]:
    """Run to the end with sums that are given: a constant gradient and, by round, a separation of the scores."""
    at = 0
    try:
        while True:
            separation = scores[min(at, len(scores) - 1)]
            offsets = np.zeros((3, 2))
            offsets[:2] = [[-separation / 2 * 9, separation / 2 * 9]] * 2  # nine patients a cell
            values = {"gradient": np.full(query.blocks["gradient"].size, gradient), "scores": 0.4 * offsets}
            values["patients"] = NINE
            points = {name: block.lattice.encode(values[name], np.inf) for name, block in query.blocks.items()}
            at += 1
            query = steps.send(Sum(query, ("s",), points))
    except StopIteration as end:
        return end.value


def test_a_model_that_forgets_the_disease_is_rolled_back(tmp_path: Path) -> None:
    study = with_pool(declare(make_study(file=FILE), {"s": 36}), tmp_path)
    model, counts = classifier_of(study, FILE), NINE
    p, course = Whitened(rounds=6, directions=6, lr=0.1, memory=1.0), Course("whole", "whole")

    def run(*separations: float) -> tuple[Classifier, Any]:
        steps = run_rounds(study, model, p, course, counts)
        return _answered(steps, next(steps), 1.0, separations)

    kept, notes = run(0.4, 0.4, 0.4)
    assert not notes["rounds"]["collapsed"]
    assert len(notes["rounds"]["separation_by_round"]) == 6
    fallen, notes = run(0.4, 0.39, 0.38, 0.05)
    assert notes["rounds"]["collapsed"]
    assert notes["rounds"]["separation_by_round"] == pytest.approx([0.4, 0.39, 0.38, 0.05], abs=1e-6)
    # Back at the last point that told the diseased apart: two steps from the start, not where it ended.
    two, _ = run(0.4, 0.39, 0.38, 0.05, 0.05)
    assert difference(fallen, two) == 0.0
    assert 0 < difference(fallen, model) < difference(kept, model)
    first, notes = run(0.4, 0.0)
    assert notes["rounds"]["collapsed"]
    assert difference(first, model) == 0.0


def test_a_pool_that_shows_one_thing_is_refused_unless_accepted(tmp_path: Path) -> None:
    study = declare(make_study(file=FILE), {"s": 36})
    alike = torch.full((60, WIDTH), 0.5) + 1e-4 * torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(0))
    study = with_pool(study, tmp_path, alike)
    model, course = classifier_of(study, FILE), Course("whole", "whole")
    with pytest.raises(DataError, match=r"public pool: only .* differs between images"):
        next(run_rounds(study, model, Whitened(directions=6), course, np.ones((3, 2))))
    query = next(run_rounds(study, model, Whitened(directions=6, accept_poor_pool=True), course, np.ones((3, 2))))
    assert query.inputs["basis"]["basis"].shape[1] == 6
    bare = study.model_copy(update={"privacy": study.privacy.model_copy(update={"public_pool": None})})
    with pytest.raises(StudyError, match="public_pool is missing"):
        next(run_rounds(bare, model, Whitened(), course, np.ones((3, 2))))


def test_the_number_of_directions_is_fixed_by_the_plan_whatever_the_pool_knows(tmp_path: Path) -> None:
    study = with_pool(declare(make_study(file=FILE), {"s": 36}), tmp_path)
    model = classifier_of(study, FILE)
    course, p = Course("head", "head"), Whitened(directions=50, accept_poor_pool=True)
    planned = plan_rounds(study, model, p, course)
    assert {query.blocks["gradient"].shape for query in planned} == {(7,)}  # six weights and a bias
    query = next(run_rounds(study, model, p, course, np.ones((3, 2))))
    assert query.template == planned[0].template
    narrow = with_pool(study, tmp_path, torch.linspace(-1, 1, 60 * WIDTH).reshape(60, WIDTH)[:, :1].repeat(1, WIDTH))
    basis = next(run_rounds(narrow, model, p, course, np.ones((3, 2)))).inputs["basis"]["basis"]
    assert basis.shape == (7, 7)


def test_the_sum_is_read_in_units_of_the_clip_bound(tmp_path: Path) -> None:
    """Twice the clip bound with half the numbers on the wire is the same step."""
    study = with_pool(declare(make_study(file=FILE), {"s": 36}), tmp_path)
    model, counts = classifier_of(study, FILE), NINE
    course, results = Course("head", "head"), []
    for percentile in (30.0, 90.0):
        p = Whitened(rounds=2, directions=7, clip_percentile=percentile)
        steps = run_rounds(study, model, p, course, counts)
        query = next(steps)
        clip = float(query.inputs["basis"]["clip"][0])
        results.append((clip, _answered(steps, query, gradient=1.0 / clip, scores=(0.4,))[0]))
    (small, one), (large, other) = results
    assert large > 1.2 * small
    assert difference(one, other) <= 1e-6


def test_a_query_under_noise_is_priced_by_shapes_alone(tmp_path: Path) -> None:
    study = declare(
        make_study({"name": "swift", **WHOLE}, file=FILE, privacy={"mode": "local", "epsilon": 3}), {"s": 36}
    )
    model = classifier_of(study, FILE)
    templates = resolve(study).plan(study, model)
    other = replace(model, file=weights_file(seed=9))
    assert [query.template for query in resolve(study).plan(study, other)] == [query.template for query in templates]
    assert [query.budget for query in templates] == ["counts", "mask", "rounds", "rounds", "rounds"]
    assert all(query.private for query in templates)


# --- sites that drop out ------------------------------------------------------------------------------------------

STEPS = {"rounds": 4, "directions": 6, "rank": 2, "lr": 0.3, "accept_poor_pool": True}


def apart(count: int = 120) -> tuple[People, list[list[int]]]:
    """Patients of two groups with a gap at both labels, and two sites: nearly all women are at the second."""
    people = draw_people(count, 3, unknown=0.0)
    women = [i for i in range(count) if people.sex[i] == 0]
    away = women[len(women) // 6 :]
    return people, [[i for i in range(count) if i not in away], away]


@pytest.fixture(scope="module")
def able() -> bytes:
    """A model that tells the diseased apart, and men better than women."""
    place = town("fine_tune", people=apart()[0], rounds=60, lr=0.3, step="full_gradient", loss="plain")
    return save({name: torch.from_numpy(np.array(v)) for name, v in place.run().outcome.classifier.state.items()})


def bias_sent(done: Any) -> list[np.ndarray]:
    return [total.query.inputs["weights"]["bias"] for total in done.named("whitened_gradient")]


@pytest.mark.parametrize("private", [True, False])
def test_a_missing_site_turns_no_gap_round(tmp_path: Path, able: bytes, private: bool) -> None:
    """With sums of some patients over the number of all, the missing group's mean score would be near one half."""
    people, parts = apart()
    place = place_of(tmp_path, "swift", people, able, private, mask="ones", whitened={**STEPS, "beta": 0.5})
    there = bias_sent(place.run(*parts, noise=False))
    gone = bias_sent(place.run(*parts, noise=False, absent=lambda number: ["b"] if number in (2, 3) else []))
    for full, partial in zip(there[2:], gone[2:], strict=True):
        assert (np.sign(full[:2]) == np.sign(partial[:2])).all()
    if private:
        np.testing.assert_array_equal(gone[2], gone[1])  # held: nobody knows who was missing
        np.testing.assert_array_equal(gone[3], gone[1])
    # Missing in the first round of all: under noise no gap is known yet, and without it the patients there are told.
    first = bias_sent(place.run(*parts, noise=False, absent=lambda number: ["b"] if number == 1 else []))
    assert first[1].any() != private
    if not private:
        assert (np.sign(first[1][:2]) == np.sign(there[1][:2])).all()


def place_of(folder: Path, name: str, people: People, file: bytes, private: bool, **how: Any) -> Any:
    """A town with a public pool, with noise or without."""
    place = private_town(folder, name, file=file, people=people, step="whitened", **how)
    if private:
        return place
    privacy = place.study.privacy.model_copy(update={"mode": "none", "epsilon": None})
    return replace(place, study=place.study.model_copy(update={"privacy": privacy}))


@pytest.mark.parametrize("private", [True, False])
def test_a_missing_site_is_no_collapse_and_no_smaller_step(tmp_path: Path, able: bytes, private: bool) -> None:
    """Two sites with the same patients: the mean gradient of one is that of both."""
    people = apart()[0]
    place = place_of(tmp_path, "fine_tune", people, able, private, whitened=STEPS)
    both = [range(120), range(120)]
    done = place.run(*both, noise=False)
    alone = place.run(*both, noise=False, absent=lambda number: ["b"] if number > 0 else [])
    assert not alone.outcome.notes["rounds"]["collapsed"]
    there, gone = (run.outcome.notes["rounds"]["separation_by_round"] for run in (done, alone))
    assert there == pytest.approx(gone, abs=1e-5)
    assert difference(done.outcome.classifier, place.model) > 1e-3
    assert difference(done.outcome.classifier, alone.outcome.classifier) <= 1e-5


def test_a_cell_that_is_missing_keeps_its_scores(tmp_path: Path, able: bytes) -> None:
    """Without noise: all women are away, so that no gap can be told; the separation is still that of all patients."""
    people = apart()[0]
    parts = [[i for i in range(120) if people.sex[i] == g] for g in (1, 0)]
    place = place_of(tmp_path, "swift", people, able, False, mask="ones", whitened={**STEPS, "beta": 1.0, "lr": 1e-9})
    there = place.run(*parts)
    gone = place.run(*parts, absent=lambda number: ["b"] if number > 1 else [])
    separations = [run.outcome.notes["rounds"]["separation_by_round"] for run in (there, gone)]
    assert separations[0] == pytest.approx(separations[1], abs=1e-6)
    np.testing.assert_allclose(bias_sent(there)[-1], bias_sent(gone)[-1], atol=1e-5)
    # Away from the first round on: men alone are no group with a gap.
    assert not np.any(bias_sent(place.run(*parts, absent=lambda number: ["b"] if number > 0 else [])))


def test_without_noise_the_patients_come_with_the_sum_and_under_noise_they_would_cost(tmp_path: Path) -> None:
    place = town("private_head")
    plain = resolve(place.study).plan(place.study, place.model)[-1]
    assert list(plain.blocks) == ["gradient", "scores", "patients"]
    noisy = private_town(tmp_path, "private_head")
    assert list(resolve(noisy.study).plan(noisy.study, noisy.model)[-1].blocks) == ["gradient", "scores"]
