"""Head-only training on the head's inputs, met once, is training through the whole model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise.client import training
from equipoise.client.frozen import head_inputs
from tests.client.test_training import trained
from tests.tiny import draw_people, make_study, network


class Scaled(nn.Module):
    """A model that goes on after its head."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.head = inner.head

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


def test_the_change_is_that_of_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    people = draw_people(40, seed=2)
    _, change, scores, _ = trained(people, "head", epochs=3)
    calls: list[Any] = []
    monkeypatch.setattr(training, "head_inputs", lambda *given: calls.append(given))
    _, through, scores_through, _ = trained(people, "head", epochs=3)
    assert calls
    assert np.linalg.norm(change) > 0
    np.testing.assert_allclose(change, through, rtol=1e-10)
    np.testing.assert_allclose(scores, scores_through, rtol=1e-10)


def test_the_extractor_runs_once() -> None:
    people = draw_people(40, seed=2)
    split = people.split(range(len(people)))
    model = network(dtype=torch.float64)
    seen = head_inputs(make_study(), model, split)
    assert seen is not None
    rows = torch.tensor([5, 0, 3])
    with torch.no_grad():
        model.head.weight.mul_(-3)
        expected = model(split.inputs[rows].double())
        extractor = [module for module in model.modules() if not list(module.children()) and module is not model.head]
        for module in extractor:
            module.register_forward_hook(lambda *_: pytest.fail("the extractor ran again"))
        torch.testing.assert_close(seen(rows), expected)


def test_a_model_that_goes_on_after_its_head_is_run_whole() -> None:
    people = draw_people(10, seed=2)
    split = people.split(range(len(people)))
    assert head_inputs(make_study(), Scaled(network(dtype=torch.float64)), split) is None


@pytest.mark.parametrize(("part", "flips"), [("whole", False), ("head", True)])
def test_it_is_left_alone_where_the_rows_change(monkeypatch: pytest.MonkeyPatch, part: str, flips: bool) -> None:
    monkeypatch.setattr(training, "head_inputs", lambda *_: pytest.fail("not for this training"))
    trained(draw_people(10, seed=2), part, flips=flips)
