"""The door's contract: what one patient can move, what leaves, and that nothing leaves without a charge."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from equipoise.client import computations
from equipoise.client.alike import PLACES
from equipoise.client.cohort import Split
from equipoise.client.computations import COMPUTATIONS, Workplace
from equipoise.client.contribution import Contribution, Fills, Noised, Rows, Totals
from equipoise.client.release import release
from equipoise.client.scores import ScoreCache
from equipoise.common import catalogue
from equipoise.common.classifier import Classifier
from equipoise.common.errors import DataError, ModelError, RefusedError, StorageError
from equipoise.common.privacy.mechanisms import NoNoise
from equipoise.common.privacy.plan import ReleasePlan
from equipoise.common.query import Arrays, Block, Query
from equipoise.common.space import Space
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from equipoise.common.wire import unpack
from tests.client.books import begin, opened, request
from tests.tiny import (
    FEATURES,
    Memory,
    People,
    any_plan,
    charge_for,
    classifier_of,
    declare,
    draw_people,
    make_agent,
    network,
    private_study,
    request_for,
    weights_file,
)

FILE = weights_file()
STUDY = declare(private_study(file=FILE), {"a": 30})
MODEL = classifier_of(STUDY, FILE)
EDGES = np.array([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
THRESHOLDS = np.array([[0.0, 0.1], [-0.5, 0.5], [0.2, -0.2]])


# --- every private query ------------------------------------------------------------------------------------------


def scaled(model: Classifier, factor: float) -> Classifier:
    """A model that a server may send: the vendor's with a head of its own."""
    head = {name: model.base[name] * np.float32(factor) for name in model.layout("head").shapes}
    return model.with_values(head)


def rounding_alone(model: Classifier) -> Classifier:
    """A model made so that a score is the rounding of its own sums, many times enlarged."""
    values = {name: value.copy() for name, value in model.base.items()}
    values["extractor.0.weight"] = np.random.default_rng(5).normal(size=(8, 10)).astype(np.float32)
    values["extractor.2.weight"] *= np.float32(0.1)
    with torch.no_grad():
        middle = network()
        middle.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()})
        seen = middle.extractor(PEOPLE.split(range(1)).inputs[:1])[0]
    weights = np.array([[1.0, -1, 1, -1, 1, -1]], dtype=np.float32) * np.float32(3e6)
    values["head.weight"] = weights
    values["head.bias"] = np.array([-float((torch.from_numpy(weights[0]).double() * seen.double()).sum())], np.float32)
    return model.with_values(values)


PEOPLE = draw_people(40, seed=2)
MODELS: dict[str, Callable[[], Classifier]] = {
    "the vendor's": lambda: MODEL,
    "a large head": lambda: scaled(MODEL, 1e4),
    "a head beyond float32": lambda: scaled(MODEL, 3e38),
    "a head that is NaN": lambda: scaled(MODEL, math.nan),
    "rounding alone": lambda: rounding_alone(MODEL),
}


def basis_of(space: str, directions: int, clip: float = 0.5) -> Arrays:
    """A public basis of a space, of directions of very different lengths."""
    size = Space.of(network(), space, head="head.", seed=STUDY.seed, rank=2).size
    rng = np.random.default_rng(3)
    lengths = 10.0 ** np.linspace(-2, 2, directions)
    return {"basis": rng.normal(size=(size, directions)) * lengths, "clip": np.array([clip])}


WEIGHTS = {
    "task": np.array([[1.0, 2.0], [0.5, 4.0], [0.0, 1.0]]),
    "bias": np.array([[0.5, -1.0], [-0.5, 1.0], [0.0, 0.0]]),
}
# Public units so small that whoever has a gradient meets the bound.
UNITS = {"unit": np.full((2, len(MODEL.layout().shapes)), 1e-9), "kept": np.array([0.5, 0.5])}
SCALE = {"unit": np.ones(len(MODEL.layout().shapes)), "clip": np.array([1e-9])}


