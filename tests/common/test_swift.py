"""SWiFT against an independent transcription of its published steps, on one site and with the published choices on.

The transcription below is written from docs/methods.md, SWiFT 1.2 to 1.4 in plain torch loops and shares nothing with
the project but the public streams that fix the mini-batches. Where the published code has an error that this project
cures (an absent cell counts as mean 0; the head's gradients pile up over batches), the tests show that we differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from torch import Tensor, nn

from equipoise.common import catalogue
from equipoise.common.cells import bias_weights, task_weights
from equipoise.common.classifier import Classifier
from equipoise.common.errors import DataError
from equipoise.common.mask import SoftMask
from equipoise.common.methods import METHOD_CONTROLS, control_of, resolve
from equipoise.common.methods.method import Outcome
from equipoise.common.methods.swift import reset_head
from equipoise.common.query import Sum
from equipoise.common.streams import torch_stream
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from equipoise.common.wire import split_bundles, unpack
from equipoise.server.engine import Engine
from equipoise.server.transcript import Transcript
from tests.driving import town
from tests.tiny import (
    Memory,
    People,
    Post,
    classifier_of,
    contribution,
    declare,
    draw_people,
    make_agent,
    make_study,
    network,
    weights_file,
)

N, BATCH, LR, BETA = 60, 15, 0.05, 0.1
SEED = 34  # no mini-batch of these tests lacks a cell
PUBLISHED: dict[str, Any] = {
    "name": "swift",
    "bias_loss": "equalized_odds",
    "form": "signed",
    "losses": "batch",
    "smoothing": 0.0,
    "beta": BETA,
    "importance": "mini_batch",
    "scaling": "minmax",
    "granularity": "parameter",
    "floor": 1e-10,
    "head_reset": "above_mean",
    "lr": LR,
    "momentum": 0.9,
    "batch": BATCH,
    "rounds": {"extractor": 1, "head": 1},
}
EVERYBODY = {"patients": np.ones((3, 2))}  # no group is left out
METRICS = {"equalized_odds": "eodds", "equal_opportunity": "eopp", "demographic_parity": "spd"}


# --- the transcription --------------------------------------------------------------------------------------------


def published_task_loss(z: Tensor, y: Tensor) -> Tensor:
    """1.2: class-balanced cross-entropy with the batch's own weights."""
    n, positives = len(y), int(y.sum())
    negatives = n - positives
    total = torch.zeros((), dtype=z.dtype)
    for i in range(n):
        if y[i] == 1:
            total = total + (negatives / n) * torch.log(1 + torch.exp(-z[i]))
        else:
            total = total + (positives / n) * torch.log(1 + torch.exp(z[i]))
    return total / n


def cell_mean(p: Tensor, chosen: Tensor) -> Tensor:
    """Mean of p over the chosen rows; 0 where there are none, as published."""
    return p[chosen].mean() if bool(chosen.any()) else torch.zeros((), dtype=p.dtype)


def published_bias_loss(p: Tensor, y: Tensor, a: Tensor, metric: str) -> Tensor:
    """1.3: the public predecessor of the undisclosed function, of probabilities."""
    if metric == "spd":
        return (cell_mean(p, a == 0) - cell_mean(p, a == 1)).abs()
    positive = cell_mean(p, (a == 0) & (y == 1)) - cell_mean(p, (a == 1) & (y == 1))
    if metric == "eopp":
        return positive.abs()
    negative = cell_mean(p, (a == 0) & (y == 0)) - cell_mean(p, (a == 1) & (y == 0))
    return 0.5 * (negative + positive).abs()


def published_mix(z: Tensor, y: Tensor, a: Tensor, beta: float, metric: str = "eodds") -> Tensor:
    """1.4, step 8: L1 = beta * L_task + (1 - beta) * L_bias."""
    return beta * published_task_loss(z, y) + (1 - beta) * published_bias_loss(torch.sigmoid(z), y, a, metric)


