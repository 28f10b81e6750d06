"""Gaps within hospitals: what the pooled gap is made of, how much hospitals differ, and each hospital's own figure.

Made from the hospitals' own tables, which a study asks for by `evaluation.by_site` and a hospital gives only where its
site file allows `caps.site_results`. Without them the report says that it was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from equipoise.common.attribute import Attribute
from equipoise.common.catalogue import sites_of
from equipoise.common.evaluation import BASE, Measured
from equipoise.common.fairness.estimate import MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.heterogeneity import from_sites, shrunken, site_contrast
from equipoise.common.fairness.outliers import FAR, leave_one_out
from equipoise.common.fairness.rates import rate_by_group
from equipoise.common.fairness.reference import difference, largest_group
from equipoise.common.fairness.small_cells import Policy, suppressed
from equipoise.common.fairness.tables import Counts, counts_after, counts_before
from equipoise.common.fairness.within import decompose
from equipoise.common.study import Study
from equipoise.server.report.suppression import ROLES, Suppression

Json = dict[str, Any]
RATES = ("tpr", "fpr")


def hospital_figures(study: Study, measured: Measured, hidden: Suppression) -> Json | None:
    """attribute -> `contrasts`, `coverage` and `far`.

    Contrasts are of each other group than the reference, for each rate; coverage is each hospital's groups; far are
    hospitals whose rate of a group lies far from that of the others.

    None where nobody was asked.
    """
    if not measured.site_pairs:
        return None
    return {
        a.name: {
            "contrasts": _contrasts(study, measured, a, hidden),
            "coverage": _coverage(study, measured, a, hidden),
            "far": _far(study, measured, a, hidden),
        }
        for a in study.attributes
    }


def _coverage(study: Study, measured: Measured, attribute: Attribute, hidden: Suppression) -> list[Json]:
    """Each hospital's patients and the status of the true and false positive rate of each of its groups."""
    tables, name = counts_before(measured.site_pairs[attribute.name]), attribute.name

    def status(rate: str, site: int, row: int, found: Estimate) -> str:
        return "suppressed" if hidden.hides_at_site("base", name, site, [row], rate) else found.status

    return [
        {
            "hospital": site,
            "groups": [
                {
                    "group": group,
                    "n": hidden.site_count(name, place, row, counts),
                    "positives": hidden.site_count(name, place, row, counts, 1),
                    "tpr": status("tpr", place, row, tpr),
                    "fpr": status("fpr", place, row, fpr),
                }
                for row, (group, counts, tpr, fpr) in enumerate(
                    zip(
                        attribute.groups,
                        table.sum(axis=-1),
                        *(rate_by_group(rate, table, attribute.groups)[:-1] for rate in RATES),
                        strict=False,
                    )
                )
            ],
        }
        for place, (site, table) in enumerate(zip(sites_of(study), tables, strict=True))
    ]


def _far(study: Study, measured: Measured, attribute: Attribute, hidden: Suppression) -> list[Json]:
    """Hospitals beyond `FAR`, under the base model, the farthest first; `z` is None where it is hidden."""
    tables = counts_before(measured.site_pairs[attribute.name])
    found = [
        (abs(float(z)), {"hospital": site, "group": group, "rate": rate, "z": None if kept_back else float(z)})
        for row, group in enumerate(attribute.groups)
        for rate in RATES
        for place, (site, z) in enumerate(
            zip(sites_of(study), leave_one_out(rate, tables[:, row], hidden.least), strict=True)
        )
        if abs(z) > FAR
        for kept_back in [hidden.hides_at_site("base", attribute.name, place, [row], rate)]
    ]
    return [one for _, one in sorted(found, key=lambda pair: -pair[0])]


