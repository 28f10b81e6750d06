"""Paired changes: what a rate or a gap of the same patients became, each with its interval.

`pair[g, y, before, after]` counts patients by both models' decisions at one operating point. Whatever "before" and
"after" are: the base model and the repaired one, or a control and a method (then the difference says which gap is the
smaller). The pairing narrows the interval by about half, because most decisions do not change.

Official intervals (alternatives were tried and lost, see `maximum`):

    one rate (tpr, fnr, fpr, tnr, selection_rate, accuracy)   Newcombe's paired score interval, method 10
    balanced_accuracy                                         MOVER of the paired intervals of TPR and TNR
    ppv, npv                                                  delta method over eight cells (the denominators move)
    every gap                                                 least favourable multinomial bootstrap, fixed seed

A comparison of a method with a control needs their own pair table, which a simulation can make (the query takes any two
models). Where only both tables against the base model exist, `through_base` gives the table that they imply if method
and control were independent given the base decision. Models that are tuned from one base on the same patients agree
more than that, so the interval is too wide rather than too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from equipoise.common.errors import StudyError
from equipoise.common.fairness.contrasts import find_gap, gap_contrasts
from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.intervals import mover, normal_quantile, paired_correlation, wilson_limits
from equipoise.common.fairness.maximum import DRAWS, change_limits
from equipoise.common.fairness.rates import Strata, strata, too_few
from equipoise.common.fairness.tables import Counts, Floats, counts_before, group_names

Pair = NDArray[np.int64] | NDArray[np.float64]  # float only from `through_base`

_PROPORTIONS = ("tpr", "fnr", "fpr", "tnr", "selection_rate", "accuracy")
_SMOOTHING = 0.25  # patients added to each cell of a table, so that a disagreement nobody showed stays possible


def rate_table(rate: str, pair: Pair) -> Pair:
    """The 2 x 2 table [before, after] of a paired proportion from pair[y, before, after]; index 1 counts for the rate.

    Raises:
        StudyError: the rate is no proportion of the same patients before and after.
    """
    flipped = pair[:, ::-1, ::-1]
    tables: dict[str, Pair] = {
        "tpr": pair[1],
        "fnr": flipped[1],
        "fpr": pair[0],
        "tnr": flipped[0],
        "selection_rate": pair[0] + pair[1],
        "accuracy": flipped[0] + pair[1],
    }
    if rate not in tables:
        known = ", ".join((*_PROPORTIONS, "balanced_accuracy", "ppv", "npv"))
        raise StudyError(f"metric={rate}: its change is not defined; choose one of {known}")
    return tables[rate]


def rate_change_by_group(
    metric: str,
    pair: Counts,
    names: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
) -> tuple[Estimate, ...]:
    """After minus before of a rate or of `balanced_accuracy`, for each row of pair[g, y, before, after].

    Edge case: fewer than `minimum` patients in a denominator, before or after, give `not_estimable`.
    """
    labels = group_names(len(pair), names)
    return tuple(_one(metric, table, name, level, minimum) for table, name in zip(pair, labels, strict=True))


def overall_rate_change(
    metric: str, pair: Counts, *, level: float = LEVEL, minimum: int = MINIMUM_PATIENTS
) -> Estimate:
    """After minus before over all patients, those of unknown group included."""
    return _one(metric, pair.sum(axis=0), None, level, minimum)


def _one(metric: str, pair: Counts, group: str | None, level: float, minimum: int) -> Estimate:
    name = f"{metric}_change"
    if metric in ("ppv", "npv"):
        return _predictive_value_change(metric, pair, group, level, minimum)
    rates = {"balanced_accuracy": ("tpr", "tnr")}.get(metric, (metric,))
    tables = [rate_table(rate, pair) for rate in rates]
    sizes = [int(table.sum()) for table in tables]
    lacking = [too_few(n, rate, minimum) for n, rate in zip(sizes, rates, strict=True) if n < max(minimum, 1)]
    if lacking:
        return Estimate.missing(name, "; ".join(lacking), n=sum(sizes), level=level, group=group)
    shares = np.array([[table[1].sum(), table[:, 1].sum()] / table.sum() for table in tables]).ravel()
    limits = wilson_limits(shares, np.repeat(np.array(sizes, dtype=np.float64), 2), normal_quantile(level))
    correlation = np.eye(len(shares))
    for index, table in enumerate(tables):
        before, after = 2 * index, 2 * index + 1
        correlation[before, after] = correlation[after, before] = paired_correlation(table)
    contrast = np.tile([-1.0, 1.0], len(tables))[None] / len(tables)
    low, high = mover(shares, *limits, contrast, correlation)
    method = "newcombe paired" if len(tables) == 1 else "mover of newcombe paired"
    value = float(contrast[0] @ shares)
    return Estimate.of(name, value, low[0], high[0], n=sum(sizes), method=method, level=level, group=group)


def _predictive_value_change(metric: str, pair: Counts, group: str | None, level: float, minimum: int) -> Estimate:
    """Delta method over the cells of one multinomial; npv is ppv with labels and decisions exchanged."""
    table = pair if metric == "ppv" else pair[::-1, ::-1, ::-1]
    name, n = f"{metric}_change", int(table.sum())
    called = [int(table[:, 1].sum()), int(table[:, :, 1].sum())]
    lacking = [too_few(count, metric, minimum) for count in called if count < max(minimum, 1)]
    if lacking:
        return Estimate.missing(name, lacking[0], n=n, level=level, group=group)
    value = float(table[1, :, 1].sum() / called[1] - table[1, 1].sum() / called[0])
    cells = table + _SMOOTHING
    label, before, after = np.indices(cells.shape)
    influence = np.zeros(cells.shape)
    for sign, decision in ((-1, before), (1, after)):
        weight = cells * decision
        share = (weight * label).sum() / weight.sum()
        influence += sign * decision * (label - share) / weight.sum()
    half = normal_quantile(level) * float((cells * influence**2).sum()) ** 0.5
    return Estimate.of(name, value, value - half, value + half, n=n, method="delta", level=level, group=group)


def gap_change(
    metric: str,
    pair: Pair,
    names: Sequence[str] | None = None,
    *,
    level: float = LEVEL,
    minimum: int = MINIMUM_PATIENTS,
    include_unknown: bool = False,
) -> Estimate:
    """After minus before of a gap between groups; below 0, the gap fell.

    Args:
        metric: a name of `contrasts.GAPS`.
        pair: (G + 1, 2, 2, 2) patients, `unknown` last; counts, or expected counts of `through_base`.
        names, level, minimum, include_unknown: as in `rates.gap`; the same groups are compared before and after.
    """
    form = find_gap(metric)
    counts = np.rint(counts_before(pair)).astype(np.int64)
    chosen = strata(counts, form, names, minimum, include_unknown)
    tables = [rate_table(rate, pair[row]) for rate, row in chosen.columns]
    n = sum(round(float(table.sum())) for table in tables)
    name = f"{metric}_change"
    if not chosen.enough:
        return Estimate.missing(name, f"fewer than two groups to compare: {chosen.reason}", n=n, level=level)
    before, after = _bootstrap(tables)
    blocks = _blocks(chosen)
    change, low, high = change_limits(_contrasted(before, blocks), _contrasted(after, blocks), level)
    method = "least favourable multinomial bootstrap"
    return Estimate.of(name, change, low, high, n=n, method=method, level=level, reason=chosen.reason)


def _blocks(chosen: Strata) -> list[Floats]:
    """Contrasts (C_k, P) such that the gap is the mean over blocks of each block's largest contrast."""
    if chosen.form.form == "max":
        return [chosen.contrasts]
    blocks, start = [], 0
    for size in chosen.sizes:
        block = np.zeros((size * (size - 1), len(chosen.columns)))
        block[:, start : start + size] = gap_contrasts([size], "max")
        blocks.append(block)
        start += size
    return blocks


