"""Sensitivities against plain loops over patients and autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from equipoise.client.cohort import Split
from equipoise.common.layout import Layout
from equipoise.common.mask import Granularity, units
from equipoise.common.models import normalise
from equipoise.common.sensitivities import batch_sensitivities, patient_sensitivities
from equipoise.common.study import ImageInputs
from tests.tiny import People, draw_people, network

TASK = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.7, 1.3], dtype=torch.float64)
BIAS = torch.tensor([-1.0, 0.5, 2.0, -0.3, 0.0, 0.0], dtype=torch.float64)
GRANULARITIES: list[Granularity] = ["parameter", "channel", "tensor"]
IMAGES = ImageInputs(size=8)


def inputs_of(people: People, i: int, dtype: torch.dtype) -> torch.Tensor:
    rows = people.rows[i]
    return (normalise(IMAGES, rows) if rows.ndim == 4 else rows).to(dtype)


def by_hand(model: torch.nn.Module, people: People, layout: Layout, granularity: Granularity) -> list[np.ndarray]:
    """One patient after the other: the gradient of the weighted mean loss of its rows, squared and added up."""
    dtype = next(model.parameters()).dtype
    total = [np.zeros(sum(units(layout, granularity).values())) for _ in range(2)]
    for i in range(len(people)):
        cell = 2 * int(people.sex[i]) + int(people.label[i])
        for which, weight in ((0, BIAS[cell]), (1, TASK[cell])):
            z = model(inputs_of(people, i, dtype))
            p = torch.sigmoid(z)
            each = p if which == 0 else -(torch.log(p) if people.label[i] else torch.log(1 - p))
            model.zero_grad()
            (weight.to(dtype) * each.mean()).backward()
            squares = []
            for name in layout.shapes:
                square = model.get_parameter(name).grad.numpy().astype(np.float64) ** 2  # type: ignore[union-attr]
                if granularity == "tensor" or (granularity == "channel" and not square.ndim):
                    square = np.array([square.sum()])
                elif granularity == "channel":
                    square = square.reshape(square.shape[0], -1).sum(axis=1)
                squares.append(square.ravel())
            total[which] += np.concatenate(squares)
    return total


def ours(model: torch.nn.Module, split: Split, layout: Layout, granularity: Granularity) -> Any:
    dtype = next(model.parameters()).dtype

    def rows(part: slice) -> torch.Tensor:
        batch = split.inputs[part]
        return (normalise(IMAGES, batch) if batch.ndim == 4 else batch).to(dtype)

    cell = 2 * split.groups["sex"] + split.label
    return patient_sensitivities(model, layout, rows, split.patient, split.label, cell, TASK, BIAS, granularity)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("factory", ["small", "conv", "scaled"])
def test_per_patient_sensitivities_are_the_plain_loop(factory: str, granularity: Granularity) -> None:
    people = draw_people(25, seed=4, images=factory == "conv")
    model = network(factory, dtype=torch.float64)
    layout = Layout.of(model.named_parameters())
    for mine, theirs in zip(
        ours(model, people.split(range(25)), layout, granularity),
        by_hand(model, people, layout, granularity),
        strict=True,
    ):
        assert theirs.max() > 1e-3
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-15)


def test_more_rows_than_are_held_at_once_and_a_patient_with_as_many() -> None:
    people = draw_people(60, seed=4)
    many = People((*people.rows[:-1], torch.cat(people.rows)), people.label, people.sex, people.age)
    assert len(many.rows[-1]) > 64
    model = network(dtype=torch.float64)
    layout = Layout.of(model.named_parameters())
    for mine, theirs in zip(
        ours(model, many.split(range(60)), layout, "parameter"), by_hand(model, many, layout, "parameter"), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("factory", ["small", "conv"])
def test_coarser_granularities_pool_the_finer(factory: str) -> None:
    people = draw_people(20, seed=9, images=factory == "conv")
    model = network(factory, dtype=torch.float64)
    layout = Layout.of(model.named_parameters())
    split = people.split(range(20))
    fine, channel, tensor = (ours(model, split, layout, granularity) for granularity in GRANULARITIES)
    for which in range(2):
        parts = layout.split(fine[which])
        by_channel = [part.reshape(part.shape[0], -1).sum(axis=1) for part in parts.values()]
        np.testing.assert_allclose(channel[which], np.concatenate(by_channel), rtol=1e-10)
        np.testing.assert_allclose(tensor[which], [part.sum() for part in parts.values()], rtol=1e-10)


def test_only_the_named_tensors_get_one_and_the_network_is_left_alone() -> None:
    people = draw_people(15, seed=9)
    model = network(dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = Layout.of(model.named_parameters())
    part = Layout.of((n, p) for n, p in model.named_parameters() if n.startswith("head."))
    split = people.split(range(15))
    everything = whole.split(ours(model, split, whole, "parameter")[0])
    head = part.split(ours(model, split, part, "parameter")[0])
    np.testing.assert_allclose(head["head.weight"], everything["head.weight"], rtol=1e-12)
    assert all((before[name] == tensor).all() for name, tensor in model.state_dict().items())


def test_batch_sensitivities_add_up_over_batches_and_count_them() -> None:
    people = draw_people(24, seed=3, most_rows=1, unknown=0.0)
    model = network(dtype=torch.float64)
    layout = Layout.of(model.named_parameters())
    split = people.split(range(24))
    cell = 2 * split.groups["sex"] + split.label

    def batches(*parts: slice) -> Any:
        return iter([(split.inputs[part].to(torch.float64), split.label[part], cell[part]) for part in parts])

    def of(*parts: slice) -> Any:
        return batch_sensitivities(model, layout, batches(*parts), 3, "equalized_odds", "absolute", "parameter")

    first, second, both = of(slice(0, 10)), of(slice(10, 24)), of(slice(0, 10), slice(10, 24))
    assert [result[2] for result in (first, second, both)] == [1, 1, 2]
    for which in range(2):
        np.testing.assert_allclose(both[which], first[which] + second[which], rtol=1e-12)
        assert both[which].max() > 0
