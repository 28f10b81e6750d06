"""Averages of local DP-SGD by the engine and real agents: what they learn, when they stop, what they ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from equipoise.common.block_energies import BlockEnergies
from equipoise.common.canonical import sha256
from equipoise.common.errors import DataError, StudyError
from equipoise.common.methods import resolve
from equipoise.common.methods.averaging import LocalSteps, check_labels
from equipoise.common.methods.method import Outcome
from equipoise.common.methods.private_averaging import Averages, DpSgd, Rounds, clip_bound, scores_of
from equipoise.common.pool import network_of
from equipoise.common.privacy.accounting import epsilon_of
from equipoise.common.privacy.events import Event
from equipoise.common.query import Query, Sum
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from equipoise.common.study_privacy import PublicPool
from equipoise.server.engine import Engine
from equipoise.server.transcript import Transcript
from tests.tiny import WIDTH, Memory, Post, classifier_of, declare, draw_people, make_agent, make_study, weights_file

FILE = weights_file()
PEOPLE = draw_people(240, seed=3, unknown=0.0)
SITES = {"a": range(120), "b": range(120, 240)}
SITES_40 = {"a": 40, "b": 40}
EASY = {"batch": 40, "rounds": 3, "lr": 0.3, "momentum": 0.0}


def study_of(folder: Path, method: dict[str, Any], epsilon: float, rows: np.ndarray | None = None) -> Study:
    """The tiny study at two sites, with a public pool of 60 rows nobody in particular has."""
    folder.mkdir(parents=True, exist_ok=True)
    privacy = {"mode": "local", "epsilon": epsilon}
    evaluation = {"threshold": {"rule": "fixed:0.5"}, "bins": 8}
    study = declare(make_study(method, file=FILE, privacy=privacy, evaluation=evaluation), {s: 120 for s in SITES})
    drawn = np.random.default_rng(5).uniform(-1, 1, (60, WIDTH)) if rows is None else rows
    content = save({"rows": torch.from_numpy(drawn.astype(np.float32))})
    (folder / "pool.safetensors").write_bytes(content)
    pool = PublicPool(path=str(folder / "pool.safetensors"), sha256=sha256(content))
    return study.model_copy(update={"privacy": study.privacy.model_copy(update={"public_pool": pool})})


def run_at(folder: Path, method: dict[str, Any], epsilon: float = 20.0) -> tuple[Outcome, Post, Study]:
    study = study_of(folder, method, epsilon)
    agents = {
        name: make_agent(name, Memory.everywhere(PEOPLE.split(part)), folder, [study]) for name, part in SITES.items()
    }
    post, model, plan = Post(agents), classifier_of(study, FILE), StudyPlan.of(study).calibrated(study)
    transcript = Transcript(folder / "transcript", study.hash, f"run/{study.method.name}")
    outcome = Engine(study, plan, post).drive(resolve(study).run(study, model), study.method.name, transcript)
    return outcome, post, study


def task_loss(study: Study, outcome: Outcome | None) -> float:
    """Mean cross-entropy over everybody."""
    model = classifier_of(study, FILE) if outcome is None else outcome.classifier
    split = PEOPLE.split(range(240))
    with torch.no_grad():
        z = network_of(study, model)(split.inputs)
    return float(torch.nn.functional.binary_cross_entropy_with_logits(z, split.label[split.patient].float()))


def test_with_little_noise_they_learn_what_the_patients_teach(tmp_path: Path) -> None:
    method = {"name": "fine_tune", "step": "fedavg", "loss": "plain", **EASY}
    outcome, post, study = run_at(tmp_path, method)
    assert post.asked() == ["cell_counts"] * 2 + ["private_training"] * 6
    assert task_loss(study, outcome) < 0.8 * task_loss(study, None)
    assert not outcome.notes["dp_sgd"]["whole"]["collapsed"]


def test_swift_asks_for_its_mask_and_averages_both_parts(tmp_path: Path) -> None:
    method = {"name": "swift", "step": "fedavg", **EASY, "rounds": {"extractor": 2, "head": 1}}
    outcome, post, _ = run_at(tmp_path, method)
    asked = ["cell_counts", "block_sensitivities", *["private_training"] * 3]
    assert post.asked() == [name for name in asked for _ in SITES]
    assert set(outcome.notes["dp_sgd"]) == {"extractor", "head"}
    moved = {n for n, v in outcome.classifier.state.items() if not np.array_equal(v, outcome.classifier.base[n])}
    assert moved == set(outcome.classifier.parameters)


def answer(
    query: Query, separation: float | np.ndarray, counts: np.ndarray, cohort: tuple[str, ...] = ("a", "b")
) -> Sum:
    """Everybody's change is an eighth, and positives (of each group) score so much higher than negatives."""
    offsets = 0.4 * separation * np.array([-0.5, 0.5]) * counts * query.plan.releases * query.plan.rate
    points = {
        "scores": np.rint(offsets / query.blocks["scores"].step).astype(np.int64),
        "change": query.blocks["change"].lattice.encode(np.full(query.blocks["change"].shape, 0.125), 1.0),
    }
    return Sum(query, cohort, points)


