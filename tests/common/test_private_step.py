"""A private round: what one patient contributes and its bound, weights by hand, the descent, the guard."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.common.cells import bias_value
from equipoise.common.private_step import (
    CollapseGuard,
    Descent,
    Scores,
    acting,
    contributions,
    joint_bound,
    round_weights,
    split_total,
)

TASK = np.array([[0.5, 2.0], [0.7, 4.0], [1.0, 1.0]])
BIAS = np.array([[1.0, 3.0], [-1.5, -6.0], [0.0, 0.0]])
UNKNOWN = np.zeros((1, 2))


def contribute(logits: Any, gradients: Any, patient: Any, label: Any, group: Any, **options: Any) -> np.ndarray:
    y, a = torch.tensor(label, dtype=torch.int64), torch.tensor(group, dtype=torch.int64)
    given_: dict[str, Any] = {"beta": 0.8, "clip": 1.0, "task": TASK, "bias": BIAS, **options}
    return contributions(
        torch.tensor(logits, dtype=torch.float64),
        torch.tensor(gradients, dtype=torch.float64),
        torch.tensor(patient, dtype=torch.int64),
        y,
        2 * a + y,
        given_.pop("task"),
        given_.pop("bias"),
        **given_,
    )


def test_one_patient_by_hand() -> None:
    """z = 0, so p = 1/2; y = 1, group 0: c = .8 * 2 * (-1/2) + .2 * 3 / 4 = -0.65."""
    found = contribute([0.0], [[0.3, 0.4]], [0], [1], [0], clip=10.0)
    np.testing.assert_allclose(found, [[-0.195, -0.26, 0, 0, 0, 0, 0, 0]], rtol=1e-9)
    z = np.log(3.0)  # p = 3/4; y = 0, group 1: c = .8 * .7 * .75 - .2 * 1.5 * 3/16
    c = 0.42 - 0.05625
    found = contribute([z], [[0.3, 0.4]], [0], [0], [1], clip=10.0)
    np.testing.assert_allclose(found, [[0.3 * c, 0.4 * c, 0, 0, 0.4 * 10 * 0.25, 0, 0, 0]], rtol=1e-9)


def test_each_image_is_clipped_before_the_patient_is_averaged() -> None:
    """One huge image of two counts half the bound, whatever its size; clipping the average would let it fill it."""
    found = contribute([0.0, 0.0], [[1e9, 0.0], [0.0, 0.1]], [0, 0], [1], [0])
    np.testing.assert_allclose(found[0, :2], [-0.5, -0.0325], rtol=1e-9)


def test_the_gradient_is_that_of_the_loss() -> None:
    """Without clipping the sum is the gradient of sum_i beta task CE + (1 - beta) bias p, by autograd."""
    rng = np.random.default_rng(0)
    n, k = 30, 4
    features = torch.from_numpy(rng.standard_normal((n, k)))
    label, group = torch.from_numpy(rng.integers(0, 2, n)), torch.from_numpy(rng.integers(0, 3, n))
    u = torch.zeros(k, dtype=torch.float64, requires_grad=True)
    z = features @ u + 0.3
    cell = 2 * group + label
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(z, label.double(), reduction="none")
    task, bias = torch.from_numpy(TASK).flatten()[cell], torch.from_numpy(BIAS).flatten()[cell]
    (0.7 * task * entropy + 0.3 * bias * torch.sigmoid(z)).sum().backward()  # type: ignore[no-untyped-call]
    vectors = contributions(z.detach(), features, torch.arange(n), label, cell, TASK, BIAS, beta=0.7, clip=100.0)
    assert u.grad is not None
    np.testing.assert_allclose(vectors[:, :k].sum(axis=0), u.grad.numpy(), rtol=1e-9)


numbers = st.floats(width=64, allow_nan=True, allow_infinity=True)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), clip=st.floats(1e-6, 1e6), beta=st.floats(0, 1))
def test_no_patient_exceeds_the_bound(data: st.DataObject, clip: float, beta: float) -> None:
    """Formal guarantee: for any rows whatsoever, each patient's vector is within the bound, exactly."""
    rows, k = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 4))
    n = data.draw(st.integers(1, 3))
    logits = data.draw(st.lists(numbers, min_size=rows, max_size=rows))
    flat = data.draw(st.lists(numbers, min_size=rows * k, max_size=rows * k))
    patient = data.draw(st.lists(st.integers(0, n - 1), min_size=rows, max_size=rows))
    label = data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    group = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    scale = data.draw(st.floats(1e-3, 1e12))
    found = contribute(
        logits, np.reshape(flat, (rows, k)), patient, label, group, clip=clip, beta=beta, bias=scale * BIAS
    )
    assert found.shape == (n, k + 6)
    assert np.isfinite(found).all()
    for row in found:
        assert np.linalg.norm(row[:k]) <= clip
        assert np.abs(row[k:]).sum() <= 0.2 * clip
        assert np.linalg.norm(row) <= joint_bound(clip)


