"""The Brier score by group: the mean squared distance of a probability from what happened, from sums over patients.

`sums[g] = (patients, sum of e^2, sum of e^4)` with e = label - score; the fourth power gives the interval. Squares are
summed as whole multiples of 2^-16, so the sums are exact and the same in every order.

The Brier score mixes calibration, discrimination and prevalence: a group with another prevalence has another score
under the same model. Its estimates say so.

>>> import numpy as np
>>> found = brier_by_group(np.array([[40, 4 * SCORE_STEPS, SCORE_STEPS], [0, 0, 0]]), ["all"])[0]
>>> found.value, found.status, found.reason
(0.1, 'ok', 'depends on the prevalence')
"""

from __future__ import annotations

from collections.abc import Sequence

from equipoise.common.fairness.calibration import SCORE_STEPS
from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.intervals import normal_quantile
from equipoise.common.fairness.noise import shortage
from equipoise.common.fairness.tables import Counts, group_names

REASON = "depends on the prevalence"


def brier_by_group(
    sums: Counts, names: Sequence[str] | None = None, *, level: float = LEVEL, minimum: int = MINIMUM_PATIENTS
) -> tuple[Estimate, ...]:
    """The Brier score of each group of exact `sums`, `unknown` last, with the normal interval of a mean cut to [0, 1].

    The variance is that of the patients and two more, one who errs by nothing and one who errs by all, so that patients
    who all err alike do not look certain.
    """
    labels = group_names(len(sums), names)
    return tuple(_one(row, name, level, minimum) for row, name in zip(sums, labels, strict=True))


def _one(row: Counts, group: str, level: float, minimum: int) -> Estimate:
    n = int(row[0])
    if lacking := shortage(n, "patients", max(minimum, 2)):
        return Estimate.missing("brier", lacking, n=n, level=level, group=group)
    mean = row[1] / SCORE_STEPS / n
    variance = (row[2] / SCORE_STEPS + 1) / (n + 2) - ((row[1] / SCORE_STEPS + 1) / (n + 2)) ** 2
    half = normal_quantile(level) * float(variance / n) ** 0.5
    low, high = max(mean - half, 0.0), min(mean + half, 1.0)
    return Estimate.of("brier", mean, low, high, n=n, method="normal", level=level, group=group, reason=REASON)
