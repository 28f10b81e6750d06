"""A forest plot: a difference at each hospital, what they share, what is pooled, and where a further one would lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from equipoise.server.report.plots.svg import WIDTH, Drawing, Scale, shortened, tick_text
from equipoise.server.report.words import NOT_ESTIMABLE, estimate_text

Json = dict[str, Any]
LEFT, RIGHT, TOP, BOTTOM, ROW = 104, 14, 6, 40, 22


def forest(name: str, title: str, axis: str, found: Json) -> Markup:
    """A panel of one entry of `hospital_figures`: boxes by weight, then within, pooled and the prediction interval.

    Args:
        name: identifier of the element.
        title: what is shown, for screen readers.
        axis: label of the axis.
        found: `hospitals`, `within`, `pooled`, `mean`, `prediction`.
    """
    hospitals, summary = found["hospitals"], [("within hospitals", found["within"]), ("pooled", found["pooled"])]
    estimates = [*(row["difference"] for row in hospitals), *(estimate for _, estimate in summary)]
    reach = max([0.1, *(abs(e[end]) for e in estimates if e["value"] is not None for end in ("low", "high"))])
    prediction = found["prediction"]
    if prediction is not None:
        reach = max(reach, *(abs(end) for end in prediction))
    reach = min(-(-reach // 0.1) * 0.1, 1.0)
    rows = len(hospitals) + len(summary) + 1
    bottom = TOP + ROW * rows
    drawing = Drawing(name, title, _description(hospitals, summary), bottom + BOTTOM)
    scale = Scale(-reach, reach, LEFT, WIDTH - RIGHT)
    for value in scale.ticks:
        drawing.line(scale(value), TOP, scale(value), bottom, "grid")
        drawing.text(scale(value), bottom + 15, tick_text(value), "tick", "middle")
    drawing.line(scale(0), TOP, scale(0), bottom, "expected")
    drawing.line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis")
    drawing.text((LEFT + WIDTH - RIGHT) / 2, bottom + 32, axis, "axis-label", "middle")
    for place, row in enumerate(hospitals):
        _hospital(drawing, scale, row, TOP + ROW * (place + 0.5))
    for place, (label, estimate) in enumerate(summary, len(hospitals)):
        _diamond(drawing, scale, label, estimate, TOP + ROW * (place + 0.5), filled=label != "pooled")
    lacking = "suppressed" if found["mean"]["status"] == "suppressed" else NOT_ESTIMABLE
    _prediction(drawing, scale, prediction, lacking, TOP + ROW * (rows - 0.5))
    return drawing.markup()


def _hospital(drawing: Drawing, scale: Scale, row: Json, y: float) -> None:
    estimate = row["difference"]
    drawing.text(LEFT - 8, y + 4, shortened(row["hospital"], 16), "row-label small", "end")
    if estimate["value"] is None:
        drawing.text(LEFT + 4, y + 4, estimate_text(estimate), "missing halo")
        return
    dashed = " imprecise" if estimate["status"] == "imprecise" else ""
    drawing.line(scale(estimate["low"]), y, scale(estimate["high"]), y, f"interval after{dashed}")
    side = 4 + 10 * (row["weight"] or 0.0) ** 0.5
    drawing.rect(scale(estimate["value"]) - side / 2, y - side / 2, side, side, "mark after")


def _diamond(drawing: Drawing, scale: Scale, label: str, estimate: Json, y: float, *, filled: bool) -> None:
    drawing.text(LEFT - 8, y + 4, label, "row-label small", "end")
    if estimate["value"] is None:
        drawing.text(LEFT + 4, y + 4, estimate_text(estimate), "missing halo")
        return
    low, value, high = (scale(estimate[key]) for key in ("low", "value", "high"))
    drawing.path([(low, y), (value, y - 7), (high, y), (value, y + 7), (low, y)], f"diamond {'full' if filled else ''}")


def _prediction(drawing: Drawing, scale: Scale, prediction: Sequence[float] | None, lacking: str, y: float) -> None:
    drawing.text(LEFT - 8, y + 4, "next hospital", "row-label small", "end")
    if prediction is None:
        drawing.text(LEFT + 4, y + 4, lacking, "missing halo")
        return
    low, high = (scale(end) for end in prediction)
    drawing.line(low, y, high, y, "divider")
    for end in (low, high):
        drawing.line(end, y - 4, end, y + 4, "axis")


def _description(hospitals: Sequence[Json], summary: Sequence[tuple[str, Json]]) -> str:
    named = [(row["hospital"], row["difference"]) for row in hospitals] + list(summary)
    return "; ".join(f"{label} {estimate_text(estimate, change=True)}" for label, estimate in named) + "."
