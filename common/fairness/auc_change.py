"""What the AUC of the same patients became: by group, in the worst group, and the gap between groups.

With the second round's `placement_sums` the variance is DeLong's for correlated curves. Without them both AUCs are
taken as independent; since models tuned from one base rank alike, that interval is conservative (about twice too wide),
and its method says `unpaired`. In between lies what the decision table knows: which interval of scores each patient was
in before and after gives coarse placements (`joint`), whose correlation is smaller than that of the scores, so the
interval stays conservative and is narrower.

The limits are quantiles of drawn errors (`auc_errors`), farther from the estimate where an AUC near 1 can be lower.

Histograms may carry noise, independent before and after (`noise`, as in `auc`); their joint table may, too. Placement
sums are exact and belong to histograms without noise.

References:
    DeLong, DeLong and Clarke-Pearson, Biometrics 1988;44:837-845.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain

import numpy as np

from equipoise.common.fairness.auc import (
    LARGEST_BINNING_BOUND,
    BinnedAUC,
    auc_estimate,
    binned_auc,
    marked_if_coarse,
    missing_group,
)
from equipoise.common.fairness.auc_errors import auc_errors
from equipoise.common.fairness.contrasts import gap_contrasts
from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.maximum import DRAWS, change_limits, pivoted
from equipoise.common.fairness.noise import HistogramNoise, projected, summed_noise
from equipoise.common.fairness.placements import auc_covariance, auc_influence, coarse_sums
from equipoise.common.fairness.tables import Counts, Floats, Table, group_names


def auc_change_by_group(
    before: Table,
    after: Table,
    names: Sequence[str] | None = None,
    *,
    sums: Floats | None = None,
    joint: Counts | None = None,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: float | HistogramNoise = 0.0,
) -> tuple[Estimate, ...]:
    """After minus before of each group's AUC, `unknown` last.

    Args:
        before, after: (G + 1, 2, B) histograms of the same patients under two models.
        sums: (G + 1, 2, 5), `auc.placement_sums` over all sites.
        joint: (G + 1, 2, I, J) patients by interval of the score before and after, in rising order; a pair table is one
            with two intervals each. Used where there are no `sums`.
        noise: variance of the noise in one cell of either histogram, or what `noise.anchored` returned with both.

    Raises:
        ValueError: the histograms are not about the same patients; `sums` with noisy histograms.
    """
    _check(before, after, sums, noise)
    pairing = _pairing(before, sums, joint)
    estimates = []
    for group, name in enumerate(group_names(len(before), names)):
        tables = before[group], after[group]
        lacking = _lacking(*tables, name, level, minimum, noise)
        estimates.append(lacking or _one(*tables, name, pairing[group], _method(sums, joint), level, noise))
    return tuple(estimates)


def overall_auc_change(
    before: Table,
    after: Table,
    *,
    joint: Counts | None = None,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: float | HistogramNoise = 0.0,
) -> Estimate:
    """After minus before of the AUC over all patients; arguments as in `auc_change_by_group`.

    Placements are summed within groups, so there are no sums to pair it with.
    """
    tables = before.sum(axis=0), after.sum(axis=0)
    pairing = _pairing(before[:1], None, None if joint is None else joint.sum(axis=0, keepdims=True))[0]
    blur = summed_noise(noise, len(before))
    lacking = _lacking(*tables, None, level, minimum, blur)
    return lacking or _one(*tables, None, pairing, _method(None, joint), level, blur)


def _check(before: Table, after: Table, sums: Floats | None, noise: float | HistogramNoise) -> None:
    if noise == 0.0 and not np.array_equal(before.sum(axis=-1), after.sum(axis=-1)):
        raise ValueError("the histograms before and after count different patients by group and label")
    if noise != 0.0 and sums is not None:
        raise ValueError("placement sums belong to histograms without noise; pass the joint table instead")


def _lacking(
    before: Table,
    after: Table,
    group: str | None,
    level: float,
    minimum: int,
    noise: float | HistogramNoise,
) -> Estimate | None:
    for counts in (before, after):
        single = auc_estimate(counts, noise, "auc", None, level, minimum)
        if single.value is None:
            return Estimate.missing("auc_change", single.reason, n=single.n, level=level, group=group)
    return None


def _one(
    before: Table,
    after: Table,
    group: str | None,
    correlation: float,
    method: str,
    level: float,
    noise: float | HistogramNoise,
) -> Estimate:
    aucs = binned_auc(before, noise), binned_auc(after, noise)
    added = _noise_covariance((before, after), aucs, noise)
    errors = auc_errors(aucs, correlation, added, level)
    change = aucs[1].value - aucs[0].value
    low, high = pivoted(change, errors[1] - errors[0], level)
    estimate = Estimate.of(
        "auc_change",
        change,
        max(low, -1.0),
        min(high, 1.0),
        n=round(float(before.sum())),
        method=method,
        level=level,
        group=group,
        binning_bound=aucs[0].bound + aucs[1].bound,
        noise_sd=_variance_of_change(added) ** 0.5,
    )
    return marked_if_coarse(estimate, aucs)


def _over_groups(
    metric: str,
    before: Table,
    after: Table,
    names: Sequence[str] | None = None,
    *,
    sums: Floats | None = None,
    joint: Counts | None = None,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: float | HistogramNoise = 0.0,
) -> Estimate:
    single = auc_change_by_group(
        before, after, names, sums=sums, joint=joint, level=level, minimum=minimum, noise=noise
    )[:-1]
    if lacking := missing_group(metric, single, level):
        return lacking
    worst = metric == "worst_group_auc_change"
    # The smallest AUC is minus the largest of the negated ones.
    contrasts = -np.eye(len(single)) if worst else gap_contrasts([len(single)], "max")
    pairing = _pairing(before, sums, joint)
    change, low, high, sd = _largest_contrast(contrasts, before, after, pairing, noise, level)
    if worst:
        change, low, high = -change, -high, -low
    sides = _by_group(before, noise), _by_group(after, noise)
    estimate = Estimate.of(
        metric,
        change,
        low,
        high,
        n=sum(estimate.n or 0 for estimate in single),
        method=f"least favourable, {_method(sums, joint)}",
        level=level,
        binning_bound=sum(sum(sorted(auc.bound for auc in side)[-1 if worst else -2 :]) for side in sides),
        noise_sd=sd,
    )
    return marked_if_coarse(estimate, chain(*sides))


def hidden_by_binning(before: Table, after: Table, noise: float | HistogramNoise = 0.0) -> float:
    """How far the worst group's AUC may have changed inside the bins, unseen: a judgement has to allow for it.

    Without noise the bound that holds for any scores, and 0 where it is small for every AUC (those are not marked
    either). Bins under noise are so few that this bound, ten times what smooth scores lose by them, would leave nothing
    to judge. There it is what was added to an AUC for its few bins: a model that ranks at random inside a bin has that
    much less (decision 0044); one that ranks the wrong way round inside them could have lost more.

    Args:
        before, after, noise: as in `auc_change_by_group`; every declared group has both classes.
    """
    sides = _by_group(before, noise), _by_group(after, noise)
    if noise != 0.0:
        return max(abs(auc.lacking) for auc in chain(*sides))
    largest = [max(auc.bound for auc in side) for side in sides]
    return sum(largest) if max(largest) > LARGEST_BINNING_BOUND else 0.0


def _by_group(hist: Table, noise: float | HistogramNoise) -> list[BinnedAUC]:
    return [binned_auc(counts, noise) for counts in hist[:-1]]


# Each takes the arguments of `auc_change_by_group`. The smallest AUC of the declared groups, after minus before; which
# group is the worst may change.
worst_group_auc_change = partial(_over_groups, "worst_group_auc_change")
# The largest difference between two declared groups' AUCs, after minus before; below 0, the gap fell.
auc_gap_change = partial(_over_groups, "auc_gap_change")


def _largest_contrast(
    contrasts: Floats,
    before: Table,
    after: Table,
    pairing: Floats,
    noise: float | HistogramNoise,
    level: float,
) -> tuple[float, float, float, float]:
    """Change, its interval and the deviation by noise, of the largest of `contrasts` (C, G) of the groups' AUCs."""
    generator = np.random.default_rng(0)  # released sums only: a fixed seed makes the report reproducible
    groups = contrasts.shape[1]
    values = np.zeros((2, groups))
    errors = np.zeros((2, DRAWS, groups))
    added = np.zeros((groups, 2, 2))
    for group in range(groups):
        tables = before[group], after[group]
        aucs = binned_auc(tables[0], noise), binned_auc(tables[1], noise)
        added[group] = _noise_covariance(tables, aucs, noise)
        values[:, group] = [auc.value for auc in aucs]
        drawn = auc_errors(aucs, pairing[group], added[group], level)
        errors[:, :, group] = generator.permutation(drawn, axis=1)  # the groups' errors are independent
    first, second = (([contrasts @ value], [error @ contrasts.T]) for value, error in zip(values, errors, strict=True))
    leading = np.stack([contrasts[np.argmax(contrasts @ value)] for value in values]) * np.array([[-1.0], [1.0]])
    sd = float(np.einsum("ag,gab,bg->", leading, added, leading)) ** 0.5
    return (*change_limits(first, second, level), sd)


