"""The sections that set models side by side: key figures, controls, and who got worse."""

from __future__ import annotations

from typing import Any

from equipoise.common.evaluation import BASE
from equipoise.server.report.blocks import Figure, Panel, Section, Table
from equipoise.server.report.plots.intervals import Row, interval_rows
from equipoise.server.report.plots.svg import identifier, stepped_down, stepped_up
from equipoise.server.report.results import EXPECTED, kept
from equipoise.server.report.summary import change_between, method_name, primary_gap, sides
from equipoise.server.report.tables import LOCAL
from equipoise.server.report.tradeoff import trade_off
from equipoise.server.report.words import (
    LEVEL_TEXT,
    NOT_ESTIMABLE,
    POINT_LABELS,
    estimate_text,
    number,
    side_columns,
)

Json = dict[str, Any]
JUDGED = ("rule", "base_rate")  # operating points of the verdict
_SHAPES = {"base": "before", "method": "after", "control": "control"}


def comparison_sections(report: Json) -> list[Section]:
    """In the order of the page."""
    if report["kind"] == "one_model":
        return []
    return [*([_controls(report)] if report["kind"] == "method" else []), _worse(report), trade_off(report)]


def key_figures(report: Json) -> Table:
    """The few figures that matter most: of one model, or before, after and as a paired change."""
    primary, metric = report["study"]["primary"], report["study"]["evaluation"]["primary"]
    alone = report["kind"] == "one_model"
    shown = [report["models"][model] for _, model in sides(report)]
    change = [] if alone else [change_between(report, BASE, method_name(report))]
    rows = [
        (
            f"{metric}, {POINT_LABELS[p]}",
            *(figures["attributes"][primary]["points"][p]["gaps"][metric] for figures in (*shown, *change)),
        )
        for p in (JUDGED[:1] if alone else JUDGED)
    ]
    every = [*shown, *change]
    rows += [
        ("worst-group AUC", *(figures["attributes"][primary]["worst_group_auc"] for figures in every)),
        ("AUC, all patients", *(figures["auc"] for figures in every)),
        ("balanced accuracy, declared rule", *(figures["points"]["rule"]["balanced_accuracy"] for figures in every)),
    ]
    cells = [
        [
            name,
            *map(estimate_text, found[: len(shown)]),
            *(estimate_text(cell, change=True) for cell in found[len(shown) :]),
        ]
        for name, *found in rows
    ]
    caption = f"Key figures by {primary}, with {LEVEL_TEXT} intervals"
    return Table(caption, ("figure", *side_columns(report), *(["paired change"] if change else [])), cells)


def _controls(report: Json) -> Section:
    text = (
        "A control is the same study with one thing taken away. A method that does no better than plain (more training "
        "without a fairness term) or auc_noise (random noise on the delivered model's scores, until its AUC is the "
        "method's) has shown no effect of its own.",
        *_noise_words(report),
    )
    return Section("controls", "Controls", text, (_controls_figure(report),))


