"""Cells (group x label) and the weights that make every loss a sum over patients.

A bias loss compares the mean scores of groups, so it is no sum over patients as it stands, and a hospital that lacks a
group cannot compute it. With global cell counts and mean scores, which the server holds as releases, each loss becomes
a sum of per-patient terms with public weights (spec: SWiFT federated by global coefficients). Balancing is by weights
too, never by resampling.

Arrays here are (G + 1, 2): the declared groups in order, then `unknown`; label 0, label 1.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Cells = NDArray[np.float64]
Balance = Literal["none", "classes", "smaller_group", "cells", "independent"]
BiasLoss = Literal["equalized_odds", "equal_opportunity", "demographic_parity"]
Form = Literal["absolute", "signed"]

WITHOUT_GROUPS: tuple[Balance, ...] = ("none", "classes")  # weights that are the same for every group
FEWEST = 2.0  # a cell with fewer patients has no mean score worth comparing


def task_weights(counts: Cells, balance: Balance, cap: float = np.inf) -> Cells:
    """Weight of each patient's cross-entropy by cell, with mean 1 over the patients.

    Args:
        counts: patients by cell, (G + 1, 2); may be noisy and below zero.
        balance: `none`; `classes`, both labels weigh alike (class-balanced cross-entropy); `cells`, all cells weigh
            alike; `smaller_group`, each group is brought to the counts of the smallest group that has both labels, and
            labels then weigh alike (SWiFT's balanced sample, in expectation, without drawing one); `independent`, a
            cell weighs what it would count if group and label were independent, against what it counts (Kamiran &
            Calders 2012).
        cap: largest weight relative to the mean, so that one patient of a tiny cell cannot dominate.

    Empty cells have weight 0. A patient of unknown group weighs what a patient of the same label weighs on average.
    """
    n = np.maximum(counts, 0.0)
    known = n[:-1]
    if balance == "none":
        return (n > 0).astype(np.float64)
    if balance == "classes":
        return _mean_one(np.broadcast_to(_class_weights(n.sum(axis=0)), n.shape), n, cap)
    if balance == "cells":
        weights = np.divide(1.0, known, out=np.zeros_like(known), where=known > 0)
    elif balance == "independent":
        expected = known.sum(axis=1, keepdims=True) * known.sum(axis=0) / max(float(known.sum()), 1e-12)
        weights = np.divide(expected, known, out=np.zeros_like(known), where=known > 0)
    else:
        weights = np.divide(_smallest(known), known, out=np.zeros_like(known), where=known > 0)
        weights = weights * _class_weights((weights * known).sum(axis=0))
    of_label = known.sum(axis=0)
    unknown = np.divide((weights * known).sum(axis=0), of_label, out=np.zeros(2), where=of_label > 0)
    return _mean_one(np.vstack([weights, unknown]), n, cap)


def _mean_one(weights: Cells, n: Cells, cap: float) -> Cells:
    """Weights of the cells that hold patients, scaled to mean 1 over the patients and capped."""
    held: Cells = np.where(n > 0, weights, 0.0)
    total = float((held * n).sum())
    return np.minimum(held * (n.sum() / total), cap) if total > 0 else held


def _smallest(known: Cells) -> NDArray[np.float64]:
    """Patients by label of the smallest group that has both; of all groups together where none has.

    One of nobody, or without a label, would bring every other group's patients of that label to nothing. Since labels
    weigh alike in the end, any group with both leads to the same weights.
    """
    whole = known[(known > 0).all(axis=1)]
    smallest: NDArray[np.float64] = whole[np.argmin(whole.sum(axis=1))] if len(whole) else known.sum(axis=0)
    return smallest


def _class_weights(of_label: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of label 0 and 1: the share of the other label (docs/methods.md, SWiFT 1.2)."""
    total = max(float(of_label.sum()), 1e-12)
    return np.array([of_label[1], of_label[0]]) / total


def bias_weights(
    counts: Cells, score_sums: Cells, loss: BiasLoss, form: Form = "absolute", smoothing: float = 0.08
) -> Cells:
    """Weight of each patient's score p by cell, so that the mean of weight * p has the bias loss's gradient.

    Args:
        counts: patients by cell, (G + 1, 2).
        score_sums: sum of the scores p over the same patients, (G + 1, 2).
        loss: `equalized_odds`, half the sum over labels of the gap of mean scores; `equal_opportunity`, the gap among
            the positives; `demographic_parity`, the gap over all.
        form: `absolute` adds the labels' absolute gaps; `signed` takes one absolute value of their sum, in which
            opposite gaps cancel (the published code; for two groups only, and the first of these less the other).
        smoothing: width over which the sign of a gap turns from -1 to 1; 0 for the hard sign.

    Each group that has patients is compared with the rest, averaged over these groups (for two this is their gap). A
    comparison in which one side has fewer than two patients is dropped: an absent group is no reason to lower every
    score.
    """
    n = np.maximum(counts, 0.0)
    means = np.divide(score_sums, n, out=np.zeros_like(n), where=n > 0)
    total = n.sum()
    gradient = np.zeros_like(n)
    for share, contrast in _contrasts(n, loss, form):
        gap = float((contrast * means).sum())
        sign = np.sign(gap) if smoothing == 0 else np.clip(gap / smoothing, -1.0, 1.0)
        gradient += share * sign * contrast
    weights: Cells = np.divide(gradient * total, n, out=np.zeros_like(n), where=n > 0)
    return weights


def squared_bias_weights(counts: Cells, loss: BiasLoss) -> Cells:
    """Squares of the bias weights where no gap is known: every contrast in full force, signs taken as independent.

    For two groups this is proportional to the square of `bias_weights` where each compared gap exceeds its smoothing.

    Args:
        counts: patients by cell, (G + 1, 2); may be noisy.
        loss: see `bias_weights`.
    """
    n = np.maximum(counts, 0.0)
    squares = np.zeros_like(n)
    for share, contrast in _contrasts(n, loss, "absolute"):
        squares += np.divide(share * contrast * n.sum(), n, out=np.zeros_like(n), where=n > 0) ** 2
    return squares


def bias_value(counts: Cells, score_sums: Cells, loss: BiasLoss, form: Form = "absolute") -> float:
    """The bias loss itself, from cell counts and sums of scores; 0 where nothing can be compared."""
    n = np.maximum(counts, 0.0)
    means = np.divide(score_sums, n, out=np.zeros_like(n), where=n > 0)
    return sum(share * abs(float((contrast * means).sum())) for share, contrast in _contrasts(n, loss, form))


def _contrasts(n: Cells, loss: BiasLoss, form: Form) -> list[tuple[float, Cells]]:
    """The terms share * |sum(contrast * means)| whose sum is the bias loss."""
    pools = {
        "equalized_odds": [(0.5, np.array([1.0, 0.0])), (0.5, np.array([0.0, 1.0]))],
        "equal_opportunity": [(1.0, np.array([0.0, 1.0]))],
        "demographic_parity": [(1.0, np.array([1.0, 1.0]))],
    }[loss]
    # A declared group of nobody is none of those that the mean is over.
    groups = np.flatnonzero(n[:-1].sum(axis=1) > 0).tolist()
    if form == "signed":
        groups = groups[:1]  # the first of two against the other, all labels inside one absolute value
    terms = [
        (share / len(groups), contrast)
        for share, labels in pools
        for group in groups
        if (contrast := _against_rest(n * labels, group)) is not None
    ]
    if form == "signed" and terms:
        return [(terms[0][0], np.sum([contrast for _, contrast in terms], axis=0))]
    return terms


def _against_rest(patients: Cells, group: int) -> Cells | None:
    """Coefficients of the cell means in (mean of `group`) - (mean of the others); None where a side is empty."""
    known = patients[:-1]
    own, others = known[group].sum(), known.sum() - known[group].sum()
    if own < FEWEST or others < FEWEST:
        return None
    contrast = np.zeros_like(patients)
    contrast[:-1] = -known / others
    contrast[group] = known[group] / own
    return contrast
