"""The vendor's training, on tables and on a handful of images."""

from __future__ import annotations

import pytest
import torch

from equipoise.client.cohort import Split
from equipoise.common.errors import DataError
from equipoise.common.models import build
from equipoise.common.study import Feature, ImageInputs, ModelSpec, TableInputs
from equipoise.common.study_simulation import Recipe
from equipoise.simulations.pretrain import batch_weighted_bce, pretrain, random_flips
from equipoise.simulations.synthetic import HOSPITALS, hospital_set, stream

TABLE = TableInputs(features=[Feature(name="x", range=(-1, 1)), Feature(name="y", range=(-1, 1))])
MLP = ModelSpec(factory="equipoise.common.models:mlp", arguments={"features": 4})
RECIPE = Recipe(epochs=4, batch=32)


def table(rows: int = 400) -> Split:
    """Two rows a patient; positive where the first feature of the patient's rows is."""
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(rows, 2, generator=generator) * 2 - 1).reshape(-1, 2, 2)
    values[:, 1, 0] = values[:, 0, 0]
    label = (values[:, 0, 0] > 0).long()
    inputs = torch.cat([values.reshape(rows, 2), torch.zeros(rows, 2)], dim=1)
    return Split(inputs, torch.arange(rows) // 2, label, {})


def test_the_loss_weighs_each_class_by_the_share_of_the_other() -> None:
    # N = 4, P = 1, Q = 3; log(1 + e^0) = .693147: [3/4 + 3 (1/4)] .693147 / 4
    assert batch_weighted_bce(torch.zeros(4), torch.tensor([1, 0, 0, 0])).item() == pytest.approx(0.2599302)
    # P = Q = 1: half of the mean of log(1 + e^-2) = .126928 and log(1 + e^-1) = .313262
    loss = batch_weighted_bce(torch.tensor([2.0, -1.0]), torch.tensor([1, 0]))
    assert loss.item() == pytest.approx((0.1269280 + 0.3132617) / 4)


def test_a_batch_of_one_class_has_no_loss() -> None:
    logit = torch.tensor([0.3, -2.0], requires_grad=True)
    batch_weighted_bce(logit, torch.tensor([1, 1])).backward()
    assert torch.equal(logit.grad, torch.zeros(2))


def test_flips_mirror_some_images_along_each_axis() -> None:
    torch.manual_seed(0)
    image = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2).repeat(200, 1, 1, 1)
    seen, counts = torch.unique(random_flips(image).reshape(200, 4), dim=0, return_counts=True)
    assert seen.tolist() == [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]]
    assert counts.min() > 25  # 50 expected, standard deviation 6


def test_tables_are_learnt_from_every_row() -> None:
    state = pretrain(MLP, TABLE, table(), RECIPE, seed=0)
    model = build(MLP)
    model.load_state_dict(state)
    split = table()
    right = (model(split.inputs) > 0).long() == split.label[split.patient]
    assert right.float().mean() > 0.95


def test_the_result_is_the_seeds_alone() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = torch.get_rng_state()
        states = [pretrain(MLP, TABLE, table(), RECIPE, seed) for seed in (0, 0, 1)]
        assert torch.equal(torch.get_rng_state(), before)  # nobody else's random numbers are touched
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_images_train_the_network_of_the_benchmark() -> None:
    split = hospital_set(HOSPITALS[3], 70, stream(0, "x")).as_split()  # a whole batch, and a last one of six
    spec = ModelSpec(factory="equipoise.common.models:resnet_small")
    states = [pretrain(spec, ImageInputs(size=32), split, Recipe(epochs=1), seed=0) for _ in range(2)]
    assert sum(tensor.numel() for tensor in states[0].values()) == 174_265
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    model = build(spec)
    model.load_state_dict(states[0])
    assert model(torch.zeros(2, 3, 32, 32)).isfinite().all()


def test_one_class_cannot_be_learnt() -> None:
    split = table()
    benign = Split(split.inputs, split.patient, torch.zeros_like(split.label), {})
    with pytest.raises(DataError, match="0 of the vendor's 400 rows are positive"):
        pretrain(MLP, TABLE, benign, RECIPE, seed=0)
