"""The joint table: one cell a patient, and every operating point's pair table as a margin of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.common.fairness.joint import interval_cells, joint_table, pairs_of_joint
from equipoise.common.fairness.tables import decide, pair_table


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 80),
    points=st.integers(1, 4),
    step=st.sampled_from([0.5, 2.0]),  # coarse scores hit thresholds, and thresholds coincide
)
@settings(max_examples=150, deadline=None)
def test_every_margin_is_the_pair_table(seed: int, n: int, points: int, step: float) -> None:
    rng = np.random.default_rng(seed)
    before, after = (np.round(rng.normal(0, 2, n) / step) * step for _ in range(2))
    first, second = (np.round(rng.normal(0, 2, points) / step) * step for _ in range(2))
    label, group = rng.integers(0, 2, n), rng.integers(0, 3, n)
    cells = interval_cells(before.astype(np.float32), after, first, second)
    joint = joint_table(*cells, label, group, 3, points)
    assert joint.sum() == n  # one cell a patient: L1 = 1
    pair, summed = pairs_of_joint(joint, first, second)
    for point in range(points):
        expected = pair_table(decide(before, first[point]), decide(after, second[point]), label, group, 3)
        assert np.array_equal(pair[point], expected)
    # A table of ones has in each margin the number of its cells.
    assert np.array_equal(pairs_of_joint(np.ones_like(joint), first, second)[0][:, :1, :1], summed)


def test_one_point_is_the_pair_table_itself_and_sums_single_cells() -> None:
    joint = np.arange(8).reshape(1, 2, 2, 2)
    pair, summed = pairs_of_joint(joint, np.array([0.3]), np.array([-1.0]))
    assert np.array_equal(pair[0], joint)
    assert summed.tolist() == [[[[[1, 1], [1, 1]]]]]


def test_cells_of_thresholds_that_coincide_are_left_out_with_their_noise() -> None:
    same, apart = np.array([1.0, 1.0, 1.0]), np.array([0.0, 1.0, 2.0])
    joint = np.random.default_rng(0).integers(-5, 6, (2, 2, 4, 4))  # noise also where nobody can be
    pair, summed = pairs_of_joint(joint, same, apart)
    assert summed[:, 0, 0].tolist() == [[[1, 3], [1, 3]], [[2, 2], [2, 2]], [[3, 1], [3, 1]]]
    assert np.array_equal(pair[0][..., 0, 0], joint[..., 0, 0])
    assert np.array_equal(pair[1][..., 1, 1], joint[..., 3, 2] + joint[..., 3, 3])


def test_thresholds_in_any_order_keep_their_points() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.normal(0, 1, 300), rng.normal(0, 1, 300)
    label, group = rng.integers(0, 2, 300), rng.integers(0, 2, 300)
    first, second = np.array([1.0, -1.0, 0.0]), np.array([0.5, 0.7, -0.2])
    joint = joint_table(*interval_cells(before, after, first, second), label, group, 2, 3)
    pair, _ = pairs_of_joint(joint, first, second)
    turned, _ = pairs_of_joint(joint, first[::-1], second[::-1])
    assert np.array_equal(pair, turned[::-1])


def test_sites_add_up() -> None:
    rng = np.random.default_rng(2)
    cells = [rng.integers(0, 4, 200) for _ in range(2)]
    label, group, site = rng.integers(0, 2, 200), rng.integers(0, 3, 200), rng.integers(0, 6, 200)
    pooled = joint_table(cells[0], cells[1], label, group, 3, 3)
    parts = [joint_table(*(x[site == s] for x in (*cells, label, group)), 3, 3) for s in range(7)]
    assert np.array_equal(sum(parts), pooled)


def test_a_table_of_other_thresholds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"intervals with thresholds that cut \(3, 3\)"):
        pairs_of_joint(np.zeros((2, 2, 4, 4), dtype=np.int64), np.zeros(2), np.ones(2))