def test_the_bound_is_reached() -> None:
    """So it is not larger than it needs to be, and no smaller noise would do."""
    found = contribute([800.0], [[1e6]], [0], [0], [1])
    assert np.linalg.norm(found[0]) == pytest.approx(joint_bound(1.0), rel=1e-9)
    assert joint_bound(1.0) == pytest.approx(1.04**0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_contribute_nothing(bad: float) -> None:
    for logits, gradients in ([bad], [[0.1, 0.1]]), ([0.3], [[0.1, bad]]), ([bad], [[bad, bad]]):
        assert not contribute(logits, gradients, [0], [1], [0]).any()
    # Of two images the sound one counts as one of two.
    two = contribute([bad, 1.0], [[0.1, 0.1], [0.1, 0.1]], [0, 0], [1], [0])
    one = contribute([1.0], [[0.1, 0.1]], [0], [1], [0])
    np.testing.assert_allclose(two, one / 2)
    assert not contribute([0.3], [[0.1]], [0], [1], [0], task=np.full((3, 2), np.nan)).any()


def test_a_patient_changes_no_other_patients_vector() -> None:
    rng = np.random.default_rng(1)
    logits, gradients, patient = rng.standard_normal(9), rng.standard_normal((9, 3)), np.repeat([0, 1, 2], 3)
    both = contribute(logits, gradients, patient, [0, 1, 1], [0, 1, 2])
    without = contribute(logits[3:], gradients[3:], patient[3:] - 1, [1, 1], [1, 2])
    np.testing.assert_array_equal(both[1:], without)


def test_no_patients_and_patients_without_rows() -> None:
    assert contribute([], np.zeros((0, 3)), [], [], []).shape == (0, 9)
    assert not contribute([], np.zeros((0, 3)), [], [1], [0]).any()


def test_sizes_and_settings_that_do_not_fit_are_refused() -> None:
    for options in ({"clip": 0.0}, {"clip": float("nan")}, {"beta": 1.1}, {"bias": BIAS[:2]}):
        with pytest.raises(ValueError, match="expected"):
            contribute([0.0], [[1.0]], [0], [1], [0], **options)
    with pytest.raises(ValueError, match="must agree"):
        contribute([0.0, 0.0], [[1.0]], [0], [1], [0])


# --- weights


def test_weights_of_two_groups_are_those_of_the_recipe() -> None:
    """w = N / (4 N_cell) up to 4; bias w * 4 * s_y * (+1 for group 0, -1 for group 1) (the benchmark's definition)."""
    counts = np.array([[400.0, 300.0], [280.0, 20.0], [0.0, 0.0]])
    means = np.array([[0.20, 0.80], [0.16, 0.50], [0.0, 0.0]])
    task, bias = round_weights(counts, counts * means)
    w = np.minimum(1000 / (4 * counts[:2]), 4)
    np.testing.assert_allclose(task, np.vstack([w, UNKNOWN]))
    assert task[1, 1] == 4.0
    sign = np.array([0.04 / 0.08, 1.0])
    np.testing.assert_allclose(bias, np.vstack([4 * w[0] * sign, -4 * w[1] * sign, [0, 0]]))


def test_no_scores_no_bias_weight() -> None:
    task, bias = round_weights(np.full((3, 2), 10.0), None)
    assert task.any()
    assert not bias.any()


def test_a_round_in_which_nothing_weighs_has_no_gradient() -> None:
    task, none = round_weights(np.full((3, 2), 10.0), None)
    assert [acting(beta, task, none) for beta in (0.0, 0.5, 1.0)] == [False, True, True]
    assert [acting(beta, none, task) for beta in (0.0, 0.5, 1.0)] == [True, True, False]


def test_several_levels_pull_twice_the_bias_loss_down() -> None:
    """Away from the cap the weights are the slope of twice the bias loss by each patient's score."""
    counts = np.array([[50.0, 40.0], [60.0, 45.0], [55.0, 70.0], [0.0, 0.0]])
    means = np.array([[0.1, 0.5], [0.46, 0.7], [0.6, 0.95], [0.0, 0.0]])
    _, bias = round_weights(counts, counts * means)
    for cell in np.ndindex(3, 2):
        sums = counts * means
        sums[cell] += 1e-4
        slope = (
            bias_value(counts, sums, "equalized_odds") - bias_value(counts, counts * means, "equalized_odds")
        ) / 1e-4
        assert bias[cell] == pytest.approx(2 * slope * counts.sum(), rel=1e-6)
    assert abs((bias * counts).sum()) < 1e-9  # raising every score alike changes no gap


def test_noisy_counts_below_zero_give_finite_weights() -> None:
    counts = np.array([[400.0, 300.0], [280.0, -12.0], [-3.0, 0.0]])
    scores = Scores(counts, np.full((3, 2), 5.0), 1.0)
    for weights in round_weights(counts, scores.sums):
        assert np.isfinite(weights).all()
        assert np.abs(weights).max() <= 16


# --- sums


def test_a_total_splits_into_gradient_and_scores() -> None:
    p = np.array([0.9, 0.6, 0.2, 0.4])
    logits = np.log(p / (1 - p))
    vectors = contribute(logits, np.ones((4, 2)), [0, 1, 2, 3], [1, 1, 0, 0], [0, 0, 0, 1], clip=3.0)
    counts = np.array([[1.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    gradient, scores = split_total(vectors.sum(axis=0), 2, 3.0, counts, noise_sd=0.6)
    np.testing.assert_allclose(gradient, vectors[:, :2].sum(axis=0))
    np.testing.assert_allclose(scores.sums, [[0.2, 1.5], [0.4, 0.0], [0.0, 0.0]], atol=1e-9)
    assert scores.noise_sd == pytest.approx(0.5)  # 0.6 / (0.4 * 3)
    assert scores.separation == pytest.approx(0.75 - 0.3)


def test_the_noise_of_the_separation() -> None:
    counts = np.array([[400.0, 300.0], [280.0, 120.0], [0.0, 0.0]])
    rng = np.random.default_rng(0)
    found = [Scores(counts, 30 * rng.standard_normal((3, 2)), 30).separation for _ in range(4000)]
    assert Scores(counts, np.vstack([np.zeros((2, 2)), [[-9.0, 9.0]]]), 0).separation == 0  # of unknown group
    assert Scores(counts, np.zeros((3, 2)), 30).separation_sd == pytest.approx(np.std(found), rel=0.05)


def test_blending_halves_old_news() -> None:
    counts = np.full((2, 2), 10.0)
    old, new = Scores(counts, np.full((2, 2), 1.0), 3.0), Scores(counts, np.full((2, 2), 3.0), 4.0)
    blended = new.blended(old, 0.5)
    np.testing.assert_allclose(blended.offsets, 2.0)
    assert blended.noise_sd == pytest.approx(2.5)
    assert new.blended(None, 0.5) is new


# --- descent


def test_two_rounds_by_hand() -> None:
    descent = Descent.start(1, rounds=2, lr=0.5)
    descent = descent.stepped(np.array([20.0]), 10)  # m = 2, lr 0.5
    assert descent.u[0] == pytest.approx(-1.0)
    descent = descent.stepped(np.array([10.0]), 10)  # m = .8 * 2 + 1, lr 0.5 * (1 + cos(pi / 2)) / 2
    assert descent.u[0] == pytest.approx(-1.0 - 0.25 * 2.6)
    assert descent.result[0] == descent.u[0]
    with pytest.raises(ValueError, match="all 2 rounds"):
        descent.stepped(np.array([1.0]), 10)


def test_the_result_is_the_mean_of_the_last_quarter() -> None:
    descent = Descent.start(2, rounds=10, lr=0.1)
    assert not descent.result.any()
    rng = np.random.default_rng(0)
    for _ in range(10):
        descent = descent.stepped(rng.standard_normal(2), 1)
    np.testing.assert_allclose(descent.result, np.mean(descent.points[8:], axis=0))  # 3 of 10
    assert len(descent.points) == 11


def test_descent_finds_a_minimum() -> None:
    goal = np.array([1.0, -2.0, 0.5])
    descent = Descent.start(3, rounds=30, lr=0.3)
    for _ in range(30):
        descent = descent.stepped((descent.u - goal) * 50, 50)
    np.testing.assert_allclose(descent.result, goal, rtol=0.05)


def test_settings_of_the_descent_are_checked() -> None:
    for options in ({"rounds": 0}, {"lr": 0.0}, {"momentum": 1.0}):
        with pytest.raises(ValueError, match="expected"):
            Descent.start(1, **{"rounds": 3, "lr": 1.0, **options})  # type: ignore[arg-type]


# --- guard

COUNTS = np.array([[660.0, 540.0], [410.0, 190.0], [0.0, 0.0]])  # bench A's six hospitals


def separated(value: float, noise_sd: float = 0.0) -> Scores:
    """Positives at 1/2 + value / 2, negatives at 1/2 - value / 2."""
    return Scores(COUNTS, COUNTS * np.array([-value / 2, value / 2]), noise_sd)


def run(
    values: list[float], noise_sd: float = 0.0, rng: np.random.Generator | None = None
) -> tuple[CollapseGuard, int]:
    """The guard after a run in which the separation took these values; how many rounds it let pass."""
    guard, blended = CollapseGuard(), None
    for point, value in enumerate(values):
        noise = noise_sd * rng.standard_normal((3, 2)) if rng else np.zeros((3, 2))
        scores = Scores(COUNTS, separated(value).offsets + noise, noise_sd)
        blended = scores.blended(blended, 0.5) if rng else scores
        guard = guard.watched(point, blended)
        if guard.collapsed:
            return guard, point
    return guard, len(values)


def test_the_guard_rolls_back_to_the_last_good_point() -> None:
    guard, passed = run([0.4, 0.45, 0.3, 0.15, 0.05])
    assert (guard.collapsed, guard.good, passed) == (True, 2, 3)  # 0.15 is below half of 0.4
    descent = Descent.start(1, rounds=10, lr=1.0)
    for _ in range(3):
        descent = descent.stepped(np.array([1.0]), 1)
    assert guard.outcome(descent) is descent.points[2]


def test_the_guard_lets_good_runs_pass() -> None:
    guard, passed = run([0.4, 0.3, 0.21, 0.25, 0.4])
    assert (guard.collapsed, guard.good, passed) == (False, 4, 5)
    descent = Descent.start(1, rounds=10, lr=1.0).stepped(np.array([1.0]), 1)
    assert guard.outcome(descent) is descent.result


def test_doubtful_points_neither_stop_the_run_nor_count_as_good() -> None:
    noise_sd = 40.0
    sd = separated(0, noise_sd).separation_sd
    low = 0.2 - 0.5 * sd
    guard, passed = run([0.4, 0.4, low], noise_sd)
    assert (guard.collapsed, guard.good, passed) == (False, 1, 3)


@pytest.mark.parametrize(
    ("values", "rate"), [([0.45] * 10, 0.0), ([0.45, 0.3, 0.15] + [0.02] * 7, 1.0)], ids=["steady", "collapse"]
)
def test_the_guard_under_local_noise_of_epsilon_three(values: list[float], rate: float) -> None:
    """sigma 4.47 on each of six hospitals is 28 on every sum of scores: hardly an alarm too many, hardly one missed."""
    rng = np.random.default_rng(0)
    found = np.mean([run(values, 28.0, rng)[0].collapsed for _ in range(300)])
    assert found == pytest.approx(rate, abs=0.02)


def test_a_guard_that_sees_nothing_says_so() -> None:
    def seeing(value: float, noise_sd: float) -> CollapseGuard:
        return CollapseGuard().watched(0, separated(value, noise_sd))

    assert not seeing(0.4, 28.0).blind
    assert seeing(0.4, 75.0).blind  # local noise of epsilon 1
    assert seeing(-0.1, 0.0).blind  # a model that ranks no better than chance
    assert not CollapseGuard().blind