def private_queries(model: Classifier) -> dict[str, Query]:
    """Every query of the catalogue that noise can protect, with its inputs."""
    both = {**MODEL.inputs("before"), **model.inputs("after")}
    gradients = {
        space: catalogue.whitened_gradient(STUDY, "rounds", space, 2, 5, 0.7).with_inputs(
            **model.inputs(), weights=WEIGHTS, basis=basis_of(space, 5)
        )
        for space in ("head", "whole")
    }
    layout = MODEL.layout()
    return {
        "cell_counts": catalogue.cell_counts(STUDY),
        "cell_losses": catalogue.cell_losses(STUDY, "rounds", 0.2).with_inputs(**model.inputs()),
        "group_fisher": catalogue.group_fisher(STUDY, layout, "channel").with_inputs(**model.inputs(), units=SCALE),
        "block_sensitivities": catalogue.block_sensitivities(STUDY, layout).with_inputs(
            **model.inputs(), weights=WEIGHTS, units=UNITS
        ),
        "histogram of a candidate": catalogue.candidate_histogram(STUDY, 8).with_inputs(
            **model.inputs(), edges={"edges": EDGES}
        ),
        "score_histogram": catalogue.score_histogram(STUDY, "test", "base").with_inputs(
            **model.inputs(), edges={"edges": EDGES}
        ),
        "decision_table": catalogue.decision_table(STUDY, "base", "x", 3).with_inputs(
            **both, thresholds={"thresholds": THRESHOLDS}
        ),
        "whitened_gradient of the head": gradients["head"],
        "whitened_gradient of the whole": gradients["whole"],
    }


NAMES = list(private_queries(MODEL))


def test_every_query_with_a_private_form_is_here_and_the_others_have_none() -> None:
    private = {query.name for query in private_queries(MODEL).values()}
    layout = MODEL.layout()
    asked: dict[str, Query] = {
        "cell_statistics": catalogue.cell_statistics(STUDY),
        "sensitivities": catalogue.sensitivities(STUDY, layout, "tensor"),
        "batch_sensitivities": catalogue.batch_sensitivities(STUDY, layout, "tensor", 8, "equalized_odds", "absolute"),
        "gradient_sum": catalogue.gradient_sum(STUDY, layout, "extractor", 0.5),
        "local_training": catalogue.local_training(STUDY, layout, "head", {}),
        "placement_sums": catalogue.placement_sums(STUDY, "base", "x"),
        "head_moments": catalogue.head_moments(STUDY, MODEL.layout("head")),
        "head_curve": catalogue.head_curve(STUDY, MODEL.layout("head")),
        "site_gradient": catalogue.site_gradient(STUDY, layout),
        "fair_training": catalogue.fair_training(STUDY, layout, {}),
        "cell_decisions": catalogue.cell_decisions(STUDY),
        "site_deviation": catalogue.site_deviation(STUDY, "equalized_odds"),
        "site_table": catalogue.site_table(STUDY, "base", "x"),
    }
    # Whose contract is tested in test_private_training.py: its noise is inside the computation.
    assert private | set(asked) | {"private_training"} == set(COMPUTATIONS)
    assert not any(query.private for query in asked.values())
    assert all(query.private for query in private_queries(MODEL).values())


def place_of(query: Query, split: Split) -> Workplace:
    return Workplace(STUDY, "a", query, split, ScoreCache(), 0)


