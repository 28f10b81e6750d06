"""Every figure of the report, computed from the released integer tables: JSON values, one Estimate a cell.

Nothing is rounded here and nothing is dropped: a figure that the patients do not support keeps its place, with the
status `not_estimable` and the reason. `models` says what each model does; `changes` what two models do to the same
patients (paired); `averages` sums up controls that exist once per site.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from equipoise.common.alignment import Alignment
from equipoise.common.attribute import Attribute
from equipoise.common.evaluation import BASE, POINTS, ByAttribute, Measured
from equipoise.common.fairness.auc import auc_by_group, auc_gap, overall_auc, worst_group_auc
from equipoise.common.fairness.auc_change import (
    auc_change_by_group,
    auc_gap_change,
    overall_auc_change,
    worst_group_auc_change,
)
from equipoise.common.fairness.change import gap_change, overall_rate_change, rate_change_by_group
from equipoise.common.fairness.estimate import Estimate
from equipoise.common.fairness.noise import projected
from equipoise.common.fairness.rates import expected_if_equal, gap, overall_rate, rate_by_group
from equipoise.common.fairness.tables import (
    UNKNOWN_NAME,
    Counts,
    Floats,
    Table,
    counts_after,
    counts_at_every_edge,
    counts_before,
    group_names,
)
from equipoise.common.study import Study
from equipoise.server.report.lists import no_maximum

GAPS = (
    "equalized_odds_difference",
    "equalized_odds_mean",
    "equal_opportunity_difference",
    "fpr_difference",
    "demographic_parity_difference",
)
RATES = ("tpr", "fpr", "selection_rate", "balanced_accuracy")
LOCAL = "local_only/"  # one control per site
ROC_POINTS = 200  # of a drawn curve; figures come from all bins

Json = dict[str, Any]


def models_in(measured: Measured) -> list[str]:
    """Names of the measured models, the base first."""
    return [model for model, split in measured.histograms if split == "test"]


def coverage(study: Study, measured: Measured) -> list[Json]:
    """Per attribute and group, how many test patients and positives there are; `unknown` last."""
    rows = []
    for attribute in study.attributes:
        # Counted in the decision table: fewer cells than a histogram has, so less noise where there is any.
        counts = _first_pair(measured)[attribute.name][0].sum(axis=(2, 3))
        names = group_names(len(counts), attribute.groups)
        groups = [
            {"group": name, "declared": number < len(attribute.groups), "n": int(n.sum()), "positives": int(n[1])}
            for number, (name, n) in enumerate(zip(names, counts, strict=True))
        ]
        total, positives = int(counts.sum()), int(counts[:, 1].sum())
        rows.append(
            {
                "attribute": attribute.name,
                "primary": attribute.primary,
                "of": attribute.of,
                "n": total,
                "positives": positives,
                "groups": groups,
            }
        )
    return rows


def thresholds(measured: Measured) -> Json:
    """model -> operating point -> the threshold as a logit and as a probability."""
    return {
        model: {
            point: {"logit": float(logit), "probability": 0.5 * (1 + math.tanh(0.5 * float(logit)))}
            for point, logit in zip(POINTS, measured.thresholds[model], strict=True)
        }
        for model in models_in(measured)
    }


def group_thresholds(study: Study, measured: Measured, method: str, alignment: Alignment) -> Json:
    """operating point -> one row a group with its own threshold, for a method whose threshold differs by group."""
    names = group_names(len(study.primary.groups) + 1, study.primary.groups)
    return {
        point: [
            {"group": name, "logit": float(logit), "probability": 0.5 * (1 + math.tanh(0.5 * float(logit)))}
            for name, logit in zip(names, alignment.threshold(float(common)), strict=True)
        ]
        for point, common in zip(POINTS, measured.thresholds[method], strict=True)
    }


def models(study: Study, measured: Measured) -> Json:
    """model -> overall figures, and figures by attribute; each at every operating point."""
    return {model: _model(study, measured, model) for model in models_in(measured)}


def _model(study: Study, measured: Measured, model: str) -> Json:
    primary = study.primary.name
    hist, blur = measured.scores(model, primary)
    overall, noise = decisions(measured, model, primary)
    return {
        "auc": overall_auc(hist, noise=blur).to_json(),
        "points": {
            point: {rate: overall_rate(rate, overall[i], noise=noise[i]).to_json() for rate in RATES}
            for i, point in enumerate(POINTS)
        },
        "attributes": {a.name: _model_by_group(measured, model, a) for a in study.attributes},
    }


def _model_by_group(measured: Measured, model: str, attribute: Attribute) -> Json:
    names = attribute.groups
    counts, noise = decisions(measured, model, attribute.name)
    return {
        **_aucs(measured, model, attribute),
        "points": {
            point: {
                "by_group": {rate: _all(rate_by_group(rate, counts[i], names, noise=noise[i])) for rate in RATES},
                "gaps": {metric: _gap(attribute, metric, counts[i], noise[i]) for metric in GAPS},
            }
            for i, point in enumerate(POINTS)
        },
    }


def _aucs(measured: Measured, model: str, attribute: Attribute) -> Json:
    names = attribute.groups
    if attribute.name not in measured.histograms[model, "test"]:
        return _not_released(names, "auc", "worst_group_auc", "auc_gap")
    hist, blur = measured.scores(model, attribute.name)
    return {
        "auc_by_group": _all(auc_by_group(hist, names, noise=blur)),
        "worst_group_auc": worst_group_auc(hist, names, noise=blur).to_json(),
        "auc_gap": auc_gap(hist, names, noise=blur).to_json(),
    }


def _not_released(names: Sequence[str], auc: str, worst: str, apart: str) -> Json:
    """AUC figures of an attribute whose score histogram was not asked for."""

    def absent(metric: str, group: str | None = None) -> Json:
        reason = "under noise the score histogram is asked for the primary attribute alone"
        return Estimate.missing(metric, reason, n=None, group=group, status="not_released").to_json()

    return {
        "auc_by_group": [absent(auc, group) for group in (*names, UNKNOWN_NAME)],
        "worst_group_auc": absent(worst),
        "auc_gap": absent(apart),
    }


def _gap(attribute: Attribute, metric: str, counts: Counts, noise: Floats) -> Json:
    names = attribute.groups
    if attribute.of is not None:
        return {**no_maximum(metric).to_json(), "expected_if_equal": None}
    expected = expected_if_equal(metric, counts, names, noise=noise)
    return {**gap(metric, counts, names, noise=noise).to_json(), "expected_if_equal": expected}


def decisions(measured: Measured, model: str, attribute: str) -> tuple[Counts, Floats]:
    """counts[point, g, y, decision] of a model, from its pair table with the base, and the variances of their noise."""
    if model != BASE:
        pair = BASE, model
        return counts_after(measured.pairs[pair][attribute]), counts_after(measured.pair_noise[pair])
    pair = next(found for found in measured.pairs if found[0] == BASE)
    return counts_before(measured.pairs[pair][attribute]), counts_before(measured.pair_noise[pair])


def _first_pair(measured: Measured) -> ByAttribute:
    """The pair tables of the base model and the method."""
    return next(tables for pair, tables in measured.pairs.items() if pair[0] == BASE)


def changes(study: Study, measured: Measured) -> list[Json]:
    """Paired changes: each model against the base, and the method against each control (after is the method)."""
    return [
        _change(study, measured, before, after)
        for before, after in measured.pairs
        if not before.startswith(LOCAL) and not after.startswith(LOCAL)
    ]


def _change(study: Study, measured: Measured, before: str, after: str) -> Json:
    primary = study.primary.name
    pair, noise = measured.pairs[before, after][primary], measured.pair_noise[before, after]
    first, second, blur, joint = measured.score_pair(before, after, primary)
    return {
        "before": before,
        "after": after,
        "auc": overall_auc_change(first, second, joint=joint, noise=blur).to_json(),
        "points": {
            point: {rate: overall_rate_change(rate, pair[i], noise=noise[i]).to_json() for rate in RATES}
            for i, point in enumerate(POINTS)
        },
        "attributes": {a.name: _change_by_group(measured, before, after, a) for a in study.attributes},
    }


def _change_by_group(measured: Measured, before: str, after: str, attribute: Attribute) -> Json:
    name, names = attribute.name, attribute.groups
    pair, noise = measured.pairs[before, after][name], measured.pair_noise[before, after]
    return {
        **_auc_changes(measured, before, after, attribute),
        "points": {
            point: {
                "by_group": {rate: _all(rate_change_by_group(rate, pair[i], names, noise=noise[i])) for rate in RATES},
                "gaps": {
                    # The interval of a maximum over many groups takes long, and an intersection shows none.
                    metric: (
                        gap_change(metric, pair[i], names, noise=noise[i])
                        if attribute.of is None
                        else no_maximum(metric)
                    ).to_json()
                    for metric in GAPS
                },
            }
            for i, point in enumerate(POINTS)
        },
    }


def _auc_changes(measured: Measured, before: str, after: str, attribute: Attribute) -> Json:
    name, names = attribute.name, attribute.groups
    if name not in measured.histograms[before, "test"]:
        return _not_released(names, "auc_change", "worst_group_auc_change", "auc_gap_change")
    first, second, blur, joint = measured.score_pair(before, after, name)
    # Placements are summed against the base only; a method and a control are paired by their decision table alone.
    sums = measured.placements.get(after, {}).get(name) if before == BASE else None
    return {
        "auc_by_group": _all(auc_change_by_group(first, second, names, sums=sums, joint=joint, noise=blur)),
        "worst_group_auc": worst_group_auc_change(first, second, names, sums=sums, joint=joint, noise=blur).to_json(),
        "auc_gap": auc_gap_change(first, second, names, sums=sums, joint=joint, noise=blur).to_json(),
    }


def averages(study: Study, table: Mapping[str, Any]) -> Json:
    """Mean and range over sites of the figures of `local_only`, by attribute; empty where there is no such control.

    Each site's model is measured on all sites' test patients. A figure that is not estimable for a site is left out,
    and `models` says how many were averaged.
    """
    local = [value for name, value in table.items() if name.startswith(LOCAL)]
    if not local:
        return {}
    by_attribute = {
        a.name: {
            "worst_group_auc": _mean(model["attributes"][a.name]["worst_group_auc"] for model in local),
            "points": {
                point: {
                    metric: _mean(model["attributes"][a.name]["points"][point]["gaps"][metric] for model in local)
                    for metric in GAPS
                }
                for point in POINTS
            },
        }
        for a in study.attributes
    }
    return {LOCAL.rstrip("/"): {"auc": _mean(model["auc"] for model in local), "attributes": by_attribute}}


def _mean(estimates: Iterable[Json]) -> Json:
    values = [estimate["value"] for estimate in estimates if estimate["value"] is not None]
    if not values:
        return {"mean": None, "lowest": None, "highest": None, "models": 0}
    return {"mean": float(np.mean(values)), "lowest": min(values), "highest": max(values), "models": len(values)}


def roc_curves(study: Study, measured: Measured, chosen: Sequence[str]) -> Json:
    """attribute -> group -> model -> points [fpr, tpr] of the ROC curve, for groups whose AUC is estimable.

    The first point is (0, 0), the last (1, 1); points closer than one in `ROC_POINTS` of the curve's length are left
    out, so that the curve can be drawn.
    """
    curves: Json = {}
    for attribute in study.attributes:
        by_group: Json = {}
        for row, group in enumerate(attribute.groups):
            for model in chosen:
                if attribute.name not in measured.histograms[model, "test"]:
                    continue
                hist, blur = measured.scores(model, attribute.name)
                if auc_by_group(hist, attribute.groups, noise=blur)[row].value is not None:
                    by_group.setdefault(group, {})[model] = _roc(hist[row])
        curves[attribute.name] = by_group
    return curves


def _roc(counts: Table) -> list[list[float]]:
    # Noisy counts can fall where a curve must rise; counts without noise are their own projection.
    rising = projected(counts, np.maximum(counts.sum(axis=1), 0.0))
    cut = counts_at_every_edge(rising[None])[:, 0]  # (edge, y, decision), thresholds rising
    rates = cut[::-1, :, 1] / rising.sum(axis=1)
    points = [[0.0, 0.0]]
    for fpr, tpr in rates:
        if (fpr - points[-1][0]) + (tpr - points[-1][1]) >= 2 / ROC_POINTS:
            points.append([round(float(fpr), 5), round(float(tpr), 5)])
    return points if points[-1] == [1.0, 1.0] else [*points, [1.0, 1.0]]


def _all(estimates: Iterable[Estimate]) -> list[Json]:
    return [estimate.to_json() for estimate in estimates]
