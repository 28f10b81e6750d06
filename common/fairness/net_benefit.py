"""Net benefit of acting on a decision, by group: what a positive decision is worth where one missed patient weighs t.

Net benefit at the threshold probability t is TP / n - FP / n * t / (1 - t): true positives gained for each patient,
less the false ones, weighed as somebody weighs them who acts at a risk of t (Vickers and Elkin 2006). It needs a score
that is a calibrated probability, and t to be the threshold that the decisions were made at. Standardised, it is divided
by the prevalence pi: TPR - FPR (1 - pi) / pi * t / (1 - t), 1 for a perfect model. Both depend on the prevalence; the
standardised one takes that of the test patients, as counted, for known.

Intervals: MOVER of the limits of its two parts. TP / n and FP / n come from the same patients and exclude each other,
so they correlate by -sqrt(a b / ((1 - a) (1 - b))); TPR and FPR come from different patients.

References:
    Vickers and Elkin, Med Decis Making 2006;26:565-574. Zou and Donner, Stat Med 2008;27:1693-1702.

>>> table = np.array([[[70, 10], [5, 15]], [[0, 0], [0, 0]]])
>>> round(net_benefit(table, 0.2)[0].value, 6)  # 15 / 100 - 10 / 100 / 4
0.125
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from equipoise.common.errors import StudyError
from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.intervals import mover, normal_quantile, score_limits
from equipoise.common.fairness.noise import CellNoise, cell_variances, shortage
from equipoise.common.fairness.shares import shares_of
from equipoise.common.fairness.tables import Counts, Floats, group_names


def net_benefit(
    counts: Counts,
    threshold: float,
    names: Sequence[str] | None = None,
    *,
    standardised: bool = False,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: CellNoise = 0.0,
) -> tuple[Estimate, ...]:
    """Net benefit of each row of `counts` (G + 1, 2, 2), `unknown` last, per patient or standardised.

    Args:
        counts: decisions at `threshold`.
        threshold: t, a probability inside (0, 1).
        names, level, minimum, noise: as in `rates.rate_by_group`.

    Raises:
        StudyError: the threshold lies outside (0, 1).
    """
    weight = _weight(threshold)
    variances = cell_variances(noise, counts)
    one = _standardised if standardised else _per_patient
    rows = zip(counts, variances, group_names(len(counts), names), strict=True)
    return tuple(one(table, cells, weight, name, level, minimum) for table, cells, name in rows)


def treat_all(prevalence: float, threshold: float) -> float:
    """Net benefit of calling everybody positive, the reference beside 0 (calling nobody).

    Raises:
        StudyError: the threshold lies outside (0, 1).
    """
    return prevalence - (1 - prevalence) * _weight(threshold)


def _weight(threshold: float) -> float:
    if not 0 < threshold < 1:
        raise StudyError(f"threshold={threshold}: net benefit needs a probability between 0 and 1")
    return threshold / (1 - threshold)


def _per_patient(counts: Counts, variances: Floats, weight: float, group: str, level: float, minimum: int) -> Estimate:
    n, blur = int(counts.sum()), float(variances.sum())
    if lacking := shortage(n, "patients", minimum, blur):
        return Estimate.missing("net_benefit", lacking, n=n, level=level, group=group)
    # Rows of the parts: true positives, false positives; a cell of `counts` adds its indicator less the part to each.
    shares = np.clip(np.array([counts[1, 1], counts[0, 1]]) / n, 0.0, 1.0)
    inside = np.array([variances[1, 1], variances[0, 1]])
    limits = score_limits(shares, np.full(2, float(n)), normal_quantile(level), inside, blur - inside)
    members = np.array([[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]]) - shares[:, None]
    blurred = (members * variances.ravel()) @ members.T / n**2
    covariance = (np.diag(shares) - np.outer(shares, shares)) / n + blurred
    spread = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    correlation = np.where(spread > 0, covariance / np.where(spread > 0, spread, 1.0), np.eye(2))
    contrast = np.array([[1.0, -weight]])
    low, high = mover(shares, *limits, contrast, correlation)
    value = float(contrast[0] @ shares)
    sd = math.sqrt(float(contrast[0] @ blurred @ contrast[0]))
    method = "mover of noisy wilson" if variances.any() else "mover of wilson"
    return Estimate.of("net_benefit", value, low[0], high[0], n=n, method=method, level=level, group=group, noise_sd=sd)


def _standardised(counts: Counts, variances: Floats, weight: float, group: str, level: float, minimum: int) -> Estimate:
    metric, n = "standardised_net_benefit", int(counts.sum())
    rates = shares_of([(rate, counts, variances) for rate in ("tpr", "fpr")])
    if lacking := rates.lacking(minimum):
        return Estimate.missing(metric, lacking, n=n, level=level, group=group)
    positives, negatives = rates.trials
    contrast = np.array([[1.0, -weight * negatives / positives]])
    limits = score_limits(rates.shares, rates.trials, normal_quantile(level), rates.inside, rates.outside)
    low, high = mover(rates.shares, *limits, contrast, np.eye(2))
    method = "mover of noisy wilson" if rates.noisy else "mover of wilson"
    value, sd = float(contrast[0] @ rates.shares), math.sqrt(float(contrast[0] ** 2 @ rates.noise))
    reason = rates.cut
    return Estimate.of(
        metric, value, low[0], high[0], n=n, method=method, level=level, group=group, reason=reason, noise_sd=sd
    )
