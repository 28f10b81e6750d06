"""How precise a result will be, before anybody is asked for anything.

A plan declares about how many patients of each group there are and how often they have the disease. With assumed rates
and the noise that the plan's budget buys, this gives the width that an interval will have and how much of it is noise:
what a coordinator weighs before privacy is spent.

>>> expected = expected_counts(np.array([600.0, 200.0]), np.array([0.2, 0.2]), tpr=0.7, fpr=0.15)
>>> quiet, noisy = (predicted_gap("equal_opportunity_difference", expected, noise=v) for v in (0.0, 30.0))
>>> round(quiet.half_width, 3), round(noisy.half_width, 3), noisy.noise_sd > quiet.noise_sd
(0.171, 0.287, True)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from equipoise.common.fairness.auc import auc_gap, binned_auc
from equipoise.common.fairness.contrasts import find_gap
from equipoise.common.fairness.estimate import LARGEST_HALF_WIDTH, LEVEL, MINIMUM_PATIENTS
from equipoise.common.fairness.noise import HistogramNoise
from equipoise.common.fairness.rates import gap
from equipoise.common.fairness.tables import Counts, Floats

ACCEPTABLE = 0.5  # noise may have this share of the sampling deviation, before a plan is told to ask for less


@dataclass(frozen=True)
class Prediction:
    """What a figure's interval will be about.

    Attributes:
        metric: the figure.
        half_width: half the width of its interval; None where it will not be estimable.
        sampling_sd: standard deviation that the choice of patients gives it.
        noise_sd: standard deviation that the noise gives it.
        reason: why it will not be estimable.
    """

    metric: str
    half_width: float | None
    sampling_sd: float
    noise_sd: float
    reason: str = ""

    @property
    def precise(self) -> bool:
        """Whether the figure will be marked `ok`."""
        return self.half_width is not None and self.half_width <= LARGEST_HALF_WIDTH

    @property
    def noise_is_small(self) -> bool:
        """Whether the noise stays below half of what sampling alone does."""
        return self.noise_sd <= ACCEPTABLE * self.sampling_sd


def expected_counts(patients: Floats, prevalence: Floats, *, tpr: float, fpr: float) -> Counts:
    """counts[g, y, decision] to be expected, rounded, with an empty row of unknown patients last.

    Args:
        patients, prevalence: (G,) by declared group.
        tpr, fpr: assumed rates, the same for all groups: intervals are widest for gaps of equal groups.
    """
    positives, negatives = patients * prevalence, patients * (1 - prevalence)
    rows = np.stack(
        [
            np.stack([negatives * (1 - fpr), negatives * fpr], axis=-1),
            np.stack([positives * (1 - tpr), positives * tpr], axis=-1),
        ],
        axis=1,
    )
    return np.concatenate([np.rint(rows).astype(np.int64), np.zeros((1, 2, 2), dtype=np.int64)])


def predicted_gap(
    metric: str,
    counts: Counts,
    *,
    noise: float = 0.0,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
) -> Prediction:
    """The width that the interval of a gap will have, at expected counts (G + 1, 2, 2).

    `noise` is the variance of the noise in one cell of the table that the gap will be computed from: of one model's
    counts, which have twice that of a pair table's cell. The deviations are those of the widest pair of groups.
    """
    found = gap(metric, counts, level=level, minimum=minimum, noise=noise)
    if found.low is None or found.high is None or found.value is None:
        return Prediction(metric, None, 0.0, 0.0, found.reason)
    sampling, blur = [], []
    for rate in find_gap(metric).rates:
        label = 0 if rate == "fpr" else 1
        rows = counts[:-1].sum(axis=1) if rate == "selection_rate" else counts[:-1, label]
        trials = rows.sum(axis=1).astype(np.float64)
        share = rows[:, 1] / trials
        cells = 2 if rate == "selection_rate" else 1
        sampling.append(np.sort(share * (1 - share) / trials)[-2:].sum())
        blur.append(np.sort(cells * noise * ((1 - share) ** 2 + share**2) / trials**2)[-2:].sum())
    half = found.high - found.value
    return Prediction(metric, half, math.sqrt(max(sampling)), math.sqrt(max(blur)))


def predicted_auc_gap(
    patients: Floats,
    prevalence: Floats,
    auc: float,
    *,
    bins: int,
    noise: float | HistogramNoise = 0.0,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
) -> Prediction:
    """The width that the interval of an AUC gap will have, for normal scores of that AUC in equally filled bins.

    Args:
        patients, prevalence: (G,) by declared group.
        auc: assumed, the same for all groups.
        bins: of the histogram.
        noise: variance of the noise in one cell of it, or what `noise.anchored` will return with it.
    """
    hist = _normal_histogram(patients, prevalence, auc, bins)
    found = auc_gap(hist, level=level, minimum=minimum, noise=noise)
    if found.value is None or found.high is None:
        return Prediction("auc_gap", None, 0.0, 0.0, found.reason)
    each = [binned_auc(counts, noise) for counts in hist[:-1]]
    sampling = np.sort([one.variance for one in each])[-2:].sum()
    blur = np.sort([one.noise for one in each])[-2:].sum()
    return Prediction("auc_gap", found.high - found.value, math.sqrt(sampling), math.sqrt(blur))


def _normal_histogram(patients: Floats, prevalence: Floats, auc: float, bins: int) -> Counts:
    """Expected hist[g, y, bin], unknown row empty: unit normals apart by the AUC, cut at quantiles of their mixture."""
    shift, share = 2**0.5 * float(norm.ppf(auc)), float((patients * prevalence).sum() / patients.sum())

    def below(x: float) -> float:
        return float((1 - share) * norm.cdf(x) + share * norm.cdf(x - shift))

    cuts = [float(brentq(lambda x, q=k / bins: below(x) - q, -9.0, shift + 9.0)) for k in range(1, bins)]
    shares = np.stack([np.diff(np.concatenate([[0.0], norm.cdf(np.array(cuts) - m), [1.0]])) for m in (0.0, shift)])
    totals = np.stack([patients * (1 - prevalence), patients * prevalence], axis=-1)
    rows = np.rint(totals[:, :, None] * shares).astype(np.int64)
    return np.concatenate([rows, np.zeros((1, 2, bins), dtype=np.int64)])
