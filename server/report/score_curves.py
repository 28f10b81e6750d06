"""The curves that a score histogram gives: ROC, reliability, gap by threshold.

Where small counts are hidden, a curve is drawn from merged bins in which every group has no patient of a class or
enough. Bins are merged first for all compared groups together, for the gap by threshold; then each group's own are cut
finer inside these, for its ROC curve, and joined again for its reliability. Every count behind a curve is thereby a
sum of the same merged bins, and no curve shows a small one as its difference from another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from equipoise.common.attribute import Attribute
from equipoise.common.evaluation import Measured
from equipoise.common.fairness.auc import auc_by_group
from equipoise.common.fairness.calibration import CALIBRATION_BINS, SCORE_STEPS
from equipoise.common.fairness.curves import gap_at_every_edge, merged_bins, reliability, roc_points
from equipoise.common.fairness.estimate import LEVEL
from equipoise.common.fairness.noise import HistogramNoise, projected
from equipoise.common.fairness.tables import Counts, Floats, Table, counts_at_every_edge
from equipoise.common.study import Study
from equipoise.server.report.suppression import Suppression

Json = dict[str, Any]
ROC_POINTS = 200  # of a drawn curve; figures come from all bins
GAP_POINTS = 120  # of a drawn curve of gaps
RELIABLE_FROM = 10  # patients of a drawn calibration bin; smaller bins join the one before


def roc_curves(study: Study, measured: Measured, chosen: Sequence[str], hidden: Suppression) -> Json:
    """attribute -> group -> model -> points [fpr, tpr] of the ROC curve, for groups whose AUC is estimable and shown.

    The first point is (0, 0), the last (1, 1); points closer than one in `ROC_POINTS` of the curve's length are left
    out, so that the curve can be drawn.
    """
    curves: Json = {}
    for attribute in study.attributes:
        by_group: Json = {}
        released = [model for model in chosen if attribute.name in measured.histograms[model, "test"]]
        for model in released:
            hist, blur = measured.scores(model, attribute.name)
            bins = MergedBins.of(np.asarray(hist, dtype=np.int64), attribute, hidden) if hidden.active else None
            for row, (group, auc) in enumerate(
                zip(attribute.groups, auc_by_group(hist, attribute.groups, noise=blur), strict=False)
            ):
                if auc.value is not None and not hidden.hides_scores(attribute.name, [row]):
                    points = _roc(hist[row]) if bins is None else _merged_roc(bins.of_group(hist[row], row))
                    by_group.setdefault(group, {})[model] = points
        curves[attribute.name] = {group: by_group[group] for group in attribute.groups if group in by_group}
    return curves


def _roc(counts: Table) -> list[list[float]]:
    # Noisy counts can fall where a curve must rise; counts without noise are their own projection.
    rising = projected(counts, np.maximum(counts.sum(axis=1), 0.0))
    cut = counts_at_every_edge(rising[None])[:, 0]  # (edge, y, decision), thresholds rising
    return _drawn(cut[::-1, :, 1] / rising.sum(axis=1))


def _merged_roc(counts: Table) -> list[list[float]]:
    return _drawn(roc_points(counts)[1:])


def _drawn(rates: Floats) -> list[list[float]]:
    points = [[0.0, 0.0]]
    for fpr, tpr in rates:
        if (fpr - points[-1][0]) + (tpr - points[-1][1]) >= 2 / ROC_POINTS:
            points.append([round(float(fpr), 5), round(float(tpr), 5)])
    return points if points[-1] == [1.0, 1.0] else [*points, [1.0, 1.0]]


@dataclass(frozen=True)
class MergedBins:
    """Where the bins of hist[g, y, bin] are cut so that no group has few patients of a class in any merged bin.

    Attributes:
        common: the last bin of each merged one but the last, for all groups whose patients are shown.
        own: the same for each row of the histogram, a refinement of `common`; rows that are not shown have none.
    """

    common: Counts
    own: tuple[Counts, ...]

    @classmethod
    def of(cls, hist: Counts, attribute: Attribute, hidden: Suppression) -> MergedBins:
        """The bins of one model and attribute."""
        shown = [not hidden.hides(attribute.name, [row]) for row in range(len(hist))]
        fewest = hidden.policy.minimum
        common = merged_bins(hist[shown].reshape(-1, hist.shape[-1]), fewest) if any(shown) else np.zeros(0, np.int64)
        starts, ends = [0, *(common + 1)], [*(common + 1), hist.shape[-1]]
        parts = list(zip(starts, ends, strict=True))
        own = []
        for row in range(len(hist)):
            inside = [start + merged_bins(hist[row, :, start:end], fewest) for start, end in parts]
            own.append(np.unique(np.concatenate([common, *inside])) if shown[row] else np.zeros(0, np.int64))
        return cls(common, tuple(own))

    def of_group(self, table: Table, row: int) -> Table:
        """table[..., bin] of one group with its bins merged."""
        merged: Table = np.add.reduceat(table, np.append(0, self.own[row] + 1).astype(np.int64), axis=-1)
        return merged

    def together(self, hist: Table) -> Table:
        """hist[..., bin] with the bins merged that all groups have in common."""
        merged: Table = np.add.reduceat(hist, np.append(0, self.common + 1).astype(np.int64), axis=-1)
        return merged


def reliability_points(rows: Floats, noise: float) -> list[list[float]]:
    """Mean score, share of positives, low, high, patients of each drawn bin of one group's cal[bin, 3]."""
    found = reliability(_joined(rows), LEVEL, monotone=noise > 0)
    return [[round(float(x), 5) for x in point] for point in found]


def tenths(rows: Table) -> Floats:
    """Neighbouring bins of cal[bin, 3] joined where their mean scores lie in the same tenth of the probability."""
    rows = np.asarray(rows[rows[:, 0] > 0], dtype=np.float64)
    place = np.minimum(rows[:, 2] / SCORE_STEPS / rows[:, 0] * CALIBRATION_BINS, CALIBRATION_BINS - 1).astype(np.int64)
    return np.stack([rows[place == tenth].sum(axis=0) for tenth in np.unique(place)])


def _joined(rows: Floats) -> Floats:
    """Neighbouring bins joined until each holds enough patients to be drawn."""
    kept: list[Floats] = []
    for row in rows:
        if kept and kept[-1][0] < RELIABLE_FROM:
            kept[-1] = kept[-1] + row
        else:
            kept.append(row)
    if len(kept) > 1 and kept[-1][0] < RELIABLE_FROM:
        kept[-2:] = [kept[-2] + kept[-1]]
    return np.array(kept)


def gap_by_threshold(
    metric: str, hist: Table, at: Floats, attribute: Attribute, noise: float | HistogramNoise, bins: MergedBins | None
) -> list[list[float]]:
    """[threshold, gap] at evenly spread thresholds, rising; at the common cuts of merged bins where there are any.

    Args:
        metric: the gap.
        hist: (G + 1, 2, B).
        at: (B - 1,) the edges as probabilities.
        attribute: whose groups are compared.
        noise: as in `curves.gap_at_every_edge`.
        bins: merged bins, where small counts are hidden.
    """
    if bins is not None:
        if not bins.common.size:
            return []
        hist, at = bins.together(hist), at[bins.common]
    gaps = gap_at_every_edge(metric, hist, attribute.groups, noise=noise)
    if np.isnan(gaps).all():
        return []
    kept = np.unique(np.searchsorted(at, np.linspace(at[0], at[-1], GAP_POINTS)).clip(max=len(at) - 1))
    return [[round(float(at[i]), 5), round(float(gaps[i]), 5)] for i in kept]
