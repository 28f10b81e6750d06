"""The sensitivity contract: whatever she holds, a patient moves the sum on the lattice by at most its bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from equipoise.common.privacy.rounding import choose_step, clip_and_round, lattice_sensitivity

Rows = NDArray[np.float64]
anything = hnp.arrays(
    np.float64, st.tuples(st.integers(0, 5), st.integers(1, 7)), elements=st.floats(allow_nan=True, width=64)
)


def length(points: NDArray[np.int64]) -> float:
    """The L2 norm of integers, without a rounding error before the last step."""
    return math.sqrt(sum(int(point) ** 2 for point in points))


@settings(max_examples=150, deadline=None)
@given(rows=anything, clip=st.floats(1e-6, 1e6), coarse=st.integers(0, 12))
def test_one_patient_moves_the_sum_by_at_most_the_bound(rows: Rows, clip: float, coarse: int) -> None:
    """Infinities, NaN, denormal and huge values included; on the chosen step and on coarser ones."""
    dimensions = rows.shape[1]
    step = choose_step(clip, dimensions) * 2.0**coarse
    points = clip_and_round(rows, clip, step)
    bound = lattice_sensitivity(clip, step, dimensions) / step
    for left_out in range(rows.shape[0]):
        moved = points.sum(axis=0) - np.delete(points, left_out, axis=0).sum(axis=0)
        assert length(moved) <= bound


def test_the_rounding_term_is_needed() -> None:
    """Entries just above half a step all round up: the row grows to nearly twice its clip bound."""
    dimensions, step = 64, 2.0**-3
    row = np.full((1, dimensions), step / 2 * (1 + 1e-6))
    clip = float(np.linalg.norm(row)) * (1 + 1e-9)
    moved = length(clip_and_round(row, clip, step)[0]) * step
    assert 1.99 * clip < moved <= lattice_sensitivity(clip, step, dimensions)


@pytest.mark.parametrize("dimensions", [1, 97, 10_000, 1_000_000])
def test_the_chosen_step_is_a_power_of_two_and_negligible(dimensions: int) -> None:
    for clip in (0.3, 1.0, 17.0):
        step = choose_step(clip, dimensions)
        assert math.frexp(step)[0] == 0.5
        assert clip < lattice_sensitivity(clip, step, dimensions) <= 1.001 * clip
        assert lattice_sensitivity(clip, 2 * step, dimensions) > 1.001 * clip


def test_a_short_row_is_only_rounded_and_a_long_one_keeps_its_direction() -> None:
    points = clip_and_round(np.array([[0.25, -0.5], [30.0, -40.0]]), 1.0, 2.0**-12)
    assert (points[0] * 2.0**-12).tolist() == [0.25, -0.5]
    assert points[1] * 2.0**-12 == pytest.approx([0.6, -0.8], abs=2.0**-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_contributes_nothing(bad: float) -> None:
    assert not clip_and_round(np.array([[bad, 1.0]]), 1.0, 2.0**-12).any()


def test_extreme_finite_rows_keep_their_direction() -> None:
    points = clip_and_round(np.array([[1e308, 1e308], [5e-324, 0.0]]), 1.0, 2.0**-12)
    assert points[0] * 2.0**-12 == pytest.approx([math.sqrt(0.5)] * 2, abs=2.0**-12)
    assert not points[1].any()


def test_what_has_no_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="power of two"):
        clip_and_round(np.ones((1, 2)), 1.0, 0.3)
    with pytest.raises(ValueError, match="too fine"):
        clip_and_round(np.ones((1, 2)), 1.0, 2.0**-60)
    for clip in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="clip"):
            lattice_sensitivity(clip, 0.5, 3)
    with pytest.raises(ValueError, match="dimensions"):
        choose_step(1.0, 0)