def test_rounds_that_forget_the_disease_end_at_the_last_model_that_was_well(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"name": "fine_tune", "step": "fedavg"}, 3.0)
    model, counts = classifier_of(study, FILE), np.array([[4000.0, 4000], [4000, 4000], [0, 0]])
    averages = Averages(study, model, counts)
    rounds = Rounds("head", 6, 1.0, LocalSteps(batch=40), DpSgd(memory=1.0))
    steps = averages.advance(rounds)
    query = next(steps)
    for separation in (0.4, 0.36, 0.25):
        query = steps.send(answer(query, separation, counts))
    with pytest.raises(StopIteration):
        steps.send(answer(query, 0.1, counts))
    # The fourth answer told of a collapse under the model of the third change; the one before it was well.
    assert averages.collapsed
    assert averages.model.state["head.bias"] == pytest.approx(model.base["head.bias"] + 2 * 0.125)
    assert averages.notes["head"]["separation_by_round"] == pytest.approx([0.4, 0.36, 0.25, 0.1], abs=1e-3)
    # What comes after a collapse is not asked.
    assert not list(averages.advance(rounds))


def asked_third(study: Study, **changes: float) -> dict[str, list[float]]:
    """Weights and clip bound of the third query, after two answers of less and less separation; nothing once ended."""
    counts = np.array([[4000.0, 2000], [3000, 5000], [0, 0]])
    averages = Averages(study, classifier_of(study, FILE), counts)
    steps = averages.advance(Rounds("head", 6, 0.5, LocalSteps(batch=40), DpSgd(**changes)))
    query = next(steps)
    for separation, lower in ((0.4, 1000.0), (0.2, 2900.0)):
        try:
            query = steps.send(answer(query, separation, np.array([[4000.0, 2000], [lower, 5000], [0, 0]])))
        except StopIteration:
            return {}
    return {name: query.inputs[name][key].ravel().tolist() for name, key in (("weights", "bias"), ("clip", "clip"))}


@pytest.mark.parametrize(
    ("key", "value", "moves"),
    [("clip_percentile", 99.0, "clip"), ("smoothing", 0.3, "weights"), ("memory", 1.0, "weights")],
)
def test_each_parameter_of_the_rounds_acts(tmp_path: Path, key: str, value: float, moves: str) -> None:
    study = study_of(tmp_path, {"name": "swift", "step": "fedavg"}, 3.0)
    found, plain = asked_third(study, **{key: value}), asked_third(study)
    assert {name for name in plain if found[name] != plain[name]} == {moves}


def test_the_share_that_is_a_collapse_ends_the_rounds(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"name": "swift", "step": "fedavg"}, 3.0)
    assert asked_third(study)
    assert not asked_third(study, collapse_share=0.9)


def test_the_plans_price_is_that_of_all_steps_of_all_rounds(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"name": "fine_tune", "step": "fedavg", **EASY}, 3.0)
    plan = StudyPlan.of(study).calibrated(study)
    counts, *rounds = [entry.query.plan for entry in plan.entries if entry.query.split == "train"]
    assert {(p.rate, p.releases) for p in rounds} == {(40 / 120, 3)}
    [noise] = {p.noise / p.sensitivity for p in rounds}
    steps = Event("gaussian", noise, count=9, rate=40 / 120)
    assert plan.cost("train", 1e-5).epsilon == pytest.approx(epsilon_of([counts.event, steps], 1e-5), rel=1e-3)
    assert 2.97 < plan.cost("train", 1e-5).epsilon <= 3
    # A plan that counts one round for all, or no sampling, would say something else by far.
    assert epsilon_of([counts.event, Event("gaussian", noise, count=3, rate=40 / 120)], 1e-5) < 2.2
    assert epsilon_of([counts.event, Event("gaussian", noise, count=9)], 1e-5) > 6


def test_the_clip_bound_is_a_percentile_of_the_pools_gradient_norms(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"name": "fine_tune", "step": "fedavg"}, 3.0)
    model = classifier_of(study, FILE)
    net = network_of(study, model)
    x = torch.from_numpy(np.random.default_rng(5).uniform(-1, 1, (60, WIDTH)).astype(np.float32))
    lengths = []
    for row in x:
        logit = net(row[None])
        gradient = torch.autograd.grad(logit.sum(), [net.get_parameter(name) for name in ("head.weight", "head.bias")])
        p = float(torch.sigmoid(logit))
        lengths.append(max(p, 1 - p) * float(torch.cat([g.flatten() for g in gradient]).norm()))
    found = clip_bound(study, model, ["head.weight", "head.bias"], 60.0)
    assert found == pytest.approx(np.percentile(lengths, 60), rel=1e-5)
    assert clip_bound(study, model, list(model.parameters), 60.0) > found
    assert BlockEnergies(net, ["head.bias"]).rows(x)[1].shape == (60, 1)


