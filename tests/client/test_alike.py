"""Batches in which a patient's numbers hang on that patient alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise.client.alike import PLACES, alike_places, batches, by_entry
from equipoise.client.cohort import Split
from equipoise.client.scores import logits_alike, patient_means, patient_scores
from equipoise.client.workbench import View
from equipoise.common.errors import ModelError
from equipoise.common.factory import load_factory
from tests.tiny import FEATURES, WIDTH, People, draw_people, make_study, network, weights_file

STUDY = make_study({"name": "swift"}, file=weights_file())
PEOPLE = draw_people(60, seed=3)
FRESH = itertools.count()  # computations that nobody has asked for before


class Uneven(nn.Module):
    """The network with another last bit in every third row, as from other instructions; inside, or in its result."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.inner, self.inside = network(), inside
        if inside:
            self.inner.extractor.register_forward_hook(lambda layer, inputs, output: shaken(output))

    def forward(self, x: Tensor) -> Tensor:
        if not self.inside:
            return shaken(self.inner(x))
        # What comes after takes no notice of a last bit.
        logits: Tensor = self.inner.head(self.inner.extractor(x).round(decimals=2)).squeeze(-1)
        return logits


def shaken(values: Tensor) -> Tensor:
    third = torch.arange(len(values)) % 3 == 1
    other = torch.nextafter(values, values.new_tensor(torch.inf))
    return torch.where(third.reshape(-1, *[1] * (values.ndim - 1)), other, values)


def places_of(model: nn.Module, compute: Any = None) -> list[int]:
    """Of a computation that has not been looked at before."""
    split = PEOPLE.split(range(60))
    return alike_places(View(STUDY, model, split), next(FRESH), compute or (lambda x: [model(x)])).tolist()


def test_places_whose_rows_have_other_bits_are_left_empty() -> None:
    even = [place for place in range(PLACES) if place % 3 != 1]
    usual = places_of(network())
    assert set(places_of(Uneven(inside=False))) == set(usual) & set(even)
    assert usual[0] == 0


def test_a_difference_inside_the_network_counts_where_its_result_shows_none() -> None:
    assert not any(place % 3 == 1 for place in places_of(Uneven(inside=True)))


def test_a_difference_in_what_is_computed_counts() -> None:
    model = network()

    def first_of_all(x: Tensor) -> list[Tensor]:
        return [model(x), torch.arange(PLACES) // 8]

    assert max(places_of(model, first_of_all)) < 8


class Mixed(nn.Module):
    """Looks at what the other rows of a batch are like; all rows alike, it does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x - 1e-3 * x.mean(dim=0))
        return logits


def test_a_network_that_mixes_patients_is_refused() -> None:
    with pytest.raises(ModelError, match="may not mix patients"):
        places_of(Mixed())


class Seldom(nn.Module):
    """A layer of two numbers in which few rows show that a third of the places have other bits."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least
        self.narrow = nn.Linear(WIDTH, 2)
        self.narrow.register_forward_hook(lambda layer, inputs, output: self.other(inputs[0], output))
        self.head = nn.Linear(2, 1)

    def other(self, x: Tensor, output: Tensor) -> Tensor:
        return torch.where(x[:, :1].abs() > self.least, shaken(output), output)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.narrow(x).round(decimals=2)).squeeze(-1)
        return logits


def test_a_layer_of_few_numbers_is_given_more_chances_to_show_a_difference() -> None:
    never, seldom = set(places_of(Seldom(9.0))), set(places_of(Seldom(2.3)))
    assert {place for place in never if place % 3 == 1}
    assert seldom == {place for place in never if place % 3 != 1}


def test_what_is_done_with_the_results_is_looked_at_too() -> None:
    model, split = network(), PEOPLE.split(range(60))

    def coarse(rows: Tensor) -> Tensor:
        """Few numbers, in which another last bit shows once in eight rows."""
        total = rows.sum(dim=1, keepdim=True)
        return torch.where(total.abs() % 1 < 1 / 8, shaken(total), total)

    view = View(STUDY, model, split)
    found = alike_places(view, next(FRESH), lambda x: [model(x)], [(coarse, (WIDTH,))]).tolist()
    assert set(found) == {place for place in places_of(model) if place % 3 != 1}