def published_importances(model: nn.Module, batches: Sequence[tuple[Tensor, ...]], which: str) -> dict[str, Tensor]:
    """1.4, step 3: mean over mini-batches of the squared gradient of the batch's loss, all gradients zeroed."""
    importance = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for x, y, a in batches:
        model.zero_grad()
        z = model(x)
        loss = published_task_loss(z, y) if which == "task" else published_bias_loss(torch.sigmoid(z), y, a, "eodds")
        loss.backward()
        for name, p in model.named_parameters():
            importance[name] += p.grad * p.grad
    return {name: value / len(batches) for name, value in importance.items()}


def published_mask(bias: dict[str, Tensor], task: dict[str, Tensor]) -> dict[str, Tensor]:
    """1.4, steps 4 to 6: min-max of each tensor, ratio, tanh."""

    def minmax(t: Tensor) -> Tensor:
        low, high = t.min(), t.max()
        return t if low == high else (t - low) / (high - low + 1e-10)

    return {name: torch.tanh(minmax(bias[name]) / (minmax(task[name]) + 1e-10)) for name in bias}


def published_head_reset(model: nn.Module, mask: dict[str, Tensor]) -> None:
    """1.4, step 9: head entries whose mask is above their tensor's mean become 0."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "head" in name:
                p[mask[name] > mask[name].mean()] = 0.0


def published_epoch(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, ...]],
    part: str,
    beta: float,
    mask: dict[str, Tensor] | None,
    metric: str = "eodds",
) -> None:
    """1.4, steps 8 and 10: SGD with momentum 0.9; the mask multiplies the gradient; only `part` is trained."""
    trained = {n: p for n, p in model.named_parameters() if ("head" in n) == (part == "head")}
    velocity = {name: torch.zeros_like(p) for name, p in trained.items()}
    for x, y, a in batches:
        model.zero_grad()
        published_mix(model(x), y, a, beta, metric).backward()
        with torch.no_grad():
            for name, p in trained.items():
                gradient = p.grad if mask is None else p.grad * mask[name]
                velocity[name] = 0.9 * velocity[name] + gradient
                p.sub_(LR * velocity[name])


# --- both sides on the same patients ------------------------------------------------------------------------------


def full_cells(seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[People, bytes]:
    """Patients with one row and a known group, so many in each cell that no batch of the tests lacks one."""
    people = draw_people(N, seed, most_rows=1, unknown=0.0)
    people.label[:] = np.arange(N) % 2
    people.sex[:] = (np.arange(N) // 2) % 2
    return people, weights_file(dtype=dtype)


def tensors_of(people: People, order: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    split = people.split(range(len(people)))
    return split.inputs[order].to(dtype), split.label[order], split.groups["sex"][order]


def batches_of(study: Study, people: People, release: int, purpose: str, size: int) -> list[tuple[Tensor, ...]]:
    """The mini-batches that the study's public stream fixes for site `s` in a release."""
    order = torch.randperm(len(people), generator=torch_stream(study.seed, "s", release, purpose))
    dtype = torch.float64
    batches = [tensors_of(people, part, dtype) for part in torch.split(order, size)]
    for _, y, a in batches:
        assert min(np.bincount(2 * a + y, minlength=4)) >= 2, "a batch lacks a cell; choose another seed"
    return batches


def run_one_site(folder: Path, people: People, file: bytes, method: dict[str, Any]) -> tuple[Classifier, Post, Study]:
    study = declare(make_study(method, file=file, seed=SEED), {"s": len(people)})
    agent = make_agent("s", Memory.everywhere(people.split(range(len(people)))), folder, [study])
    post = Post({"s": agent})
    outcome, _ = drive(study, file, post, folder)
    return outcome.classifier, post, study


