"""The sections on results: who was measured, gates, rates, gaps and ROC curves by group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from equipoise.common.evaluation import BASE, POINTS
from equipoise.common.fairness.verdict import REQUIRED_CONTROLS
from equipoise.server.report.blocks import Figure, Panel, Section, Table
from equipoise.server.report.coverage import coverage_figures
from equipoise.server.report.lists import NO_MAXIMUM
from equipoise.server.report.plots.intervals import Row, interval_rows
from equipoise.server.report.plots.roc import roc
from equipoise.server.report.plots.svg import identifier, stepped_up
from equipoise.server.report.summary import change_between, method_name, sides
from equipoise.server.report.tables import GAPS
from equipoise.server.report.words import (
    LABELS,
    LEVEL_TEXT,
    POINT_LABELS,
    as_declared,
    count_text,
    estimate_text,
    number,
    side_columns,
    side_legend,
)

Json = dict[str, Any]
SHOWN_RATES = ("tpr", "fpr", "selection_rate")
EXPECTED = ("expected", "expected if equal: what chance alone would show if the groups had the same rates")
_RATE_AXES = {
    "tpr": "share of patients with the disease who are flagged",
    "fpr": "share of patients without it who are flagged",
    "selection_rate": "share of all patients who are flagged",
}


def result_sections(report: Json) -> list[Section]:
    """In the order of the page."""
    judged = [_gates(report)] if report["verdict"] is not None else []
    return [_patients(report), *judged, _rates(report), _gaps(report), _curves(report)]


def kept(report: Json, attribute: str, *columns: Sequence[Json]) -> list[tuple[Json, ...]]:
    """The rows of the declared groups, and that of `unknown` where it has patients."""
    groups = next(row for row in report["attributes"] if row["attribute"] == attribute)["groups"]
    rows = zip(groups, zip(*columns, strict=True), strict=True)
    return [cells for group, cells in rows if group["declared"] or group["n"]]


def _patients(report: Json) -> Section:
    rows = [
        [
            attribute["attribute"],
            group["group"],
            str(group["n"]),
            str(group["positives"]),
            estimate_text(group["prevalence"]),
        ]
        for attribute in report["attributes"]
        for group in attribute["groups"]
        if group["declared"] or group["n"]
    ]
    label, noisy = report["study"]["label"], report["privacy"]["mode"] != "none"
    text = (
        f"The {report['attributes'][0]['n']} test patients of all hospitals together"
        f"{' (counts here have noise in them)' if noisy else ''}. With the disease means "
        f"{label['column']} = {' or '.join(label['positive'])}. Selection rates depend on the prevalence."
    )
    policy = [report["small_cells"]["text"]] if report["small_cells"]["minimum"] else []
    columns = ("attribute", "group", "patients", "with the disease", f"prevalence and {LEVEL_TEXT} interval")
    blocks: list[Figure | Table] = [Table("Test patients", columns, rows, frozenset({0, 1})), *coverage_figures(report)]
    return Section("patients", "Who was measured", (text, *policy), blocks)


def _gates(report: Json) -> Section:
    evaluation, verdict = report["study"]["evaluation"], report["verdict"]
    text = (
        "Declared in the study before it ran; the gate not_collapsed is there in every study. Primary figure: "
        f"{evaluation['primary']} between the groups of {report['study']['primary']}. A gate passes only if the whole "
        "interval lies on the right side of its bound, fails if it lies wholly on the other, and is undecided "
        "otherwise. The controls "
        f"{' and '.join(REQUIRED_CONTROLS)} decide too; other controls are only shown.",
        f"Overall: {verdict['outcome']} ({verdict['reason']}).",
    )
    last = (f"value and {LEVEL_TEXT} interval", "bound", "outcome")
    words = frozenset({0, 1, 3, 4})
    rows = [[gate["name"], *_judged(gate)] for gate in verdict["gates"]]
    blocks = [Table("Gates", ("gate", "figure", *last), rows, words, 4)]
    compared = [[_control(gate), point, *_judged(gate)[1:]] for gate, point in _comparisons(report)]
    if compared:
        caption = f"The gap of {method_name(report)} less the gap of each control (below 0: smaller than the control's)"
        blocks.append(Table(caption, ("control", "operating point", *last), compared, words, 4))
    return Section("gates", "Gates", text, blocks)


def _judged(gate: Json) -> list[str]:
    """Metric, figure, bound and outcome."""
    estimate = gate["estimate"]
    metric, change = estimate["metric"].removesuffix("_change"), estimate["metric"].endswith("_change")
    side = "below" if gate["right"] == "below" else "at least"
    return [
        f"change of {metric}" if change else metric,
        estimate_text(estimate, change=change),
        f"{side} {as_declared(gate['bound'])}",
        gate["outcome"],
    ]


def _control(gate: Json) -> str:
    name: str = gate["name"].removeprefix("beats_")
    return name if name in REQUIRED_CONTROLS else f"{name} (not deciding)"


def _comparisons(report: Json) -> Iterator[tuple[Json, str]]:
    """Each comparison with its operating point; those of one control come in the order of the points."""
    seen: dict[str, int] = {}
    for gate in report["verdict"]["comparisons"]:
        place = seen.setdefault(gate["name"], 0)
        seen[gate["name"]] += 1
        yield gate, POINT_LABELS[POINTS[place]]


def _by_group(report: Json, attribute: str, rate: str) -> list[tuple[Json, ...]]:
    """(before, after), or what was measured alone, by group at the declared rule."""
    models = (report["models"][model]["attributes"][attribute] for _, model in sides(report))
    return kept(report, attribute, *(model["points"]["rule"]["by_group"][rate] for model in models))


def _rates(report: Json) -> Section:
    figures, shapes = [], [shape for shape, _ in sides(report)]
    for index, attribute in enumerate(report["attributes"]):
        name = attribute["attribute"]
        panels = []
        for rate in SHOWN_RATES:
            drawn = [
                Row(cells[0]["group"], tuple(zip(shapes, cells, strict=True)), note=f"n = {count_text(cells[0]['n'])}")
                for cells in _by_group(report, name, rate)
            ]
            title = f"{LABELS[rate]} by {name}"
            panels.append(
                Panel(LABELS[rate], interval_rows(identifier("rate", index, rate), title, _RATE_AXES[rate], drawn))
            )
        rows = [
            [LABELS[rate], cells[0]["group"], count_text(cells[0]["n"]), *map(estimate_text, cells)]
            for rate in (*SHOWN_RATES, "balanced_accuracy")
            for cells in _by_group(report, name, rate)
        ]
        caption = f"Rates by {name} at the declared rule, with {LEVEL_TEXT} intervals"
        table = Table(caption, ("rate", "group", "n", *side_columns(report)), rows, frozenset({0, 1}))
        figures.append(
            Figure(f"{caption}. n: patients in the denominator. Dashed: imprecise.", panels, table, side_legend(report))
        )
    return Section("rates", "Rates by group", (), figures)


def _gaps(report: Json) -> Section:
    text = (
        "equalized_odds_difference is the larger of the gaps in true and false positive rate, equalized_odds_mean is "
        "their mean; equal_opportunity_difference is the gap in true positive rate, demographic_parity_difference that "
        "in selection rate. Thresholds stand under Thresholds.",
        *(f"{row['attribute']}: {NO_MAXIMUM}." for row in report["attributes"] if row["of"]),
    )
    figures = [
        _gap_figure(report, index, row["attribute"]) for index, row in enumerate(report["attributes"]) if not row["of"]
    ]
    return Section("gaps", "Gaps between groups", text, figures)


def _gap_figure(report: Json, index: int, attribute: str) -> Figure:
    shown = [report["models"][model]["attributes"][attribute] for _, model in sides(report)]
    shapes, change = [shape for shape, _ in sides(report)], _change_of(report, attribute)
    highs = [model["points"][point]["gaps"][metric]["high"] for model in shown for point in POINTS for metric in GAPS]
    end = stepped_up(max([0.1, *(high for high in highs if high is not None)]))
    panels, rows = [], []
    for point in POINTS if change is not None else POINTS[:1]:
        found = [model["points"][point]["gaps"] for model in shown]
        drawn = [
            Row(m, tuple(zip(shapes, (gaps[m] for gaps in found), strict=True)), found[-1][m]["expected_if_equal"])
            for m in GAPS
        ]
        title = f"gaps between the groups of {attribute} at the {POINT_LABELS[point]}"
        drawing = interval_rows(identifier("gap", index, point), title, "gap (0: equal)", drawn, high=end)
        panels.append(Panel(POINT_LABELS[point], drawing))
        rows += [
            [
                metric,
                POINT_LABELS[point],
                *(estimate_text(gaps[metric]) for gaps in found),
                number(found[-1][metric]["expected_if_equal"]),
                *([] if change is None else [estimate_text(change["points"][point]["gaps"][metric], change=True)]),
            ]
            for metric in GAPS
        ]
    auc = [estimate_text(model["auc_gap"]) for model in shown]
    changed = [] if change is None else [estimate_text(change["auc_gap"], change=True)]
    rows.append(["auc_gap", "all", *auc, number(None), *changed])
    columns = ("gap", "operating point", *side_columns(report), "expected if equal", *_change_column(report))
    table = Table(
        f"Gaps between the groups of {attribute}, with {LEVEL_TEXT} intervals", columns, rows, frozenset({0, 1})
    )
    caption = (
        f"Gaps between the groups of {attribute}, largest less smallest, with simultaneous {LEVEL_TEXT} intervals. A "
        "measured gap is never below 0, so even equal groups show one; the upright bar marks how large on average. "
        "Dashed: imprecise."
    )
    return Figure(caption, panels, table, (*side_legend(report), EXPECTED))


def _change_of(report: Json, attribute: str) -> Json | None:
    """The paired change of an attribute's figures; None where there is one model."""
    if report["kind"] == "one_model":
        return None
    found: Json = change_between(report, BASE, method_name(report))["attributes"][attribute]
    return found


