"""Who got worse: a gap that falls because a group is served worse is levelling down, and is said first.

A group has lost where its TPR or AUC is lower after than before and the whole interval of the change is below 0; for
the AUC, beyond what binning could have done. More false alarms (FPR higher, whole interval above 0) are listed apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from equipoise.common.fairness.auc_change import auc_change_by_group
from equipoise.common.fairness.change import rate_change_by_group
from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.noise import CellNoise, HistogramNoise
from equipoise.common.fairness.tables import Counts, Floats, Table


def lost(estimate: Estimate) -> bool:
    """Whether a change is a loss: its whole interval is below 0, and beyond what binning could have done."""
    return estimate.high is not None and estimate.high < -(estimate.binning_bound or 0.0)


def more_false_alarms(estimate: Estimate) -> bool:
    """Whether a change of FPR is one for the worse: its whole interval is above 0."""
    return estimate.low is not None and estimate.low > 0


def level_down(
    pair: Counts,
    hist_before: Table,
    hist_after: Table,
    names: Sequence[str] | None = None,
    *,
    sums: Floats | None = None,
    joint: Counts | None = None,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    pair_noise: CellNoise = 0.0,
    hist_noise: float | HistogramNoise = 0.0,
) -> tuple[Estimate, ...]:
    """Changes of TPR and AUC of the declared groups that are `lost`, TPR first.

    Args:
        pair: (G + 1, 2, 2, 2) at the declared operating point.
        hist_before, hist_after: (G + 1, 2, B).
        sums, joint: as in `auc_change.auc_change_by_group`.
        pair_noise, hist_noise: variance of the noise in one cell, as in `change` and `auc`.
    """
    changes = [
        *rate_change_by_group("tpr", pair, names, level=level, minimum=minimum, noise=pair_noise)[:-1],
        *auc_change_by_group(
            hist_before, hist_after, names, sums=sums, joint=joint, level=level, minimum=minimum, noise=hist_noise
        )[:-1],
    ]
    return tuple(change for change in changes if lost(change))
