"""Computations that move the head alone meet the extractor once, and give what they give through the whole network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise.client import frozen
from equipoise.client.frozen import HeadAlone, HeadInputs
from equipoise.client.training import train_locally
from equipoise.client.workbench import View
from equipoise.common.errors import ModelError
from tests.client.test_training import STEPS, layout_of, weights
from tests.tiny import People, draw_people, make_study, network

STUDY = make_study()
PEOPLE = draw_people(40, seed=2)


class Wrapped(nn.Module):
    """A network around another one; its head lies deeper."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.head = inner.head

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return logits


class Scaled(Wrapped):
    """Goes on after its head."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Twice(Wrapped):
    """Asks its head twice, and uses the first answer."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        super().forward(-x)
        return logits


class Moody(Wrapped):
    """Does without its head where all numbers are small."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.abs().max()) > 1.5 else x.sum(dim=1)


def whole(model: nn.Module, people: People = PEOPLE) -> View:
    return View(STUDY, model, people.split(range(len(people))))


def state_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def seen(view: View, heads: HeadInputs | None = None) -> View:
    return (heads or HeadInputs()).view(view, state_of(view.model), "train")


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """How often the extractor is run meanwhile."""
    calls: list[int] = []
    handle = model.get_submodule("extractor").register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    try:
        yield calls
    finally:
        handle.remove()


@pytest.mark.parametrize("people", [PEOPLE, draw_people(40, seed=3)])
def test_the_change_is_that_of_the_whole_model(people: People) -> None:
    found = []
    for through in (False, True):
        model = network(dtype=torch.float64)
        view = whole(model, people)
        generator = torch.Generator().manual_seed(3)
        chosen = seen(view) if through else view
        assert chosen.head == through
        found.append(train_locally(chosen, layout_of(model, "head"), STEPS, weights(), None, generator))
    (change, scores), (change_through, scores_through) = found
    assert np.linalg.norm(change) > 0
    np.testing.assert_allclose(change, change_through, rtol=1e-10)
    np.testing.assert_allclose(scores, scores_through, rtol=1e-10)


def test_the_extractor_runs_once_for_all_rounds_and_again_where_it_was_moved() -> None:
    model, heads = network(dtype=torch.float64), HeadInputs()
    view = whole(model)
    rows = torch.tensor([5, 0, 3])
    with counted(model) as calls:
        seen(view, heads)
        first = len(calls)
        assert first
        with torch.no_grad():
            model.head.weight.mul_(-3)
        again = seen(view, heads)
        assert len(calls) == first
        with torch.no_grad():
            torch.testing.assert_close(again.model(again.rows(rows)), model(view.rows(rows)))
            next(model.get_submodule("extractor").parameters()).mul_(2)
        moved = seen(view, heads)
        assert len(calls) > first
        with torch.no_grad():
            torch.testing.assert_close(moved.model(moved.rows(rows)), model(view.rows(rows)))
        before = len(calls)
        heads.view(view, state_of(model), "test")
        assert len(calls) > before


def test_a_row_s_inputs_have_the_same_bits_whoever_else_is_there() -> None:
    model = network()
    everyone = seen(whole(model)).split
    for patients in (range(7), range(3, 40), [11]):
        split = PEOPLE.split(patients)
        fewer = seen(View(STUDY, model, split)).split
        wanted = torch.isin(everyone.patient, torch.tensor(list(patients)))
        assert (fewer.inputs == everyone.inputs[wanted]).all()


@pytest.mark.parametrize("around", [Scaled, Twice])
def test_a_model_that_is_more_than_an_extractor_and_its_head_is_run_whole(around: Any) -> None:
    view = whole(around(network(dtype=torch.float64)))
    assert seen(view) is view


def test_a_head_that_lies_deeper_keeps_its_name() -> None:
    study = make_study()
    study = study.model_copy(update={"model": study.model.model_copy(update={"head": "inner.head."})})
    model = Wrapped(network(dtype=torch.float64))
    del model.head
    view = View(study, model, PEOPLE.split(range(5)))
    found = HeadInputs().view(view, state_of(model), "train")
    assert found.head
    assert [name for name, _ in found.model.named_parameters()] == ["inner.head.weight", "inner.head.bias"]
    torch.testing.assert_close(found.logits(), view.logits())


def test_a_model_that_does_not_always_call_its_head_is_refused() -> None:
    view = whole(Moody(network(dtype=torch.float64)))
    small = replace(view, split=replace(view.split, inputs=view.split.inputs / 100))
    with pytest.raises(ModelError, match="not always called"):
        seen(small)


def test_which_way_is_taken_is_asked_of_made_up_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, met = network(), []
    real = frozen._met
    monkeypatch.setattr(frozen, "_met", lambda *given: met.append(given[2].clone()) or real(*given))
    for patients in (range(7), range(20, 40)):
        met.clear()
        seen(View(STUDY, model, PEOPLE.split(patients)))
        if patients == range(7):
            first = met[0]
    assert torch.equal(met[0], first)


def test_the_head_alone_gives_one_logit_a_row() -> None:
    head = nn.Linear(3, 1)
    x = torch.randn(4, 3)
    assert torch.equal(HeadAlone("a.b", head)(x), head(x).reshape(-1))
