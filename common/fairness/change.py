"""Paired changes: what a rate or a gap of the same patients became, each with its interval.

`pair[g, y, before, after]` counts patients by both models' decisions at one operating point. Whatever "before" and
"after" are: the base model and the repaired one, or a control and a method (then the difference says which gap is the
smaller). The pairing narrows the interval by about half, because most decisions do not change.

Official intervals (alternatives were tried and lost, see `maximum`):

    one rate (tpr, fnr, fpr, tnr, selection_rate, accuracy)   Newcombe's paired score interval, method 10
    balanced_accuracy                                         MOVER of the paired intervals of TPR and TNR
    ppv, npv                                                  delta method over eight cells (the denominators move)
    every gap                                                 least favourable, from posterior draws with a fixed seed

A comparison of a method with a control needs their own pair table (the query takes any two models).

Counts may carry noise of known variance (`noise`, see the module of that name): the noise of a cell that two rates
share correlates them, so variances and covariances of both are those of sampling plus those of noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from equipoise.common.fairness.contrasts import find_gap, gap_contrasts
from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.intervals import mover, normal_quantile, score_limits
from equipoise.common.fairness.maximum import DRAWS, change_limits
from equipoise.common.fairness.noise import CellNoise, cell_variances, shortage
from equipoise.common.fairness.paired import MEMBERS, PairedRate, rate_table
from equipoise.common.fairness.rates import Strata, strata
from equipoise.common.fairness.shares import RATES
from equipoise.common.fairness.tables import Counts, Floats, counts_before, group_names

# Patients added to each cell of a 2 x 2 table, so that a disagreement nobody showed stays possible. Both of its rates
# then have Jeffreys' prior, Beta(1/2, 1/2).
_PRIOR = 0.25


def rate_change_by_group(
    metric: str,
    pair: Counts,
    names: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: CellNoise = 0.0,
) -> tuple[Estimate, ...]:
    """After minus before of a rate or of `balanced_accuracy`, for each row of pair[g, y, before, after].

    `noise` is the variance of the noise in one cell of `pair`, or an array that broadcasts to its shape.

    Edge case: fewer than `minimum` patients in a denominator, before or after, or no more than its noise, give
    `not_estimable`.
    """
    labels = group_names(len(pair), names)
    variances = cell_variances(noise, pair)
    return tuple(
        _one(metric, table, variance, name, level, minimum)
        for table, variance, name in zip(pair, variances, labels, strict=True)
    )


def overall_rate_change(
    metric: str,
    pair: Counts,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: CellNoise = 0.0,
) -> Estimate:
    """After minus before over all patients, those of unknown group included; `noise` as in `rate_change_by_group`."""
    return _one(metric, pair.sum(axis=0), cell_variances(noise, pair).sum(axis=0), None, level, minimum)


def _one(metric: str, pair: Counts, variances: Floats, group: str | None, level: float, minimum: int) -> Estimate:
    name = f"{metric}_change"
    if metric in ("ppv", "npv"):
        return _predictive_value_change(metric, pair, variances, group, level, minimum)
    rates = {"balanced_accuracy": ("tpr", "tnr")}.get(metric, (metric,))
    tables = [PairedRate(rate, rate_table(rate, pair), rate_table(rate, variances)) for rate in rates]
    n = sum(table.n for table in tables)
    if lacking := "; ".join(reason for table in tables if (reason := table.lacking(minimum))):
        return Estimate.missing(name, lacking, n=n, level=level, group=group)
    shares, trials = (np.concatenate(parts) for parts in zip(*((t.shares, t.trials) for t in tables), strict=True))
    inside, outside = (np.concatenate(parts) for parts in zip(*(t.parts_of_noise for t in tables), strict=True))
    limits = score_limits(shares, trials, normal_quantile(level), inside, outside)
    correlation = np.eye(len(shares))
    for index, table in enumerate(tables):
        before, after = 2 * index, 2 * index + 1
        correlation[before, after] = correlation[after, before] = table.correlation
    contrast = np.tile([-1.0, 1.0], len(tables))[None] / len(tables)
    low, high = mover(shares, *limits, contrast, correlation)
    noisy = "noisy " if variances.any() else ""
    method = f"{noisy}newcombe paired" if len(tables) == 1 else f"mover of {noisy}newcombe paired"
    value = float(contrast[0] @ shares)
    sd = sum(table.change_noise for table in tables) ** 0.5 / len(tables)
    return Estimate.of(name, value, low[0], high[0], n=n, method=method, level=level, group=group, noise_sd=sd)


def _predictive_value_change(
    metric: str, pair: Counts, variances: Floats, group: str | None, level: float, minimum: int
) -> Estimate:
    """Delta method over the cells of one multinomial; npv is ppv with labels and decisions exchanged."""
    table, noise = (part if metric == "ppv" else part[::-1, ::-1, ::-1] for part in (pair, variances))
    name, n = f"{metric}_change", int(table.sum())
    called = [int(table[:, 1].sum()), int(table[:, :, 1].sum())]
    blurred = [float(noise[:, 1].sum()), float(noise[:, :, 1].sum())]
    reasons = (shortage(c, RATES[metric][2], minimum, v) for c, v in zip(called, blurred, strict=True))
    if lacking := [reason for reason in reasons if reason]:
        return Estimate.missing(name, lacking[0], n=n, level=level, group=group)
    found = np.clip([table[1, 1].sum() / called[0], table[1, :, 1].sum() / called[1]], 0.0, 1.0)
    value = float(found[1] - found[0])
    cells = np.maximum(table, 0) + _PRIOR
    label, before, after = np.indices(cells.shape)
    influence = np.zeros(cells.shape)
    for sign, decision in ((-1, before), (1, after)):
        weight = cells * decision
        share = (weight * label).sum() / weight.sum()
        influence += sign * decision * (label - share) / weight.sum()
    added = float((noise * influence**2).sum())
    half = normal_quantile(level) * (float((cells * influence**2).sum()) + added) ** 0.5
    return Estimate.of(
        name, value, value - half, value + half, n=n, method="delta", level=level, group=group, noise_sd=added**0.5
    )


def gap_change(
    metric: str,
    pair: Counts,
    names: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    noise: CellNoise = 0.0,
) -> Estimate:
    """After minus before of a gap between groups; below 0, the gap fell.

    Args:
        metric: a name of `contrasts.GAPS`.
        pair: (G + 1, 2, 2, 2) patients, `unknown` last.
        names, level, minimum: as in `rates.gap`; the same groups are compared before and after.
        noise: variance of the noise in one cell of `pair`, or an array that broadcasts to its shape.
    """
    form = find_gap(metric)
    counts, variances = counts_before(pair), cell_variances(noise, pair)
    chosen = strata(counts, form, names, minimum, counts_before(variances))
    tables = [PairedRate(r, rate_table(r, pair[row]), rate_table(r, variances[row])) for r, row in chosen.columns]
    n = sum(table.n for table in tables)
    name = f"{metric}_change"
    if not chosen.enough:
        return Estimate.missing(name, chosen.why_not, n=n, level=level)
    before, after = _draws(tables)
    blocks = _blocks(chosen)
    change, low, high = change_limits(_contrasted(before, blocks), _contrasted(after, blocks), level)
    sd = _noise_of_change(tables, blocks)
    method = "least favourable, jeffreys"
    return Estimate.of(name, change, low, high, n=n, method=method, level=level, reason=chosen.reason, noise_sd=sd)


def _blocks(chosen: Strata) -> list[Floats]:
    """Contrasts (C_k, P) such that the gap is the mean over blocks of each block's largest contrast."""
    if chosen.form.form != "mean":
        return [chosen.contrasts]
    blocks, start = [], 0
    for size in chosen.sizes:
        block = np.zeros((size * (size - 1), len(chosen.columns)))
        block[:, start : start + size] = gap_contrasts([size], "max")
        blocks.append(block)
        start += size
    return blocks


