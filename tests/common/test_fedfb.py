"""FedFB: the surrogate and the multipliers by hand, and the errors of the public code that it does not share."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.common.methods.fedfb import FairBatch, parity_surrogate
from tests.driving import parts_of, town

# Two groups: n_0 = 60 (40 negative, 20 positive), n_1 = 40 (30, 10); nobody of unknown group.
COUNTS = np.array([[40.0, 20.0], [30.0, 10.0], [0.0, 0.0]])


def test_the_surrogate_by_hand() -> None:
    losses = np.array([[12.0, 6.0], [15.0, 4.0]])
    by_hand = (15 - 4) / 40 - (12 - 6) / 60 + 40 / 60 - 30 / 40
    np.testing.assert_allclose(parity_surrogate(losses, COUNTS[:2]), [0.0, by_hand])


def test_the_surrogate_of_zero_one_losses_is_the_difference_of_selection_rates() -> None:
    # 8 of 40 negatives and 5 of 20 positives of group 0 are wrong, 3 of 30 and 6 of 10 of group 1.
    wrong = np.array([[8.0, 5.0], [3.0, 6.0]])
    selected = (wrong[:, 0] + COUNTS[:2, 1] - wrong[:, 1]) / COUNTS[:2].sum(axis=1)
    assert parity_surrogate(wrong, COUNTS[:2])[1] == pytest.approx(selected[1] - selected[0])


def test_the_multipliers_by_hand() -> None:
    batch = FairBatch(COUNTS, alpha=0.5)
    np.testing.assert_allclose(batch.multipliers, [[0.6, 0.6], [0.4, 0.4]])
    np.testing.assert_allclose(batch.weights[:2], 1.0)
    mean = np.array([[0.3, 0.3], [0.5, 0.4], [0.0, 0.0]])
    batch.see(mean)  # at the vendor's model, before any round
    np.testing.assert_allclose(batch.multipliers, [[0.6, 0.6], [0.4, 0.4]])
    f = (15 - 4) / 40 - (12 - 6) / 60 + 40 / 60 - 30 / 40
    batch.see(mean)
    np.testing.assert_allclose(batch.multipliers, [[0.6 - 0.5 * f, 0.6 + 0.5 * f], [0.4 + 0.5 * f, 0.4 - 0.5 * f]])
    batch.see(mean)  # the second step is smaller by the root of 2
    moved = 0.5 * f * (1 + 1 / np.sqrt(2))
    np.testing.assert_allclose(batch.multipliers[1], [0.4 + moved, 0.4 - moved])


def test_each_group_is_held_in_its_own_bounds() -> None:
    # In the public code 2 p_0 = 1.2 bounds every group: group 1 would reach it and weigh more than its share allows.
    batch = FairBatch(COUNTS, alpha=50.0)
    for _ in range(2):
        batch.see(np.array([[0.3, 0.3], [2.0, 0.1], [0.0, 0.0]]))
    np.testing.assert_allclose(batch.multipliers, [[0.0, 1.2], [0.8, 0.0]])


def test_the_multipliers_do_not_depend_on_the_number_of_hospitals() -> None:
    # In the public code the constant term is added once a hospital.
    place = town("fedfb", rounds=3, step="full_gradient", lr=0.2, alpha=0.5)
    runs = [place.run(*parts_of(60, sites)) for sites in (1, 2, 5)]
    rows = [done.outcome.notes["facts"][0]["rows"] for done in runs]
    assert rows[0] == rows[1] == rows[2]
    assert rows[0][1][1:] == rows[0][0][1:]  # nothing moves at the vendor's model
    assert rows[0][2][1:] != rows[0][1][1:]


def test_every_hospital_has_its_weight_in_the_average() -> None:
    # In the public code the first hospital is added with weight 1, so that the weights do not sum to 1. Where all
    # hospitals hold the same patients, the average is what each of them would do alone.
    place = town("fedfb", rounds=1, batch=1000)
    alone, three = place.run(range(60)), place.run(range(60), range(60), range(60))
    for name, value in alone.outcome.classifier.state.items():
        np.testing.assert_allclose(three.outcome.classifier.state[name], value, rtol=1e-4, atol=1e-5)


def test_a_first_level_of_nobody_is_no_group_to_compare_with() -> None:
    mean = np.array([[0.3, 0.3], [0.5, 0.4], [0.0, 0.0]])
    batch, shifted = FairBatch(COUNTS, 0.5), FairBatch(np.vstack([np.zeros((1, 2)), COUNTS]), 0.5)
    for _ in range(3):
        batch.see(mean)
        shifted.see(np.vstack([np.zeros((1, 2)), mean]))
    assert np.abs(batch.multipliers[0] - 0.6).max() > 0.01
    np.testing.assert_allclose(shifted.multipliers, np.vstack([np.zeros((1, 2)), batch.multipliers]))
    np.testing.assert_allclose(shifted.weights[1:], batch.weights)
