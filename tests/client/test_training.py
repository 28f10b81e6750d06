"""Local training against a plain loop: batches of patients, masked steps, momentum, the scores on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from equipoise.client.training import flipped, train_locally
from equipoise.client.workbench import View
from equipoise.common.cells import bias_weights, task_weights
from equipoise.common.layout import Layout
from tests.tiny import People, draw_people, make_study, network

DTYPE = torch.float64
STEPS = {
    "beta": 0.3,
    "lr": 0.2,
    "momentum": 0.7,
    "weight_decay": 0.05,
    "epochs": 2,
    "batch": 7,
    "flips": False,
    "losses": "global",
    "bias_loss": "equalized_odds",
    "form": "absolute",
    "smoothing": 0.3,
}
COUNTS = np.array([[90.0, 50], [120, 80], [30, 20]])  # all sites together
SCORES = np.array([[30.0, 30], [70, 60], [10, 10]])


def weights() -> dict[str, np.ndarray]:
    return {"task": task_weights(COUNTS, "cells"), "patients": COUNTS, "scores": SCORES}


def layout_of(model: torch.nn.Module, part: str) -> Layout:
    return Layout.of(
        (n, p) for n, p in model.named_parameters() if part == "whole" or n.startswith("head.") == (part == "head")
    )


def trained(
    people: People,
    part: str = "whole",
    mask: Any = None,
    factory: str = "small",
    seed: int = 3,
    weighed: dict[str, np.ndarray] | None = None,
    **changes: Any,
) -> Any:
    study = make_study(factory=factory)
    model = network(factory, dtype=DTYPE)
    layout = layout_of(model, part)
    split = people.split(range(len(people)))
    generator = torch.Generator().manual_seed(seed)
    steps, weighed = {**STEPS, **changes}, weighed or weights()
    change, scores = train_locally(View(study, model, split), layout, steps, weighed, mask, generator)
    return layout, change, scores, model


def by_hand(
    people: People, part: str, mask: Any, seed: int = 3, **changes: Any
) -> tuple[Layout, np.ndarray, np.ndarray]:
    """The same in plain loops over patients, without the project's losses or its descent."""
    steps = {**STEPS, **changes}
    model = network(dtype=DTYPE)
    layout = layout_of(model, part)
    parameters = {name: model.get_parameter(name) for name in layout.shapes}
    start = {name: p.detach().clone() for name, p in parameters.items()}
    velocity = {name: torch.zeros_like(p) for name, p in parameters.items()}
    generator = torch.Generator().manual_seed(seed)
    task = weights()["task"]
    cell = [(int(people.sex[i]), int(people.label[i])) for i in range(len(people))]
    first = [float(torch.sigmoid(model(rows.to(DTYPE))).mean().detach()) for rows in people.rows]
    drift = np.zeros((3, 2))  # how far the mean score of a cell has moved at this site
    for _ in range(steps["epochs"]):
        order = torch.randperm(len(people), generator=generator).tolist()
        for begin in range(0, len(order), steps["batch"]):
            batch = order[begin : begin + steps["batch"]]
            now = {i: 1 / (1 + torch.exp(-model(people.rows[i].to(DTYPE)))) for i in batch}
            for one in {cell[i] for i in batch}:
                moved = [float(now[i].mean().detach()) - first[i] for i in batch if cell[i] == one]
                drift[one] = 0.5 * drift[one] + 0.5 * np.mean(moved)
            bias = bias_weights(COUNTS, SCORES + COUNTS * drift, "equalized_odds", smoothing=steps["smoothing"])
            total = torch.zeros((), dtype=DTYPE)
            for i in batch:
                p = now[i]
                entropy = -(torch.log(p) if cell[i][1] else torch.log(1 - p))
                beta = steps["beta"]
                total = total + (beta * task[cell[i]] * entropy + (1 - beta) * bias[cell[i]] * p).mean()
            model.zero_grad()
            (total / len(batch)).backward()
            with torch.no_grad():
                for name, p in parameters.items():
                    force = p.grad + steps["weight_decay"] * p
                    if mask is not None:
                        force = force * torch.from_numpy(mask[name])
                    velocity[name] = steps["momentum"] * velocity[name] + force
                    p.sub_(steps["lr"] * velocity[name])
    change = layout.flatten({name: p.detach() - start[name] for name, p in parameters.items()})
    scores = np.zeros((3, 2))
    for i, one in enumerate(cell):
        scores[one] += first[i] + drift[one]
    return layout, change, scores


