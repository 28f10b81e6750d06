"""Sums over patients of what their scores say, exact and without noise: what the figures of histograms are held to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.common.fairness.calibration import CALIBRATION_BINS, SCORE_STEPS
from equipoise.common.fairness.tables import Counts, count_cells

Scores = NDArray[np.floating]


def calibration_table(
    probability: Scores, label: Counts, group: Counts, groups: int, bins: int = CALIBRATION_BINS
) -> Counts:
    """cal[g, bin] = (patients, positives, steps of 2^-16 of score); equal bins, the last one closed."""
    bin_of = np.searchsorted(np.arange(1, bins) / bins, probability, side="right")
    counts = count_cells((group, bin_of, label), (groups, bins, 2))
    steps = np.zeros((groups, bins), dtype=np.int64)
    np.add.at(steps, (np.asarray(group), bin_of), np.rint(probability * SCORE_STEPS).astype(np.int64))
    return np.stack([counts.sum(axis=-1), counts[..., 1], steps], axis=-1)


def brier_sums(probability: Scores, label: Counts, group: Counts, groups: int) -> Counts:
    """sums[g] = (patients, sum of e^2, sum of e^4) with e = label - score, squares in steps of 2^-16."""
    squared = (np.asarray(label) - probability) ** 2
    sums = np.zeros((groups, 3), dtype=np.int64)
    sums[:, 0] = count_cells((group,), (groups,))
    for column, part in ((1, squared), (2, squared**2)):
        np.add.at(sums[:, column], np.asarray(group), np.rint(part * SCORE_STEPS).astype(np.int64))
    return sums
