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
from equipoise.common.fairness.curves import gap_at_every_edge, reliability
from equipoise.common.fairness.estimate import LEVEL, Estimate
from equipoise.common.fairness.tables import Counts, Floats, group_names
from equipoise.common.study import Study

Json = dict[str, Any]
CURVE_POINTS = 120  # of a drawn curve of gaps
RELIABLE_FROM = 10  # patients of a drawn calibration bin; smaller bins join the one before


def score_figures(study: Study, measured: Measured, chosen: Sequence[str]) -> Json:
    """model -> attribute -> figures; attributes whose histogram was not released are left out."""
    return {
        model: {
            attribute.name: _of_attribute(study, measured, model, attribute)
            for attribute in study.attributes
            if attribute.name in measured.histograms[model, "test"]
        }
        for model in chosen
    }


def _of_attribute(study: Study, measured: Measured, model: str, attribute: Attribute) -> Json:
    names, hist = attribute.groups, measured.histograms[model, "test"][attribute.name]
    noise = measured.histogram_noise.get((model, "test"), 0.0)
    scores, blur = measured.scores(model, attribute.name)
    centres = bin_centres(measured.edges)
    labels = group_names(len(hist), names)
    across = xauc(scores, names, noise=blur)
    return {
        "calibration": _calibration(hist, centres, names, noise),
        "brier": [e.to_json() for e in _brier(hist, measured.edges, names, noise)],
        "auprc": [e.to_json() for e in _auprc(hist, names, noise)],
        "xauc": [
            {"positives_of": g, "negatives_of": h, **across[g, h].to_json()}
            for g in labels[:-1]
            for h in labels[:-1]
            if g != h
        ],
        "gap_by_threshold": _curve(
            measured.edges, gap_at_every_edge(study.evaluation.primary, scores, names, noise=blur)
        ),
    }


def bin_centres(edges: Floats) -> Floats:
    """(B,) probabilities in the middle of each bin on the logit; the outermost bins stand at their inner edge."""
    ends = np.concatenate([edges[:1], edges, edges[-1:]])
    return probability((ends[:-1] + ends[1:]) / 2)


def probability(logits: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    found: Floats = 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, dtype=np.float64)))
    return found


def _calibration(hist: Counts, centres: Floats, names: Sequence[str], noise: float) -> list[Json]:
    table = calibration_of_histogram(hist, centres)
    if noise == 0.0:
        table = _ten_bins(table, centres)
    return [
        {
            "group": found.ece.group,
            "ece": found.ece.to_json(),
            "ece_if_calibrated": found.null_mean,
            "ece_if_calibrated_p95": found.null_p95,
            "ece_debiased_sq": found.ece_debiased_sq,
            "citl": found.citl.to_json(),
            "reliability": [] if found.ece.value is None else _points(rows, noise),
        }
        for found, rows in zip(calibration_by_group(table, names, noise=noise), table, strict=True)
    ]


def _ten_bins(table: Floats, centres: Floats) -> Floats:
    """cal[g, bin, 3] over ten equal bins of the probability, by the centres of finer bins."""
    place = np.minimum((centres * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    joined = np.zeros((len(table), CALIBRATION_BINS, table.shape[2]))
    for number, target in enumerate(place):
        joined[:, target] += table[:, number]
    return joined


def _points(rows: Floats, noise: float) -> list[list[float]]:
    """Mean score, share of positives, low, high, patients of each drawn bin."""
    found = reliability(_joined(rows), LEVEL, monotone=noise > 0)
    return [[round(float(x), 5) for x in point] for point in found]


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


def _curve(edges: Floats, gaps: Floats) -> list[list[float]]:
    """[threshold as a probability, gap] at evenly spread probabilities, rising."""
    if np.isnan(gaps).all():
        return []
    at = probability(edges)
    kept = np.unique(np.searchsorted(at, np.linspace(at[0], at[-1], CURVE_POINTS)).clip(max=len(at) - 1))
    return [[round(float(at[i]), 5), round(float(gaps[i]), 5)] for i in kept]
