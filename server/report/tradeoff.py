"""The section on what a smaller gap costs: every model's gap against its accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from equipoise.server.report.blocks import Figure, Panel, Section, Table
from equipoise.server.report.plots.plane import Axis, Dot, Line, plane
from equipoise.server.report.plots.svg import stepped_down, stepped_up
from equipoise.server.report.tables import LOCAL
from equipoise.server.report.words import LEVEL_TEXT, estimate_text

Json = dict[str, Any]
SHAPES = {"base": "before", "method": "after", "control": "control"}


def trade_off(report: Json) -> Section:
    """The section of the page."""
    primary, metric = report["study"]["primary"], report["study"]["evaluation"]["primary"]
    found = {
        model: (
            figures["points"]["rule"]["balanced_accuracy"],
            figures["attributes"][primary]["points"]["rule"]["gaps"][metric],
        )
        for model, figures in report["models"].items()
        if not model.startswith(LOCAL)
    }
    known = {model: pair for model, pair in found.items() if all(e["value"] is not None for e in pair)}
    rows = [
        [model, *map(estimate_text, pair), "yes" if model in front(known) else "no"] for model, pair in found.items()
    ]
    columns = ("model", "balanced accuracy", metric, "not beaten on both")
    table = Table(f"Gap and accuracy of every model, with {LEVEL_TEXT} intervals", columns, rows, frozenset({0, 3}))
    title = f"{metric} by {primary} against balanced accuracy, declared rule"
    text = (
        "A model is not beaten on both where no other has a smaller gap and a higher accuracy; with crosses this wide, "
        "that is a description and no ranking.",
    )
    if not known:
        return Section("trade-off", "What a smaller gap costs", text, (table,))
    dots = [
        Dot(SHAPES[report["roles"][m]], a["value"], g["value"], (a["low"], a["high"]), (g["low"], g["high"]), m)
        for m, (a, g) in known.items()
    ]
    low = stepped_down(min(a["low"] for a, _ in known.values()))
    high = stepped_up(max(a["high"] for a, _ in known.values()))
    axes = (
        Axis(f"balanced accuracy (axis from {low:.1f} to {high:.1f})", low, max(high, low + 0.1)),
        Axis("gap (0: equal)", 0.0, stepped_up(max(0.1, *(g["high"] for _, g in known.values())))),
    )
    line = Line("front", [(known[m][0]["value"], known[m][1]["value"]) for m in front(known)])
    drawing = plane("trade-off-plane", title, axes, [line], dots)
    legend = [
        ("before", "the model as delivered"),
        ("after", report["study"]["method"]["name"]),
        ("control", "control"),
    ]
    shown = [row for row in legend if row[0] in {dot.shape for dot in dots}]
    caption = f"Lower right is better. Crosses: {LEVEL_TEXT} intervals; the thin line joins models not beaten on both."
    figure = Figure(caption, [Panel(f"{metric} and balanced accuracy", drawing)], table, shown)
    return Section("trade-off", "What a smaller gap costs", text, (figure,))


def front(known: Mapping[str, Sequence[Json]]) -> list[str]:
    """Models that no other beats on both figures, by rising accuracy."""
    points = {model: (pair[0]["value"], pair[1]["value"]) for model, pair in known.items()}
    kept = [
        model
        for model, (accuracy, gap) in points.items()
        if not any(other != (accuracy, gap) and other[0] >= accuracy and other[1] <= gap for other in points.values())
    ]
    return sorted(kept, key=lambda model: points[model])