def drive(study: Study, file: bytes, post: Post, folder: Path) -> tuple[Outcome, Transcript]:
    """The study's method over the sites of `post`."""
    arm = study.method.name
    transcript = Transcript(folder, study.hash, f"run/{arm}")
    steps = resolve(study).run(study, classifier_of(study, file))
    return Engine(study, StudyPlan.of(study), post).drive(steps, arm, transcript), transcript


def mask_sent(post: Post) -> dict[str, np.ndarray]:
    """The mask in the first request that carries one."""
    for _, request in post.sent:
        header, arrays = unpack(request)
        if "mask" in header.get("inputs", {}):
            return split_bundles(arrays)[header["inputs"]["mask"]]
    raise AssertionError("no request carried a mask")


def close(ours: Any, theirs: Any, within: float = 1e-6) -> bool:
    """Norm-relative agreement."""
    first, second = (np.asarray(v.detach() if isinstance(v, Tensor) else v, dtype=np.float64) for v in (ours, theirs))
    assert first.shape == second.shape
    return bool(np.linalg.norm(first - second) <= within * max(np.linalg.norm(second), 1e-300))


def start(file_seed: int = 0) -> nn.Module:
    return network(seed=file_seed, dtype=torch.float64)


# --- parity -------------------------------------------------------------------------------------------------------


def test_importances_and_mask_are_the_published_ones(tmp_path: Path) -> None:
    people, file = full_cells()
    _, post, study = run_one_site(tmp_path, people, file, PUBLISHED)
    batches = batches_of(study, people, release=1, purpose="batches", size=BATCH)
    bias, task = (published_importances(start(), batches, which) for which in ("bias", "task"))

    layout = classifier_of(study, file).layout()
    query = catalogue.batch_sensitivities(study, layout, "parameter", BATCH, "equalized_odds", "signed")
    query = query.with_inputs(**classifier_of(study, file).inputs(), weights=EVERYBODY)
    sent = Sum(query, ("s",), contribution(study, query, people.split(range(N)), "s", release=1))
    assert sent.count("batches") == len(batches) == 4
    for block, published in (("bias", bias), ("task", task)):
        for name, ours in layout.split(sent.value(block) / 4).items():
            assert close(ours, published[name]), f"{block} importance of {name}"

    mask, ours = (
        published_mask(bias, task),
        SoftMask.from_sensitivities(
            layout, sent.value("bias") / 4, sent.value("task") / 4, "parameter", "minmax", 1e-10
        ),
    )
    for name, published in mask.items():
        assert close(ours.values[name], published), f"mask of {name}"
    for name, value in mask_sent(post).items():
        assert close(value, mask[name]), f"the mask that the run used for {name}"
    # The mask says something: it is neither all 0 nor all 1, and differs between entries of one tensor.
    flat = np.concatenate([np.ravel(value) for value in mask.values()])
    assert 0.2 < flat.mean() < 0.9
    assert flat.std() > 0.1


def test_importances_are_means_over_the_batches_even_where_they_are_tiny(tmp_path: Path) -> None:
    # With importances near 1e-7 the published epsilons count, and a sum over batches would give another mask.
    people, _ = full_cells()
    faint = start()
    with torch.no_grad():
        faint.head.weight.mul_(1e-2)
    file = save({name: tensor.numpy() for name, tensor in faint.state_dict().items()})
    _, post, study = run_one_site(tmp_path, people, file, PUBLISHED)
    batches = batches_of(study, people, release=1, purpose="batches", size=BATCH)
    mask = published_mask(*(published_importances(faint, batches, which) for which in ("bias", "task")))
    for name, value in mask_sent(post).items():
        assert close(value, mask[name], 5e-5), f"mask of {name}"


