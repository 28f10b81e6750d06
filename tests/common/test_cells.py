"""Cells and their weights: hand-computed numbers, and gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from equipoise.common.cells import (
    Balance,
    BiasLoss,
    Form,
    bias_value,
    bias_weights,
    squared_bias_weights,
    task_weights,
)

# The golden example of docs/methods.md, SWiFT 1.3.
P = np.array([0.9, 0.1, 0.8, 0.1, 0.2, 0.7, 0.2, 0.7])
Y = np.array([1, 1, 1, 1, 0, 0, 0, 0])
A = np.array([1, 0, 1, 0, 1, 0, 1, 0])
COUNTS = np.array([[30.0, 10], [50, 30], [6, 4]])  # last row: unknown
SCORES = np.array([[12.0, 6], [15, 24], [2, 3]])


def cells_of(p: np.ndarray, y: np.ndarray, a: np.ndarray, groups: int = 2) -> tuple[np.ndarray, np.ndarray]:
    counts, scores = np.zeros((groups + 1, 2)), np.zeros((groups + 1, 2))
    np.add.at(counts, (a, y), 1)
    np.add.at(scores, (a, y), p)
    return counts, scores


@pytest.mark.parametrize(
    ("loss", "form", "value"),
    [
        ("equal_opportunity", "absolute", 0.75),
        ("equal_opportunity", "signed", 0.75),
        ("equalized_odds", "signed", 0.125),  # opposite gaps cancel
        ("equalized_odds", "absolute", 0.625),
        ("demographic_parity", "absolute", 0.125),
    ],
)
def test_the_golden_example(loss: BiasLoss, form: Form, value: float) -> None:
    assert bias_value(*cells_of(P, Y, A), loss, form) == pytest.approx(value, abs=1e-12)


LOSSES = ["equalized_odds", "equal_opportunity", "demographic_parity"]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("form", ["absolute", "signed"])
def test_the_weights_are_the_gradient_of_the_loss(loss: BiasLoss, form: Form) -> None:
    rng = np.random.default_rng(0)
    y, a, p = rng.integers(0, 2, 40), rng.integers(0, 3, 40), rng.random(40)
    counts, scores = cells_of(p, y, a)
    weights = bias_weights(counts, scores, loss, form, smoothing=0.0)
    for i in range(0, 40, 7):
        moved = [p.copy(), p.copy()]
        moved[0][i] += 1e-6
        moved[1][i] -= 1e-6
        up, down = (bias_value(*cells_of(q, y, a), loss, form) for q in moved)
        assert weights[a[i], y[i]] / 40 == pytest.approx((up - down) / 2e-6, abs=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_three_groups_are_each_compared_with_the_rest(loss: BiasLoss) -> None:
    rng = np.random.default_rng(1)
    y, a, p = rng.integers(0, 2, 60), rng.integers(0, 3, 60), rng.random(60)
    counts, scores = cells_of(p, y, a, groups=3)
    labels = {"equalized_odds": (0, 1), "equal_opportunity": (1,), "demographic_parity": (None,)}[loss]
    gaps = []
    for label in labels:
        chosen = np.ones(60, dtype=bool) if label is None else y == label
        gaps += [abs(p[chosen & (a == g)].mean() - p[chosen & (a != g)].mean()) for g in range(3)]
    assert bias_value(counts, scores, loss) == pytest.approx(np.mean(gaps))
    weights = bias_weights(counts, scores, loss, smoothing=0.0)
    assert (weights[3] == 0).all()  # patients of unknown group are compared with nobody


def test_signs_turn_smoothly_within_the_width() -> None:
    scores = SCORES.copy()
    full = bias_weights(COUNTS, scores, "equal_opportunity", smoothing=0.0)
    gap = SCORES[0, 1] / 10 - SCORES[1, 1] / 30
    assert gap == pytest.approx(-0.2)
    np.testing.assert_allclose(bias_weights(COUNTS, scores, "equal_opportunity", smoothing=0.4), full / 2)
    np.testing.assert_allclose(bias_weights(COUNTS, scores, "equal_opportunity", smoothing=0.1), full)
    scores[0, 1] = 8.0  # no gap
    assert (bias_weights(COUNTS, scores, "equal_opportunity", smoothing=0.1) == 0).all()
    assert (bias_weights(COUNTS, scores, "equal_opportunity", smoothing=0.0) == 0).all()


def test_hand_computed_weights() -> None:
    # N = 130; the gap among positives is negative, so scores of group 0's positives are to rise.
    weights = bias_weights(COUNTS, SCORES, "equal_opportunity", smoothing=0.0)
    np.testing.assert_allclose(weights, [[0, -130 / 10], [0, 130 / 30], [0, 0]])
    np.testing.assert_allclose(
        bias_weights(COUNTS, SCORES, "equalized_odds", smoothing=0.0),
        [[0.5 * 130 / 30, -0.5 * 130 / 10], [-0.5 * 130 / 50, 0.5 * 130 / 30], [0, 0]],
    )


@pytest.mark.parametrize("few", [0.0, 1.0])
@pytest.mark.parametrize("cell", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_cell_of_fewer_than_two_drops_its_comparison_and_no_other(cell: tuple[int, int], few: float) -> None:
    counts, scores = COUNTS.copy(), SCORES.copy()
    counts[cell], scores[cell] = few, few * 0.5
    weights = bias_weights(counts, scores, "equalized_odds", smoothing=0.0)
    label = cell[1]
    assert (weights[:, label] == 0).all()
    assert (weights[:2, 1 - label] != 0).all()
    other = abs(scores[0, 1 - label] / counts[0, 1 - label] - scores[1, 1 - label] / counts[1, 1 - label])
    assert bias_value(counts, scores, "equalized_odds") == pytest.approx(0.5 * other)


def test_one_group_alone_has_no_bias_loss() -> None:
    counts, scores = COUNTS.copy(), SCORES.copy()
    counts[0], scores[0] = 0, 0
    for loss in ("equalized_odds", "equal_opportunity", "demographic_parity"):
        for form in ("absolute", "signed"):
            assert bias_value(counts, scores, loss, form) == 0
            assert (bias_weights(counts, scores, loss, form) == 0).all()


BALANCES = ["none", "classes", "smaller_group", "cells"]


@pytest.mark.parametrize("balance", BALANCES)
def test_task_weights_have_mean_one_over_the_patients(balance: Balance) -> None:
    weights = task_weights(COUNTS, balance)
    assert (weights * COUNTS).sum() / COUNTS.sum() == pytest.approx(1)
    assert (weights > 0).all()


def test_what_each_balance_balances() -> None:
    np.testing.assert_allclose(task_weights(COUNTS, "none"), np.ones((3, 2)))
    classes = (task_weights(COUNTS, "classes") * COUNTS).sum(axis=0)
    assert classes[0] == pytest.approx(classes[1])
    cells = (task_weights(COUNTS, "cells") * COUNTS)[:2]
    np.testing.assert_allclose(cells, cells[0, 0])
    smaller = (task_weights(COUNTS, "smaller_group") * COUNTS)[:2]
    np.testing.assert_allclose(smaller[0], smaller[1])  # both groups have the smaller one's make-up
    np.testing.assert_allclose(smaller.sum(axis=0)[0], smaller.sum(axis=0)[1])  # and labels then weigh alike
    # In the smaller group (0) a patient keeps the class weight alone, the inverse of its label's share.
    weights = task_weights(COUNTS, "smaller_group")
    assert weights[0, 1] / weights[0, 0] == pytest.approx(3)
    assert weights[1, 0] / weights[0, 0] == pytest.approx(30 / 50)
    assert weights[1, 1] / weights[0, 1] == pytest.approx(10 / 30)


@pytest.mark.parametrize(
    "smallest",
    [[[0.0, 0]], [[0.0, 3]], [[0.0, 3], [0.0, 0]], [[5.0, -2.0]]],
    ids=["nobody", "no negative", "both", "noise below 0"],
)
def test_a_smallest_group_without_a_label_is_not_what_the_others_are_brought_to(smallest: list[list[float]]) -> None:
    known = np.maximum(np.vstack([smallest, COUNTS[:2]]), 0.0)
    weights = task_weights(np.vstack([known, COUNTS[2:]]), "smaller_group")
    assert (weights[:-1][known > 0] > 0).all()
    carried = weights[:-1] * known
    np.testing.assert_allclose(carried[-2], carried[-1])  # the groups that have both labels
    assert carried.sum(axis=0)[0] == pytest.approx(carried.sum(axis=0)[1])
    # Even where group and label are one thing, both labels are trained.
    apart = task_weights(np.array([[30.0, 0], [0, 10], [0, 0]]), "smaller_group") * [[30, 0], [0, 10], [0, 0]]
    assert apart[0, 0] == pytest.approx(apart[1, 1]) == pytest.approx(20)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_level_of_nobody_is_none_of_the_groups_that_the_mean_is_over(loss: BiasLoss) -> None:
    # Two kept of four: the gaps of two groups, and for the signed form the first of them, wherever they stand.
    counts, scores = np.zeros((5, 2)), np.zeros((5, 2))
    counts[[1, 3, 4]], scores[[1, 3, 4]] = COUNTS, SCORES
    for form in ("absolute", "signed"):
        expected = bias_value(COUNTS, SCORES, loss, form)
        assert bias_value(counts, scores, loss, form) == pytest.approx(expected) != 0
        weights = bias_weights(counts, scores, loss, form)
        np.testing.assert_allclose(weights[[1, 3, 4]], bias_weights(COUNTS, SCORES, loss, form))
    np.testing.assert_allclose(squared_bias_weights(counts, loss)[[1, 3, 4]], squared_bias_weights(COUNTS, loss))


@pytest.mark.parametrize("balance", ["smaller_group", "cells"])
def test_a_patient_of_unknown_group_weighs_as_its_label_does_on_average(balance: Balance) -> None:
    weights = task_weights(COUNTS, balance)
    known = COUNTS[:2]
    np.testing.assert_allclose(weights[2], (weights[:2] * known).sum(axis=0) / known.sum(axis=0))


def test_weights_are_capped() -> None:
    counts = np.array([[1000.0, 500], [400, 1], [0, 0]])
    assert task_weights(counts, "cells")[1, 1] > 400
    capped = task_weights(counts, "cells", cap=4.0)
    assert capped.max() == 4.0
    assert (capped[2] == 0).all()


@pytest.mark.parametrize("balance", BALANCES)
def test_empty_and_noisy_cells_have_finite_weights(balance: Balance) -> None:
    counts = np.array([[12.3, -4.0], [0.0, 7.5], [-1.0, 0.0]])
    weights = task_weights(counts, balance, 4.0)
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    assert (weights[counts <= 0] == 0).all()
    assert (task_weights(np.zeros((3, 2)), balance) == 0).all()


@given(arrays(np.int64, (4, 2), elements=st.integers(0, 50)), st.integers(0, 3), st.data())
def test_a_groups_name_does_not_matter(counts: np.ndarray, shift: int, data: st.DataObject) -> None:
    shares = data.draw(arrays(np.float64, (4, 2), elements=st.floats(0, 1)))
    scores = counts * shares
    order = [*np.roll([0, 1, 2], shift), 3]
    for loss in ("equalized_odds", "equal_opportunity", "demographic_parity"):
        value = bias_value(counts.astype(float), scores, loss)
        assert bias_value(counts[order].astype(float), scores[order], loss) == pytest.approx(value, abs=1e-12)
        assert 0 <= value <= 1 + 1e-12
    for balance in ("none", "classes", "cells"):
        weights = task_weights(counts.astype(float), balance)
        np.testing.assert_allclose(task_weights(counts[order].astype(float), balance), weights[order], rtol=1e-9)