def _change_column(report: Json) -> tuple[str, ...]:
    return () if report["kind"] == "one_model" else ("paired change",)


def _curves(report: Json) -> Section:
    blocks = [_roc_figure(report, index, row["attribute"]) for index, row in enumerate(report["attributes"])]
    return Section("roc", "ROC by group", (), blocks)


def _roc_figure(report: Json, index: int, attribute: str) -> Figure | Table:
    shown = dict(sides(report))
    found = [report["models"][model]["attributes"][attribute] for model in shown.values()]
    rates = {rate: {row[0]["group"]: row for row in _by_group(report, attribute, rate)} for rate in ("fpr", "tpr")}
    panels = []
    for place, (group, curves) in enumerate(report["roc"][attribute].items()):
        points = {shape: (rates["fpr"][group][i], rates["tpr"][group][i]) for i, shape in enumerate(shown)}
        drawn = {shape: curves[model] for shape, model in shown.items() if model in curves}
        drawing = roc(identifier("roc", index, place), f"ROC curve of {attribute}: {group}", drawn, points)
        panels.append(Panel(f"{attribute}: {group}", drawing))
    change = _change_of(report, attribute)
    columns = [*found, *([] if change is None else [change])]
    aucs = kept(report, attribute, *(figures["auc_by_group"] for figures in columns))
    named = [(row[0]["group"], row) for row in aucs]
    for key, label in (("worst_group_auc", "worst group"), ("auc_gap", "gap between groups")):
        named.append((label, tuple(figures[key] for figures in columns)))
    rows = [
        [
            label,
            count_text(cells[0]["n"]),
            *map(estimate_text, cells[: len(found)]),
            *(estimate_text(cell, change=True) for cell in cells[len(found) :]),
        ]
        for label, cells in named
    ]
    caption = f"AUC by {attribute}, with {LEVEL_TEXT} intervals"
    table = Table(caption, ("group", "n", *side_columns(report), *_change_column(report)), rows)
    if not panels:
        return table
    caption = (
        f"ROC curves by {attribute} on the test patients. The marker is the operating point at the declared rule, its "
        f"cross the {LEVEL_TEXT} intervals of both rates; the dotted diagonal is chance. The table has the AUC."
    )
    return Figure(caption, panels, table, side_legend(report))