def _bootstrap(tables: Sequence[Pair]) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """(shares (P,), errors (DRAWS, P)) before and after, from 2 x 2 tables [before, after].

    Parametric: each table is redrawn with its own number of patients from its smoothed cell shares.
    """
    generator = np.random.default_rng(0)  # sums that are released already: a fixed seed makes the report reproducible
    shares = np.zeros((2, len(tables)))
    errors = np.zeros((2, DRAWS, len(tables)))
    for column, table in enumerate(tables):
        n = round(float(table.sum()))
        cells = np.asarray(table, dtype=np.float64).ravel() + _SMOOTHING
        cells /= cells.sum()
        drawn = generator.multinomial(n, cells, size=DRAWS) / n
        # Cells in the order 00, 01, 10, 11 of [before, after].
        for side, members in enumerate(([2, 3], [1, 3])):
            shares[side, column] = float(np.asarray(table).ravel()[members].sum()) / n
            errors[side, :, column] = (drawn - cells)[:, members].sum(axis=1)
    return (shares[0], errors[0]), (shares[1], errors[1])


def _contrasted(model: tuple[Floats, Floats], blocks: Sequence[Floats]) -> tuple[list[Floats], list[Floats]]:
    shares, errors = model
    return [block @ shares for block in blocks], [errors @ block.T for block in blocks]


def through_base(pair_control: Counts, pair_method: Counts) -> Floats:
    """Expected pair[g, y, control, method] if both decisions were independent given the base model's.

    Args:
        pair_control, pair_method: (G + 1, 2, 2, 2), base before and control or method after, on the same patients.

    Returns:
        float64, with the margins of both tables exactly.

    Raises:
        ValueError: the base model's decisions differ, so the tables are not about the same patients.
    """
    base = counts_before(pair_control)
    if not np.array_equal(base, counts_before(pair_method)):
        raise ValueError("the tables of control and method have different base decisions; were patients exchanged?")
    share = pair_method / np.maximum(base, 1)[..., None]
    expected: Floats = np.einsum("gybc,gybm->gycm", pair_control.astype(np.float64), share)
    return expected