def unnoised(query: Query, split: Split) -> NDArray[np.int64]:
    """What the door sums up before it adds noise: flat, in lattice steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReleasePlan, "sampler", NoNoise())
        points = release(charge_for(query), query, COMPUTATIONS[query.name](place_of(query, split)))
    assert list(points) == list(query.blocks)
    return np.concatenate([points[name].ravel() for name in query.blocks])


def distance(query: Query, one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """How far two sums lie apart in the norm and unit of the plan."""
    moved = (one - other).astype(np.float64) * query.plan.step
    return float(np.abs(moved).sum() if query.plan.norm == "l1" else np.linalg.norm(moved))


extreme = st.sampled_from([math.nan, math.inf, -math.inf, 3e38, -3e38, 1e20, 1e-40, 0.0, 1.0, -1.0])
ordinary = st.floats(-1, 1, width=32)
rows = st.lists(st.lists(ordinary | extreme, min_size=FEATURES, max_size=FEATURES), min_size=1, max_size=4)
patients = st.lists(st.tuples(rows, st.integers(0, 1), st.integers(0, 2), st.integers(0, 2)), max_size=6)


def people_of(drawn: Any) -> People:
    """The drawn patients, after some ordinary ones."""
    inputs = [torch.tensor([[*row, *[0.0] * FEATURES] for row in rows], dtype=torch.float32) for rows, *_ in drawn]
    label, sex, age = (np.array([one[i] for one in drawn], dtype=np.int64) for i in (1, 2, 3))
    return People(
        (*PEOPLE.rows, *inputs),
        np.append(PEOPLE.label, label),
        np.append(PEOPLE.sex, sex),
        np.append(PEOPLE.age, age),
    )


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(drawn=patients, model=st.sampled_from(list(MODELS)), share=st.floats(0, 1, exclude_max=True))
def test_one_patient_moves_a_sum_by_no_more_than_the_plan_says(name: str, drawn: Any, model: str, share: float) -> None:
    query = private_queries(MODELS[model]())[name]
    people = people_of(drawn)
    everyone = list(range(len(people)))
    # Any one of them: an ordinary one before others, or one of those drawn.
    gone = int(share * len(people))
    rest = [i for i in everyone if i != gone]
    moved = distance(query, unnoised(query, people.split(everyone)), unnoised(query, people.split(rest)))
    assert moved <= query.plan.sensitivity
    alone = distance(query, unnoised(query, people.split([gone])), unnoised(query, people.split([])))
    # Not up to rounding but to the last bit: what she adds does not hang on who else is there.
    assert moved == alone


def test_the_bounds_are_met_by_somebody() -> None:
    """The contract above is no idle one: whoever has a large gradient, or fills all cells allowed, meets it."""
    queries = private_queries(MODEL)
    for name, query in queries.items():
        furthest = max(
            distance(query, unnoised(query, PEOPLE.split([i])), unnoised(query, PEOPLE.split([])))
            for i in range(len(PEOPLE))
        )
        assert furthest >= 0.97 * query.plan.sensitivity, name


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cell_counts"])
def test_a_score_does_not_hang_on_the_size_of_the_crowd(name: str) -> None:
    """Where one patient fewer would let other rows meet other kernels, with a model that shows nothing but rounding."""
    query = private_queries(rounding_alone(MODEL))[name]
    singles = draw_people(70, seed=9, most_rows=1)
    sums = [unnoised(query, singles.split(range(count))) for count in range(71)]
    own = [unnoised(query, singles.split([i])) - unnoised(query, singles.split([])) for i in range(70)]
    for count in range(70):
        assert (sums[count + 1] - sums[count] == own[count]).all(), count
    # The model does what it was made for: scores are spread out by rounding, not all in one bin.
    if name == "score_histogram":
        assert (sums[-1] > 0).sum() > 6


@pytest.mark.parametrize("images", [1, 2, 31, 32, 33, 70])
@pytest.mark.parametrize("name", NAMES)
def test_many_images_are_one_patient(name: str, images: int) -> None:
    query = private_queries(MODEL)[name]
    rows_ = torch.from_numpy(np.random.default_rng(images).normal(size=(images, 2 * FEATURES)).astype(np.float32) * 9)
    people = People((*PEOPLE.rows, rows_), *(np.append(v, 1) for v in (PEOPLE.label, PEOPLE.sex, PEOPLE.age)))
    with_her, without = unnoised(query, people.split(range(41))), unnoised(query, people.split(range(40)))
    assert 0 < distance(query, with_her, without) <= query.plan.sensitivity


def test_a_patient_without_a_sound_score_is_in_no_table_of_scores_and_refuses_nothing() -> None:
    broken = draw_people(8, seed=4)
    broken.rows[3][0, 0] = math.nan
    for name, query in private_queries(MODEL).items():
        total = unnoised(query, broken.split(range(8)))
        if name in ("score_histogram", "decision_table"):
            assert total.sum() == 7 * len(query.blocks)
        elif name == "cell_counts":
            assert total.sum() == 8
    everyone = private_queries(scaled(MODEL, math.nan))
    for name in ("score_histogram", "decision_table"):
        assert unnoised(everyone[name], PEOPLE.split(range(40))).sum() == 0


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("score_histogram", {"edges": {"edges": np.append(EDGES, 4.0)}}),
        ("score_histogram", {"edges": {"edges": EDGES[1:]}}),
        ("score_histogram", {"edges": {"edges": EDGES[::-1]}}),
        ("score_histogram", {"edges": {"edges": np.array([0, 2, 1, 3, 5, 4, 6], dtype=np.uint8)}}),
        ("histogram of a candidate", {"edges": {"edges": np.where(EDGES == 0, np.nan, EDGES)}}),
        ("decision_table", {"thresholds": {"thresholds": THRESHOLDS[:2]}}),
        ("decision_table", {"thresholds": {"thresholds": np.vstack([THRESHOLDS, [[0.0, 0.0]]])}}),
        ("whitened_gradient of the head", {"weights": {key: value[:2] for key, value in WEIGHTS.items()}}),
        ("whitened_gradient of the head", {"weights": {key: value[:, :1] for key, value in WEIGHTS.items()}}),
        ("whitened_gradient of the head", {"basis": basis_of("head", 4)}),
        ("whitened_gradient of the head", {"basis": basis_of("head", 1)}),
        ("whitened_gradient of the head", {"basis": basis_of("head", 5, clip=0.0)}),
        ("whitened_gradient of the head", {"basis": basis_of("head", 5, clip=math.inf)}),
        ("whitened_gradient of the head", {"weights": {**WEIGHTS, "bias": np.full((3, 2), math.nan)}}),
        ("group_fisher", {"units": {**SCALE, "clip": np.array([0.0])}}),
        ("group_fisher", {"units": {**SCALE, "unit": SCALE["unit"][1:]}}),
        ("group_fisher", {"units": {**SCALE, "unit": 0 * SCALE["unit"]}}),
    ],
)
def test_inputs_that_do_not_fit_are_refused_whoever_is_there(name: str, inputs: dict[str, Arrays]) -> None:
    """An error for some patients only would be a release without noise: whether such a patient is there."""
    query = private_queries(MODEL)[name]
    query = query.with_inputs(**{**query.inputs, **inputs})
    cohorts = [PEOPLE.split([i]) for i in range(40)] + [PEOPLE.split(range(40)), PEOPLE.split([])]
    for split in cohorts:
        with pytest.raises((RefusedError, ModelError)):
            unnoised(query, split)


@pytest.mark.parametrize("space", ["head", "whole"])
def test_places_that_compute_alike_are_found_without_what_the_server_chose(
    space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directions of zeros, or of one huge number, would hide that a place computes otherwise."""
    seen: list[list[Tensor]] = []

    def noted(view: Any, what: Any, compute: Any, after: Any = ()) -> Tensor:
        width = view.split.inputs.shape[1]
        x = torch.linspace(-1, 1, PLACES * width).reshape(PLACES, width)
        results = [one.double() for one in compute(x)]
        results += [step(torch.ones(PLACES, *sizes)) for step, sizes in after]
        assert all(one.isfinite().all() and one.abs().max() > 0 for one in results)
        seen.append(results)
        return torch.arange(PLACES)

    monkeypatch.setattr(computations, "alike_places", noted)
    query = private_queries(MODEL)[f"whitened_gradient of the {space}"]
    usual = basis_of(space, 5)
    bases = [usual["basis"], 0 * usual["basis"], np.where(np.arange(len(usual["basis"])) == 0, 1e60, 0)[:, None] + 0]
    inputs: list[dict[str, Arrays]] = [{"basis": {**usual, "basis": basis + np.zeros((1, 5))}} for basis in bases]
    if space == "whole":
        filters = {"extractor.0.weight": np.zeros((2, 2 * FEATURES))}
        inputs += [{"filters": filters}, {"filters": {name: value + 1e30 for name, value in filters.items()}}]
        inputs += [{"mask": dict.fromkeys(MODEL.layout().shapes, np.array(share))} for share in (0.5, 1.0)]
    for chosen in inputs:
        asked = query.with_inputs(**{**query.inputs, **chosen})
        COMPUTATIONS[asked.name](place_of(asked, PEOPLE.split(range(3))))
    for found in seen[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found, seen[0], strict=True))