def test_a_pool_without_gradients_is_refused(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"name": "fine_tune", "step": "fedavg"}, 3.0)
    model = classifier_of(study, FILE)
    dead = model.with_values({name: np.zeros_like(value) for name, value in model.state.items()})
    with pytest.raises(DataError, match="bounds nothing"):
        clip_bound(study, dead, ["extractor.0.weight"], 60.0)


@pytest.mark.parametrize(("batch", "releases", "rate"), [(64, 1, 1.0), (8, 5, 0.2)])
def test_scores_are_read_per_patient_and_for_those_who_answered(batch: int, releases: int, rate: float) -> None:
    method = {"name": "fine_tune", "step": "fedavg", "batch": batch}
    study = declare(make_study(method, privacy={"mode": "local", "epsilon": 3}), SITES_40)
    model = classifier_of(study, FILE)
    plan = resolve(study).plan(study, model)
    query = plan[-1]
    steps = query.plan.releases
    assert (steps, query.plan.rate) == (releases, rate)
    counts = np.array([[100.0, 50], [30, 20], [0, 0]])
    # Everybody scores 0.8; half of the patients are at sites that answered.
    sums = 0.4 * 0.3 * counts * steps * rate * 0.5
    points = {"scores": np.rint(sums / query.blocks["scores"].step).astype(np.int64)}
    scores = scores_of(Sum(query, ("a",), points), 0.5, counts)
    assert scores.sums[:2] == pytest.approx(0.8 * counts[:2], rel=1e-3)
    # Every step adds its own noise to the sum, whoever was taken; so does every site that answered.
    noise = query.plan.noise * np.sqrt(steps) / (0.4 * steps * rate * 0.5)
    assert scores.noise_sd == pytest.approx(noise, rel=1e-3)
    both = Sum(query, ("a", "b"), points)
    assert both.noise_variance == pytest.approx(2 * steps * query.plan.noise**2, rel=1e-3)


@pytest.mark.parametrize(("key", "value"), [("levels", "extremes"), ("form", "signed"), ("scaling", "minmax")])
def test_parameters_without_a_private_form_are_refused(tmp_path: Path, key: str, value: str) -> None:
    study = study_of(tmp_path, {"name": "swift", "step": "fedavg", key: value}, 3.0)
    with pytest.raises(StudyError, match=f"method.{key}={value}: has no effect in averages of DP-SGD"):
        StudyPlan.of(study)


def test_counts_without_a_label_are_blamed_on_the_noise_where_there_is_some(tmp_path: Path) -> None:
    """Noise can say so of patients who have both labels: then the manifests are right."""
    study, counts = study_of(tmp_path, {"name": "fine_tune", **EASY}, 8.0), np.array([[9.0, -2.0], [8.0, 1.0], [0, 0]])
    exact = study.model_copy(update={"privacy": study.privacy.model_copy(update={"mode": "none", "epsilon": None})})
    for of, blamed in ((study, "the noisy counts find no positive patient"), (exact, "against the manifests")):
        with pytest.raises(DataError, match=blamed):
            check_labels(of, counts)


def test_a_round_in_which_nothing_weighs_moves_nothing(tmp_path: Path) -> None:
    # The bias loss alone, whose gaps nobody knows before the first scores: what comes back is the sites' own noise.
    study = study_of(tmp_path, {"name": "swift", "step": "fedavg"}, 3.0)
    model, counts = classifier_of(study, FILE), np.array([[4000.0, 4000], [4000, 4000], [0, 0]])
    averages = Averages(study, model, counts)
    steps = averages.advance(Rounds("head", 3, 0.0, LocalSteps(batch=40), DpSgd()))
    first = next(steps)
    apart = np.array([[0.5], [0.3], [0.0]])
    second = steps.send(answer(first, apart, counts))
    third = steps.send(answer(second, apart, counts))
    assert ("model.head" in second.inputs, "model.head" in third.inputs) == (False, True)


def test_a_missing_site_turns_no_gap_round(tmp_path: Path) -> None:
    """The patients of one site alone may have the other gap; only rounds that all answered tell it."""
    study = study_of(tmp_path, {"name": "swift", "step": "fedavg"}, 3.0)
    model, counts = classifier_of(study, FILE), np.array([[4000.0, 4000], [4000, 4000], [0, 0]])
    steps = Averages(study, model, counts).advance(Rounds("head", 5, 0.5, LocalSteps(batch=40), DpSgd(memory=1.0)))
    apart, turned = np.array([[0.5], [0.3], [0.0]]), np.array([[0.3], [0.5], [0.0]])
    sent = [next(steps)]
    for separation, cohort in ((turned, ("a",)), (apart, ("a", "b")), (turned, ("a",)), (turned, ("a", "b"))):
        sent.append(steps.send(answer(sent[-1], separation, counts, cohort)))
    bias = [query.inputs["weights"]["bias"] for query in sent]
    assert not bias[1].any()  # no gap is known yet
    assert bias[2].any()
    np.testing.assert_array_equal(bias[3], bias[2])
    assert (np.sign(bias[4][:2]) == -np.sign(bias[2][:2])).all()