def _draws(tables: Sequence[PairedRate]) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """(shares (P,), errors (DRAWS, P)) before and after, from 2 x 2 tables [before, after].

    The true shares of a table's cells are drawn from their posterior under `_PRIOR`, not the table from its own shares:
    20 of 20 found says nothing of how many more could be missed, and a redrawn table would hardly ever miss one. The
    noise in the cells is drawn as well, from a normal law.
    """
    generator = np.random.default_rng(0)  # sums that are released already: a fixed seed makes the report reproducible
    blur = np.random.default_rng(1)
    shares = np.zeros((2, len(tables)))
    errors = np.zeros((2, DRAWS, len(tables)))
    for column, table in enumerate(tables):
        cells = np.maximum(np.asarray(table.table, dtype=np.float64).ravel(), 0.0) + _PRIOR
        drawn = generator.dirichlet(cells, size=DRAWS)
        shares[:, column] = table.shares
        errors[:, :, column] = table.shares[:, None] - MEMBERS @ drawn.T
        if table.variances.any():
            noise = blur.normal(0.0, table.variances.ravel() ** 0.5, size=(DRAWS, 4))
            errors[:, :, column] += table.weights @ noise.T / table.n
    return (shares[0], errors[0]), (shares[1], errors[1])


def _noise_of_change(tables: Sequence[PairedRate], blocks: Sequence[Floats]) -> float:
    """Standard deviation that the noise alone gives the difference of the leading contrasts after and before."""
    leading = np.zeros((2, len(tables)))
    for side in (0, 1):
        shares = np.array([table.shares[side] for table in tables])
        leading[side] = np.mean([block[np.argmax(block @ shares)] for block in blocks], axis=0)
    signed = leading * np.array([[-1.0], [1.0]])
    parts = zip(signed.T, tables, strict=True)
    return math.sqrt(sum(float(weight @ table.noise_covariance @ weight) for weight, table in parts))


def _contrasted(model: tuple[Floats, Floats], blocks: Sequence[Floats]) -> tuple[list[Floats], list[Floats]]:
    shares, errors = model
    return [block @ shares for block in blocks], [errors @ block.T for block in blocks]
