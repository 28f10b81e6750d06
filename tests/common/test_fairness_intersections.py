"""Intersections: the combined index, and names in its order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.common.attribute import intersection_names
from equipoise.common.fairness.intersections import combined_group


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 100), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_every_known_patient_is_in_the_row_of_that_name(seed: int, n: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    groups = [rng.integers(0, size + 1, n) for size in sizes]
    names = intersection_names([[f"{a}{level}" for level in range(size)] for a, size in enumerate(sizes)])
    rows = combined_group(groups, sizes)
    assert len(names) == np.prod(sizes)
    for patient, row in enumerate(rows):
        levels = [int(group[patient]) for group in groups]
        if any(level == size for level, size in zip(levels, sizes, strict=True)):
            assert row == len(names)
        else:
            assert names[row] == " & ".join(f"{a}{level}" for a, level in enumerate(levels))


def test_an_index_beyond_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.2"):
        combined_group([np.array([0, 3]), np.array([0, 0])], [2, 1])