def _controls_figure(report: Json) -> Figure:
    names = [model for model in report["models"] if not model.startswith(LOCAL)]
    primary, metric = report["study"]["primary"], report["study"]["evaluation"]["primary"]
    shapes = {model: _SHAPES[report["roles"][model]] for model in names}
    gaps = {point: {model: primary_gap(report, model, point) for model in names} for point in JUDGED}
    worst = {model: report["models"][model]["attributes"][primary]["worst_group_auc"] for model in names}
    highs = [e["high"] for by_model in gaps.values() for e in by_model.values() if e["high"] is not None]
    panels = []
    for point, by_model in gaps.items():
        drawn = [Row(model, ((shapes[model], e),), e["expected_if_equal"]) for model, e in by_model.items()]
        title = f"{metric} of every model at the {POINT_LABELS[point]}"
        drawing = interval_rows(
            identifier("controls", point), title, "gap (0: equal)", drawn, high=stepped_up(max([0.1, *highs]))
        )
        panels.append(Panel(f"{metric}, {POINT_LABELS[point]}", drawing))
    low = stepped_down(min([0.5, *(e["low"] for e in worst.values() if e["low"] is not None)]))
    drawn = [Row(model, ((shapes[model], e),)) for model, e in worst.items()]
    axis = f"AUC of the worst group (axis from {low:.1f} to 1)"
    panels.append(
        Panel("worst-group AUC", interval_rows("controls-auc", "worst-group AUC of every model", axis, drawn, low=low))
    )
    rows = [
        [
            _label(report, model),
            *(estimate_text(gaps[point][model]) for point in JUDGED),
            estimate_text(worst[model]),
            estimate_text(report["models"][model]["auc"]),
            estimate_text(report["models"][model]["points"]["rule"]["balanced_accuracy"]),
        ]
        for model in names
    ]
    columns = (
        "model",
        f"{metric}, {POINT_LABELS['rule']}",
        f"the same, {POINT_LABELS['base_rate']}",
        "worst-group AUC",
        "AUC",
        "balanced accuracy",
    )
    table = Table(
        f"Every model on the same test patients, with {LEVEL_TEXT} intervals",
        columns,
        [*rows, *_average_rows(report)],
    )
    caption = f"Gap between the groups of {primary}, and worst-group AUC, of every model, with {LEVEL_TEXT} intervals."
    legend = [("before", "the model as delivered"), ("after", method_name(report)), ("control", "control"), EXPECTED]
    return Figure(caption, panels, table, [row for row in legend if row[0] in (*shapes.values(), "expected")])


def _label(report: Json, model: str) -> str:
    return {"base": f"{model} (as delivered)", "method": f"{model} (method)"}.get(report["roles"][model], model)


def _average_rows(report: Json) -> list[list[str]]:
    primary, metric = report["study"]["primary"], report["study"]["evaluation"]["primary"]
    rows = []
    for name, figures in report["averages"].items():
        own = figures["attributes"][primary]
        cells = [*(own["points"][point][metric] for point in JUDGED), own["worst_group_auc"], figures["auc"]]
        rows.append([f"{name} (mean; least to largest of sites)", *map(_range, cells), number(None)])
    return rows


def _range(cell: Json) -> str:
    if not cell["models"]:
        return NOT_ESTIMABLE
    return f"{number(cell['mean'])} ({number(cell['lowest'])} to {number(cell['highest'])})"


def _noise_words(report: Json) -> list[str]:
    if "auc_noise" not in report:
        return []
    noise = report["auc_noise"]
    if noise["noise_sd_logit"] == 0:
        return []  # the summary says what that means
    gaps, added = noise["gap_by_draw"], f"{noise['noise_sd_logit']:.2f} on the logit"
    if not gaps:
        return [f"auc_noise adds noise with a standard deviation of {added}; gaps of single draws are not shown."]
    return [
        f"auc_noise adds noise with a standard deviation of {added}. Over its "
        f"{noise['draws']} draws the primary gap runs from {number(min(gaps))} to {number(max(gaps))}; the draw with "
        "the median gap is shown."
    ]


def _worse(report: Json) -> Section:
    change = change_between(report, BASE, method_name(report))
    short = {"tpr_change": "TPR lower", "auc_change": "AUC lower", "fpr_change": "more false alarms"}
    flagged = [*report["level_down"], *report["more_false_alarms"]]
    rows = []
    for attribute in report["attributes"]:
        name = attribute["attribute"]
        figures = change["attributes"][name]
        point = figures["points"]["rule"]["by_group"]
        for cells in kept(report, name, point["tpr"], point["fpr"], point["selection_rate"], figures["auc_by_group"]):
            group = cells[0]["group"]
            flags = [short[r["metric"]] for r in flagged if (r["attribute"], r["group"]) == (name, group)]
            rows.append(
                [name, group, *(estimate_text(e, change=True) for e in cells), ", ".join(flags) or "none shown"]
            )
    columns = ("attribute", "group", "change of TPR", "of FPR", "of selection rate", "of AUC", "loss flagged")
    caption = f"After less before, on the same patients, at the declared rule, with paired {LEVEL_TEXT} intervals"
    table = Table(caption, columns, rows, frozenset({0, 1, 6}))
    return Section("worse", "Who got worse", report["summary"]["worse"], (table,))
