"""Average precision from score histograms, for descriptive use beside the prevalence.

AP = sum_k (R_k - R_{k-1}) P_k over thresholds from high to low, recall R and precision P, no interpolation: scikit-
learn's `average_precision_score`, at bin resolution. It rises with the prevalence (.705 at .20, .842 at .40 for the
same ROC curve), so a difference between groups of it says little (McDermott et al., NeurIPS 2024); there is no gap of
it here, and every estimate's reason names the prevalence.

Bins tie the scores inside them. Putting all positives of each bin first, or last, bounds the AP of the unbinned scores
from both sides; `binning_bound` is the larger distance. Few bins move it far (64 quantile bins: .013 to .060), so fewer
than 1024 are refused, and so is a noisy histogram.

References:
    Boyd, Eng and Page, ECML PKDD 2013 (logit interval of average precision; n is the number of positives).

>>> hist = np.zeros((2, 1024), dtype=np.int64)
>>> hist[0, [10, 500]], hist[1, [400, 900]] = 1, 1
>>> round(average_precision(hist)[0], 4)
0.8333
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from equipoise.common.errors import StudyError
from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.intervals import normal_quantile, wilson
from equipoise.common.fairness.tables import Counts, group_names

FEWEST_BINS = 1024


def average_precision(counts: Counts) -> tuple[float, float]:
    """Average precision of counts[y, bin] and the largest distance from that of the unbinned scores.

    Raises:
        ValueError: there are no positives.
    """
    falling = counts[:, ::-1]
    kept = falling[:, falling[1] > 0]
    positives = int(counts[1].sum())
    if positives == 0:
        raise ValueError("average precision needs positive patients")
    found = np.cumsum(falling[1])[falling[1] > 0]
    wrong = np.cumsum(falling[0])[falling[1] > 0]
    value = float((kept[1] * found / (found + wrong)).sum()) / positives
    # Within a bin of p positives and n negatives, after F positives and W negatives: the k-th positive has precision
    # (F + k) / (F + k + W) if the positives come first, and (F + k) / (F + k + W + n) if they come last.
    rank = np.arange(1, positives + 1)
    before = np.repeat(wrong - kept[0], kept[1])
    first, last = rank / (rank + before), rank / (rank + before + np.repeat(kept[0], kept[1]))
    return value, max(float(first.mean()) - value, value - float(last.mean()))


def auprc_by_group(
    hist: Counts, names: Sequence[str] | None = None, *, level: float = LEVEL, minimum: int = MINIMUM_PATIENTS
) -> tuple[Estimate, ...]:
    """Average precision within each group of an exact hist[g, y, bin], `unknown` last.

    Interval: Boyd, Eng and Page's on the logit scale; Wilson's of as many positives where the estimate is 1.

    Raises:
        StudyError: fewer than 1024 bins.
    """
    if hist.shape[-1] < FEWEST_BINS:
        raise StudyError(f"bins={hist.shape[-1]}: average precision needs at least {FEWEST_BINS} bins; use AUC instead")
    labels = group_names(len(hist), names)
    return tuple(_one(counts, name, level, minimum) for counts, name in zip(hist, labels, strict=True))


def _one(counts: Counts, group: str, level: float, minimum: int) -> Estimate:
    negatives, positives = (int(n) for n in counts.sum(axis=1))
    n = negatives + positives
    if positives < max(minimum, 1):
        reason = f"{positives} positives, {minimum} needed"
        return Estimate.missing("auprc", reason, n=n, level=level, group=group)
    value, bound = average_precision(counts)
    if value >= 1.0:
        low, high = wilson(positives, positives, level)
    else:
        middle = math.log(value / (1 - value))
        half = normal_quantile(level) / math.sqrt(positives * value * (1 - value))
        low, high = (float(expit(x)) for x in (middle - half, middle + half))
    reason = f"at prevalence {positives / n:.3f}; depends on it"
    return Estimate.of(
        "auprc",
        value,
        low,
        high,
        n=n,
        method="logit of average precision",
        level=level,
        group=group,
        reason=reason,
        binning_bound=bound,
    )