def test_the_head_reset_is_the_published_one() -> None:
    people, file = full_cells()
    study = make_study(PUBLISHED, file=file, seed=SEED)
    batches = batches_of(study, people, release=1, purpose="batches", size=BATCH)
    mask = published_mask(*(published_importances(start(), batches, which) for which in ("bias", "task")))
    published = start()
    published_head_reset(published, mask)
    ours = reset_head(classifier_of(study, file), SoftMask({name: value.numpy() for name, value in mask.items()}))
    weight = ours.state["head.weight"]
    assert 0 < (weight == 0).sum() < weight.size
    assert ours.state["head.bias"] == start().head.bias.detach().numpy()  # one entry never exceeds its own mean
    for name, tensor in published.state_dict().items():
        assert (ours.state[name] == tensor.numpy()).all()


@pytest.mark.parametrize("phase", ["extractor", "head"])
@pytest.mark.parametrize(("loss", "metric"), METRICS.items())
@pytest.mark.parametrize("steps", [1, 2])
def test_a_step_of_each_loss_is_the_published_one(phase: str, loss: str, metric: str, steps: int) -> None:
    people, file = full_cells()
    study = declare(make_study(PUBLISHED, file=file, seed=SEED), {"s": N})
    model = classifier_of(study, file)
    layout = model.layout(phase)
    rng = np.random.default_rng(0)
    mask = {name: rng.random(shape) for name, shape in layout.shapes.items()}
    beta = BETA if phase == "extractor" else 1 - BETA
    size = N // steps
    parameters = {
        "beta": beta, "lr": LR, "momentum": 0.9, "weight_decay": 0.0, "epochs": 1, "batch": size, "flips": False,
        "round": 0, "losses": "batch", "bias_loss": loss, "form": "signed",
    }  # fmt: skip
    query = catalogue.local_training(study, layout, phase, parameters)
    weights = {"task": np.ones((3, 2)), **EVERYBODY}
    query = query.with_inputs(**model.inputs(), weights=weights, **({"mask": mask} if phase == "extractor" else {}))
    total = Sum(query, ("s",), contribution(study, query, people.split(range(N)), "s", release=5))

    published = start()
    batches = batches_of(study, people, release=5, purpose="local training", size=size)
    tensors = {name: torch.from_numpy(value) for name, value in mask.items()} if phase == "extractor" else None
    published_epoch(published, batches, phase, beta, tensors, metric)
    moved = {name: p.detach().numpy() - model.base[name] for name, p in published.named_parameters()}
    assert np.linalg.norm(layout.flatten(moved)) > 1e-4
    assert close(total.value("change"), layout.flatten(moved))
    assert all((moved[name] == 0).all() for name in moved if name not in layout)


def test_a_whole_run_is_the_published_algorithm(tmp_path: Path) -> None:
    people, file = full_cells()
    ours, _, study = run_one_site(tmp_path, people, file, PUBLISHED)

    published = start()
    batches = batches_of(study, people, release=1, purpose="batches", size=BATCH)
    mask = published_mask(*(published_importances(published, batches, which) for which in ("bias", "task")))
    published_epoch(published, batches_of(study, people, 2, "local training", BATCH), "extractor", BETA, mask)
    published_head_reset(published, mask)
    published_epoch(published, batches_of(study, people, 3, "local training", BATCH), "head", 1 - BETA, None)
    for name, tensor in published.state_dict().items():
        assert close(ours.state[name], tensor), name
        assert not close(ours.base[name], tensor, 1e-4), f"{name} did not move"


