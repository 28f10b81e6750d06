"""What the score histograms say beyond the AUC: calibration, Brier score, average precision, xAUC, gap by threshold.

Nothing new is asked: all of it is a function of histograms that were released for the AUC. Every score of a bin stands
at the bin's centre; with the 1024 bins of an exact evaluation that moves a probability by less than 0.01. Under noise
there are few bins, so what needs many of them (Brier score, average precision) has no number and says why.

References: the modules of `equipoise.common.fairness` that compute each figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from equipoise.common.attribute import Attribute
from equipoise.common.evaluation import Measured
from equipoise.common.fairness.auc import xauc
from equipoise.common.fairness.auprc import FEWEST_BINS, auprc_by_group
from equipoise.common.fairness.brier import brier_by_group
from equipoise.common.fairness.calibration import (
    CALIBRATION_BINS,
    SCORE_STEPS,
    calibration_by_group,
    calibration_of_histogram,
)
from equipoise.common.fairness.estimate import Estimate
from equipoise.common.fairness.tables import Counts, Floats, group_names
from equipoise.common.study import Study
from equipoise.server.report.score_curves import MergedBins, gap_by_threshold, reliability_points, tenths
from equipoise.server.report.suppression import Suppression

Json = dict[str, Any]


def score_figures(study: Study, measured: Measured, chosen: Sequence[str], hidden: Suppression) -> Json:
    """model -> attribute -> figures; attributes whose histogram was not released are left out."""
    return {
        model: {
            attribute.name: _of_attribute(study, measured, model, attribute, hidden)
            for attribute in study.attributes
            if attribute.name in measured.histograms[model, "test"]
        }
        for model in chosen
    }


def _of_attribute(study: Study, measured: Measured, model: str, attribute: Attribute, hidden: Suppression) -> Json:
    name, names, hist = attribute.name, attribute.groups, measured.histograms[model, "test"][attribute.name]
    noise = measured.histogram_noise.get((model, "test"), 0.0)
    scores, blur = measured.scores(model, name)
    bins = MergedBins.of(hist, attribute, hidden) if hidden.active else None
    metric = study.evaluation.primary
    compared = hidden.hides_gap(metric, name) or hidden.hides_scores(name, range(len(names)))
    return {
        "calibration": _calibration(hist, bin_centres(measured.edges), attribute, noise, bins, hidden),
        "brier": hidden.scores_by_group(_brier(hist, measured.edges, names, noise), name),
        "auprc": hidden.scores_by_group(_auprc(hist, names, noise), name),
        "xauc": [
            {
                "positives_of": g,
                "negatives_of": h,
                **hidden.of_pair(found, name, names.index(g), names.index(h)).to_json(),
            }
            for (g, h), found in xauc(scores, names, noise=blur).items()
            if g != h
        ],
        "gap_by_threshold": []
        if compared
        else gap_by_threshold(metric, scores, probability(measured.edges), attribute, blur, bins),
    }


def bin_centres(edges: Floats) -> Floats:
    """(B,) probabilities in the middle of each bin on the logit; the outermost bins stand at their inner edge."""
    ends = np.concatenate([edges[:1], edges, edges[-1:]])
    return probability((ends[:-1] + ends[1:]) / 2)


def probability(logits: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    found: Floats = 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, dtype=np.float64)))
    return found


def _calibration(
    hist: Counts, centres: Floats, attribute: Attribute, noise: float, bins: MergedBins | None, hidden: Suppression
) -> list[Json]:
    fine = calibration_of_histogram(hist, centres)
    table = _ten_bins(fine, centres) if noise == 0.0 else fine
    found = []
    for row, calibration in enumerate(calibration_by_group(table, attribute.groups, noise=noise)):
        ece, citl = (hidden.of_scores(e, attribute.name, [row]) for e in (calibration.ece, calibration.citl))
        shown = not hidden.hides_scores(attribute.name, [row])
        drawn: list[list[float]] = []
        if ece.value is not None:
            rows = table[row] if bins is None else tenths(bins.of_group(fine[row].T, row).T)
            drawn = reliability_points(rows, noise)
        found.append(
            {
                "group": ece.group,
                "ece": ece.to_json(),
                "ece_if_calibrated": calibration.null_mean if shown else None,
                "ece_if_calibrated_p95": calibration.null_p95 if shown else None,
                "ece_debiased_sq": calibration.ece_debiased_sq if shown else None,
                "citl": citl.to_json(),
                "reliability": drawn,
            }
        )
    return found


def _ten_bins(table: Floats, centres: Floats) -> Floats:
    """cal[g, bin, 3] over ten equal bins of the probability, by the centres of finer bins."""
    place = np.minimum((centres * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    joined = np.zeros((len(table), CALIBRATION_BINS, table.shape[2]))
    for number, target in enumerate(place):
        joined[:, target] += table[:, number]
    return joined


def _brier(hist: Counts, edges: Floats, names: Sequence[str], noise: float) -> list[Estimate]:
    labels, sizes = group_names(len(hist), names), hist.sum(axis=(1, 2))
    if noise > 0:
        reason = "not asked for under noise: few bins of the score say too little about squares"
        return [
            Estimate.missing("brier", reason, n=int(n), group=group, status="not_released")
            for group, n in zip(labels, sizes, strict=True)
        ]
    error = np.stack([bin_centres(edges), 1 - bin_centres(edges)])  # (label, bin)
    sums = np.stack([sizes, *((hist * error**power).sum(axis=(1, 2)) * SCORE_STEPS for power in (2, 4))], axis=1)
    return list(brier_by_group(np.rint(sums).astype(np.int64), names))


def _auprc(hist: Counts, names: Sequence[str], noise: float) -> list[Estimate]:
    labels, positives = group_names(len(hist), names), hist[:, 1].sum(axis=1)
    if noise == 0.0 and hist.shape[-1] >= FEWEST_BINS:
        return list(auprc_by_group(hist, names))
    reason = f"average precision needs {FEWEST_BINS} exact bins of the score, {hist.shape[-1]} were released"
    return [
        Estimate.missing("auprc", reason, n=int(n), group=group, status="not_released")
        for group, n in zip(labels, positives, strict=True)
    ]
