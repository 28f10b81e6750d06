"""Reweighing: the weights of Kamiran & Calders, and rounds with them that no partition changes."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.common.cells import task_weights
from equipoise.common.methods import METHODS, resolve
from tests.driving import parts_of, town

COUNTS = np.array([[30.0, 10.0], [20.0, 40.0], [5.0, 5.0]])


def test_the_weights_are_expected_over_observed_counts() -> None:
    # Known patients: n = 100, n_a = 40, 60, n_y = 50, 50: expected 20, 20, 30, 30.
    by_hand = np.array([[20 / 30, 20 / 10], [30 / 20, 30 / 40]])
    weights = task_weights(COUNTS, "independent")
    np.testing.assert_allclose(weights[:-1] / weights[0, 0], by_hand / by_hand[0, 0])
    weighed = weights[:-1] * COUNTS[:-1]
    share = weighed / weighed.sum()
    np.testing.assert_allclose(share, np.outer(share.sum(axis=1), share.sum(axis=0)))  # independent
    assert (weights * COUNTS).sum() == pytest.approx(COUNTS.sum())


def test_a_patient_of_unknown_group_weighs_what_the_label_does_on_average() -> None:
    weights = task_weights(COUNTS, "independent")
    for label in (0, 1):
        average = (weights[:-1, label] * COUNTS[:-1, label]).sum() / COUNTS[:-1, label].sum()
        assert weights[2, label] == pytest.approx(average)


def test_an_empty_cell_weighs_nothing_and_spoils_nothing() -> None:
    weights = task_weights(np.array([[30.0, 0.0], [20.0, 50.0], [0.0, 0.0]]), "independent")
    assert np.isfinite(weights).all()
    assert weights[0, 1] == 0


@pytest.mark.parametrize("step", ["fedavg", "full_gradient"])
def test_the_rounds_use_these_weights(step: str) -> None:
    place = town("reweighing", step=step, rounds=2)
    done = place.run(*parts_of(60))
    counts = done.named("cell_counts")[0].value("patients")
    asked = [total for total in done.sums if "weights" in total.query.inputs]
    assert len(asked) == 2
    for total in asked:
        np.testing.assert_array_equal(total.query.inputs["weights"]["task"], task_weights(counts, "independent", 4.0))


def test_full_gradient_rounds_are_the_same_for_every_partition() -> None:
    place = town("reweighing", step="full_gradient", rounds=3, lr=0.1)
    together, apart = place.run(), place.run(*parts_of(60, 4))
    for name, value in together.outcome.classifier.state.items():
        np.testing.assert_allclose(apart.outcome.classifier.state[name], value, rtol=1e-5, atol=1e-6)


def test_the_controls_resolve() -> None:
    study = town("reweighing", controls=["plain", "balanced"]).study
    resolve(study)
    for name, loss in (("plain", "plain"), ("balanced", "cells")):
        method = METHODS["reweighing"].controls[name](study).method
        assert (method.name, method.parameters["loss"]) == ("fine_tune", loss)
        assert method.parameters["rounds"] == 10  # as many as reweighing has where the study names none