def test_global_class_weights_are_the_published_loss_at_mean_one() -> None:
    # `balance: classes` is the loss of 1.2, brought to mean weight 1: divided by 2 (P/N)(Q/N), a public number.
    people, file = full_cells()
    people.label[:20] = 0
    study = declare(make_study(PUBLISHED, file=file, seed=SEED), {"s": N})
    model = classifier_of(study, file)
    x, y, _ = tensors_of(people, torch.arange(N), torch.float64)
    positives = int(y.sum())
    counts = np.zeros((3, 2))
    np.add.at(counts, (people.sex, people.label), 1)
    weights = {"task": task_weights(counts, "classes"), "bias": np.zeros((3, 2))}
    query = catalogue.gradient_sum(study, model.layout(), "extractor", 1.0)
    query = query.with_inputs(**model.inputs(), weights=weights)
    gradient = Sum(query, ("s",), contribution(study, query, people.split(range(N)))).value("gradient") / N

    published = start()
    published_task_loss(published(x), y).backward()
    scale = 2 * (positives / N) * (1 - positives / N)
    theirs = model.layout().flatten({name: p.grad for name, p in published.named_parameters()})
    assert 0 < positives < N / 2
    assert close(gradient * scale, theirs)


# --- where the published code errs --------------------------------------------------------------------------------


def test_a_batch_without_a_group_gives_no_bias_gradient_here_and_a_false_one_there() -> None:
    people, file = full_cells()
    people.sex[:] = 1
    study = declare(make_study(PUBLISHED, file=file, seed=SEED), {"s": N})
    model = classifier_of(study, file)
    query = catalogue.batch_sensitivities(study, model.layout(), "parameter", N, "equalized_odds", "signed")
    query = query.with_inputs(**model.inputs(), weights=EVERYBODY)
    sent = Sum(query, ("s",), contribution(study, query, people.split(range(N)), "s"))
    assert (sent.value("bias") == 0).all()
    assert (sent.value("task") > 0).any()
    published = published_importances(start(), [tensors_of(people, torch.arange(N), torch.float64)], "bias")
    assert float(published["head.bias"]) > 1e-3


def test_head_gradients_do_not_pile_up_over_batches(tmp_path: Path) -> None:
    people, file = full_cells()
    study = declare(make_study(PUBLISHED, file=file, seed=SEED), {"s": N})
    model = classifier_of(study, file)
    query = catalogue.batch_sensitivities(study, model.layout(), "parameter", BATCH, "equalized_odds", "signed")
    query = query.with_inputs(**model.inputs(), weights=EVERYBODY)
    sent = contribution(study, query, people.split(range(N)), "s", release=1)
    ours = model.layout().split(Sum(query, ("s",), sent).value("task") / 4)["head.weight"]
    piled = torch.zeros_like(start().head.weight)
    published = start()  # as published: the head is never zeroed between batches
    for x, y, _ in batches_of(study, people, 1, "batches", BATCH):
        published_task_loss(published(x), y).backward()
        piled += published.head.weight.grad**2 / 4
    assert not close(ours, piled, 0.1)


# --- the method's own properties ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", np.tanh(np.random.default_rng(0).random(40) * 2).tolist())
def test_a_constant_mask_never_resets_the_head(value: float) -> None:
    # The mean of equal numbers may round below them; that must not wipe out the head.
    file = weights_file()
    model = classifier_of(make_study(file=file), file)
    layout = model.layout()
    kept = reset_head(model, SoftMask({name: np.full(shape, value) for name, shape in layout.shapes.items()}))
    wide = SoftMask({"head.weight": np.full((1, 96), value)})
    assert (kept.state["head.weight"] == model.state["head.weight"]).all()
    assert not wide.above_mean("head.weight").any()


def test_masked_parameters_stay_and_the_head_waits_for_its_phase(tmp_path: Path) -> None:
    people, file = full_cells(dtype=torch.float32)
    method = {"name": "swift", "lr": 0.1, "rounds": {"extractor": 2, "head": 0}, "weight_decay": 0.5}
    ours, post, _ = run_one_site(tmp_path, people, file, method)
    mask = mask_sent(post)
    assert set(mask) == {name for name in ours.parameters if not name.startswith("head.")}
    for name, value in ours.state.items():
        assert (value != ours.base[name]).any() == (not name.startswith("head.")), name


