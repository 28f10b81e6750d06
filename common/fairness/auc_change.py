"""What the AUC of the same patients became: by group, in the worst group, and the gap between groups.

With the second round's `placement_sums` the variance is DeLong's for correlated curves. Without them both AUCs are
taken as independent; since models tuned from one base rank alike, that interval is conservative (about twice too wide),
and its method says `unpaired`.

References:
    DeLong, DeLong and Clarke-Pearson, Biometrics 1988;44:837-845.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.common.fairness.auc import (
    BinnedAUC,
    auc_by_group,
    auc_covariance,
    binned_auc,
    missing_group,
)
from equipoise.common.fairness.contrasts import gap_contrasts
from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.intervals import normal_quantile
from equipoise.common.fairness.maximum import DRAWS, change_limits
from equipoise.common.fairness.tables import Counts, Floats, group_names


def auc_change_by_group(
    before: Counts,
    after: Counts,
    names: Sequence[str] | None = None,
    *,
    sums: Floats | None = None,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
) -> tuple[Estimate, ...]:
    """After minus before of each group's AUC, `unknown` last.

    Args:
        before, after: (G + 1, 2, B) histograms of the same patients under two models.
        sums: (G + 1, 2, 5), `auc.placement_sums` over all sites.

    Raises:
        ValueError: the histograms are not about the same patients.
    """
    if not np.array_equal(before.sum(axis=-1), after.sum(axis=-1)):
        raise ValueError("the histograms before and after count different patients by group and label")
    estimates = []
    for group, name in enumerate(group_names(len(before), names)):
        lacking = _lacking(before[group], after[group], name, level, minimum)
        estimates.append(
            lacking or _one(before[group], after[group], name, None if sums is None else sums[group], level)
        )
    return tuple(estimates)


def overall_auc_change(
    before: Counts, after: Counts, *, level: float = LEVEL, minimum: int = MINIMUM_PATIENTS
) -> Estimate:
    """After minus before of the AUC over all patients; unpaired, since placements are summed within groups."""
    tables = before.sum(axis=0), after.sum(axis=0)
    return _lacking(*tables, None, level, minimum) or _one(*tables, None, None, level)


def _lacking(before: Counts, after: Counts, group: str | None, level: float, minimum: int) -> Estimate | None:
    for counts in (before, after):
        single = auc_by_group(np.stack([counts, np.zeros_like(counts)]), level=level, minimum=minimum)[0]
        if single.value is None:
            return Estimate.missing("auc_change", single.reason, n=single.n, level=level, group=group)
    return None


def _one(before: Counts, after: Counts, group: str | None, sums: Floats | None, level: float) -> Estimate:
    aucs = binned_auc(before), binned_auc(after)
    covariance = _covariance(before, aucs, sums)
    change = aucs[1].value - aucs[0].value
    half = normal_quantile(level) * float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) ** 0.5
    return Estimate.of(
        "auc_change",
        change,
        max(change - half, -1.0),
        min(change + half, 1.0),
        n=int(before.sum()),
        method=_method(sums),
        level=level,
        group=group,
        binning_bound=aucs[0].bound + aucs[1].bound,
    )


def worst_group_auc_change(
    before: Counts,
    after: Counts,
    names: Sequence[str] | None = None,
    *,
    sums: Floats | None = None,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
) -> Estimate:
    """After minus before of the smallest AUC of the declared groups; which group is the worst may change."""
    metric = "worst_group_auc_change"
    single = auc_change_by_group(before, after, names, sums=sums, level=level, minimum=minimum)[:-1]
    if lacking := missing_group(metric, single, level):
        return lacking
    # The smallest AUC is minus the largest of the negated ones.
    change, low, high = _largest_contrast(-np.eye(len(single)), before, after, sums, level=level)
    bound = max(estimate.binning_bound or 0.0 for estimate in single)
    n = sum(estimate.n for estimate in single)
    method = f"least favourable, {_method(sums)}"
    return Estimate.of(metric, -change, -high, -low, n=n, method=method, level=level, binning_bound=bound)


def auc_gap_change(
    before: Counts,
    after: Counts,
    names: Sequence[str] | None = None,
    *,
    sums: Floats | None = None,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
) -> Estimate:
    """After minus before of the largest difference between two groups' AUCs; below 0, the gap fell."""
    metric = "auc_gap_change"
    single = auc_change_by_group(before, after, names, sums=sums, level=level, minimum=minimum)[:-1]
    if lacking := missing_group(metric, single, level):
        return lacking
    contrasts = gap_contrasts([len(single)], "max")
    change, low, high = _largest_contrast(contrasts, before, after, sums, level=level)
    bound = sum(sorted(estimate.binning_bound or 0.0 for estimate in single)[-2:])
    n = sum(estimate.n for estimate in single)
    method = f"least favourable, {_method(sums)}"
    return Estimate.of(metric, change, low, high, n=n, method=method, level=level, binning_bound=bound)


def _largest_contrast(
    contrasts: Floats, before: Counts, after: Counts, sums: Floats | None, *, level: float
) -> tuple[float, float, float]:
    """Change, and its interval, of the largest of `contrasts` (C, G) of the declared groups' AUCs."""
    generator = np.random.default_rng(0)  # released sums only: a fixed seed makes the report reproducible
    values = np.zeros((2, contrasts.shape[1]))
    errors = np.zeros((2, DRAWS, contrasts.shape[1]))
    for group in range(contrasts.shape[1]):
        aucs = binned_auc(before[group]), binned_auc(after[group])
        covariance = _covariance(before[group], aucs, None if sums is None else sums[group])
        values[:, group] = [auc.value for auc in aucs]
        errors[:, :, group] = generator.multivariate_normal(np.zeros(2), covariance, size=DRAWS).T
    first, second = (([contrasts @ value], [error @ contrasts.T]) for value, error in zip(values, errors, strict=True))
    return change_limits(first, second, level)


def _covariance(counts: Counts, aucs: tuple[BinnedAUC, BinnedAUC], sums: Floats | None) -> Floats:
    """Covariance of two AUCs of the same patients; a variance of 0 is replaced by that of the disjoint pairs."""
    own = np.array([auc.guarded_variance for auc in aucs])
    if sums is None:
        return np.diag(own)
    delong = auc_covariance(counts, sums)
    scale = np.sqrt(np.diag(delong).prod())
    correlation = float(np.clip(delong[0, 1] / scale, -1.0, 1.0)) if scale > 0 else 0.0
    shared = correlation * float(np.sqrt(own.prod()))
    return np.array([[own[0], shared], [shared, own[1]]])


def _method(sums: Floats | None) -> str:
    return "unpaired delong" if sums is None else "paired delong"
