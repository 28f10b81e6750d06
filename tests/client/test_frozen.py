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

from equipoise.client import alike, frozen
from equipoise.client.frozen import HeadAlone, HeadInputs
from equipoise.client.scores import ScoreCache
from equipoise.client.training import train_locally
from equipoise.client.workbench import View
from equipoise.client.workplace import Workplace
from equipoise.common import catalogue
from tests.client.test_training import STEPS, layout_of, weights
from tests.tiny import People, classifier_of, draw_people, make_study, network, weights_file

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


class Bounded(Wrapped):
    """Bounds the scores that its head gives, of which ordinary ones take no notice."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-50, 50)


class Drawn(Wrapped):
    """Has a buffer that no state dict holds."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.register_buffer("shift", torch.full((1,), 0.25), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.get_buffer("shift"))


class Twice(Wrapped):
    """Asks its head twice, and uses the first answer."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        super().forward(-x)
        return logits


class Moody(Wrapped):
    """Asks its head about rows that are not small, and no other row's are."""

    def forward(self, x: Tensor) -> Tensor:
        chosen = (x[:, 0] > -9) | (x[:, 0] < -11)
        logits = x.sum(dim=1)
        logits[chosen] = super().forward(x[chosen])
        return logits


def whole(model: nn.Module, people: People = PEOPLE) -> View:
    return View(STUDY, model, people.split(range(len(people))))


def state_of(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


@pytest.fixture(autouse=True)
def _other_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network is known by its factory, which those of this file are not made by."""
    monkeypatch.setattr(frozen, "_shapes", {})
    monkeypatch.setattr(alike, "_known", {})


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


@pytest.mark.parametrize("around", [Scaled, Twice, Bounded])
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


def test_a_head_of_zeros_hides_nothing_that_comes_after_it() -> None:
    model, heads = Scaled(network(dtype=torch.float64)), HeadInputs()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.zero_()
    view = whole(model)
    assert seen(view, heads) is view


def test_a_row_that_does_not_get_as_far_as_the_head_changes_no_other_row() -> None:
    model = Moody(network(dtype=torch.float64))
    split = PEOPLE.split(range(40))
    others = seen(whole(model)).split.inputs
    assert others.isfinite().all()
    inputs = split.inputs.clone()
    inputs[7, 0] = -10  # the network leaves this one out
    found = seen(View(STUDY, model, replace(split, inputs=inputs))).split.inputs
    assert found[7].isnan().all()
    rest = torch.arange(len(found)) != 7
    assert (found[rest] == others[rest]).all()


def test_a_network_is_left_as_it_was_with_the_buffers_that_no_state_dict_holds() -> None:
    model = Drawn(network(dtype=torch.float64))
    view = whole(model)
    before = view.logits()
    found = seen(view)
    assert found.head
    assert torch.equal(view.logits(), before)
    torch.testing.assert_close(found.logits(), before)


def test_whether_it_is_cut_hangs_on_the_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[Tensor] = []
    real = frozen._agrees
    monkeypatch.setattr(frozen, "_agrees", lambda *given: met.append(given[3].clone()) or real(*given))
    monkeypatch.setattr(frozen, "_shapes", {})
    seen(View(STUDY, network(), PEOPLE.split(range(7))))
    first = list(met)
    assert len(first) == 2
    seen(View(STUDY, network(), PEOPLE.split(range(20, 40))))
    assert len(met) == 2  # of the same network nothing more is asked
    monkeypatch.setattr(frozen, "_shapes", {})
    seen(View(STUDY, network(), PEOPLE.split(range(20, 40))))
    assert all(torch.equal(*pair) for pair in zip(first, met[2:], strict=True))


def test_the_head_alone_gives_one_logit_a_row() -> None:
    head = nn.Linear(3, 1)
    x = torch.randn(4, 3)
    assert torch.equal(HeadAlone("a.b", head)(x), head(x).reshape(-1))


@pytest.mark.parametrize(("head", "names", "cut"), [
    ("head.", ["head.weight", "head.bias"], True),
    ("head", ["head.weight"], True),
    ("head", ["head.weight", "head_norm.weight"], False),
    ("head.", ["head.weight", "extractor.0.weight"], False),
])  # fmt: skip
def test_what_begins_like_the_heads_name_is_no_part_of_it(head: str, names: list[str], cut: bool) -> None:
    study = STUDY
    study = study.model_copy(update={"model": study.model.model_copy(update={"head": head})})
    query = catalogue.cell_counts(study).with_inputs(**classifier_of(study, weights_file()).inputs())
    place = Workplace(study, "a", query, PEOPLE.split(range(9)), ScoreCache(), 0)
    assert place.view_for(names).head == cut
