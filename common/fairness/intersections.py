"""Declared intersections of attributes, such as sex by age: their index, their names and their rates as a list.

Only intersections that a study declares before it runs are made: searching all of them finds gaps by chance. They are a
list, each with its number of patients and its own status; there is no maximum over them, which would be read as a
result and is mostly the noise of the smallest one. A patient whose group is unknown in one attribute is `unknown` in
the intersection.

The table of an intersection is made at the sites from the combined index; it cannot be computed from the tables of its
attributes.

>>> combined_group([np.array([0, 1, 2]), np.array([2, 0, 0])], [2, 3]).tolist()  # 2 is unknown in the first attribute
[2, 3, 6]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.noise import CellNoise, cell_variances, shortage
from equipoise.common.fairness.rates import rate_by_group
from equipoise.common.fairness.tables import Counts, group_names

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


def intersection_rates(
    metric: str,
    counts: Counts,
    names: Sequence[str],
    *,
    smallest: int = MINIMUM_GROUP,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: CellNoise = 0.0,
) -> tuple[Estimate, ...]:
    """`rates.rate_by_group` for the rows of an intersection, `unknown` last.

    Args:
        counts: (product of sizes + 1, 2, 2).
        names: from `equipoise.common.attribute.intersection_names`.
        smallest: patients that an intersection must have; with fewer its rate is not estimable.
        metric, level, minimum, noise: as in `rates.rate_by_group`.
    """
    variances = cell_variances(noise, counts)
    rates = rate_by_group(metric, counts, names, level=level, minimum=minimum, noise=variances)
    found = []
    for rate, table, cells, name in zip(rates, counts, variances, group_names(len(counts), names), strict=True):
        lacking = shortage(int(table.sum()), "patients in the intersection", smallest, float(cells.sum()))
        missing = Estimate.missing(metric, lacking, n=rate.n, level=level, group=name) if lacking else None
        found.append(missing or rate)
    return tuple(found)
