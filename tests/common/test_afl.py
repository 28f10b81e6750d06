"""AFL: weights of hospitals and the mean of the iterates by hand; what the coordinator sees of each hospital."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from equipoise.common.errors import StudyError
from equipoise.common.methods import METHODS
from equipoise.common.methods.group_dro import onto_simplex
from tests.driving import parts_of, town
from tests.tiny import network, private_study

PARTS = parts_of(60)


def test_two_rounds_by_hand() -> None:
    place = town("afl", rounds=2, lr=0.4, eta=0.5)
    done = place.run(*PARTS)
    model = network()
    shares = np.array([len(part) / 60 for part in PARTS])
    reached = []
    for total in done.sums:
        losses, gradient = [], None
        for share, part in zip(shares, PARTS, strict=True):
            split = place.people.split(part)
            entropy = torch.nn.functional.binary_cross_entropy_with_logits(
                model(split.inputs), split.label[split.patient].float(), reduction="none"
            )
            loss = (entropy / torch.bincount(split.patient)[split.patient]).sum() / len(part)
            own = [share * g for g in torch.autograd.grad(loss, list(model.parameters()))]
            gradient = own if gradient is None else [a + b for a, b in zip(gradient, own, strict=True)]
            losses.append(loss.item())
        np.testing.assert_allclose(total.value("losses"), losses, rtol=1e-5)
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradient, strict=True):
                p.sub_(0.4 * g.float())
        shares = onto_simplex(shares + 0.5 * np.array(losses))
        reached.append(np.concatenate([p.detach().double().numpy().ravel() for p in model.parameters()]))
    layout = place.model.layout()
    np.testing.assert_allclose(layout.flatten(done.outcome.classifier.state), np.mean(reached, axis=0), atol=3e-6)


def test_the_coordinator_sees_each_hospitals_own_loss() -> None:
    place = town("afl", rounds=1)
    total = place.run(*PARTS).sums[0]
    alone = [place.run(part).sums[0].value("losses")[0] for part in PARTS]
    np.testing.assert_allclose(total.value("losses"), alone)


def test_a_hospital_that_does_not_answer_keeps_its_place() -> None:
    place = town("afl", rounds=2, eta=0.5)
    done = place.run(*PARTS, absent=lambda number: ["b"] if number == 0 else [])
    losses = done.sums[0].value("losses")
    assert losses[1] == 0
    filled = np.array([losses[0], (losses[0] + losses[2]) / 2, losses[2]])
    expected = onto_simplex(np.array([len(part) / 60 for part in PARTS]) + 0.5 * filled)
    np.testing.assert_allclose(done.sums[1].query.inputs["shares"]["shares"], expected)


def test_it_refuses_a_private_study() -> None:
    with pytest.raises(StudyError, match=r"no private form.*group_dro"):
        METHODS["afl"].plan(private_study().with_method("afl"), town("afl").model)


def test_a_hospital_of_nobody_has_no_say_whether_it_answers_or_not() -> None:
    place = town("afl", rounds=3, eta=0.5)
    absent = {"all answer": [], "a is missing": ["a"], "nobody's is missing": ["c"]}
    for case, names in absent.items():
        done = place.run(range(20), range(20, 60), range(0), absent=lambda _, names=names: names)
        two = place.run(range(20), range(20, 60), absent=lambda _, names=names: [n for n in names if n != "c"])
        for with_it, without in zip(done.sums, two.sums, strict=True):
            shares = with_it.query.inputs["shares"]["shares"]
            assert shares[2] == 0, case
            np.testing.assert_allclose(shares[:2], without.query.inputs["shares"]["shares"], atol=1e-6)
    # Only the hospital of nobody answers: nothing is learnt, and nothing is lost.
    done = place.run(range(20), range(20, 60), range(0), absent=lambda _: ["a", "b"])
    np.testing.assert_allclose(done.sums[-1].query.inputs["shares"]["shares"], [1 / 3, 2 / 3, 0])