@pytest.mark.parametrize("control", METHOD_CONTROLS)
def test_every_control_runs_within_its_plan(tmp_path: Path, control: str) -> None:
    people, file = full_cells(dtype=torch.float32)
    study = declare(make_study({"name": "swift", "controls": [control]}, file=file), {"s": N})
    variant = control_of(study, control)
    assert variant is not None
    agent = make_agent("s", Memory.everywhere(people.split(range(N))), tmp_path, [variant])
    method, model = resolve(variant), classifier_of(study, file)
    outcome, transcript = drive(variant, file, Post({"s": agent}), tmp_path)
    names = [row.name for row in transcript.rows]
    assert names == [query.name for query in method.plan(variant, model)]
    assert ("sensitivities" in names) == (control in ("constant", "permuted"))
    moved = {name for name in model.parameters if (outcome.classifier.state[name] != model.base[name]).any()}
    assert moved == (set(model.layout("head").shapes) if control == "head" else set(model.parameters))


def test_dropouts_leave_the_mean_change_in_proportion(tmp_path: Path) -> None:
    # Two sites with the same patients change alike, so the mean of one of them is the mean of both.
    people, file = full_cells(dtype=torch.float64)
    method = {"name": "swift", "mask": "ones", "head_reset": "none", "batch": N, "rounds": {"extractor": 1, "head": 0}}
    study = declare(
        make_study(method, file=file, sites={"minimum": 1, "quorum": 0.5, "deadline_s": 60}), {"a": N, "b": N}
    )
    cohort = Memory.everywhere(people.split(range(N)))
    results = []
    for number, silent in enumerate(([], ["b"])):
        agents: dict[str, Any] = {
            name: make_agent(name, cohort, tmp_path / str(number), [study]) for name in ("a", "b")
        }
        agents.update(dict.fromkeys(silent))
        outcome, transcript = drive(study, file, Post(agents), tmp_path / str(number))
        assert transcript.rows[-1].cohort == (("a", "b") if not silent else ("a",))
        results.append(outcome.classifier)
    layout = results[0].layout()
    assert close(layout.flatten(results[1].state), layout.flatten(results[0].state), 1e-10)
    assert not close(layout.flatten(results[1].state), layout.flatten(results[0].base), 1e-5)


