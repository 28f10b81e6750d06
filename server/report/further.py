"""Further figures by group: predictive values, ratios, a reference group, net benefit, patients of unknown group."""

from __future__ import annotations

from typing import Any

from equipoise.server.report.blocks import Section, Table
from equipoise.server.report.curves import xauc_table
from equipoise.server.report.summary import sides
from equipoise.server.report.words import LABELS, LEVEL_TEXT, estimate_text, number, side_columns

Json = dict[str, Any]
VALUES = {
    "ppv": "positive predictive value",
    "npv": "negative predictive value",
    "fnr": "missed, of those with the disease",
    "tnr": "specificity",
}


def further_section(report: Json) -> Section:
    """The section of the page."""
    blocks = []
    for row in report["attributes"]:
        attribute = row["attribute"]
        blocks += [_values(report, row), _reference(report, attribute), _net_benefit(report, row)]
        across = xauc_table(report, attribute)
        blocks += [across] if across is not None else []
    text = [
        "At the declared rule. Predictive values, net benefit and selection rates depend on the prevalence; beside "
        "each predictive value stands the one that the group would have at the prevalence of all patients. The "
        "reference is the largest group and not the group as it should be. Net benefit counts true positives per "
        "patient less false ones, weighed as somebody weighs them who acts at the threshold; it needs calibrated "
        "scores.",
        *_unknown(report),
    ]
    return Section("further", "Further figures by group", text, blocks)


def _found(report: Json, attribute: str) -> list[Json]:
    return [report["decisions"][model][attribute] for _, model in sides(report)]


def _values(report: Json, row: Json) -> Table:
    found = _found(report, row["attribute"])
    rows = []
    for place, group in enumerate(row["groups"]):
        if not group["declared"]:
            continue
        for rate, label in VALUES.items():
            rows.append([group["group"], label, *(estimate_text(f["by_group"][rate][place]) for f in found)])
            if rate in ("ppv", "npv"):
                cells = (estimate_text(f["at_common_prevalence"][rate][place]) for f in found)
                rows.append([group["group"], f"{label} at prevalence {number(found[0]['prevalence'])}", *cells])
    rows.append(
        ["all groups", "demographic parity ratio", *(estimate_text(f["demographic_parity_ratio"]) for f in found)]
    )
    caption = f"Predictive values by {row['attribute']}, with {LEVEL_TEXT} intervals"
    return Table(caption, ("group", "figure", *side_columns(report)), rows, frozenset({0, 1}))


def _reference(report: Json, attribute: str) -> Table:
    found = _found(report, attribute)
    first = found[0]["reference"]
    rows = [
        [cells[0]["group"], LABELS[rate], *(estimate_text(cell, change=True) for cell in cells)]
        for rate in first["differences"]
        for cells in zip(*(f["reference"]["differences"][rate] for f in found), strict=True)
    ]  # fmt: skip
    caption = f"Each group of {attribute} less {first['group']}, with simultaneous {LEVEL_TEXT} intervals"
    return Table(caption, ("groups", "rate", *side_columns(report)), rows, frozenset({0, 1}))


def _net_benefit(report: Json, row: Json) -> Table:
    found = [f["net_benefit"] for f in _found(report, row["attribute"])]
    rows = []
    for place, group in enumerate(row["groups"]):
        if not group["declared"]:
            continue
        for key, label in (("per_patient", "per patient"), ("standardised", "divided by the prevalence")):
            rows.append([group["group"], label, *(estimate_text(f[key][place]) for f in found)])
        if found[0]["flag_everybody"]:
            rows.append(
                [group["group"], "if everybody were flagged", *(number(f["flag_everybody"][place]) for f in found)]
            )
    at = " and ".join(number(f["threshold"]) for f in found)
    caption = f"Net benefit by {row['attribute']} at the threshold {at}, with {LEVEL_TEXT} intervals"
    return Table(caption, ("group", "net benefit", *side_columns(report)), rows, frozenset({0, 1}))  # fmt: skip


def _unknown(report: Json) -> list[str]:
    """How far the gap could move if the groups of unknown patients were known."""
    lines = []
    for row in report["attributes"]:
        unknown = _found(report, row["attribute"])[-1]["unknown"]
        if unknown is None:
            continue
        lines += [f"{row['attribute']}: {text}." for text in unknown["warnings"]]
        if unknown["gap_at_most"] is not None:
            lines.append(
                f"{row['attribute']}: if the groups of the {unknown['patients']} patients of unknown group were known, "
                f"the {report['study']['evaluation']['primary']} would lie between {number(unknown['gap_at_least'])} "
                f"and {number(unknown['gap_at_most'])}, whatever they are."
            )
    return lines
