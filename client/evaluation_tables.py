"""What a site computes to evaluate models: the tables of its patients' scores and decisions, and sums of placements."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from equipoise.client.contribution import Contribution, Fills, Totals
from equipoise.client.scores import patient_means
from equipoise.client.workplace import Workplace
from equipoise.common.catalogue import sites_of
from equipoise.common.classifier import alignment_from_inputs
from equipoise.common.errors import RefusedError
from equipoise.common.evaluation import BASE
from equipoise.common.fairness import auc
from equipoise.common.fairness.joint import interval_cells
from equipoise.common.fairness.tables import bin_scores, decide
from equipoise.common.study import ScoreInputs


def score_histogram(place: Workplace) -> Contribution:
    """The cell (group, label, score bin) of each patient, for every attribute of the query.

    Where noise protects the patients, one whose score is NaN or infinite fills no cell: a refusal would tell the server
    of that patient without noise.
    """
    scores, edges = _scores(place, "model"), place.query.inputs["edges"]["edges"]
    sound = np.isfinite(scores) | (not place.query.private)
    bins = bin_scores(np.where(sound, scores, 0.0), edges)
    cells = {}
    for name, block in place.query.blocks.items():
        # Of public shapes alone, and before a score is looked at: else the error would be about some patient's score.
        if edges.shape != (block.shape[2] - 1,):
            raise RefusedError(f"{place.query.name}: edges of shape {edges.shape} for {block.shape[2]} bins")
        cell = np.ravel_multi_index((place.group(name), place.label, bins), block.shape)
        cells[name] = np.where(sound, cell, -1)[:, None]
    return Fills(cells)


def decision_table(place: Workplace) -> Contribution:
    """The cell (group, label, interval of the score before, and after) of each patient, for every attribute.

    One whose score is NaN or infinite under either model fills no cell: an order that ends with NaN would count her as
    positive, and the histogram beside it leaves her out (exact evaluations are refused there).
    """
    thresholds = place.query.inputs["thresholds"]["thresholds"]
    for block in place.query.blocks.values():
        if thresholds.shape != (block.shape[2] - 1, 2):
            raise RefusedError(
                f"{place.query.name}: thresholds of shape {thresholds.shape} for {block.shape[2]} intervals"
            )
    scores = _scores(place, "before"), _scores(place, "after")
    sound = np.isfinite(scores).all(axis=0)
    before, after = interval_cells(*scores, *thresholds.T)
    cells = {
        name: np.ravel_multi_index((place.group(name), place.label, before, after), block.shape)
        for name, block in place.query.blocks.items()
    }
    return Fills({name: np.where(sound, cell, -1)[:, None] for name, cell in cells.items()})


def site_table(place: Workplace) -> Contribution:
    """The cell (this hospital, group, label, decision before, and after) of each patient, for every attribute."""
    own = np.full(len(place.label), sites_of(place.study).index(place.site))
    limits = place.query.inputs["thresholds"]["thresholds"][0]
    before, after = (
        decide(_scores(place, role), limit).astype(np.int64)
        for role, limit in zip(("before", "after"), limits, strict=True)
    )
    return Fills(
        {
            name: np.ravel_multi_index((own, place.group(name), place.label, before, after), block.shape)[:, None]
            for name, block in place.query.blocks.items()
        }
    )


def placement_sums(place: Workplace) -> Contribution:
    """Sums of placements within each group, for the paired variance of an AUC change."""
    query = place.query
    edges = query.inputs["edges"]["edges"]
    bins = {role: bin_scores(_scores(place, role), edges) for role in ("before", "after")}
    result = {}
    for name, block in query.blocks.items():
        group = place.group(name)
        before, after = (
            auc.placements_of_bins(query.inputs["histograms"][f"{role}.{name}"])[group, place.label, bins[role]]
            for role in ("before", "after")
        )
        result[name] = auc.placement_sums(before, after, place.label, group, block.shape[0])
    return Totals(result)


def _scores(place: Workplace, prefix: str) -> NDArray[np.float64]:
    inputs = place.study.inputs
    if isinstance(inputs, ScoreInputs):
        column = 0 if place.query.parameters[prefix] == BASE or inputs.after is None else 1
        return patient_means(place.split.inputs[:, column], place.split)
    scores = place.scores.scores(place.study, place.query, prefix, place.split)
    alignment = alignment_from_inputs(place.query.inputs, prefix)
    return scores if alignment is None else alignment(scores, place.group(place.study.primary.name))
