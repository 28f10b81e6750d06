"""The sections on scores: gap against threshold, calibration, what average precision and Brier score say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from equipoise.server.report.blocks import Figure, Panel, Section, Table
from equipoise.server.report.plots.plane import Axis, Dot, Line, plane
from equipoise.server.report.plots.svg import identifier, stepped_up
from equipoise.server.report.summary import primary_gap, sides
from equipoise.server.report.words import LEVEL_TEXT, estimate_text, number, side_columns, side_legend

Json = dict[str, Any]
TABLED = 12  # rows of a curve's table
DRAWN_GROUPS = 8
_OF = ("ece", "citl")  # the estimates of a calibration


def score_sections(report: Json) -> list[Section]:
    """In the order of the page."""
    return [_by_threshold(report), _calibration(report)]


def _by_threshold(report: Json) -> Section:
    metric = report["study"]["evaluation"]["primary"]
    figures = [_threshold_figure(report, index, row["attribute"]) for index, row in enumerate(report["attributes"])]
    text = (
        f"{metric} if another threshold had been chosen. A threshold chosen by looking at this curve is chosen on the "
        "test patients: the curve shows how much hangs on the choice, not which threshold to take.",
    )
    return Section("threshold-curve", "The gap at every threshold", text, [f for f in figures if f is not None])


def _threshold_figure(report: Json, index: int, attribute: str) -> Figure | None:
    metric, shown = report["study"]["evaluation"]["primary"], sides(report)
    curves = {
        shape: report["scores"][model][attribute]["gap_by_threshold"]
        for shape, model in shown
        if attribute in report["scores"][model]
    }
    if not any(curves.values()):
        return None
    dots = []
    for shape, model in shown:
        estimate = (
            primary_gap(report, model)
            if attribute == report["study"]["primary"]
            else report["models"][model]["attributes"][attribute]["points"]["rule"]["gaps"][metric]
        )
        if estimate["value"] is not None:
            place = report["thresholds"][model]["rule"]["probability"]
            dots.append(Dot(shape, place, estimate["value"], up=(estimate["low"], estimate["high"])))
    highs = [y for curve in curves.values() for _, y in curve] + [dot.up[1] for dot in dots if dot.up]
    axes = Axis("threshold (probability)", 0.0, 1.0), Axis("gap (0: equal)", 0.0, stepped_up(max([0.1, *highs])))
    lines = [Line(shape, curve) for shape, curve in curves.items() if curve]
    title = f"{metric} by {attribute} against the threshold"
    drawing = plane(identifier("gap-curve", index), title, axes, lines, dots)
    rows = [
        [label, number(x), number(y)]
        for (shape, curve), label in zip(curves.items(), side_columns(report), strict=False)
        for x, y in curve[:: max(1, len(curve) // TABLED)]
    ]
    table = Table(title, ("model", "threshold", "gap"), rows)
    caption = (
        f"The marker is the declared operating point with its {LEVEL_TEXT} interval; the curve itself has none and "
        "wavers where few patients lie on one side of the threshold."
    )
    return Figure(caption, [Panel(f"by {attribute}", drawing)], table, side_legend(report))


def _calibration(report: Json) -> Section:
    blocks: list[Figure | Table] = []
    for index, row in enumerate(report["attributes"]):
        attribute = row["attribute"]
        if all(attribute in report["scores"][model] for _, model in sides(report)):
            drawn = [row["reliability"] for row in _calibrations(report, attribute)]
            blocks += [_reliability(report, index, attribute)] if any(drawn) else []
            blocks.append(_score_table(report, attribute))
    text = (
        "Whether a score of 0.2 means that 20 of 100 such patients have the disease. Even a perfectly calibrated model "
        "shows an error in few patients, so each error (ECE) stands beside the one that chance alone would show in "
        "this many. Observed over expected is 1 where the scores are right on average. Brier score and average "
        "precision move with the prevalence: do not compare groups by them.",
        *_withheld(report),
    )
    return Section("calibration", "Calibration by group", text, blocks)


def _calibrations(report: Json, attribute: str) -> list[Json]:
    """Calibration of every group of an attribute under the models that are shown."""
    found = (report["scores"][model].get(attribute) for _, model in sides(report))
    return [row for scores in found if scores is not None for row in scores["calibration"]]


def _withheld(report: Json) -> list[str]:
    """Why a calibration that the bins do not tell is not released: one sentence each reason."""
    found = (row[key] for one in report["attributes"] for row in _calibrations(report, one["attribute"]) for key in _OF)
    reasons = dict.fromkeys(figure["reason"] for figure in found if figure["status"] == "not_released")
    return [f"Not released: {reason}." for reason in reasons]


def _groups(report: Json, attribute: str) -> list[tuple[int, str]]:
    """Rows of the declared groups."""
    groups = next(row for row in report["attributes"] if row["attribute"] == attribute)["groups"]
    return [(place, group["group"]) for place, group in enumerate(groups) if group["declared"]]


def _reliability(report: Json, index: int, attribute: str) -> Figure:
    panels, rows = [], []
    for place, group in _groups(report, attribute)[:DRAWN_GROUPS]:
        dots, rug = [], []
        for (shape, model), label in zip(sides(report), side_columns(report), strict=True):
            points = report["scores"][model][attribute]["calibration"][place]["reliability"]
            dots += [Dot(shape, x, y, up=(low, high)) for x, y, low, high, _ in points]
            rows += [
                [group, label, number(x), f"{number(y)} [{number(low)}, {number(high)}]", f"{n:.0f}"]
                for x, y, low, high, n in points
            ]
            total = sum(point[4] for point in points) or 1.0
            rug = [(point[0], point[4] / total) for point in points]
        axes = Axis("mean score of the bin", 0.0, 1.0), Axis("share with the disease", 0.0, 1.0)
        title = f"Reliability of {attribute}: {group}"
        drawing = plane(identifier("reliability", index, place), title, axes, [], dots, diagonal=True, rug=rug)
        panels.append(Panel(f"{attribute}: {group}", drawing))
    table = Table(
        f"Reliability by {attribute}", ("group", "model", "mean score", "share with the disease", "patients"), rows,
        frozenset({0, 1}),
    )  # fmt: skip
    caption = (
        f"Observed share against mean score, by bin of the score, with {LEVEL_TEXT} intervals; on the dotted line "
        "scores are right. Ticks at the foot: where the patients' scores lie."
    )
    return Figure(caption, panels, table, side_legend(report))


def _score_table(report: Json, attribute: str) -> Table:
    rows = []
    for place, group in _groups(report, attribute):
        for (_, model), label in zip(sides(report), side_columns(report), strict=True):
            scores = report["scores"][model][attribute]
            found = scores["calibration"][place]
            by_chance = (
                f"{number(found['ece_if_calibrated'])} (up to {number(found['ece_if_calibrated_p95'])})"
                if found["ece_if_calibrated"] is not None
                else "–"
            )
            rows.append([
                group, label, estimate_text(found["ece"]), by_chance, estimate_text(found["citl"]),
                estimate_text(scores["brier"][place]), estimate_text(scores["auprc"][place]),
            ])  # fmt: skip
    columns = ("group", "model", "ECE", "ECE by chance alone", "observed over expected", "Brier", "average precision")
    return Table(f"Scores by {attribute}, with {LEVEL_TEXT} intervals", columns, rows, frozenset({0, 1}))


def xauc_table(report: Json, attribute: str) -> Table | None:
    """How often a diseased patient of one group gets a higher score than a healthy one of another."""
    found: Sequence[Json] = report["scores"][sides(report)[0][1]].get(attribute, {}).get("xauc", [])
    if not found:
        return None
    rows = [
        [
            f"{cell['positives_of']} over {cell['negatives_of']}",
            *(estimate_text(report["scores"][model][attribute]["xauc"][place]) for _, model in sides(report)),
        ]
        for place, cell in enumerate(found)
    ]
    caption = f"xAUC by {attribute}: a diseased patient of one group above a healthy one of the other"
    return Table(caption, ("positives over negatives", *side_columns(report)), rows)
