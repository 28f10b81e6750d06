"""Ratios of rates: the demographic parity ratio, and predictive values at a declared prevalence.

A ratio of two independent rates has the interval that MOVER gives for it, from the limits of each rate alone (Donner
and Zou 2012, equation 9); noise in the counts enters through those limits. No logarithm is taken, so a rate of 0 is no
special case in the numerator.

PPV and NPV follow the prevalence of the test set: at the same TPR and FPR, PPV was .496 at prevalence .20 and .721 at
.40 (evaluation specification, section 1). `standardised_predictive_value` shows them at one declared prevalence pi: PPV
is pi TPR / (pi TPR + (1 - pi) FPR), which rises with the ratio TPR / FPR alone, so the ratio's limits give its own.

References:
    Donner and Zou, Stat Methods Med Res 2012;21:347-359 (MOVER for ratios).

>>> table = np.array([[[80, 20], [10, 90]], [[85, 15], [30, 70]], [[0, 0], [0, 0]]])
>>> round(demographic_parity_ratio(table, ["men", "women"]).value, 6)
0.772727
>>> round(standardised_predictive_value("ppv", table, 0.1, ["men", "women"])[0].value, 6)
0.333333
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np

from equipoise.common.errors import StudyError
from equipoise.common.fairness.contrasts import Gap
from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.intervals import normal_quantile, score_limits
from equipoise.common.fairness.noise import CellNoise, cell_variances
from equipoise.common.fairness.rates import strata
from equipoise.common.fairness.shares import Shares, shares_of
from equipoise.common.fairness.tables import Counts, Floats, group_names

Limits = tuple[float, float, float]  # estimate, low, high

# Predictive value -> the rate that counts for it and the one that counts against it.
_ODDS = {"ppv": ("tpr", "fpr"), "npv": ("tnr", "fnr")}


def ratio_limits(numerator: Limits, denominator: Limits) -> tuple[float, float]:
    """Limits of the ratio of two independent, non-negative estimates, each given with its own limits.

    Edge cases: the upper limit is infinite where the denominator's lower limit is 0; the lower limit is 0 where both
    estimates are 0.
    """
    (p, low_p, high_p), (q, low_q, high_q) = numerator, denominator
    product = p * q
    above, below = low_p * (2 * p - low_p), high_q * (2 * q - high_q)
    root = product + math.sqrt(max(product * product - above * below, 0.0))
    low = above / root if root > 0 else 0.0
    above, below = high_p * (2 * p - high_p), low_q * (2 * q - low_q)
    if below <= 0:
        return low, math.inf
    return low, (product + math.sqrt(max(product * product - above * below, 0.0))) / below


def demographic_parity_ratio(
    counts: Counts,
    names: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: CellNoise = 0.0,
) -> Estimate:
    """Smallest over largest selection rate of the groups; 1 where all are alike.

    Interval: simultaneous over the pairs of groups (Bonferroni), [smallest lower limit, smallest upper limit].
    Arguments as in `rates.gap`.

    Edge case: nobody is selected in any group: not estimable.
    """
    metric, form = "demographic_parity_ratio", Gap("demographic_parity_ratio", ("selection_rate",), "max")
    variances = cell_variances(noise, counts)
    chosen = strata(counts, form, names, minimum, variances)
    parts = [("selection_rate", counts[row], variances[row]) for _, row in chosen.columns]
    if not chosen.enough:
        return Estimate.missing(metric, chosen.why_not, n=sum(int(table.sum()) for _, table, _ in parts), level=level)
    rates = shares_of(parts)
    n = int(rates.trials.sum())
    shares = rates.shares
    if shares.max() <= 0:
        return Estimate.missing(metric, "no patient of any group is selected", n=n, level=level)
    pairs = list(permutations(range(len(shares)), 2))
    each = _limits(rates, normal_quantile(level, len(pairs) // 2))
    lows, highs = zip(*(ratio_limits(each[i], each[j]) for i, j in pairs if shares[j] > 0), strict=True)
    method = f"simultaneous {'noisy ' if rates.noisy else ''}mover ratio, bonferroni over {len(pairs) // 2}"
    least, most = int(shares.argmin()), int(shares.argmax())
    value = float(shares[least] / shares[most])
    spread = float(rates.noise[least] + value * value * rates.noise[most])
    return Estimate.of(
        metric,
        value,
        min(*lows, value),
        min(max(min(highs), value), 1.0),
        n=n,
        method=method,
        level=level,
        reason=chosen.reason,
        noise_sd=spread**0.5 / float(shares[most]),
    )


def standardised_predictive_value(
    metric: str,
    counts: Counts,
    prevalence: float,
    names: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: CellNoise = 0.0,
) -> tuple[Estimate, ...]:
    """`ppv` or `npv` of each row of `counts` at one declared prevalence, `unknown` last.

    Args:
        metric: `ppv` or `npv`.
        counts: (G + 1, 2, 2).
        prevalence: pi, inside (0, 1); the same for all groups, and declared, not estimated.
        names, level, minimum, noise: as in `rates.rate_by_group`; `minimum` is asked of positives and of negatives.

    Raises:
        StudyError: another metric, or a prevalence outside (0, 1).
    """
    if metric not in _ODDS:
        raise StudyError(f"metric={metric}: only ppv and npv are standardised to a prevalence")
    if not 0 < prevalence < 1:
        raise StudyError(f"prevalence={prevalence}: expected a number between 0 and 1")
    variances = cell_variances(noise, counts)
    rows = zip(counts, variances, group_names(len(counts), names), strict=True)
    return tuple(_standardised(metric, table, cells, prevalence, name, level, minimum) for table, cells, name in rows)


def _standardised(
    metric: str, counts: Counts, variances: Floats, prevalence: float, group: str, level: float, minimum: int
) -> Estimate:
    name, n = f"standardised_{metric}", int(counts.sum())
    rates = shares_of([(rate, counts, variances) for rate in _ODDS[metric]])
    if lacking := rates.lacking(minimum):
        return Estimate.missing(name, lacking, n=n, level=level, group=group)
    right, wrong = rates.shares
    share = prevalence if metric == "ppv" else 1 - prevalence
    called = share * right + (1 - share) * wrong
    if called <= 0:
        which = "positive" if metric == "ppv" else "negative"
        return Estimate.missing(name, f"no patient gets a {which} decision", n=n, level=level, group=group)
    value = float(share * right / called)
    ratios = ratio_limits(*_limits(rates, normal_quantile(level)))
    low, high = (1.0 if math.isinf(r) else share * r / (share * r + 1 - share) for r in ratios)
    slopes = np.array([wrong, -right]) * share * (1 - share) / called**2
    method = f"{'noisy ' if rates.noisy else ''}mover ratio at prevalence {prevalence:g}"
    sd = float(slopes**2 @ rates.noise) ** 0.5
    low, high = min(low, value), max(high, value)
    return Estimate.of(
        name, value, low, high, n=n, method=method, level=level, group=group, reason=rates.cut, noise_sd=sd
    )


def _limits(rates: Shares, z: float) -> list[Limits]:
    low, high = score_limits(rates.shares, rates.trials, z, rates.inside, rates.outside)
    return [(float(p), float(a), float(b)) for p, a, b in zip(rates.shares, low, high, strict=True)]
