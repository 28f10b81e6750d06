"""Weighted low-rank factors: optimal, as the specification says, and small."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.common.factors import break_even, factorise, rank_for, singular


def error(weight: np.ndarray, rows: np.ndarray, product: np.ndarray) -> float:
    """The row-weighted squares that a product leaves."""
    return float(((rows[:, None] * (weight - product)) ** 2).sum())


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(2, 9), st.data())
def test_it_leaves_the_squares_of_the_singular_values_beyond_the_rank(
    seed: int, m: int, n: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    weight, rows = rng.normal(size=(m, n)), rng.uniform(0.05, 5, m)
    rank = data.draw(st.integers(1, min(m, n)))
    pair = factorise(weight, rows, rank)
    left = error(weight, rows, pair.dense((m, n)))
    s = np.linalg.svd(rows[:, None] * weight, compute_uv=False)
    assert left == pytest.approx((s[rank:] ** 2).sum(), abs=1e-9)
    np.testing.assert_allclose(pair.right @ pair.right.T, np.eye(rank), atol=1e-9)
    # No other product of the rank is better: plain SVD, the same with other weights, a product moved a little.
    u, plain, vt = np.linalg.svd(weight, full_matrices=False)
    assert left <= error(weight, rows, (u[:, :rank] * plain[:rank]) @ vt[:rank]) + 1e-9
    other = factorise(weight, rng.uniform(0.05, 5, m), rank)
    assert left <= error(weight, rows, other.dense((m, n))) + 1e-9
    moved = (pair.left + 0.01 * rng.normal(size=pair.left.shape)) @ (
        pair.right + 0.01 * rng.normal(size=pair.right.shape)
    )
    assert left <= error(weight, rows, moved) + 1e-9


def test_row_weights_decide_what_is_kept() -> None:
    weight = np.diag([2.0, 1.0])
    np.testing.assert_allclose(
        factorise(weight, np.array([1.0, 1.0]), 1).dense((2, 2)), np.diag([2.0, 0.0]), atol=1e-12
    )
    np.testing.assert_allclose(
        factorise(weight, np.array([1.0, 3.0]), 1).dense((2, 2)), np.diag([0.0, 1.0]), atol=1e-12
    )


def test_the_rank_for_an_energy_by_hand() -> None:
    weight, rows = np.diag([3.0, 2.0, 1.0]), np.ones(3)  # squares 9, 4, 1 of 14
    assert [rank_for(weight, rows, share) for share in (0.6, 9 / 14, 0.65, 13 / 14, 1.0)] == [1, 1, 2, 2, 3]
    assert [rank_for(weight, np.array([1.0, 3.0, 1.0]), share) for share in (0.7, 0.9)] == [1, 2]  # 9, 36, 1 of 46


@pytest.mark.parametrize(("shape", "rank"), [((768, 768), 383), ((768, 3072), 614), ((2, 768), 1), ((1, 32), 0)])
def test_break_even_by_hand(shape: tuple[int, int], rank: int) -> None:
    assert break_even(shape) == rank
    m, n = shape
    assert rank * (m + n) < m * n <= (rank + 1) * (m + n)


def test_filters_count_as_rows() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, 3, 3, 3))
    pair = factorise(weight, np.ones(6), 6)
    np.testing.assert_allclose(pair.dense(weight.shape), weight, atol=1e-12)
    np.testing.assert_allclose(pair.nearest(weight), pair.left, atol=1e-12)
    assert len(singular(weight, np.ones(6))[1]) == 6
