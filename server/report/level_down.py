"""Who got worse, of all declared groups of all attributes: found in the tables, and said first.

A group that cannot be judged is named beside those that can: harm to it would be in no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from equipoise.common.evaluation import BASE, Measured
from equipoise.common.fairness.estimate import ESTIMATED, LEVEL, Estimate
from equipoise.common.fairness.level_down import lost, more_false_alarms
from equipoise.common.study import Study
from equipoise.server.report import tables
from equipoise.server.report.suppression import Suppression
from equipoise.server.report.words import LABELS, POINT_LABELS, estimate_text, listed, number

Json = dict[str, Any]
# What is suppressed is judged all the same, and told without a number.
_UNJUDGED = ("not_estimable", "not_released")

NOBODY: Json = {
    "level_down": [],
    "more_false_alarms": [],
    "looked_at": {"level_down": 0, "more_false_alarms": 0},
}


def level_down(changes: Sequence[Json], study: Study, measured: Measured, method: str, hidden: Suppression) -> Json:
    """Declared groups of any attribute that lost, those with more false alarms, and how many changes were looked at.

    A group has lost where its TPR at the declared rule, or its AUC, is `lost`; it has more false alarms where its FPR
    at the rule became higher, the interval excluding 0. A change whose number is hidden is judged all the same. It is a
    signal of safety and stays uncorrected for their number, which stands beside it.
    """
    figures_of = next(c for c in changes if (c["before"], c["after"]) == (BASE, method))["attributes"]
    found_worse: dict[str, list[Json]] = {"level_down": [], "more_false_alarms": []}
    looked_at = dict.fromkeys(found_worse, 0)
    for name, figures in figures_of.items():
        point = figures["points"]["rule"]["by_group"]
        by_metric = {"tpr": point["tpr"], "auc": figures["auc_by_group"], "fpr": point["fpr"]}
        for metric, shown in by_metric.items():
            true: Sequence[Estimate] = [Estimate(**e) for e in shown]
            if any(e.status == "suppressed" for e in true):
                true = tables.change_by_group(metric, measured, BASE, method, study.attribute(name), hidden.least)
            for row, (e, found) in enumerate(zip(shown[:-1], true, strict=False)):
                # An intersection's group needs more patients to be judged; a flag would say that it has them.
                silent = study.attribute(name).of is not None and hidden.hides(name, [row])
                if silent or e["status"] not in (*ESTIMATED, "suppressed"):
                    continue
                kind = "more_false_alarms" if metric == "fpr" else "level_down"
                looked_at[kind] += 1
                if more_false_alarms(found) if metric == "fpr" else lost(found):
                    found_worse[kind].append({"attribute": name, **e})
    return {**found_worse, "looked_at": looked_at}


def by_chance(looked_at: int) -> str:
    """`6 changes, 0.1 expected by chance`: one of 40 intervals lies below 0 by chance alone."""
    expected = number(looked_at * (1 - LEVEL) / 2, 1)
    return f"{looked_at} changes, {expected} expected by chance"


def who_got_worse(report: Json, change: Json) -> list[str]:
    """One sentence per group that lost, or that none did; one per group with more false alarms; what was looked at.

    `change` has the changes from the base to the method by attribute.
    """
    names = {"tpr_change": f"true positive rate at the {POINT_LABELS['rule']}", "auc_change": "AUC"}
    silent, looked_at = _unjudged(report, change), report["looked_at"]
    lines = [
        f"Worse for {row['group']} ({row['attribute']}): {names[row['metric']]} {estimate_text(row, change=True)}."
        for row in report["level_down"]
    ]
    if not lines:
        lines = [
            f"{'Of the groups that can be judged, no' if silent else 'No'} group's true positive rate or AUC became "
            "lower with an interval that excludes 0 and, for the AUC, what binning could have done (that is no proof "
            "that none did)."
        ]
    lines += [
        f"More false alarms for {row['group']} ({row['attribute']}): false positive rate at the {POINT_LABELS['rule']} "
        f"{estimate_text(row, change=True)}."
        for row in report["more_false_alarms"]
    ]
    lines += [f"Cannot be judged, and may be worse off: {'; '.join(silent)}."] if silent else []
    return [
        *lines,
        "Not corrected for their number: of true positive rates and AUCs "
        f"{by_chance(looked_at['level_down'])}; of false positive rates {by_chance(looked_at['more_false_alarms'])}.",
    ]


def _unjudged(report: Json, change: Json) -> list[str]:
    """`tone: dark (true positive rate and AUC)`: declared groups of which no change can be estimated."""
    silent: dict[tuple[str, str], list[str]] = {}
    for row in report["attributes"]:
        figures = change[row["attribute"]]
        rates = figures["points"]["rule"]["by_group"]
        by_metric = {LABELS["tpr"]: rates["tpr"], LABELS["fpr"]: rates["fpr"], "AUC": figures["auc_by_group"]}
        for place, group in enumerate(row["groups"]):
            of = [name for name, found in by_metric.items() if found[place]["status"] in _UNJUDGED]
            if group["declared"] and of:
                silent.setdefault((row["attribute"], listed(of)), []).append(group["group"])
    return [f"{attribute}: {listed(groups)} ({of})" for (attribute, of), groups in silent.items()]
