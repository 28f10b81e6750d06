"""Curves that a histogram holds for nothing more: ROC by group, gaps against the threshold, reliability.

A curve of exact counts shows every bin, and bins of one patient; before it is drawn for others adjacent bins are merged
until each holds enough patients of both classes or none at all (`merged_bins`). A curve of noisy counts is drawn from
the projected histogram, so that it rises; reliability is made monotone by pooling adjacent violators.

References:
    Barlow et al., Statistical inference under order restrictions, 1972 (pooling adjacent violators).

>>> merged_bins(np.array([[9, 1, 0, 6, 9], [0, 2, 9, 0, 9]]), 5).tolist()
[0, 3]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.common.fairness.calibration import SCORE_STEPS
from equipoise.common.fairness.contrasts import find_gap
from equipoise.common.fairness.estimate import MINIMUM_PATIENTS
from equipoise.common.fairness.intervals import normal_quantile, wilson_limits
from equipoise.common.fairness.noise import HistogramNoise, histogram_noise, projected
from equipoise.common.fairness.rates import strata
from equipoise.common.fairness.shares import fraction
from equipoise.common.fairness.tables import Counts, Floats, Table, counts_at_every_edge


def merged_bins(counts: Table, fewest: int) -> Counts:
    """Where to cut counts[y, bin] so that each class has no patient or `fewest` in each merged bin.

    Returns:
        The last bin of each merged one but the last, rising; what is left over at the end joins the bin before it.
    """
    cuts: list[int] = []
    start = 0
    for end in range(counts.shape[1]):
        inside = counts[:, start : end + 1].sum(axis=1)
        rest = counts[:, end + 1 :].sum(axis=1)
        if inside.any() and all(n == 0 or n >= fewest for n in (*inside, *rest)):
            cuts.append(end)
            start = end + 1
    return np.array([cut for cut in cuts if counts[:, cut + 1 :].any()], dtype=np.int64)


def roc_points(counts: Table, fewest: int = 0, noise: float | HistogramNoise = 0.0) -> Floats:
    """The ROC curve of one group: (N, 2) points FPR, TPR from (0, 0) to (1, 1), both rising.

    Args:
        counts: (2, B) patients by label and bin.
        fewest: of exact counts, patients of a class that a step of the curve must have; 0 and 1 draw every bin.
        noise: variance of the noise in one cell; the curve is then that of the projected histogram.

    Raises:
        ValueError: a class has no patients.
    """
    if counts.sum(axis=1).min() <= 0:
        raise ValueError("a ROC curve needs patients of both classes")
    noisy = histogram_noise(noise, counts.shape[1]).cell > 0
    if noisy:
        counts = projected(counts, counts.sum(axis=1))
    elif fewest > 1:
        counts = np.add.reduceat(counts, np.append(0, merged_bins(counts, fewest) + 1), axis=1)
    cumulated = np.cumsum(counts[:, ::-1], axis=1) / counts.sum(axis=1, keepdims=True)
    return np.concatenate([np.zeros((1, 2)), np.minimum(cumulated.T, 1.0)])


def gap_at_every_edge(
    metric: str,
    hist: Table,
    names: Sequence[str] | None = None,
    *,
    minimum: int = MINIMUM_PATIENTS,
    noise: float | HistogramNoise = 0.0,
) -> Floats:
    """A gap with the threshold at each edge of hist[g, y, bin]: (B - 1,), without intervals; nan where there is none.

    Denominators are the same at every edge, and with them the groups that are compared. With noise the curve is that of
    the projected histogram.
    """
    form, variances = find_gap(metric), histogram_noise(noise, hist.shape[-1])
    curve = counts_at_every_edge(hist)
    # Half of the noise in the number of patients for each of the two decisions.
    chosen = strata(np.rint(curve[0]).astype(np.int64), form, names, minimum, noise=variances.total / 2)
    if not chosen.enough:
        return np.full(len(curve), np.nan)
    if variances.cell > 0:
        curve = counts_at_every_edge(projected(hist, np.maximum(hist.sum(axis=-1), 0.0)))
    parts = [fraction(curve[:, row], rate) for rate, row in chosen.columns]
    shares = np.stack([above / below for above, below in parts], axis=-1)
    largest: Floats = (shares @ chosen.contrasts.T).max(axis=-1)
    return largest


def reliability(cal: Table, level: float, *, monotone: bool = False) -> Floats:
    """Observed against expected risk of one group: (N, 5) mean score, share of positives, low, high, patients.

    Args:
        cal: (bins, 3) as in `calibration`, scores in its steps; bins without patients give no row.
        level: of Wilson's interval of each share.
        monotone: pool adjacent violators first, as for noisy counts.
    """
    rows = cal[cal[:, 0] >= 1].astype(np.float64)
    patients, score = rows[:, 0], rows[:, 2] / SCORE_STEPS / rows[:, 0]
    share = np.clip(rows[:, 1] / patients, 0.0, 1.0)
    if monotone:
        share = pooled_violators(share, patients)
    low, high = wilson_limits(share, patients, normal_quantile(level))
    return np.stack([score, share, low, high, patients], axis=-1)


def pooled_violators(values: Floats, weights: Floats) -> Floats:
    """The rising sequence nearest to `values` by weighted least squares; both (N,), weights above 0."""
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        mean, total, length = float(value), float(weight), 1
        while blocks and blocks[-1][0] >= mean:
            other, size, count = blocks.pop()
            mean, total, length = (other * size + mean * total) / (size + total), size + total, length + count
        blocks.append((mean, total, length))
    return np.concatenate([np.full(length, mean) for mean, _, length in blocks]) if blocks else np.zeros(0)
