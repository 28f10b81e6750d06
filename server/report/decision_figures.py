"""What the decision tables say beyond sensitivity and gaps: predictive values, ratios, references, net benefit.

All at the declared operating point, for the base model and the method. Predictive values and net benefit move with the
prevalence, so they stand beside it, and beside what they would be if every group had that of all patients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

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
from equipoise.server.report.score_figures import probability
from equipoise.server.report.tables import decisions

Json = dict[str, Any]
FURTHER = ("ppv", "npv", "fnr", "tnr")
COMPARED = ("tpr", "fpr", "selection_rate")  # with the reference group


def decision_figures(study: Study, measured: Measured, chosen: Sequence[str]) -> Json:
    """model -> attribute -> figures at the declared operating point."""
    return {
        model: {attribute.name: _of_attribute(study, measured, model, attribute) for attribute in study.attributes}
        for model in chosen
    }


def _of_attribute(study: Study, measured: Measured, model: str, attribute: Attribute) -> Json:
    tables, variances = decisions(measured, model, attribute.name)
    counts, noise, names = tables[0], variances[0], attribute.groups
    prevalence = float(np.clip(counts[:, 1].sum() / max(int(counts.sum()), 1), 0.0, 1.0))
    reference = largest_group(counts, names)
    primary = gap(study.evaluation.primary, counts, names, noise=noise)
    return {
        "by_group": {rate: _all(rate_by_group(rate, counts, names, noise=noise)) for rate in FURTHER},
        "prevalence": prevalence,
        "at_common_prevalence": {
            value: _all(standardised_predictive_value(value, counts, prevalence, names, noise=noise))
            for value in ("ppv", "npv")
        },
        "net_benefit": _net_benefit(counts, float(measured.thresholds[model][0]), names, noise),
        "demographic_parity_ratio": demographic_parity_ratio(counts, names, noise=noise).to_json(),
        "reference": {
            "group": reference,
            "differences": {
                rate: _all(differences_from_reference(rate, counts, names, reference=reference, noise=noise))
                for rate in COMPARED
            },
        },
        "statement": vars(equivalence(primary, study.evaluation.margin)),
        "unknown": _unknown(study.evaluation.primary, counts, names, exact=not noise.any()),
    }


def _net_benefit(counts: Counts, logit: float, names: Sequence[str], noise: Floats) -> Json:
    """By group, per patient and standardised, beside what flagging everybody would bring; at the model's threshold."""
    threshold = float(probability(np.array(logit)))
    if not 0 < threshold < 1:
        reason = f"the threshold {threshold:g} is no probability between 0 and 1 at which somebody would act"
        missing = [
            Estimate.missing("net_benefit", reason, n=int(table.sum()), group=group).to_json()
            for table, group in zip(counts, group_names(len(counts), names), strict=True)
        ]
        return {"threshold": threshold, "per_patient": missing, "standardised": missing, "flag_everybody": []}
    everybody = [
        None if table.sum() < 1 else treat_all(float(np.clip(table[1].sum() / table.sum(), 0.0, 1.0)), threshold)
        for table in counts
    ]
    return {
        "threshold": threshold,
        "per_patient": _all(net_benefit(counts, threshold, names, noise=noise)),
        "standardised": _all(net_benefit(counts, threshold, names, standardised=True, noise=noise)),
        "flag_everybody": everybody,
    }


def _unknown(metric: str, counts: Counts, names: Sequence[str], *, exact: bool) -> Json | None:
    """What the patients of unknown group could do to the gap; None without them, or where noise hides it."""
    if not exact or not counts[-1].sum():
        return None
    bounds = allocation_bounds(metric, counts, names)
    return {
        "patients": int(counts[-1].sum()),
        "gap_at_least": None if bounds is None else bounds.low,
        "gap_at_most": None if bounds is None else bounds.high,
        "warnings": list(unknown_warnings(counts)),
    }


def _all(estimates: Sequence[Estimate]) -> list[Json]:
    return [estimate.to_json() for estimate in estimates]
