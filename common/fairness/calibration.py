"""Whether scores mean what they say: calibration of probabilities by group, from sums over bins.

`cal[g, bin] = (patients, positives, sum of scores)` adds up over patients. Scores are summed as whole multiples of
2^-16, so the sum is exact and the same in every order. From it, with observed share y_b and mean score s_b of bin b:

    ece                 sum_b n_b / n |y_b - s_b|, ten equal bins of the probability (torchmetrics' `l1` norm, but for
                        scores of exactly 1, which have a bin of their own there)
    ece_debiased_sq     sum_b n_b / n [(y_b - s_b)^2 - y_b (1 - y_b) / (n_b - 1)], 0 on average for a calibrated model
    citl                calibration in the large: positives observed over expected, sum y / sum s

The ECE of a *perfectly calibrated* model is not 0: with ten bins .088 at 100 patients, .029 at 1000 (evaluation
specification, section 1), so small groups look miscalibrated. Each ECE therefore stands beside the mean and the 95 %
point that it would have if the model were calibrated (`Calibration.null_mean`, `null_p95`).

Intervals. ECE differs from its true value by at most sum_b n_b / n |error of y_b|; the 95 % point of that, simulated at
the observed shares, is added and taken off. It is wide rather than narrow, since the errors' signs are ignored. `citl`:
Wilson's interval of the observed share over the expected; the scores are taken as given.

A histogram says almost the same where only that was released: `calibration_of_histogram` sets each bin's scores to a
declared centre. It may carry noise, which then enters all of the above.

References:
    Naeini, Cooper and Hauskrecht, AAAI 2015 (ECE). Brocker, Q J R Meteorol Soc 2012;138:1611-1617, and Kumar, Liang and
    Ma, NeurIPS 2019 (debiased squared error).

>>> calibration_of_histogram(np.array([[[3, 1], [1, 3]]]), np.array([0.25, 0.75])).tolist()
[[[4.0, 1.0, 65536.0], [4.0, 3.0, 196608.0]]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.intervals import normal_quantile, score_limits
from equipoise.common.fairness.noise import shortage
from equipoise.common.fairness.tables import Floats, Table, group_names

CALIBRATION_BINS = 10
SCORE_STEPS = 2**16  # a score is counted in steps of 2^-16; 2^47 patients fit into int64
FEWEST_FOR_ECE = 100  # below, an ECE is marked imprecise whatever its interval
DRAWS = 2000


@dataclass(frozen=True)
class Calibration:
    """Calibration of one group's scores.

    Attributes:
        ece: expected calibration error (l1).
        null_mean, null_p95: what the ECE of a calibrated model with these patients (and this noise) would be on
            average, and at its 95 % point; None where `ece` is not estimable.
        ece_debiased_sq: squared calibration error less its expectation under sampling; None where not estimable.
        citl: positives observed over expected.
    """

    ece: Estimate
    null_mean: float | None
    null_p95: float | None
    ece_debiased_sq: float | None
    citl: Estimate


def calibration_of_histogram(hist: Table, centres: Floats) -> Floats:
    """cal[g, bin] of hist[g, y, bin] with every score of a bin set to the bin's declared centre, (B,) probabilities."""
    patients, positives = hist.sum(axis=1).astype(np.float64), hist[:, 1].astype(np.float64)
    return np.stack([patients, positives, patients * centres * SCORE_STEPS], axis=-1)


def calibration_by_group(
    cal: Table,
    names: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: float = 0.0,
) -> tuple[Calibration, ...]:
    """Calibration of each group of cal[g, bin, 3], `unknown` last.

    `noise` is the variance of the noise in one cell of the histogram that `calibration_of_histogram` had; a table of
    exact sums carry none.
    """
    labels = group_names(len(cal), names)
    return tuple(_one(rows, name, level, minimum, noise) for rows, name in zip(cal, labels, strict=True))


def _one(rows: Table, group: str, level: float, minimum: int, noise: float) -> Calibration:
    patients, observed, expected = rows.T.astype(np.float64) / np.array([[1.0], [1.0], [SCORE_STEPS]])
    n = round(float(patients.sum()))
    if lacking := shortage(n, "patients", minimum, 2 * len(rows) * noise):
        missing = [Estimate.missing(metric, lacking, n=n, level=level, group=group) for metric in ("ece", "citl")]
        return Calibration(missing[0], None, None, None, missing[1])
    score = np.clip(np.divide(expected, patients, out=np.zeros(len(rows)), where=patients > 0), 0.0, 1.0)
    # The noise of a bin's positives moves y - s by 1 - s, that of its negatives by s.
    blur = noise * ((1 - score) ** 2 + score**2)
    ece = float(np.abs(observed - expected).sum()) / n
    null = _deviations(patients, score, blur) / n
    share = np.clip(np.divide(observed, patients, out=score.copy(), where=patients > 0), 0.0, 1.0)
    spread = float(np.quantile(_deviations(patients, share, blur) / n, level))
    reason = "" if n >= FEWEST_FOR_ECE else f"{n} patients, {FEWEST_FOR_ECE} needed for a precise one"
    estimate = Estimate.of(
        "ece",
        ece,
        max(ece - spread, 0.0),
        min(ece + spread, 1.0),
        n=n,
        method="simulated bound of the deviations",
        level=level,
        group=group,
        reason=reason,
        noise_sd=float(blur.sum()) ** 0.5 / n,
    )
    if reason:
        estimate = estimate.marked_imprecise()
    usable = patients >= 2
    squared = (observed - expected)[usable] ** 2 - blur[usable]
    squared = squared / patients[usable] - share[usable] * (1 - share[usable]) * patients[usable] / (
        patients[usable] - 1
    )
    citl = _citl(float(observed.sum()), float(expected.sum()), n, noise * len(rows), level, group)
    return Calibration(estimate, float(null.mean()), float(np.quantile(null, level)), float(squared.sum()) / n, citl)


def _citl(observed: float, expected: float, n: int, blur: float, level: float, group: str) -> Estimate:
    if expected <= 0:
        reason = "the scores expect no positive patient"
        return Estimate.missing("citl", reason, n=n, level=level, group=group)
    mean = expected / n
    share, part = np.array([min(max(observed / n, 0.0), 1.0)]), np.array([blur])
    low, high = score_limits(share, np.array([float(n)]), normal_quantile(level), part, part)
    # Noise in a positive moves observed - O/E expected by 1 - O/E s, in a negative by O/E s; s is near the mean.
    ratio = float(share[0]) / mean
    sd = (blur * ((1 - ratio * mean) ** 2 + (ratio * mean) ** 2)) ** 0.5 / expected
    limits = float(low[0]) / mean, float(high[0]) / mean
    return Estimate.of(
        "citl", ratio, *limits, n=n, method="wilson over expected", level=level, group=group, noise_sd=sd
    )


def _deviations(patients: Floats, share: Floats, blur: Floats) -> Floats:
    """(DRAWS,) draws of sum_b |positives - expected| at true shares `share`, with noise of variance `blur` a bin."""
    generator = np.random.default_rng(0)  # released sums only: a fixed seed makes the report reproducible
    size = np.maximum(np.rint(patients), 0).astype(np.int64)
    drawn = generator.binomial(size, share, (DRAWS, len(size))) - size * share
    if blur.any():
        drawn = drawn + generator.normal(0.0, np.sqrt(blur), drawn.shape)
    deviations: Floats = np.abs(drawn).sum(axis=1)
    return deviations
