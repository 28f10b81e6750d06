"""What the score histograms say beyond the AUC: calibration, Brier score, average precision, xAUC, gap by threshold.

Nothing new is asked: all of it is a function of histograms that were released for the AUC. Calibration and the Brier
score need to know where a score lies inside its bin, and set it to the bin's centre. They have a number only where no
bin is wider than `WIDEST_BIN`, so that a probability, and with it the ECE, moves by 0.01 at most (a Brier score by
0.02); by default no bin is wider than 0.002. Observed over expected is a ratio, which a rare disease makes sensitive:
it has a number only where centres cannot have moved the expected positives by more than `LARGEST_SHIFT`. Few bins,
declared or under noise (50 would be needed at least), leave these figures out and say why.

References: the modules of `equipoise.common.fairness` that compute each figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import expit

from equipoise.common.attribute import Attribute
from equipoise.common.evaluation import Measured
from equipoise.common.fairness.auc import xauc
from equipoise.common.fairness.auprc import FEWEST_BINS, auprc_by_group
from equipoise.common.fairness.brier import brier_by_group
from equipoise.common.fairness.calibration import (
    CALIBRATION_BINS,
    SCORE_STEPS,
    Calibration,
    calibration_by_group,
    calibration_of_histogram,
)
from equipoise.common.fairness.estimate import Estimate
from equipoise.common.fairness.tables import Counts, Floats, group_names
from equipoise.common.study import Study
from equipoise.server.report.score_curves import MergedBins, gap_by_threshold, reliability_points, tenths
from equipoise.server.report.suppression import Suppression

Json = dict[str, Any]
WIDEST_BIN = 0.02  # in probability
LARGEST_SHIFT = 0.05  # of the expected positives; at most 0.04 with 1024 bins


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
        "calibration": _calibration(hist, measured.edges, attribute, noise, bins, hidden),
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
        else gap_by_threshold(metric, scores, expit(measured.edges), attribute, blur, bins),
    }


def bin_ends(edges: Floats) -> Floats:
    """(2, B) probabilities at which each bin starts and ends; the outermost reach to 0 and to 1."""
    inner = expit(edges)
    return np.stack([np.append(0.0, inner), np.append(inner, 1.0)])


def bin_centres(edges: Floats) -> Floats:
    """(B,) probabilities in the middle of each bin on the logit, where the outermost have no end and take half way."""
    centres: Floats = bin_ends(edges).mean(axis=0)
    centres[1:-1] = expit((edges[:-1] + edges[1:]) / 2)
    return centres


def too_wide(edges: Floats) -> str:
    """Why the bins do not tell where scores lie; empty where each is narrow."""
    widest = float(np.ptp(bin_ends(edges), axis=0).max())
    if widest <= WIDEST_BIN:
        return ""
    return f"a bin of the score is {widest:.3f} wide, {WIDEST_BIN:g} at most: where scores lie in it is not known"


def _calibration(
    hist: Counts, edges: Floats, attribute: Attribute, noise: float, bins: MergedBins | None, hidden: Suppression
) -> list[Json]:
    centres = bin_centres(edges)
    fine = calibration_of_histogram(hist, centres)
    table = _ten_bins(fine, centres) if noise == 0.0 else fine
    found = []
    for row, calibration in enumerate(_calibrations(hist, table, edges, attribute.groups, noise)):
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


def _calibrations(hist: Counts, table: Floats, edges: Floats, names: Sequence[str], noise: float) -> list[Calibration]:
    """Calibration of each group of `table`, without the figures for which the bins of `hist` are too wide."""
    reason, sizes = too_wide(edges), hist.sum(axis=(1, 2))
    if reason:
        missing = [_not_released(metric, reason, names, sizes) for metric in ("ece", "citl")]
        return [Calibration(ece, None, None, None, citl) for ece, citl in zip(*missing, strict=True)]
    found = list(calibration_by_group(table, names, noise=noise))
    patients = hist.sum(axis=1)
    shift = patients @ (np.ptp(bin_ends(edges), axis=0) / 2) / np.maximum(patients @ bin_centres(edges), 1e-9)
    reason = f"where scores lie inside their bins could move it by more than {LARGEST_SHIFT:.0%}; more bins are needed"
    withheld = _not_released("citl", reason, names, sizes)
    return [
        replace(one, citl=without) if one.citl.value is not None and moved > LARGEST_SHIFT else one
        for one, without, moved in zip(found, withheld, shift, strict=True)
    ]


def _not_released(metric: str, reason: str, names: Sequence[str], sizes: Counts) -> list[Estimate]:
    """No number for any group, `unknown` last; `sizes` are its patients."""
    labels = group_names(len(sizes), names)
    return [
        Estimate.missing(metric, reason, n=int(n), group=group, status="not_released")
        for group, n in zip(labels, sizes, strict=True)
    ]


def _ten_bins(table: Floats, centres: Floats) -> Floats:
    """cal[g, bin, 3] over ten equal bins of the probability, by the centres of finer bins."""
    place = np.minimum((centres * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    joined = np.zeros((len(table), CALIBRATION_BINS, table.shape[2]))
    for number, target in enumerate(place):
        joined[:, target] += table[:, number]
    return joined


def _brier(hist: Counts, edges: Floats, names: Sequence[str], noise: float) -> list[Estimate]:
    sizes = hist.sum(axis=(1, 2))
    if reason := too_wide(edges) or ("squares of scores are summed without noise alone" if noise else ""):
        return _not_released("brier", reason, names, sizes)
    error = np.stack([bin_centres(edges), 1 - bin_centres(edges)])  # (label, bin)
    sums = np.stack([sizes, *((hist * error**power).sum(axis=(1, 2)) * SCORE_STEPS for power in (2, 4))], axis=1)
    return list(brier_by_group(np.rint(sums).astype(np.int64), names))


def _auprc(hist: Counts, names: Sequence[str], noise: float) -> list[Estimate]:
    if noise == 0.0 and hist.shape[-1] >= FEWEST_BINS:
        return list(auprc_by_group(hist, names))
    reason = f"average precision needs {FEWEST_BINS} exact bins of the score, {hist.shape[-1]} were released"
    return _not_released("auprc", reason, names, hist[:, 1].sum(axis=1))