@pytest.mark.parametrize("step", ["fedavg", "full_gradient"])
def test_a_group_that_drops_out_gives_no_false_signal(tmp_path: Path, step: str) -> None:
    # All patients of one group are at site b, which is silent from the second round on. A missing group is no group
    # whose scores are 0: the bias loss is dropped for that round, and no score is pushed down.
    people, file = full_cells(dtype=torch.float64)
    method = {
        "name": "swift", "step": step, "mask": "ones", "head_reset": "none", "beta": 0.0, "lr": 0.2,
        "momentum": 0.0, "rounds": {"extractor": 3, "head": 0},
    }  # fmt: skip
    study = make_study(method, file=file, sites={"minimum": 1, "quorum": 0.5, "deadline_s": 60})
    study = declare(study, {"a": N // 2, "b": N // 2})
    groups = {site: [i for i in range(N) if people.sex[i] == g] for g, site in enumerate("ab")}
    agents = {s: make_agent(s, Memory.everywhere(people.split(part)), tmp_path, [study]) for s, part in groups.items()}

    class Leaving(Post):
        def ask(self, requests: Any, deadline_s: float) -> Any:
            if any(unpack(request)[0]["release"] >= 2 for request in requests.values()):
                self.agents["b"] = None
            return super().ask(requests, deadline_s)

    outcome, transcript = drive(study, file, Leaving(dict(agents)), tmp_path)
    assert [row.cohort for row in transcript.rows] == [("a", "b"), ("a", "b"), ("a",), ("a",)]
    # The second round still has the first round's gap; from then on there is nothing to compare.
    assert outcome.notes["bias_loss_by_round"][2:] == [0.0, 0.0]
    last = transcript.replay(3, _last_query(study, file, transcript))
    assert last is not None
    moved = last.value("change" if step == "fedavg" else "gradient")
    assert (moved == 0).all()


def _last_query(study: Study, file: bytes, transcript: Transcript) -> Any:
    """The query of the last release, derived again; every query of the plan was asked."""
    steps = resolve(study).run(study, classifier_of(study, file))
    query = next(steps).placed(0)
    for number in range(len(transcript.rows) - 1):
        query = steps.send(transcript.replay(number, query)).placed(number + 1)
    return query


def test_full_gradient_rounds_are_masked_momentum_descent(tmp_path: Path) -> None:
    # One round after the other in plain torch: the gradient of the weighted mean loss, times the mask, with momentum.
    people, file = full_cells()
    method = {
        "name": "swift", "step": "full_gradient", "granularity": "channel", "head_reset": "none", "beta": 0.3,
        "lr": 0.4, "momentum": 0.8, "smoothing": 0.05, "rounds": {"extractor": 3, "head": 2},
    }  # fmt: skip
    ours, post, study = run_one_site(tmp_path, people, file, method)
    query = catalogue.sensitivities(study, classifier_of(study, file).layout(), "channel")
    counts = np.zeros((3, 2))
    np.add.at(counts, (people.sex, people.label), 1)
    task = task_weights(counts, "cells", 4.0)
    x, y, a = tensors_of(people, torch.arange(N), torch.float64)
    model = start()

    def bias_now() -> np.ndarray:
        scores = np.zeros((3, 2))
        np.add.at(scores, (people.sex, people.label), torch.sigmoid(model(x)).detach().numpy())
        return bias_weights(counts, scores, "equalized_odds", smoothing=0.05)

    bias = bias_now()
    weights = {"task": task, "bias": bias}
    query = query.with_inputs(**classifier_of(study, file).inputs(), weights=weights)
    sent = Sum(query, ("s",), contribution(study, query, people.split(range(N)), "s"))
    layout = classifier_of(study, file).layout()
    mask = SoftMask.from_sensitivities(layout, sent.value("bias"), sent.value("task"), "channel", "mean", 0.05)
    for part, rounds, beta in (("extractor", 3, 0.3), ("head", 2, 0.7)):
        trained = {n: p for n, p in model.named_parameters() if n.startswith("head.") == (part == "head")}
        velocity = {name: torch.zeros_like(p) for name, p in trained.items()}
        for _ in range(rounds):
            z = model(x)
            p = torch.sigmoid(z)
            entropy = torch.where(y == 1, -torch.log(p), -torch.log(1 - p))
            coming = bias_now()  # the scores that this round releases serve the next one
            loss = (
                beta * torch.from_numpy(task)[a, y] * entropy + (1 - beta) * torch.from_numpy(bias)[a, y] * p
            ).mean()
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for name, parameter in trained.items():
                    factor = torch.from_numpy(mask.values[name]) if part == "extractor" else 1.0
                    velocity[name] = 0.8 * velocity[name] + parameter.grad * factor
                    parameter.sub_(0.4 * velocity[name])
            bias = coming
    for name, tensor in model.state_dict().items():
        assert close(ours.state[name], tensor), name
        assert not close(ours.base[name], tensor, 1e-3), name
    assert len(post.asked()) == 7


# --- levels: extremes ---------------------------------------------------------------------------------------------

FOUR = {
    "attributes": [
        {"name": "sex", "levels": ["north", "east", "south", "west"], "primary": True},
        {"name": "age", "kind": "cut", "column": "age", "cuts": [60]},
    ]
}


def four_groups() -> People:
    """Patients of four groups; the model ranks those of `east` best and those of `west` worst."""
    people = draw_people(160, 5, most_rows=1, unknown=0.0)
    people.sex[:] = np.arange(160) % 4
    with torch.no_grad():
        logit = network()(torch.cat(people.rows)).numpy()
    shown = {0: 0.5, 1: 3.0, 2: 0.6, 3: -1.0}  # how far the label follows the model's own score
    noise = np.random.default_rng(1).normal(0, 1.0, 160)
    strength = np.array([shown[int(g)] for g in people.sex])
    people.label[:] = strength * (logit - np.median(logit)) + noise > 0
    return people


@pytest.mark.parametrize("kind", [{}, {"losses": "batch", "importance": "mini_batch", "batch": 40}])
def test_of_four_groups_the_two_that_are_kept_alone_act(kind: dict[str, Any]) -> None:
    """As if nobody else were there: the published reduction discards all other rows."""
    people = four_groups()
    how = {"levels": "extremes", "form": "signed", "lr": 0.05, "rounds": {"extractor": 2, "head": 1}, **kind}
    sites = [range(0, 80), range(80, 160)]
    done = town("swift", study=FOUR, people=people, **how).run(*sites)
    assert done.outcome.notes["mask_mean"] > 0.01  # group 0 is not kept, and yet there is a mask
    kept = [[i for i in part if people.sex[i] in (1, 3)] for part in sites]
    sent = done.named("local_training")[0].query.inputs["weights"]
    assert (sent["patients"].sum(axis=1) > 0).tolist() == [False, True, False, True, False]
    alone = town("swift", study=FOUR, people=people, **how).run(*kept)
    gaps = [run.outcome.notes["bias_loss_by_round"][0] for run in (done, alone)]
    assert gaps[0] > 0
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-4)
    if kind:  # a batch is then of the kept alone; global losses are a mean over all patients, of whom they are half
        layout = done.outcome.classifier.layout()
        found, expected = (layout.flatten(d.outcome.classifier.state) for d in (done, alone))
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_hospital_without_a_kept_group_adds_nothing_to_batches() -> None:
    people = four_groups()
    how = {"levels": "extremes", "losses": "batch", "importance": "mini_batch", "weight_decay": 0.1, "batch": 40}
    place = town("swift", study=FOUR, people=people, **how)
    parts = [[i for i in range(160) if people.sex[i] in groups] for groups in ((1, 3), (0, 2))]
    done = place.run(*parts)
    for name in ("batch_sensitivities", "local_training"):
        query = done.named(name)[0].query
        sent = contribution(declare(place.study, {"a": 80, "b": 80}), query, people.split(parts[1]), "b")
        assert all((sent[block] == 0).all() for block in sent if block != "patients")


def test_a_signed_loss_of_other_than_two_groups_is_refused() -> None:
    people = four_groups()
    for method in ("swift", "bmft"):
        with pytest.raises(DataError, match=r"form=signed: it compares two groups of sex.*north, east, south, west"):
            town(method, study=FOUR, people=people, form="signed").run()
        town(method, form="signed").run()
    people.sex[:] = 2
    with pytest.raises(DataError, match=r"with training patients are south; write form: absolute"):
        town("swift", study=FOUR, people=people, form="signed").run()


def test_a_level_that_nobody_has_changes_nothing() -> None:
    two, levels = town("swift"), ["nobody", "female", "none either", "male"]
    four = replace(two.people, sex=np.choose(two.people.sex, [1, 3, 4]))
    attributes = [{"name": "sex", "levels": levels, "primary": True}, FOUR["attributes"][1]]
    for how in ({}, {"form": "signed"}, {"balance": "smaller_group"}, {"losses": "batch", "importance": "mini_batch"}):
        here = town("swift", **how).run(range(20), range(20, 60)).outcome
        there = (
            town("swift", people=four, study={"attributes": attributes}, **how).run(range(20), range(20, 60)).outcome
        )
        assert here.notes["bias_loss_by_round"] == pytest.approx(there.notes["bias_loss_by_round"], abs=1e-6)
        for name, value in here.classifier.state.items():
            np.testing.assert_allclose(there.classifier.state[name], value, atol=1e-6)
