"""The report's part on privacy: the guarantee, what each hospital paid for it, and which noise that was."""

from __future__ import annotations

from typing import Any

from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from equipoise.server.plan import plan_costs, plan_rows
from equipoise.server.report.blocks import Figure, Panel, Section, Table
from equipoise.server.report.plots.bars import Bar, bars
from equipoise.server.report.plots.svg import rounded_up
from equipoise.server.report.words import number

Json = dict[str, Any]

UNIT = "patient, with all images; relation: add or remove one"
WORDS = {
    "none": "Privacy mode none: releases were not private. Every sum that left a hospital was exact, without noise, "
    "and no privacy budget was kept.",
    "local": "Privacy mode local: every release of every hospital was made private by that hospital itself, with "
    "noise from its own generator, before it left. Whatever is computed from the releases, this report included, "
    "costs no patient more.",
    "distributed": "Privacy mode distributed: every hospital added a share of one noise, and only the sum over "
    "hospitals was seen. The guarantee holds while no more hospitals act as one with the coordinator than the study "
    "declares; what it is if all others do stands beside it.",
}


def privacy_of(study: Study, plan: StudyPlan) -> Json:
    """Mode, guarantee, costs by split and releases with their noise, as JSON values.

    Each hospital paid the same, since the noise is the plan's. What a hospital has spent over the life of its data
    stands in its own ledger and is not known here.
    """
    mode = study.privacy.mode
    value: Json = {"mode": mode, "text": WORDS[mode]}
    if not study.privacy.private:
        return value
    return value | {
        "epsilon": study.privacy.epsilon,
        "delta": study.privacy.delta,
        "unit": UNIT,
        "costs": plan_costs(plan, study),
        "releases": plan_rows(plan, study),
    }


def small_cells_of(study: Study) -> Json:
    """The smallest count that the report shows (0: any), and the policy in words."""
    least = study.smallest_cell
    if least:
        text = (
            f"Smallest cell {least}: a count of 1 to {least - 1} patients is not shown (<{least}), nor what would give "
            "it away: a further count (hidden), and rates, gaps, changes and AUCs that rest on either (suppressed). 0 "
            "is shown, of a single hospital only where the sum over hospitals is. Outcomes of gates and who got worse "
            "are judged on the exact tables all the same. The tables in the run's folder hold every count; they are "
            "the coordinator's confidential files."
        )
    elif study.privacy.private:
        text = "Small counts are shown: all counts carry noise, which protects the patients, so none has to be hidden."
    elif study.evaluation.min_cell is None:
        text = "Small counts are shown: in a simulation every patient is on this machine already."
    else:
        text = "Small counts are shown, as the study asks (evaluation.min_cell: 0)."
    return {"minimum": least, "text": text}


def privacy_section(report: Json) -> Section:
    """The section of the page."""
    privacy = report["privacy"]
    if "epsilon" not in privacy:
        return Section("privacy", "Privacy", (privacy["text"], report["small_cells"]["text"]))
    text = (
        privacy["text"],
        report["small_cells"]["text"],
        f"The guarantee: epsilon {privacy['epsilon']:g} at delta {privacy['delta']:g} at each hospital. Unit: "
        f"{privacy['unit']}. Train, validation and test are disjoint patients, so the largest of the three counts. A "
        "patient known to two hospitals pays at both.",
        "Whoever runs a control beside the method in a simulation gives it a budget of its own, which is charged to "
        "nobody; on patients' data each would have to be paid for.",
    )
    costs = Table(
        "What the releases cost at each hospital",
        ("who pays", "patients", "epsilon", "epsilon if all others collude"),
        [
            [cost["account"], cost["split"], number(cost["epsilon"]), number(cost["epsilon_if_others_collude"])]
            for cost in privacy["costs"]
        ],
        frozenset({0, 1}),
    )
    releases = Table(
        "Releases and their noise",
        ("arm", "query", "patients", "times", "law", "bound of one patient", "noise", "epsilon"),
        [
            [
                row["arm"],
                row["query"],
                row["split"],
                str(row["times"]),
                row["law"].replace("_", " "),
                number(row["bound"]),
                number(row["noise"]),
                number(row["epsilon"]),
            ]
            for row in privacy["releases"]
            if row["epsilon"] is not None
        ],
        frozenset({0, 1, 2, 4}),
    )
    return Section("privacy", "Privacy", text, (_bars(privacy, costs), releases))


def _bars(privacy: Json, table: Table) -> Figure:
    """What each split of the patients paid, in the honest view and if all others collude."""
    rows = [
        Bar(
            f"{cost['account']}: {cost['split']}",
            f"epsilon {number(cost['epsilon'])}",
            (cost["epsilon"], cost["epsilon_if_others_collude"]),
        )
        for cost in privacy["costs"]
    ]
    high = rounded_up(max(max(row.values) for row in rows))
    axis = f"epsilon at delta {privacy['delta']:g}, each hospital"
    drawing = bars("epsilon", "Epsilon by split of the patients", axis, rows, high=high)
    caption = (
        "What one hospital's patients paid in this study; every hospital paid the same. How much its patients have "
        "left stands in its own ledger (`equipoise ledger show`) and is not known here."
    )
    legend = (("bar", "against hospitals that do not collude"), ("hatched", "if all others collude"))
    return Figure(caption, [Panel("epsilon by split", drawing)], table, legend)
