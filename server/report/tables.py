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

from equipoise.common.evaluation import BASE, POINTS, Measured
from equipoise.common.fairness.auc import auc_by_group, auc_gap, overall_auc, worst_group_auc
from equipoise.common.fairness.auc_change import (
    auc_change_by_group,
    auc_gap_change,
    overall_auc_change,
    worst_group_auc_change,
)
from equipoise.common.fairness.change import gap_change, overall_rate_change, rate_change_by_group
from equipoise.common.fairness.estimate import Estimate
from equipoise.common.fairness.rates import expected_if_equal, gap, overall_rate, rate_by_group
from equipoise.common.fairness.tables import Counts, counts_after, counts_at_every_edge, counts_before, group_names
from equipoise.common.study import Attribute, Study

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
        counts = measured.histograms[BASE, "test"][attribute.name].sum(axis=2)
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


def models(study: Study, measured: Measured) -> Json:
    """model -> overall figures, and figures by attribute; each at every operating point."""
    return {model: _model(study, measured, model) for model in models_in(measured)}


def _model(study: Study, measured: Measured, model: str) -> Json:
    histograms = measured.histograms[model, "test"]
    primary = study.primary.name
    overall = _decisions(measured, model, primary)
    return {
        "auc": overall_auc(histograms[primary]).to_json(),
        "points": {
            point: {rate: overall_rate(rate, overall[i]).to_json() for rate in RATES} for i, point in enumerate(POINTS)
        },
        "attributes": {a.name: _model_by_group(measured, model, a) for a in study.attributes},
    }


def _model_by_group(measured: Measured, model: str, attribute: Attribute) -> Json:
    names, hist = attribute.groups, measured.histograms[model, "test"][attribute.name]
    counts = _decisions(measured, model, attribute.name)
    return {
        "auc_by_group": _all(auc_by_group(hist, names)),
        "worst_group_auc": worst_group_auc(hist, names).to_json(),
        "auc_gap": auc_gap(hist, names).to_json(),
        "points": {
            point: {
                "by_group": {rate: _all(rate_by_group(rate, counts[i], names)) for rate in RATES},
                "gaps": {metric: _gap(metric, counts[i], names) for metric in GAPS},
            }
            for i, point in enumerate(POINTS)
        },
    }


def _gap(metric: str, counts: Counts, names: Sequence[str]) -> Json:
    expected = expected_if_equal(metric, counts, names)
    return {**gap(metric, counts, names).to_json(), "expected_if_equal": expected}


def _decisions(measured: Measured, model: str, attribute: str) -> Counts:
    """counts[point, g, y, decision] of a model, from its pair table with the base."""
    if model != BASE:
        return counts_after(measured.pairs[BASE, model][attribute])
    other = next(after for before, after in measured.pairs if before == BASE)
    return counts_before(measured.pairs[BASE, other][attribute])


def changes(study: Study, measured: Measured) -> list[Json]:
    """Paired changes: each model against the base, and the method against each control (after is the method)."""
    return [
        _change(study, measured, before, after)
        for before, after in measured.pairs
        if not before.startswith(LOCAL) and not after.startswith(LOCAL)
    ]


def _change(study: Study, measured: Measured, before: str, after: str) -> Json:
    primary = study.primary.name
    pair = measured.pairs[before, after][primary]
    first, second = (measured.histograms[model, "test"][primary] for model in (before, after))
    return {
        "before": before,
        "after": after,
        "auc": overall_auc_change(first, second).to_json(),
        "points": {
            point: {rate: overall_rate_change(rate, pair[i]).to_json() for rate in RATES}
            for i, point in enumerate(POINTS)
        },
        "attributes": {a.name: _change_by_group(measured, before, after, a) for a in study.attributes},
    }


def _change_by_group(measured: Measured, before: str, after: str, attribute: Attribute) -> Json:
    name, names = attribute.name, attribute.groups
    first, second = (measured.histograms[model, "test"][name] for model in (before, after))
    # Placements are summed against the base only; a method and a control are compared unpaired, which is conservative.
    sums = measured.placements.get(after, {}).get(name) if before == BASE else None
    pair = measured.pairs[before, after][name]
    return {
        "auc_by_group": _all(auc_change_by_group(first, second, names, sums=sums)),
        "worst_group_auc": worst_group_auc_change(first, second, names, sums=sums).to_json(),
        "auc_gap": auc_gap_change(first, second, names, sums=sums).to_json(),
        "points": {
            point: {
                "by_group": {rate: _all(rate_change_by_group(rate, pair[i], names)) for rate in RATES},
                "gaps": {metric: gap_change(metric, pair[i], names).to_json() for metric in GAPS},
            }
            for i, point in enumerate(POINTS)
        },
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
                hist = measured.histograms[model, "test"][attribute.name]
                if auc_by_group(hist, attribute.groups)[row].value is not None:
                    by_group.setdefault(group, {})[model] = _roc(hist[row])
        curves[attribute.name] = by_group
    return curves


def _roc(counts: Counts) -> list[list[float]]:
    cut = counts_at_every_edge(counts[None])[:, 0]  # (edge, y, decision), thresholds rising
    rates = cut[::-1, :, 1] / counts.sum(axis=1)
    points = [[0.0, 0.0]]
    for fpr, tpr in rates:
        if (fpr - points[-1][0]) + (tpr - points[-1][1]) >= 2 / ROC_POINTS:
            points.append([round(float(fpr), 5), round(float(tpr), 5)])
    return points if points[-1] == [1.0, 1.0] else [*points, [1.0, 1.0]]


def _all(estimates: Iterable[Estimate]) -> list[Json]:
    return [estimate.to_json() for estimate in estimates]
