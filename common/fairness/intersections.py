"""Declared intersections of attributes, such as sex by age: the group of each patient, `unknown` where a part is.

The table of an intersection is made at the sites from the combined index; it cannot be computed from the tables of its
attributes.

>>> combined_group([np.array([0, 1, 2]), np.array([2, 0, 0])], [2, 3]).tolist()  # 2 is unknown in the first attribute
[2, 3, 6]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.common.fairness.tables import Counts

MINIMUM_GROUP = 50  # patients of an intersection, whatever a rate's denominator


def combined_group(groups: Sequence[Counts], sizes: Sequence[int]) -> Counts:
    """The row of each patient in the table of an intersection, `unknown` last.

    Args:
        groups: for each attribute, (n,) indices of its groups; an index of `size` is unknown.
        sizes: for each attribute, its number of declared groups.

    Returns:
        (n,) int64 in 0..product(sizes).

    Raises:
        ValueError: an index lies outside 0..size.
    """
    columns = [np.asarray(group, dtype=np.int64) for group in groups]
    for column, size in zip(columns, sizes, strict=True):
        if column.size and (column.min() < 0 or column.max() > size):
            raise ValueError(f"a group index lies outside 0..{size}")
    known = np.all([column < size for column, size in zip(columns, sizes, strict=True)], axis=0)
    inside = [np.where(known, column, 0) for column in columns]
    combined: Counts = np.where(known, np.ravel_multi_index(inside, tuple(sizes)), int(np.prod(sizes))).astype(np.int64)
    return combined
