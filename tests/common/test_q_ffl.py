"""q-FFL: the two sums by hand, and federated averaging at q = 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from equipoise.common.errors import StudyError
from equipoise.common.methods import METHODS
from tests.driving import Town, parts_of, town
from tests.tiny import network, private_study

PARTS = parts_of(60)


def one_step(place: Town, part: range, lr: float) -> tuple[float, np.ndarray]:
    """A hospital's mean loss at the vendor's model, and its change after one step on all its patients."""
    split, model = place.people.split(part), network()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(
        model(split.inputs), split.label[split.patient].float(), reduction="none"
    )
    loss = (entropy / torch.bincount(split.patient)[split.patient]).sum() / len(part)
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    return loss.item(), np.concatenate([-lr * g.double().numpy().ravel() for g in gradient])


@pytest.mark.parametrize("q", [0.5, 1.0, 2.0])
def test_a_round_by_hand(q: float) -> None:
    place = town("q_ffl", q=q, rounds=1, lr=0.5, batch=1000)
    done = place.run(*PARTS)
    above, below = np.zeros(place.model.layout().size), 0.0
    for part in PARTS:
        loss, change = one_step(place, part, 0.5)
        share, big_l = len(part) / 60, 1 / 0.5
        above += share * loss**q * big_l * -change  # D_k, with theta - theta_k = -change
        below += share * (q * loss ** (q - 1) * np.sum((big_l * change) ** 2) + big_l * loss**q)
    layout = place.model.layout()
    moved = layout.flatten(done.outcome.classifier.state) - layout.flatten(place.model.state)
    np.testing.assert_allclose(moved, -above / below, atol=2e-6)


def test_at_q_0_it_is_federated_averaging() -> None:
    # Whole batches: shuffles hang on a release's number, which is another one after fine_tune's counts.
    how = {"rounds": 2, "lr": 0.1, "batch": 1000, "local_epochs": 2}
    ours = town("q_ffl", q=0.0, **how).run(*PARTS).outcome.classifier
    average = town("fine_tune", loss="plain", step="fedavg", momentum=0.0, **how).run(*PARTS).outcome.classifier
    for name, value in average.state.items():
        np.testing.assert_allclose(ours.state[name], value, atol=1e-6)


def test_a_hospital_that_drops_out_leaves_both_sums() -> None:
    place = town("q_ffl", q=1.0, rounds=1, lr=0.5, batch=1000)
    moved = place.run(*PARTS, absent=lambda _: ["b", "c"]).outcome.classifier
    loss, change = one_step(place, PARTS[0], 0.5)
    expected = loss * change / (np.sum(change**2) / 0.5 + loss)
    layout = place.model.layout()
    np.testing.assert_allclose(layout.flatten(moved.state) - layout.flatten(place.model.state), expected, atol=2e-6)


def test_no_hospitals_own_figure_is_in_the_sums() -> None:
    total = town("q_ffl", rounds=1).run(*PARTS).sums[0]
    assert {name: block.size for name, block in total.query.blocks.items()} == {"change": 149, "curvature": 1}


def test_it_refuses_a_private_study() -> None:
    with pytest.raises(StudyError, match=r"no private form.*group_dro"):
        METHODS["q_ffl"].plan(private_study().with_method("q_ffl"), town("q_ffl").model)
