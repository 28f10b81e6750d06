"""What the decision tables say beyond sensitivity and gaps: predictive values, ratios, references, net benefit.

All at the declared operating point, for the base model and the method. Predictive values and net benefit move with the
prevalence, so they stand beside it, and beside what they would be if every group had that of all patients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from equipoise.common.attribute import Attribute
from equipoise.common.evaluation import Measured
from equipoise.common.fairness.estimate import Estimate
from equipoise.common.fairness.net_benefit import net_benefit, treat_all
from equipoise.common.fairness.rates import gap, rate_by_group
from equipoise.common.fairness.ratios import demographic_parity_ratio, standardised_predictive_value
from equipoise.common.fairness.reference import differences_from_reference, largest_group
from equipoise.common.fairness.statements import equivalence
from equipoise.common.fairness.tables import Counts, Floats, group_names
from equipoise.common.fairness.unknown import allocation_bounds, unknown_warnings
from equipoise.common.study import Study
from equipoise.server.report.linked_sums import ALL
from equipoise.server.report.suppression import Suppression

Json = dict[str, Any]
FURTHER = ("ppv", "npv", "fnr", "tnr")
COMPARED = ("tpr", "fpr", "selection_rate")  # with the reference group


def decision_figures(study: Study, measured: Measured, chosen: Sequence[str], hidden: Suppression) -> Json:
    """model -> attribute -> figures at the declared operating point."""
    return {
        model: {
            attribute.name: _of_attribute(study, measured, model, attribute, hidden) for attribute in study.attributes
        }
        for model in chosen
    }


def _of_attribute(study: Study, measured: Measured, model: str, attribute: Attribute, hidden: Suppression) -> Json:
    tables, variances = measured.decisions(model, attribute.name)
    counts, noise, name, names = tables[0], variances[0], attribute.name, attribute.groups
    prevalence = float(np.clip(counts[:, 1].sum() / max(int(counts.sum()), 1), 0.0, 1.0))
    reference = largest_group(counts, names)
    base = names.index(reference)
    others = [row for row in range(len(names)) if row != base]
    primary = hidden.of_gap(
        gap(study.evaluation.primary, counts, names, minimum=hidden.least, noise=noise), name, [model], 0
    )
    ratio = demographic_parity_ratio(counts, names, noise=noise)

    def by_group(found: Sequence[Estimate]) -> list[Json]:
        return hidden.by_group(found, name, [model], 0)

    def against_reference(rate: str) -> list[Json]:
        found = differences_from_reference(rate, counts, names, reference=reference, noise=noise)
        return [
            hidden.of_decisions(estimate, name, [row, base], [model], 0).to_json()
            for row, estimate in zip(others, found, strict=True)
        ]

    def at_common_prevalence(value: str) -> list[Json]:
        found = predictive_values(value, counts, prevalence, names, noise)
        # Each figure says at which prevalence it stands.
        return by_group([hidden.of_scores(estimate, None, [ALL]) for estimate in found])

    return {
        "by_group": {rate: by_group(rate_by_group(rate, counts, names, noise=noise)) for rate in FURTHER},
        "prevalence": None if hidden.hides(None, [ALL]) else prevalence,
        "at_common_prevalence": {value: at_common_prevalence(value) for value in ("ppv", "npv")},
        "net_benefit": _net_benefit(counts, float(measured.thresholds[model][0]), attribute, noise, by_group, hidden),
        "demographic_parity_ratio": hidden.of_gap(ratio, name, [model], 0, ["selection_rate"]).to_json(),
        "reference": {"group": reference, "differences": {rate: against_reference(rate) for rate in COMPARED}},
        "statement": vars(equivalence(primary, study.evaluation.margin)),
        "unknown": _unknown(primary, counts, attribute, model, hidden, exact=not noise.any()),
    }


def predictive_values(
    metric: str, counts: Counts, prevalence: float, names: Sequence[str], noise: Floats
) -> Sequence[Estimate]:
    """`ppv` or `npv` by group at the prevalence of all patients, which noise on few patients can push to 0 or 1."""
    if 0 < prevalence < 1:
        return standardised_predictive_value(metric, counts, prevalence, names, noise=noise)
    why = f"the noisy counts say a prevalence of {prevalence:g}"
    groups = zip(counts, group_names(len(counts), names), strict=True)
    return [Estimate.missing(f"standardised_{metric}", why, n=int(row.sum()), group=group) for row, group in groups]


def _net_benefit(
    counts: Counts,
    logit: float,
    attribute: Attribute,
    noise: Floats,
    shown: Callable[[Sequence[Estimate]], list[Json]],
    hidden: Suppression,
) -> Json:
    """By group, per patient and standardised, beside what flagging everybody would bring; at the model's threshold."""
    threshold, names = float(expit(logit)), attribute.groups
    if not 0 < threshold < 1:
        reason = f"the threshold {threshold:g} is no probability between 0 and 1 at which somebody would act"
        missing = shown(
            [
                Estimate.missing("net_benefit", reason, n=int(table.sum()), group=group)
                for table, group in zip(counts, group_names(len(counts), names), strict=True)
            ]
        )
        return {"threshold": threshold, "per_patient": missing, "standardised": missing, "flag_everybody": []}
    everybody = [
        None
        if table.sum() < 1 or hidden.hides(attribute.name, [row])
        else treat_all(float(np.clip(table[1].sum() / table.sum(), 0.0, 1.0)), threshold)
        for row, table in enumerate(counts)
    ]
    return {
        "threshold": threshold,
        "per_patient": shown(net_benefit(counts, threshold, names, noise=noise)),
        "standardised": shown(net_benefit(counts, threshold, names, standardised=True, noise=noise)),
        "flag_everybody": everybody,
    }


def _unknown(
    primary: Estimate, counts: Counts, attribute: Attribute, model: str, hidden: Suppression, *, exact: bool
) -> Json | None:
    """What the patients of unknown group could do to the gap; None without them, or where noise hides it."""
    if not exact or not counts[-1].sum():
        return None
    name, row, warnings = attribute.name, len(attribute.groups), list(unknown_warnings(counts))
    bounds = allocation_bounds(primary.metric, counts, attribute.groups, minimum=hidden.least)
    if primary.value is None or hidden.hides_decisions(name, [row], [model], 0):
        bounds = None
    if warnings and hidden.hides(name, [row]):
        warnings = ["the group of some patients is unknown, and how many cannot be shown"]
    return {
        "patients": hidden.count(name, row) if hidden.active else int(counts[-1].sum()),
        "gap_at_least": None if bounds is None else bounds.low,
        "gap_at_most": None if bounds is None else bounds.high,
        "warnings": warnings,
    }
