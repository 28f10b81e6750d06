"""Each group beside a declared reference group: signed differences with simultaneous intervals.

A gap says how far the outermost groups lie apart, not who is where. Here every other group is compared with one
reference, by default the largest group. "Reference" names the row that others are read against; it is not the group as
it should be.

Intervals: Newcombe's, simultaneous over the comparisons of one attribute and rate (Bonferroni); no p-values.

>>> table = np.array([[[80, 20], [10, 90]], [[85, 15], [30, 70]], [[0, 0], [0, 0]]])
>>> round(differences_from_reference("tpr", table, ["men", "women"])[0].value, 6)
-0.2
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.common.errors import StudyError
from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.intervals import mover, normal_quantile, score_limits
from equipoise.common.fairness.noise import CellNoise, cell_variances
from equipoise.common.fairness.shares import shares_of
from equipoise.common.fairness.tables import Counts, group_names


def largest_group(counts: Counts, names: Sequence[str] | None = None) -> str:
    """The declared group with most patients in counts[g, y, decision] (the first of several)."""
    return group_names(len(counts), names)[int(counts[:-1].sum(axis=(1, 2)).argmax())]


def difference(
    rate: str,
    counts: Counts,
    group: int,
    reference: int,
    names: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    comparisons: int = 1,
    minimum: int = MINIMUM_PATIENTS,
    noise: CellNoise = 0.0,
) -> Estimate:
    """Rate of one row of counts[g, y, decision] less that of another.

    Args:
        rate: a name of `shares.RATES`.
        counts: (G + 1, 2, 2), `unknown` last.
        group, reference: rows.
        names: the declared groups.
        level: of all `comparisons` together (Bonferroni).
        minimum, noise: as in `rates.rate_by_group`.
    """
    labels, variances = group_names(len(counts), names), cell_variances(noise, counts)
    rows = (group, reference)
    who, metric = f"{labels[group]} less {labels[reference]}", f"{rate}_difference"
    parts = shares_of([(rate, counts[row], variances[row]) for row in rows])
    n = int(parts.trials.sum())
    each = ((labels[row], shares_of([(rate, counts[row], variances[row])]).lacking(minimum)) for row in rows)
    if lacking := "; ".join(f"{name}: {reason}" for name, reason in each if reason):
        return Estimate.missing(metric, lacking, n=n, level=level, group=who)
    limits = score_limits(parts.shares, parts.trials, normal_quantile(level, comparisons), parts.inside, parts.outside)
    contrast = np.array([[1.0, -1.0]])
    low, high = mover(parts.shares, *limits, contrast, np.eye(2))
    method = "noisy newcombe" if parts.noisy else "newcombe"
    if comparisons > 1:
        method = f"simultaneous {method}, bonferroni over {comparisons}"
    value, sd = float(contrast[0] @ parts.shares), float(parts.noise.sum()) ** 0.5
    return Estimate.of(metric, value, low[0], high[0], n=n, method=method, level=level, group=who, noise_sd=sd)


def differences_from_reference(
    rate: str,
    counts: Counts,
    names: Sequence[str] | None = None,
    *,
    reference: str | None = None,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: CellNoise = 0.0,
) -> tuple[Estimate, ...]:
    """Rate of each other declared group less that of the reference, in the order of the groups.

    Args:
        rate: a name of `shares.RATES`.
        counts: (G + 1, 2, 2), `unknown` last and left out.
        names: the declared groups.
        reference: one of them; None for the largest.
        level: of all comparisons together.
        minimum, noise: as in `rates.rate_by_group`.

    Raises:
        StudyError: the reference is no declared group.
    """
    labels = group_names(len(counts), names)[:-1]
    chosen = largest_group(counts, names) if reference is None else reference
    if chosen not in labels:
        raise StudyError(f"reference={chosen}: no declared group; choose one of {', '.join(labels)}")
    base = labels.index(chosen)
    differences: list[Estimate] = []
    for row in range(len(labels)):
        if row != base:
            found = difference(
                rate,
                counts,
                row,
                base,
                names,
                level=level,
                comparisons=max(len(labels) - 1, 1),
                minimum=minimum,
                noise=noise,
            )
            differences.append(found)
    return tuple(differences)
