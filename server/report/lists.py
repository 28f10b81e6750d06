"""Intersections of attributes in the report: a list of groups, each with its own status, and no largest gap over them.

A maximum over many small groups is mostly chance, and would be read as a result. So every figure that is the largest or
the smallest over an intersection's groups has no number, and a group with fewer than `MINIMUM_GROUP` patients has none
either, whatever its rates' denominators (evaluation specification, section 1). All other figures of an intersection are
those of any attribute, and so is the reference that each group is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from equipoise.common.attribute import Attribute
from equipoise.common.evaluation import Measured
from equipoise.common.fairness.estimate import ESTIMATED, Estimate
from equipoise.common.fairness.intersections import MINIMUM_GROUP
from equipoise.common.fairness.noise import shortage
from equipoise.common.fairness.statements import equivalence
from equipoise.common.fairness.tables import group_names
from equipoise.common.study import Study
from equipoise.server.report.suppression import Suppression

Json = dict[str, Any]
NO_MAXIMUM = "an intersection is read as a list of groups; a largest difference over them would be mostly chance"
_OF_ALL_HOSPITALS = ("composition", "composition_interval", "tau", "tau_interval", "prediction", "i_squared")
SEPARATORS = (" less ", " over ")  # in the name of a pair of groups


def no_maximum(metric: str) -> Estimate:
    """In place of a figure over an intersection's groups at once."""
    return Estimate.missing(metric, NO_MAXIMUM, n=None)


def read_as_lists(report: Json, study: Study, measured: Measured, hidden: Suppression) -> None:
    """Take out of a report's figures, in place, what an intersection does not support."""
    for attribute in study.attributes:
        if attribute.of is None:
            continue
        few = _small(measured, attribute, hidden)
        for figures in _figures(report, attribute.name):
            _without(figures, few)
        for scores in report["scores"].values():
            if attribute.name in scores:
                _without_curves(scores[attribute.name], few)
        for decisions in report["decisions"].values():
            _without_bounds(decisions[attribute.name], [row in few for row in (*attribute.groups, "")], study)
        for entry in report["hospitals"][attribute.name]["contrasts"] if report["hospitals"] else ():
            for role in ("base", "method"):
                if role in entry and entry[role]["pooled"]["value"] is None:
                    entry[role].update(dict.fromkeys(_OF_ALL_HOSPITALS))
        for group in few:
            report["roc"][attribute.name].pop(group, None)


def _small(measured: Measured, attribute: Attribute, hidden: Suppression) -> dict[str, str]:
    """Groups with too few patients, and why; counted in the decision table, which has the least noise."""
    pair = next(iter(measured.pairs))
    sizes = measured.pairs[pair][attribute.name][0].sum(axis=(1, 2, 3))
    variance = 2 * float(measured.pair_noise[pair][0].sum())  # both labels
    what = "patients in the intersection"
    lacking = [shortage(int(n), what, MINIMUM_GROUP, variance) for n in sizes]
    for row in range(len(lacking)):
        if hidden.hides(attribute.name, [row]):
            # How many they are is not to be told, but what follows from the counts that are shown may be.
            most = hidden.at_most(attribute.name, row)
            lacking[row] = f"fewer than {MINIMUM_GROUP} {what}" if most is not None and most < MINIMUM_GROUP else ""
    return {name: why for name, why in zip(group_names(len(sizes), attribute.groups), lacking, strict=True) if why}


def _figures(report: Json, name: str) -> Iterator[Json]:
    yield from (model["attributes"][name] for model in report["models"].values())
    yield from (change["attributes"][name] for change in report["changes"])
    yield from (model[name] for part in ("scores", "decisions") for model in report[part].values() if name in model)
    if report["hospitals"]:
        yield report["hospitals"][name]


def _without(value: Any, few: Mapping[str, str]) -> None:
    """Every estimate below `value` that speaks of a small group, or of no single group, loses its number."""
    if isinstance(value, list):
        for one in value:
            _without(one, few)
    elif isinstance(value, dict) and "metric" in value and "status" in value:
        _take_out(value, few)
    elif isinstance(value, dict):
        for one in value.values():
            _without(one, few)


def _take_out(estimate: Json, few: Mapping[str, str]) -> None:
    group = estimate["group"]
    reason = NO_MAXIMUM if group is None else _why(str(group), few)
    if reason and estimate["status"] in (*ESTIMATED, "not_estimable", "suppressed"):
        kept = {key: estimate[key] for key in ("n", "level", "method", "group")}
        estimate.update(Estimate.missing(estimate["metric"], reason, **kept).to_json())


def _why(group: str, few: Mapping[str, str]) -> str:
    """Why a group, or a pair of groups, has no number."""
    for name, reason in few.items():
        ends = [group.startswith(name + word) or group.endswith(word + name) for word in SEPARATORS]
        if group == name or any(ends):
            return reason
    return ""


def _without_curves(scores: Json, few: Mapping[str, str]) -> None:
    scores["gap_by_threshold"] = []
    for row in scores["calibration"]:
        if row["group"] in few:
            row.update(ece_if_calibrated=None, ece_if_calibrated_p95=None, ece_debiased_sq=None, reliability=[])


def _without_bounds(decisions: Json, small: list[bool], study: Study) -> None:
    decisions["statement"] = vars(equivalence(no_maximum(study.evaluation.primary), study.evaluation.margin))
    if decisions["unknown"] is not None:
        decisions["unknown"].update(gap_at_least=None, gap_at_most=None)
    everybody = decisions["net_benefit"]["flag_everybody"]
    for place, hidden in enumerate(small[: len(everybody)]):
        everybody[place] = None if hidden else everybody[place]
