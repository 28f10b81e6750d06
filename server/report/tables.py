"""Every figure of the report, computed from the released integer tables: JSON values, one Estimate a cell.

Nothing is rounded here and nothing is dropped: a figure that the patients do not support keeps its place, with the
status `not_estimable` and the reason. `models` says what each model does; `changes` what two models do to the same
patients (paired); `averages` sums up controls that exist once per site.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from equipoise.common.alignment import Alignment
from equipoise.common.attribute import Attribute
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
from equipoise.common.fairness.reference import difference
from equipoise.common.fairness.tables import (
    UNKNOWN_NAME,
    Counts,
    Floats,
    group_names,
)
from equipoise.common.study import Study
from equipoise.server.report.linked_sums import ALL
from equipoise.server.report.lists import no_maximum
from equipoise.server.report.suppression import Suppression

GAPS = (
    "equalized_odds_difference",
    "equalized_odds_mean",
    "equal_opportunity_difference",
    "fpr_difference",
    "demographic_parity_difference",
)
RATES = ("tpr", "fpr", "selection_rate", "balanced_accuracy")
LOCAL = "local_only/"  # one control per site

Json = dict[str, Any]


def models_in(measured: Measured) -> list[str]:
    """Names of the measured models, the base first."""
    return [model for model, split in measured.histograms if split == "test"]


def coverage(study: Study, measured: Measured, hidden: Suppression) -> list[Json]:
    """Per attribute and group, how many test patients and positives there are, and their share; `unknown` last.

    A hidden count is a text: `<11` of a small one, `hidden` of one that would give a small one away.
    """
    rows = []
    for attribute in study.attributes:
        # Counted in the decision table: fewer cells than a histogram has, so less noise where there is any.
        decided, noise = (part[0] for part in measured.decisions(BASE, attribute.name))
        counts = decided.sum(axis=-1)
        shares = rate_by_group("prevalence", decided, attribute.groups, noise=noise)

        def shown(row: int, name: str = attribute.name, counts: Counts = counts) -> Json:
            if hidden.active:
                return {"n": hidden.count(name, row), "positives": hidden.count(name, row, 1)}
            own = counts.sum(axis=0) if row == ALL else counts[row]
            return {"n": int(own.sum()), "positives": int(own[1])}

        rows.append(
            {
                "attribute": attribute.name,
                "primary": attribute.primary,
                "of": attribute.of,
                **shown(ALL),
                "prevalence_shift": _prevalence_shift(decided, noise, attribute, hidden),
                "groups": [
                    {
                        "group": share.group,
                        "declared": row < len(attribute.groups),
                        **shown(row),
                        "prevalence": hidden.of_patients(share, attribute.name, [row]).to_json(),
                    }
                    for row, share in enumerate(shares)
                ],
            }
        )
    return rows


def _prevalence_shift(counts: Counts, noise: Floats, attribute: Attribute, hidden: Suppression) -> list[str] | None:
    """The groups with the lowest and the highest prevalence; None unless the interval of their difference excludes 0.

    The extremes of many groups differ by chance, so it is Newcombe's with Bonferroni over the pairs of groups.
    """
    rates = rate_by_group("prevalence", counts, attribute.groups, noise=noise)[:-1]
    seen = {
        row: e.value for row, e in enumerate(rates) if e.value is not None and not hidden.hides(attribute.name, [row])
    }
    if len(seen) < 2:
        return None
    low, high = min(seen, key=lambda row: seen[row]), max(seen, key=lambda row: seen[row])
    pairs = len(seen) * (len(seen) - 1) // 2
    found = difference("prevalence", counts, high, low, attribute.groups, comparisons=pairs, noise=noise)
    shown = found.low is not None and found.low > 0
    return [attribute.groups[row] for row in (low, high)] if shown else None


def thresholds(measured: Measured) -> Json:
    """model -> operating point -> the threshold as a logit and as a probability."""
    return {
        model: {
            point: {"logit": float(logit), "probability": float(expit(logit))}
            for point, logit in zip(POINTS, measured.thresholds[model], strict=True)
        }
        for model in models_in(measured)
    }


def group_thresholds(study: Study, measured: Measured, method: str, alignment: Alignment) -> Json:
    """operating point -> one row a group with its own threshold, for a method whose threshold differs by group."""
    names = group_names(len(study.primary.groups) + 1, study.primary.groups)
    return {
        point: [
            {"group": name, "logit": float(logit), "probability": float(expit(logit))}
            for name, logit in zip(names, alignment.threshold(float(common)), strict=True)
        ]
        for point, common in zip(POINTS, measured.thresholds[method], strict=True)
    }


def models(study: Study, measured: Measured, hidden: Suppression) -> Json:
    """model -> overall figures, and figures by attribute; each at every operating point."""
    return {model: _model(study, measured, model, hidden) for model in models_in(measured)}


def _model(study: Study, measured: Measured, model: str, hidden: Suppression) -> Json:
    primary = study.primary.name
    hist, blur = measured.scores(model, primary)
    overall, noise = measured.decisions(model, primary)

    def rate_of_all(rate: str, i: int) -> Json:
        found = overall_rate(rate, overall[i], noise=noise[i])
        return hidden.of_decisions(found, None, [ALL], [model], i).to_json()

    return {
        "auc": hidden.of_scores(overall_auc(hist, noise=blur), None, [ALL]).to_json(),
        "points": {point: {rate: rate_of_all(rate, i) for rate in RATES} for i, point in enumerate(POINTS)},
        "attributes": {a.name: _model_by_group(measured, model, a, hidden) for a in study.attributes},
    }


def _model_by_group(measured: Measured, model: str, attribute: Attribute, hidden: Suppression) -> Json:
    name, names = attribute.name, attribute.groups
    counts, noise = measured.decisions(model, name)
    least = hidden.least

    def rates(rate: str, i: int) -> list[Json]:
        return hidden.by_group(rate_by_group(rate, counts[i], names, noise=noise[i]), name, [model], i)

    def gap_of(metric: str, i: int) -> Json:
        if attribute.of is not None:
            return {**no_maximum(metric).to_json(), "expected_if_equal": None}
        found = hidden.of_gap(gap(metric, counts[i], names, minimum=least, noise=noise[i]), name, [model], i)
        expected = (
            None if found.value is None else expected_if_equal(metric, counts[i], names, minimum=least, noise=noise[i])
        )
        return {**found.to_json(), "expected_if_equal": expected}

    return {
        **_aucs(measured, model, attribute, hidden),
        "points": {
            point: {
                "by_group": {rate: rates(rate, i) for rate in RATES},
                "gaps": {metric: gap_of(metric, i) for metric in GAPS},
            }
            for i, point in enumerate(POINTS)
        },
    }


def _aucs(measured: Measured, model: str, attribute: Attribute, hidden: Suppression) -> Json:
    names = attribute.groups
    if attribute.name not in measured.histograms[model, "test"]:
        return _not_released(names, "auc", "worst_group_auc", "auc_gap")
    hist, blur = measured.scores(model, attribute.name)
    return _shown_aucs(
        attribute.name,
        hidden,
        auc_by_group(hist, names, noise=blur),
        worst_group_auc(hist, names, noise=blur),
        auc_gap(hist, names, noise=blur),
    )


def _shown_aucs(
    attribute: str, hidden: Suppression, by_group: Sequence[Estimate], worst: Estimate, apart: Estimate
) -> Json:
    return {
        "auc_by_group": hidden.scores_by_group(by_group, attribute),
        "worst_group_auc": hidden.of_all_scores(worst, attribute).to_json(),
        "auc_gap": hidden.of_all_scores(apart, attribute).to_json(),
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


def changes(study: Study, measured: Measured, hidden: Suppression) -> list[Json]:
    """Paired changes: each model against the base, and the method against each control (after is the method)."""
    return [
        _change(study, measured, before, after, hidden)
        for before, after in measured.pairs
        if not before.startswith(LOCAL) and not after.startswith(LOCAL)
    ]


def _change(study: Study, measured: Measured, before: str, after: str, hidden: Suppression) -> Json:
    primary = study.primary.name
    pair, noise = measured.pairs[before, after][primary], measured.pair_noise[before, after]
    first, second, blur, joint = measured.score_pair(before, after, primary)

    def change_of_all(rate: str, i: int) -> Json:
        found = overall_rate_change(rate, pair[i], noise=noise[i])
        return hidden.of_decisions(found, None, [ALL], [before, after], i).to_json()

    return {
        "before": before,
        "after": after,
        "auc": hidden.of_scores(overall_auc_change(first, second, joint=joint, noise=blur), None, [ALL]).to_json(),
        "points": {point: {rate: change_of_all(rate, i) for rate in RATES} for i, point in enumerate(POINTS)},
        "attributes": {a.name: _change_by_group(measured, before, after, a, hidden) for a in study.attributes},
    }


def _change_by_group(measured: Measured, before: str, after: str, attribute: Attribute, hidden: Suppression) -> Json:
    name, names, both = attribute.name, attribute.groups, (before, after)
    pair, noise = measured.pairs[before, after][name], measured.pair_noise[before, after]

    def rates(rate: str, i: int) -> list[Json]:
        return hidden.by_group(rate_change_by_group(rate, pair[i], names, noise=noise[i]), name, both, i)

    def gap_of(metric: str, i: int) -> Json:
        # The interval of a maximum over many groups takes long, and an intersection shows none.
        if attribute.of is not None:
            return no_maximum(metric).to_json()
        return hidden.of_gap(
            gap_change(metric, pair[i], names, minimum=hidden.least, noise=noise[i]), name, both, i
        ).to_json()

    return {
        **_auc_changes(measured, before, after, attribute, hidden),
        "points": {
            point: {
                "by_group": {rate: rates(rate, i) for rate in RATES},
                "gaps": {metric: gap_of(metric, i) for metric in GAPS},
            }
            for i, point in enumerate(POINTS)
        },
    }


def _auc_changes(measured: Measured, before: str, after: str, attribute: Attribute, hidden: Suppression) -> Json:
    name, names = attribute.name, attribute.groups
    if name not in measured.histograms[before, "test"]:
        return _not_released(names, "auc_change", "worst_group_auc_change", "auc_gap_change")
    first, second, blur, joint = measured.score_pair(before, after, name)
    sums = _placements(measured, before, after, name)
    return _shown_aucs(
        name,
        hidden,
        auc_change_by_group(first, second, names, sums=sums, joint=joint, noise=blur),
        worst_group_auc_change(first, second, names, sums=sums, joint=joint, noise=blur),
        auc_gap_change(first, second, names, sums=sums, joint=joint, noise=blur),
    )


def _placements(measured: Measured, before: str, after: str, attribute: str) -> Floats | None:
    """Placements are summed against the base only; a method and a control are paired by their decision table alone."""
    return measured.placements.get(after, {}).get(attribute) if before == BASE else None


def change_by_group(
    metric: str, measured: Measured, before: str, after: str, attribute: Attribute, least: int
) -> tuple[Estimate, ...]:
    """The paired change of a rate at the declared rule, or of the `auc`, for each row, `unknown` last; none hidden."""
    name, names = attribute.name, attribute.groups
    if metric != "auc":
        pair, noise = measured.pairs[before, after][name], measured.pair_noise[before, after]
        return rate_change_by_group(metric, pair[0], names, minimum=least, noise=noise[0])
    first, second, blur, joint = measured.score_pair(before, after, name)
    sums = _placements(measured, before, after, name)
    return auc_change_by_group(first, second, names, sums=sums, joint=joint, minimum=least, noise=blur)


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