@pytest.mark.parametrize("part", ["whole", "extractor", "head"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("most_rows", [1, 3])
def test_local_epochs_are_the_plain_loop(part: str, masked: bool, most_rows: int) -> None:
    people = draw_people(24, seed=6, most_rows=most_rows)
    rng = np.random.default_rng(0)
    mask = {n: rng.random(s) for n, s in layout_of(network(), part).shapes.items()} if masked else None
    _, theirs, met = by_hand(people, part, mask)
    _, change, scores, _ = trained(people, part, mask)
    assert np.linalg.norm(theirs) > 0.05
    np.testing.assert_allclose(change, theirs, atol=1e-12)
    np.testing.assert_allclose(scores, met, atol=1e-12)


OTHER = {
    "beta": 0.6,
    "lr": 0.1,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "epochs": 1,
    "batch": 24,
    "losses": "batch",
    "bias_loss": "equal_opportunity",
    "form": "signed",
    "smoothing": 0.1,
}


@pytest.mark.parametrize("name", OTHER)
def test_every_parameter_matters(name: str) -> None:
    people = draw_people(24, seed=6)
    assert np.abs(trained(people)[1] - trained(people, **{name: OTHER[name]})[1]).max() > 1e-4


def test_a_masked_weight_neither_moves_nor_decays() -> None:
    people = draw_people(20, seed=1)
    layout = layout_of(network(), "whole")
    mask = {name: np.ones(shape) for name, shape in layout.shapes.items()}
    mask["extractor.0.weight"][2] = 0.0
    change = layout.split(trained(people, mask=mask, weight_decay=0.5)[1])
    assert (change["extractor.0.weight"][2] == 0).all()
    assert (np.delete(change["extractor.0.weight"], 2, axis=0) != 0).all()


def test_a_constant_mask_is_a_smaller_step() -> None:
    people = draw_people(20, seed=1)
    layout = layout_of(network(), "whole")
    half = {name: np.full(shape, 0.5) for name, shape in layout.shapes.items()}
    one = trained(people, mask=half, epochs=1, batch=20)[1]
    other = trained(people, lr=0.1, epochs=1, batch=20)[1]
    np.testing.assert_allclose(one, other, atol=1e-14)


def test_what_is_not_trained_stays_and_the_network_is_free_afterwards() -> None:
    people = draw_people(20, seed=1)
    _, _, _, model = trained(people, "head")
    fresh = network(dtype=DTYPE)
    for name, parameter in model.named_parameters():
        assert bool((parameter == fresh.get_parameter(name)).all()) == (not name.startswith("head."))
        assert parameter.requires_grad


def test_the_shuffle_is_the_generators_alone() -> None:
    people = draw_people(24, seed=6)
    torch.manual_seed(1)
    first = trained(people)[1]
    torch.manual_seed(2)
    assert (trained(people)[1] == first).all()
    assert (trained(people, seed=4)[1] != first).any()


def test_scores_are_one_a_patient() -> None:
    people = draw_people(24, seed=6)
    scores = trained(people, lr=1e-12, epochs=1)[2]
    alone = trained(people, lr=1e-12, epochs=1, beta=1.0)[2]
    np.testing.assert_allclose(scores, alone, atol=1e-6)
    assert scores.shape == (3, 2)
    model = network(dtype=DTYPE)
    for g in range(3):
        for y in range(2):
            mine = [i for i in range(24) if (people.sex[i], people.label[i]) == (g, y)]
            expected = sum(torch.sigmoid(model(people.rows[i].to(DTYPE))).mean().item() for i in mine)
            assert scores[g, y] == pytest.approx(expected, abs=1e-6)


def test_flips_mirror_whole_images_each_axis_by_its_own_coin() -> None:
    x = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(1, 2, 3, 4).expand(400, 2, 3, 4)
    out = flipped(x, torch.Generator().manual_seed(0))
    kinds = [x[0], x[0].flip(-1), x[0].flip(-2), x[0].flip(-1, -2)]
    counts = [sum(bool((image == kind).all()) for image in out) for kind in kinds]
    assert sum(counts) == 400
    assert all(60 < count < 140 for count in counts)  # 100 expected, standard deviation 8.7


def test_flips_are_for_images_alone_and_repeat() -> None:
    people = draw_people(12, seed=2, images=True)
    plain = trained(people, factory="conv", epochs=1)[1]
    once, twice = (trained(people, factory="conv", epochs=1, flips=True)[1] for _ in range(2))
    assert (once == twice).all()
    assert (once != plain).any()
    table = draw_people(12, seed=2)
    assert (trained(table, flips=True)[1] == trained(table)[1]).all()


def test_a_batch_weighs_its_own_labels_where_the_task_loss_is_alone() -> None:
    people = draw_people(24, seed=6)
    alone = {"beta": 1.0, "bias_loss": "equalized_odds", "form": "signed"}
    own, given = (trained(people, **alone, losses=losses)[1] for losses in ("batch", "global"))
    assert np.abs(own - given).max() > 1e-4


def test_a_batchs_own_weights_drop_what_the_batch_lacks() -> None:
    people = draw_people(12, seed=2, unknown=0.0)
    people.sex[:] = 1
    published = {"losses": "batch", "bias_loss": "equalized_odds", "form": "signed", "batch": 12, "epochs": 1}
    _, change, _, _ = trained(people, beta=0.0, weight_decay=0.0, **published)
    assert (change == 0).all()


def test_batches_leave_out_the_groups_that_are_not_compared() -> None:
    people = draw_people(30, seed=2, unknown=0.3)
    known = people.sex < 2
    published = {"losses": "batch", "batch": 8, "epochs": 2}
    kept = {**weights(), "patients": COUNTS * [[1], [1], [0]]}
    mine = [i for i in range(30) if known[i]]
    _, alone, _, _ = trained(People(*(_chosen(part, mine) for part in vars(people).values())), **published)
    _, change, scores, _ = trained(people, weighed=kept, **published)
    np.testing.assert_allclose(change, alone, atol=1e-12)
    assert (scores[2] == 0).all()
    _, change, scores, _ = trained(people, weighed={**kept, "patients": np.zeros((3, 2))}, **published)
    assert not change.any()
    assert not scores.any()


def _chosen(part: Any, mine: list[int]) -> Any:
    return tuple(part[i] for i in mine) if isinstance(part, tuple) else part[mine]
