"""FedProx: the pull towards the round's model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from equipoise.common.cells import task_weights
from equipoise.common.errors import StudyError
from equipoise.common.methods import METHODS
from tests.driving import parts_of, town
from tests.tiny import network, private_study


def test_two_steps_by_hand() -> None:
    # One site, one batch of all patients, two epochs: w1 = w0 - lr g(w0); w2 = w1 - lr (g(w1) + mu (w1 - w0)).
    place = town("fedprox", rounds=1, batch=1000, momentum=0.0, lr=0.2, mu=1.5, local_epochs=2)
    done = place.run()
    split, model = place.people.split(range(60)), network()
    cell = 2 * split.groups["sex"] + split.label
    counts = np.bincount(cell, minlength=6).reshape(3, 2).astype(float)
    weight = torch.from_numpy(task_weights(counts, "cells", 4.0).reshape(-1)).float()[cell[split.patient]]
    weight = weight / torch.bincount(split.patient)[split.patient] / 60
    start = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        z = model(split.inputs)
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(
            z, split.label[split.patient].float(), reduction="none"
        )
        loss = (weight * entropy).sum()
        loss = loss + 0.75 * sum(((p - w) ** 2).sum() for p, w in zip(model.parameters(), start, strict=True))
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradient, strict=True):
                p.sub_(0.2 * g)
    for name, p in model.named_parameters():
        np.testing.assert_allclose(done.outcome.classifier.state[name], p.detach().numpy(), atol=2e-6)


def test_without_a_pull_it_is_federated_averaging() -> None:
    how = {"rounds": 2, "lr": 0.1, "local_epochs": 2, "batch": 16}
    prox = town("fedprox", mu=0.0, **how).run(*parts_of(60))
    average = town("fine_tune", loss="cells", step="fedavg", **how).run(*parts_of(60))
    pulled = town("fedprox", mu=5.0, **how).run(*parts_of(60))
    for name, value in average.outcome.classifier.state.items():
        np.testing.assert_array_equal(prox.outcome.classifier.state[name], value)
    layout = town("fedprox").model.layout()
    far, near = (
        layout.flatten(d.outcome.classifier.state) - layout.flatten(town("fedprox").model.state)
        for d in (average, pulled)
    )
    assert np.linalg.norm(near) < 0.8 * np.linalg.norm(far)


def test_it_refuses_a_private_study_and_says_what_to_do() -> None:
    study = private_study().with_method("fedprox")
    with pytest.raises(StudyError, match=r"no private form.*fine_tune"):
        METHODS["fedprox"].plan(study, town("fedprox").model)