def _pairing(hist: Table, sums: Floats | None, joint: Counts | None) -> Floats:
    """(G + 1,) correlation of each group's AUCs before and after, from placements exact or coarse; 0 where unknown."""
    if sums is not None:
        return np.array([_correlation(auc_covariance(*part)) for part in zip(hist, sums, strict=True)])
    if joint is None:
        return np.zeros(len(hist))
    nearest = projected(joint.reshape(*joint.shape[:2], -1), np.maximum(joint.sum(axis=(-2, -1)), 0)).reshape(
        joint.shape
    )
    return np.array([_correlation(auc_covariance(table.sum(axis=-1), coarse_sums(table))) for table in nearest])


def _correlation(covariance: Floats) -> float:
    scale = np.sqrt(np.maximum(np.diag(covariance), 0.0).prod())  # 0 may come out as -1e-18
    return float(np.clip(covariance[0, 1] / scale, -1.0, 1.0)) if scale > 0 else 0.0


def _noise_covariance(
    tables: tuple[Table, Table],
    aucs: tuple[BinnedAUC, BinnedAUC],
    noise: float | HistogramNoise,
) -> Floats:
    """Covariance that noise alone gives two AUCs: none, unless both histograms were anchored to one pair table."""
    covariance = np.diag([auc.noise for auc in aucs])
    if isinstance(noise, HistogramNoise):
        first, second = (
            auc_influence(projected(table, table.sum(axis=1)), auc.centre).mean(axis=1)
            for table, auc in zip(tables, aucs, strict=True)
        )
        covariance[0, 1] = covariance[1, 0] = noise.total * float(first @ second)
    return covariance


def _variance_of_change(covariance: Floats) -> float:
    return float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])


def _method(sums: Floats | None, joint: Counts | None) -> str:
    return "paired delong" if sums is not None else "unpaired delong" if joint is None else "coarsely paired delong"