def test_a_loss_is_cut_at_the_cap_and_means_are_taken_before() -> None:
    """By hand, and before the door bounds a patient once more, which would hide a loss that nothing cut."""
    query, split = private_queries(MODEL)["cell_losses"], PEOPLE.split(range(40))
    contribution = COMPUTATIONS["cell_losses"](place_of(query, split))
    assert isinstance(contribution, Rows)
    found = np.concatenate(list(contribution.parts))
    model = network()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in MODEL.state.items()})
    with torch.no_grad():
        z = model(split.inputs).double()
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        z, split.label[split.patient].double(), reduction="none"
    )
    means = np.array([float(losses[split.patient == patient].mean()) for patient in range(40)])
    expected = np.zeros_like(found)
    cell = 2 * split.groups["sex"] + split.label
    expected[np.arange(40), cell.numpy()] = np.minimum(means / query.parameters["cap"], 1.0)
    assert (means > 2 * query.parameters["cap"]).any()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# --- cells --------------------------------------------------------------------------------------------------------


def two_tables(cells: int = 2, noise: float = 40.0) -> Query:
    """Two tables of three and two cells, of which a patient fills `cells` in all."""
    plan = ReleasePlan.counts(cells, 5, noise)
    blocks = {"x": Block.counts((3,), cells), "y": Block.counts((2,), cells)}
    return Query("cell_counts", "patient_sum", "train", "counts", {}, blocks).under(plan).placed(0)