def _contrasts(study: Study, measured: Measured, attribute: Attribute, hidden: Suppression) -> list[Json]:
    pairs, names = measured.site_pairs[attribute.name], attribute.groups
    by_role = {"base": counts_before(pairs)} if study.audits_one_model else {
        "base": counts_before(pairs),
        "method": counts_after(pairs),
    }  # fmt: skip
    models = dict(zip(ROLES, next(pair for pair in measured.pairs if pair[0] == BASE), strict=True))
    reference = names.index(largest_group(by_role["base"].sum(axis=0), names))

    def of_model(role: str, rate: str, group: int) -> Json:
        found = _of_model(rate, by_role[role], group, reference, names, sites_of(study))
        if not hidden.active:
            return found
        rows = [group, reference]
        at = [hidden.hides_at_site(role, attribute.name, site, rows, rate) for site in range(len(sites_of(study)))]
        pooled = hidden.hides_decisions(attribute.name, rows, [models[role]], 0, hidden.labels(rate))
        numbers = hidden.site_patients[attribute.name][:, rows][..., list(hidden.labels(rate))]
        return _suppressed(found, at, bool(numbers.any()), pooled=pooled, policy=hidden.policy)

    return [
        {
            "rate": rate,
            "group": names[group],
            "reference": names[reference],
            **{role: of_model(role, rate, group) for role in by_role},
        }
        for group in range(len(names))
        if group != reference
        for rate in RATES
    ]


def _suppressed(found: Json, at: Sequence[bool], patients: bool, *, pooled: bool, policy: Policy) -> Json:
    """The figures of `_of_model` without those that a hidden count could be read from.

    `at` says of each hospital whether its rates are hidden, `patients` whether any number of patients is. What sums
    over hospitals weighs each by its patients, so one hidden hospital hides all of it; not the pooled figure.
    """

    def without(estimate: Json) -> Json:
        return suppressed(Estimate(**estimate), policy).to_json()

    shown = {**found, "pooled": without(found["pooled"]) if pooled else found["pooled"]}
    if pooled or any(at):
        shown |= dict.fromkeys(("composition", "composition_interval"))
    if not any(at):
        return shown
    none: Json = dict.fromkeys(("prediction", "tau", "tau_interval", "i_squared"))
    none["hospitals_with_both_groups"] = None if patients else found["hospitals_with_both_groups"]
    none["note"] = "figures of single hospitals, and what they add up to, are suppressed where a count is small"
    hospitals = [
        {**row, "difference": without(row["difference"]) if kept_back else row["difference"]}
        | {"shrunken": None, "weight": None}
        for row, kept_back in zip(found["hospitals"], at, strict=True)
    ]
    return shown | none | {"within": without(found["within"]), "mean": without(found["mean"]), "hospitals": hospitals}


def _of_model(
    rate: str, tables: Counts, group: int, reference: int, names: Sequence[str], sites: Sequence[str]
) -> Json:
    """One difference, group less reference: pooled, within, composition, over hospitals, and at each hospital."""
    parts = decompose(rate, tables, group, reference, names)
    contrasts = [site_contrast(rate, table, group, reference, minimum=MINIMUM_PATIENTS) for table in tables]
    known = [found for found in contrasts if found is not None]
    effects, variances = (np.array([found[i] for found in known]) for i in (0, 1))
    spread = from_sites(f"{rate}_difference", f"{names[group]} less {names[reference]}", effects, variances,
                        n=parts.pooled.n or 0)  # fmt: skip
    drawn = iter(shrunken(effects, variances, spread.tau**2) if spread.tau is not None else effects)
    return {
        "pooled": parts.pooled.to_json(),
        "within": parts.within.to_json(),
        "composition": parts.composition,
        "composition_interval": None if parts.composition_interval is None else list(parts.composition_interval),
        "hospitals_with_both_groups": parts.sites,
        "mean": spread.mean.to_json(),
        "prediction": None if spread.prediction is None else list(spread.prediction),
        "tau": spread.tau,
        "tau_interval": None if spread.tau_interval is None else list(map(_finite, spread.tau_interval)),
        "i_squared": spread.i_squared,
        "note": spread.note,
        "hospitals": [
            {
                "hospital": site,
                "difference": difference(rate, table, group, reference, names).to_json(),
                "shrunken": None if contrast is None or spread.tau is None else float(next(drawn)),
                "weight": float(weight),
            }
            for site, table, contrast, weight in zip(sites, tables, contrasts, parts.weights, strict=True)
        ],
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
