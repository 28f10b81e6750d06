"""The lattice: what is sent is what was meant, to half a step, and sums are exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from equipoise.common.errors import RefusedError
from equipoise.common.lattice import Lattice

BOUNDED = arrays(np.float64, st.integers(0, 20), elements=st.floats(-100, 100))


@given(BOUNDED)
def test_a_value_comes_back_to_half_a_step(values: np.ndarray) -> None:
    lattice = Lattice.for_bound(100.0, 1000)
    back = lattice.decode(lattice.encode(values, 100.0))
    assert np.abs(back - values).max(initial=0.0) <= lattice.step / 2


@given(st.lists(arrays(np.float64, 5, elements=st.floats(-100, 100)), min_size=2, max_size=12), st.randoms())
def test_the_sum_depends_on_no_order_and_no_grouping(parts: list[np.ndarray], shuffle: object) -> None:
    lattice = Lattice.for_bound(100.0, 12)
    points = [lattice.encode(part, 100.0) for part in parts]
    total = sum(points, np.zeros(5, dtype=np.int64))
    shuffle.shuffle(points)  # type: ignore[attr-defined]
    assert (sum(points[1:], points[0]) == total).all()
    half = len(points) // 2
    assert (sum(points[:half], np.zeros(5, np.int64)) + sum(points[half:], np.zeros(5, np.int64)) == total).all()
    # Unlike the floats themselves, whose sum is only the same to rounding.
    assert np.abs(lattice.decode(total) - np.sum(parts, axis=0)).max() <= len(parts) * lattice.step / 2 + 1e-12


def test_the_finest_lattice_never_overflows() -> None:
    for bound, contributors in ((1.0, 1), (4096.0, 16 * 10**6), (0.3, 7), (2.0**-30, 3), (1e9, 10**9)):
        lattice = Lattice.for_bound(bound, contributors)
        most = lattice.encode(np.array([bound, -bound]), bound).astype(object) * contributors
        assert all(abs(value) <= 2**62 for value in most)
        assert abs(most[0]) > 2**59  # and wastes at most two bits


@pytest.mark.parametrize("step", [0.0, -1.0, 3.0, 0.1, float("inf"), float("nan")])
def test_a_step_is_a_power_of_two(step: float) -> None:
    with pytest.raises(ValueError, match="expected a positive power of two"):
        Lattice(step)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.0000001, -1.5])
def test_what_is_not_finite_or_beyond_the_bound_is_refused(bad: float) -> None:
    with pytest.raises(RefusedError, match="nothing was sent"):
        Lattice(0.25).encode(np.array([0.0, bad]), 1.0)


def test_edges_of_the_range() -> None:
    lattice = Lattice(0.25)
    assert lattice.encode(np.zeros((0, 3)), 1.0).shape == (0, 3)
    assert lattice.encode(np.array([1.0, -1.0]), 1.0).tolist() == [4, -4]
    assert lattice.encode(np.array([0.125, 0.375, -0.125]), 1.0).tolist() == [0, 2, 0]  # half to even: no drift
    assert lattice.encode(np.array([2.0**-30], dtype=np.float32), 1.0).tolist() == [0]
    assert lattice.encode(np.array([3], dtype=np.int64), 4.0).tolist() == [12]
    assert lattice.encode(np.array(0.5), 1.0).shape == ()


def test_counts_are_themselves() -> None:
    counts = np.array([0, 1, 2**40], dtype=np.int64)
    assert (Lattice(1.0).encode(counts, 2.0**40) == counts).all()
    assert Lattice(1.0).encode(counts, 2.0**40).dtype == np.int64
