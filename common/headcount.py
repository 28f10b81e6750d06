"""Whether tables of the same patients count the same patients: what a broken or careless hospital gets wrong.

Every table of an evaluation counts each test patient once for each attribute. So the patients by label must be the same
in all attributes of one release, and in all releases that the same hospitals answered. Sums have this too, so it holds
inside the secure sum; under noise no two tables agree and nothing can be told. A lie that is told in every table alike
passes: hospitals are trusted to report honestly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.common.errors import QuorumError
from equipoise.common.query import Sum

Counted = tuple[str, NDArray[np.int64]]  # which table, and its patients by label


class Headcount:
    """The first count of each split's patients by each set of hospitals, which later ones are held against."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, tuple[str, ...]], Counted] = {}

    def check(self, total: Sum, label_axis: int = 1) -> None:
        """Hold every block of a release against the counts before it.

        Args:
            total: each block is a table of patients, one cell a patient.
            label_axis: which axis of every table is the label.

        Raises:
            QuorumError: two tables count other patients (E160).
        """
        if total.noise_variance > 0:
            return
        place = (total.query.split, total.cohort)
        for block, table in total.points.items():
            counted = table.sum(axis=tuple(axis for axis in range(table.ndim) if axis != label_axis))
            here = f"{total.query.name} by {block}"
            first, expected = self._first.setdefault(place, (here, counted))
            if not np.array_equal(counted, expected):
                raise QuorumError(
                    f"tables of the same {place[0]} patients disagree: {_words(expected)} in {first}, "
                    f"{_words(counted)} in {here}; one of {', '.join(total.cohort)} counts wrongly: compare their "
                    "installations and tables, then start another run (E160)"
                )


def _words(counted: NDArray[np.int64]) -> str:
    negatives, positives = (int(count) for count in counted)
    return f"{positives} positives and {negatives} negatives"
