"""Losses as weighted sums over patients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from equipoise.common.cells import bias_value, bias_weights, task_weights
from equipoise.common.losses import cell_index, row_losses, row_shares

Z = torch.tensor([1.2, -0.4, 0.3, -2.0, 0.0, 3.0], dtype=torch.float64)
Y = torch.tensor([1, 1, 0, 0, 1, 0])
G = torch.tensor([0, 1, 0, 1, 2, 2])
CELL = cell_index(G, Y)
TASK = torch.tensor([1.0, 2, 3, 4, 5, 6], dtype=torch.float64)
BIAS = torch.tensor([-1.0, 0.5, 2, 0, 0.25, -3], dtype=torch.float64)


def test_a_cell_is_twice_the_group_plus_the_label() -> None:
    assert CELL.tolist() == [1, 3, 0, 2, 5, 4]


def test_hand_computed_rows() -> None:
    p = 1 / (1 + np.exp(-Z.numpy()))
    entropy = np.where(Y.numpy() == 1, -np.log(p), -np.log(1 - p))
    task, bias = TASK.numpy()[CELL], BIAS.numpy()[CELL]
    for beta in (0.0, 0.3, 1.0):
        expected = beta * task * entropy + (1 - beta) * bias * p
        np.testing.assert_allclose(row_losses(Z, Y, CELL, TASK, BIAS, beta), expected, rtol=1e-12)


def test_far_logits_give_finite_losses_and_gradients() -> None:
    z = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    y = torch.tensor([0, 1, 1, 0])
    losses = row_losses(z, y, cell_index(torch.zeros(4, dtype=torch.int64), y), TASK, BIAS, 0.5)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(losses).all()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


def test_the_sum_over_patients_has_the_gradient_of_the_global_loss() -> None:
    # The mean of the weighted scores moves as the bias loss itself, whichever way the scores came about.
    rng = np.random.default_rng(0)
    z = torch.tensor(rng.normal(size=50), requires_grad=True)
    y, g = (torch.from_numpy(rng.integers(0, 2, 50)) for _ in range(2))
    cell = cell_index(g, y)
    p = torch.sigmoid(z).detach().numpy()
    counts, scores = np.zeros((3, 2)), np.zeros((3, 2))
    np.add.at(counts, (g, y), 1)
    np.add.at(scores, (g, y), p)
    bias = torch.from_numpy(bias_weights(counts, scores, "equalized_odds", smoothing=0.0).reshape(-1))
    task = torch.from_numpy(task_weights(counts, "cells").reshape(-1))
    row_losses(z, y, cell, task, bias, 0.0).mean().backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    for i in range(0, 50, 11):
        values = []
        for step in (1e-6, -1e-6):
            moved = z.detach().clone()
            moved[i] += step
            sums = np.zeros((3, 2))
            np.add.at(sums, (g, y), torch.sigmoid(moved).numpy())
            values.append(bias_value(counts, sums, "equalized_odds"))
        assert float(z.grad[i]) == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-8)


def test_rows_of_a_patient_share_its_weight() -> None:
    shares = row_shares(torch.tensor([0, 0, 0, 1, 2, 2]), 3)
    np.testing.assert_allclose(shares, [1 / 3, 1 / 3, 1 / 3, 1, 0.5, 0.5])
    assert shares.dtype == torch.float64
    assert row_shares(torch.zeros(0, dtype=torch.int64), 0).shape == (0,)


def test_losses_keep_the_precision_of_the_logits() -> None:
    for dtype in (torch.float32, torch.float64):
        assert row_losses(Z.to(dtype), Y, CELL, TASK, BIAS, 0.5).dtype == dtype
