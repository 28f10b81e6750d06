"""Every operating point from one table: patients by the interval of their score before and after.

A pair table for each of P operating points would put one patient into P cells, and noise would have to be P times as
large. The joint table puts each patient into one cell (L1 = 1): P thresholds cut each model's scores into P + 1
intervals, and joint[g, y, i, j] counts patients by both. The pair table of any operating point is a margin of it.

A score at a threshold lies above it (>=). Thresholds may coincide; the intervals between them then hold nobody, and a
margin leaves them out, noise included.

>>> both = np.array([0.0, 1.0])
>>> cells = interval_cells(np.array([-1.0, 0.5]), np.array([0.0, 2.0]), both, both)
>>> [part.tolist() for part in cells]
[[0, 1], [1, 2]]
>>> pair, summed = pairs_of_joint(joint_table(*cells, np.array([1, 1]), np.array([0, 0]), 1, 2), both, both)
>>> pair[0, 0, 1].tolist(), summed[0, 0, 0].tolist()
([[0, 1], [0, 1]], [[1, 2], [2, 4]])
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.common.fairness.tables import Counts, Floats, count_cells

Scores = NDArray[np.floating]


def interval_cells(
    before: Scores, after: Scores, thresholds_before: Floats, thresholds_after: Floats
) -> tuple[Counts, Counts]:
    """Each patient's interval under both models: how many thresholds its score reaches.

    Args:
        before, after: (n,) logits of the two models, finite.
        thresholds_before, thresholds_after: (P,) logits, in any order, compared in float64 as `tables.decide` does.

    Returns:
        two (n,) int64 arrays in 0..P.
    """
    first, second = (
        np.searchsorted(np.sort(thresholds), np.asarray(scores, dtype=np.float64), side="right").astype(np.int64)
        for thresholds, scores in ((thresholds_before, before), (thresholds_after, after))
    )
    return first, second


def joint_table(before: Counts, after: Counts, label: Counts, group: Counts, groups: int, points: int) -> Counts:
    """joint[g, y, interval before, interval after] of one site's patients: (groups, 2, points + 1, points + 1) int64.

    Args:
        before, after: (n,) from `interval_cells`; n may be 0.
        label, group: (n,) integers.
        groups: number of groups, `unknown` included.
        points: number of operating points P.
    """
    return count_cells((group, label, before, after), (groups, 2, points + 1, points + 1))


def pairs_of_joint(joint: Counts, thresholds_before: Floats, thresholds_after: Floats) -> tuple[Counts, Counts]:
    """The pair table of every operating point, and how many cells each of its cells is the sum of.

    Args:
        joint: (G, 2, P + 1, P + 1), summed over sites.
        thresholds_before, thresholds_after: (P,), those that the patients were counted with.

    Returns:
        pair[point, g, y, before, after], int64; and (P, 1, 1, 2, 2) int64, which times the variance of the noise in one
        cell of `joint` is the variance table of `pair`.

    Raises:
        ValueError: the table has another number of intervals than the thresholds cut.
    """
    sides = [_decisions(thresholds) for thresholds in (thresholds_before, thresholds_after)]
    if joint.shape[-2:] != tuple(side.shape[-1] for side in sides):
        expected = tuple(side.shape[-1] for side in sides)
        raise ValueError(f"a joint table of {joint.shape[-2:]} intervals with thresholds that cut {expected}")
    pair = np.einsum("pbi,gyij,paj->pgyba", sides[0], joint, sides[1])
    summed = np.einsum("pbi,paj->pba", *sides)[:, None, None]
    return pair, summed


def _decisions(thresholds: Floats) -> Counts:
    """[point, decision, interval]: 1 where the interval's patients get the decision; intervals without width have 0."""
    rising = np.sort(thresholds)
    reached = np.searchsorted(rising, thresholds, side="right")  # thresholds that a score at this one reaches
    positive = np.arange(rising.size + 1) >= reached[:, None]
    inhabited = np.concatenate([[True], np.diff(rising) > 0, [True]])
    members: Counts = (np.stack([~positive, positive], axis=1) & inhabited).astype(np.int64)
    return members