def filled(query: Query, **cells: Any) -> dict[str, list[int]]:
    """The un-noised tables of hand-written cells."""
    contribution = Fills({name: np.array(value, dtype=np.int64) for name, value in cells.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReleasePlan, "sampler", NoNoise())
        return {name: table.tolist() for name, table in release(charge_for(query), query, contribution).items()}


def test_a_cell_that_a_patient_fills_twice_counts_once() -> None:
    query = two_tables(cells=3)
    found = filled(query, x=[[1, 1], [0, 2], [2, 2]], y=[[0], [1], [1]])
    assert found == {"x": [1, 1, 2], "y": [1, 2]}


def test_cells_out_of_range_are_not_counted_and_never_land_in_another_table() -> None:
    found = filled(two_tables(), x=[[3], [-1], [-5], [2], [2**62]], y=[[0], [5], [-2], [1], [1]])
    assert found == {"x": [0, 0, 1], "y": [1, 2]}


def test_more_cells_than_the_plan_bounds_are_refused() -> None:
    with pytest.raises(RefusedError, match="3 cells a patient, the plan bounds them by 2"):
        filled(two_tables(), x=[[0, 1]], y=[[0]])
    with pytest.raises(RefusedError, match="cells"):
        filled(two_tables(), x=[[0]])


@pytest.mark.parametrize("length", [1.5, 1e3, 1e12])
def test_the_door_clips_a_vector_whatever_the_computation_made_of_it(
    length: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contract of the last step alone: the computations clip too, and no test of theirs would miss it here."""
    plan = ReleasePlan.vector(1.0, 8, noise=3.0)
    query = Query("whitened_gradient", "patient_sum", "train", "rounds", {}, {"x": Block.noisy((8,), plan)})
    query = query.under(plan).placed(0)
    monkeypatch.setattr("equipoise.client.release._noised", lambda query, total, most: total)
    others, patient = np.full((3, 8), 0.1), np.full((1, 8), length / 8**0.5)
    sums = [
        release(charge_for(query), query, Rows([*parts]))["x"] * plan.step for parts in ([others], [others, patient])
    ]
    assert 0.99 < np.linalg.norm(sums[1] - sums[0]) <= plan.sensitivity
    assert plan.sensitivity < 1.01


def test_vectors_of_another_length_are_refused() -> None:
    query = private_queries(MODEL)["whitened_gradient of the head"]
    size = query.plan.dimensions
    release(charge_for(query), query, Rows([np.zeros((3, size)), np.zeros((0, size)), np.zeros((1, size))]))
    for shape in ((4, 1), (4, size - 1), (4, size + 1), (size,), (4, size, 1)):
        with pytest.raises(RefusedError, match=f"the plan has {size} entries"):
            release(charge_for(query), query, Rows([np.zeros(shape)]))


# --- the plan decides what may leave --------------------------------------------------------------------------------


CONTRIBUTIONS: dict[str, Callable[[Query], Contribution]] = {
    "totals": lambda query: Totals({name: np.zeros(block.shape) for name, block in query.blocks.items()}),
    "totals that were noised": lambda query: Noised({n: np.zeros(block.shape) for n, block in query.blocks.items()}),
}


@pytest.mark.parametrize("kind", CONTRIBUTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_total_is_never_sent_where_patients_have_to_be_bounded(name: str, kind: str) -> None:
    query = private_queries(MODEL)[name]
    with pytest.raises(RefusedError, match="a total cannot be made private; nothing was sent"):
        release(charge_for(query), query, CONTRIBUTIONS[kind](query))


def test_what_dp_sgd_has_noised_is_sent_under_its_own_plan_alone() -> None:
    plan = ReleasePlan.dp_sgd(1.0, 4, noise=2.0, rate=0.1, steps=10)
    query = Query("private_training", "site_update", "train", "t", {}, {"x": Block.noisy((4,), plan)}).under(plan)
    values = {"x": np.array([0.5, 1.0, -2.0, 0.0])}
    sent = release(charge_for(query), query, Noised(values))
    assert (query.blocks["x"].lattice.decode(sent["x"]) == values["x"]).all()
    with pytest.raises(RefusedError, match="a total cannot be made private"):
        release(charge_for(query), query, Totals(values))
    for contribution in (Rows([np.zeros((2, 4))]), Fills({"x": np.zeros((2, 1), dtype=np.int64)})):
        with pytest.raises(RefusedError, match="under a plan of kind dp_sgd"):
            release(charge_for(query), query, contribution)


def test_what_dp_sgd_has_noised_is_cut_to_its_bound_since_a_refusal_would_tell_of_the_noise() -> None:
    plan = ReleasePlan.dp_sgd(1.0, 4, noise=2.0, rate=0.1, steps=10)
    query = Query("private_training", "site_update", "train", "t", {}, {"x": Block.noisy((4,), plan)}).under(plan)
    block = query.blocks["x"]
    values = {"x": np.array([math.nan, math.inf, -2 * block.site_bound, 0.5])}
    sent = block.lattice.decode(release(charge_for(query), query, Noised(values))["x"])
    assert sent.tolist() == [0.0, block.site_bound, -block.site_bound, 0.5]
    assert release(charge_for(query), query, Noised(values), {"x": 3})["x"].tolist() == [0, 3, -3, 3]


@pytest.mark.parametrize("name", ["cell_counts", "whitened_gradient of the head"])
def test_a_private_sum_is_cut_to_the_room_of_the_secure_sum_before_its_noise(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = private_queries(MODEL)[name]
    noise = {size: query.plan.sampler.noise((size,)) for size in {sum(block.size for block in query.blocks.values())}}
    monkeypatch.setattr(type(query.plan.sampler), "noise", lambda self, shape: noise[shape[0]])

    def before_noise(most: int) -> NDArray[np.int64]:
        found = COMPUTATIONS[query.name](place_of(query, PEOPLE.split(range(40))))
        sent = release(charge_for(query), query, found, dict.fromkeys(query.blocks, most))
        flat = np.concatenate([part.reshape(-1) for part in sent.values()])
        return flat - noise[flat.size]

    exact = before_noise(2**60)
    most = int(np.abs(exact).max()) // 2
    assert most > 0
    assert (before_noise(most) == np.clip(exact, -most, most)).all()


def test_without_privacy_a_sum_keeps_its_size_and_the_secure_sum_refuses_it() -> None:
    query = replace(private_queries(MODEL)["cell_counts"], plan=ReleasePlan.none())
    found = COMPUTATIONS[query.name](place_of(query, PEOPLE.split(range(40))))
    whole = release(charge_for(query), query, found)
    cut = release(charge_for(query), query, found, dict.fromkeys(query.blocks, 1))
    assert all((whole[name] == cut[name]).all() for name in whole)


@pytest.mark.parametrize("error", [DataError("an image cannot be read"), MemoryError()])
def test_a_failure_after_the_charge_is_the_one_answer_that_it_pays_for(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hang on patients and on the noise, and each try would draw another."""
    query = private_queries(MODEL)["cell_counts"]
    cohort = Memory.everywhere(PEOPLE.split(range(40)))
    agent = make_agent("a", cohort, tmp_path, [STUDY], check_plan=any_plan, scratch=True)
    asked = request_for(STUDY, StudyPlan.single("private_head", [query]), query)
    tries = []

    def fail(place: Workplace) -> Contribution:
        tries.append(place)
        raise error

    monkeypatch.setitem(COMPUTATIONS, query.name, fail)
    first = agent.answer(asked)
    assert unpack(first)[0]["code"] == ("refused" if isinstance(error, DataError) else "internal")
    monkeypatch.undo()
    assert agent.answer(asked) == first
    agent.ledger.close()
    again = make_agent("a", cohort, tmp_path, [STUDY], check_plan=any_plan, scratch=True)
    assert again.answer(asked) == first
    assert len(tries) == 1


def test_a_full_disk_tells_of_no_patient_and_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = private_queries(MODEL)["cell_counts"]
    cohort = Memory.everywhere(PEOPLE.split(range(40)))
    agent = make_agent("a", cohort, tmp_path, [STUDY], check_plan=any_plan, scratch=True)
    asked = request_for(STUDY, StudyPlan.single("private_head", [query]), query)

    def full(place: Workplace) -> Contribution:
        raise StorageError("the disk is full")

    monkeypatch.setitem(COMPUTATIONS, query.name, full)
    assert unpack(agent.answer(asked))[0]["code"] == "storage"
    monkeypatch.undo()
    assert unpack(agent.answer(asked))[0]["code"] == "ok"


def test_vectors_do_not_go_under_a_plan_of_cells_nor_cells_under_one_of_vectors() -> None:
    queries = private_queries(MODEL)
    counts, gradient = queries["cell_counts"], queries["whitened_gradient of the head"]
    with pytest.raises(RefusedError, match="under a plan of kind counts"):
        release(charge_for(counts), counts, Rows([np.zeros((2, 6))]))
    cells = {name: np.zeros((2, 1), dtype=np.int64) for name in gradient.blocks}
    with pytest.raises(RefusedError, match="under a plan of kind vector"):
        release(charge_for(gradient), gradient, Fills(cells))


# --- charges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_released_without_a_charge_of_its_own(name: str, tmp_path: Path) -> None:
    query = private_queries(MODEL)[name].placed(0)
    other = query.placed(1)
    contribution = COMPUTATIONS[query.name](place_of(query, PEOPLE.split(range(40))))
    ledger = opened(tmp_path, durable=False)
    begin(ledger, [query, other])
    charge = ledger.reserve(request(0), query, "main")
    with pytest.raises(RefusedError, match="a charge pays for one release of one query; nothing was sent"):
        release(charge, other, contribution)
    release(charge, query, contribution)
    with pytest.raises(RefusedError, match="a charge pays for one release of one query; nothing was sent"):
        release(charge, query, contribution)
    with pytest.raises(AttributeError):
        release(None, query, contribution)  # type: ignore[arg-type]
    # The same query with other inputs is another query.
    again = query.with_inputs(**query.inputs, more={"x": np.zeros(1)})
    with pytest.raises(RefusedError, match="a charge pays for one release of one query"):
        release(ledger.reserve(request(1), other, "main"), again, contribution)


def test_computations_make_no_integers_for_the_network() -> None:
    """What they return cannot be packed: only the door turns it into arrays."""
    for name, query in private_queries(MODEL).items():
        found = COMPUTATIONS[query.name](place_of(query, PEOPLE.split(range(5))))
        assert isinstance(found, Fills | Rows), name
    assert {"release", "encode", "pack", "sampler"}.isdisjoint(vars(computations))


# --- what crosses the wire ----------------------------------------------------------------------------------------


def wire(people: People, chosen: list[int], name: str, folder: Path) -> bytes:
    """The reply of a hospital with the chosen patients to a query."""
    query = private_queries(MODEL)[name]
    agent = make_agent("a", Memory.everywhere(people.split(chosen)), folder, [STUDY], check_plan=any_plan, scratch=True)
    reply = agent.answer(request_for(STUDY, StudyPlan.single("private_head", [query]), query))
    assert unpack(reply)[0]["code"] == "ok", (folder / "a" / "agent.log.jsonl").read_text()
    return reply


@pytest.mark.parametrize("name", NAMES)
def test_replies_of_neighbouring_cohorts_differ_in_payload_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The ledger's head has the time in it, and a nonce.
    monkeypatch.setattr("equipoise.client.chain.time.time", lambda: 1e9)
    monkeypatch.setattr("equipoise.client.chain.secrets.token_hex", lambda size: "0" * 2 * size)
    broken = torch.full((3, 2 * FEATURES), math.inf)
    people = People((*PEOPLE.rows, broken), *(np.append(v, 1) for v in (PEOPLE.label, PEOPLE.sex, PEOPLE.age)))
    cohorts = {"all": range(41), "without one": range(40), "one": [40], "nobody": []}
    replies = {who: wire(people, list(chosen), name, tmp_path / who) for who, chosen in cohorts.items()}
    headers = {who: unpack(reply)[0] for who, reply in replies.items()}
    assert len({len(reply) for reply in replies.values()}) == 1
    assert all(header == headers["all"] for header in headers.values())
    size = int.from_bytes(replies["all"][:8], "little") + 8
    assert len({reply[:size] for reply in replies.values()}) == 1
    described = {
        who: {key: (a.shape, a.dtype) for key, a in unpack(reply)[1].items()} for who, reply in replies.items()
    }
    assert all(found == described["all"] for found in described.values())
    assert len({reply[size:] for reply in replies.values()}) == len(cohorts)  # noise: no two are alike


def test_the_same_request_to_two_hospitals_alike_gets_two_draws_of_noise(tmp_path: Path) -> None:
    for name in NAMES:
        one, other = (wire(PEOPLE, list(range(40)), name, tmp_path / f"{name} {k}") for k in range(2))
        assert any((unpack(one)[1][key] != array).any() for key, array in unpack(other)[1].items())


# --- the noise ----------------------------------------------------------------------------------------------------

DRAWS = 4000


@pytest.fixture(scope="module")
def drawn() -> dict[str, NDArray[np.float64]]:
    """Noise as it leaves the door of a hospital without patients, in the unit of the plan's noise."""
    found = {}
    for name, template in private_queries(MODEL).items():
        query = template.placed(0, noise=3.7 * template.plan.sensitivity)
        nobody = PEOPLE.split([])
        many = itertools.islice(_noise(query, nobody), math.ceil(DRAWS / sum(b.size for b in query.blocks.values())))
        found[name] = np.concatenate(list(many)) * query.plan.step / query.plan.noise
    return found


def _noise(query: Query, nobody: Split) -> Iterator[NDArray[np.float64]]:
    while True:
        points = release(charge_for(query), query, COMPUTATIONS[query.name](place_of(query, nobody)))
        yield np.concatenate([points[name].ravel() for name in query.blocks]).astype(np.float64)


@pytest.mark.parametrize("name", NAMES)
def test_the_noise_has_the_scale_of_the_plan(name: str, drawn: dict[str, NDArray[np.float64]]) -> None:
    """Chi-square of the sum of squares; for Laplace of the sum of absolute values (2 |x| / b has two degrees each)."""
    sample, count = drawn[name], len(drawn[name])
    laplace = private_queries(MODEL)[name].plan.norm == "l1"
    statistic, freedom = (2 * np.abs(sample).sum(), 2 * count) if laplace else (float((sample**2).sum()), count)
    low, high = stats.chi2.ppf([1e-7, 1 - 1e-7], freedom)
    assert low < statistic < high
    for wrong in (1 / math.sqrt(2), math.sqrt(2)):
        assert not low < statistic * (wrong if laplace else wrong**2) < high


@pytest.mark.parametrize("name", NAMES)
def test_the_noise_has_the_law_of_the_plan(name: str, drawn: dict[str, NDArray[np.float64]]) -> None:
    """Kolmogorov and Smirnov accept the right scale and reject two thirds and three halves of it."""
    law = stats.laplace if private_queries(MODEL)[name].plan.norm == "l1" else stats.norm
    # The lattice is continuous enough once each number is spread over its own step.
    width = private_queries(MODEL)[name].plan.step / (3.7 * private_queries(MODEL)[name].plan.sensitivity)
    spread = drawn[name] + np.random.default_rng(0).uniform(-width / 2, width / 2, len(drawn[name]))
    assert stats.kstest(spread, law.cdf).pvalue > 1e-6
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(spread * wrong, law.cdf).pvalue < 1e-6
    assert stats.kstest(spread, (stats.norm if law is stats.laplace else stats.laplace).cdf).pvalue < 1e-6
    # Neighbouring entries have nothing in common.
    assert abs(np.corrcoef(spread[:-1], spread[1:])[0, 1]) < 5 / math.sqrt(len(spread))


def test_no_seed_reaches_the_noise() -> None:
    query = private_queries(MODEL)["cell_counts"]
    found = []
    for _ in range(2):
        np.random.seed(0)
        torch.manual_seed(0)
        contribution = COMPUTATIONS["cell_counts"](place_of(query, PEOPLE.split(range(40))))
        found.append(release(charge_for(query), query, contribution)["patients"])
    assert (found[0] != found[1]).any()


def test_without_privacy_sums_are_exact_and_broken_numbers_are_refused() -> None:
    study: Study = STUDY.model_copy(update={"privacy": type(STUDY.privacy)()})
    query = catalogue.whitened_gradient(study, "rounds", "head", 2, 5, 0.7)
    query = query.with_inputs(**MODEL.inputs(), weights=WEIGHTS, basis=basis_of("head", 5))
    assert not query.private
    parts = [np.array([[0.5] * 17, [0.25] * 17]), np.array([[-1.0] * 17])]
    points = release(charge_for(query), query, Rows(parts))
    assert (query.blocks["gradient"].lattice.decode(points["gradient"]) == -0.25).all()
    for value in (math.nan, math.inf, 1e30):
        with pytest.raises(RefusedError, match="nothing was sent"):
            release(charge_for(query), query, Rows([np.full((1, 17), value)]))