@pytest.mark.parametrize("factory", ["resnet_small", "vit_small", "mlp"])
def test_networks_of_ours_take_places_and_are_left_with_all_their_buffers(factory: str) -> None:
    arguments = {"features": 12} if factory == "mlp" else {}
    where = "vision_transformer" if factory.startswith("vit") else "models"
    model = load_factory(f"equipoise.common.{where}:{factory}", arguments).eval()
    x = torch.randn(5, 12) if factory == "mlp" else torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    everyone = torch.arange(5)
    view = View(STUDY, model, Split(x, everyone, 0 * everyone, {"sex": 0 * everyone, "age": 0 * everyone}))
    tensors = [*model.parameters(), *model.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    assert len(alike_places(view, next(FRESH), lambda x: [model(x)])) > 1
    assert all(torch.equal(tensor, was) for tensor, was in zip(tensors, before, strict=True))


def test_the_model_and_its_gradients_are_left_as_they_were() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places_of(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_computation_is_looked_at_once() -> None:
    model, split, asked = network(), PEOPLE.split(range(60)), []

    def noted(x: Tensor) -> list[Tensor]:
        asked.append(len(x))
        return [model(x)]

    what = next(FRESH)
    first = alike_places(View(STUDY, model, split), what, noted)
    count = len(asked)
    assert count > 0
    assert set(asked) == {PLACES}
    assert alike_places(View(STUDY, model, split), what, noted).tolist() == first.tolist()
    assert len(asked) == count


@pytest.mark.parametrize("places", [[0], [0, 5, 31], list(range(PLACES))])
def test_batches_hold_every_patient_once_at_the_places(places: list[int]) -> None:
    split = PEOPLE.split(range(60))
    rows_of = [torch.nonzero(split.patient == patient).flatten() for patient in range(60)]
    seen = []
    for batch in batches(View(STUDY, network(), split), torch.tensor(places)):
        for real, patient in zip(batch.real.tolist(), batch.patient.tolist(), strict=True):
            at = torch.nonzero(batch.owner == real).flatten()
            assert torch.equal(batch.x[at].double(), split.inputs[rows_of[patient]].double())
            assert batch.label[real] == split.label[patient]
            assert batch.cell[real] == 2 * split.groups["sex"][patient] + split.label[patient]
            assert len(at) > 1 or (len(batch.x) == PLACES and at.tolist()[0] in places)
            seen.append(patient)
        if len(batch.real) > 1:
            empty = torch.ones(PLACES, dtype=torch.bool)
            empty[batch.real] = False
            assert not batch.x[empty].any()
    assert sorted(seen) == list(range(60))


def test_rows_that_are_named_bring_their_patients_alone() -> None:
    split = PEOPLE.split(range(60))
    rows = torch.nonzero(split.patient % 4 == 0).flatten()
    found = [p for b in batches(View(STUDY, network(), split), torch.arange(PLACES), rows) for p in b.patient.tolist()]
    assert sorted(found) == list(range(0, 60, 4))
    assert not list(batches(View(STUDY, network(), split), torch.arange(PLACES), rows[:0]))


def test_scores_are_those_of_the_rows_and_the_same_in_any_company() -> None:
    model, split = network(), PEOPLE.split(range(60))
    with torch.no_grad():
        direct = torch.cat([model(row[None]).reshape(1) for row in split.inputs]).double()
    np.testing.assert_allclose(logits_alike(View(STUDY, model, split)), direct, rtol=1e-5, atol=1e-6)
    everyone = patient_scores(View(STUDY, model, split))
    for count in (1, 7, 33):
        assert (patient_scores(View(STUDY, model, PEOPLE.split(range(count)))) == everyone[:count]).all()


@pytest.mark.parametrize("function", [torch.sigmoid, torch.exp, lambda v: torch.logit(v, eps=1e-12)])
def test_the_last_numbers_of_an_array_meet_the_instructions_of_the_others(function: Any) -> None:
    values = torch.rand(1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).expand(200)
    for count in range(1, 200):
        found = by_entry(function, values[:count].clone())
        assert len(found) == count
        assert (found == found[0]).all()
    assert len(by_entry(function, values[:0])) == 0


def test_a_patient_of_many_rows_has_one_score_wherever_she_stands() -> None:
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 2 * FEATURES)).astype(np.float32))
    scores = []
    for before in range(40):
        people = People(
            (*PEOPLE.rows[:before], rows), *(np.append(v[:before], 1) for v in (PEOPLE.label, PEOPLE.sex, PEOPLE.age))
        )
        split = people.split(range(before + 1))
        own = torch.linspace(-2, 3, 5, dtype=torch.float64)
        logits = torch.cat([torch.zeros(len(split.patient) - 5, dtype=torch.float64), own])
        scores.append(patient_means(logits, split)[-1])
    assert len(set(scores)) == 1
