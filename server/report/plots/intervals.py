"""Rows of figures with their intervals: rates by group before and after, gaps, and controls beside the method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from equipoise.server.report.plots.svg import WIDTH, Drawing, Scale, rounded_up, shortened, tick_text
from equipoise.server.report.words import estimate_text

Json = dict[str, Any]
LEFT, RIGHT, TOP, BOTTOM = 8, 14, 6, 40
LABEL, LANE = 17, 13  # heights, pixels


@dataclass(frozen=True)
class Row:
    """One label and the figures under it.

    Attributes:
        label: what the figures are about.
        marks: (marker, estimate) from top to bottom; markers as in `Drawing.marker`.
        tick: a value marked with a short bar (what chance alone would show), or None.
        note: words at the right end of the label's line.
        singles: the values behind each mark, one dot each; none are drawn where it is empty.
        linked: whether two marks are the same thing before and after.
    """

    label: str
    marks: Sequence[tuple[str, Json]]
    tick: float | None = None
    note: str = ""
    singles: Sequence[Sequence[float]] = ()
    linked: bool = True


def interval_rows(
    name: str, title: str, axis: str, rows: Sequence[Row], *, low: float = 0.0, high: float | None = 1.0
) -> Markup:
    """A panel of rows over one axis.

    Args:
        name: identifier of the element.
        title: what is shown, for screen readers.
        axis: label of the axis, with its unit.
        rows: from top to bottom.
        low, high: ends of the axis; `high=None` takes a round value above everything drawn.
    """
    if high is None:
        drawn = [e["high"] for row in rows for _, e in row.marks if e["high"] is not None]
        high = rounded_up(max([*drawn, *(row.tick for row in rows if row.tick is not None), 0.05]))
    heights = [LABEL + LANE * len(row.marks) + 9 for row in rows]
    height = TOP + sum(heights) + BOTTOM
    bottom = height - BOTTOM
    drawing = Drawing(name, title, _description(rows), height)
    scale = Scale(low, high, LEFT, WIDTH - RIGHT)
    for value in scale.ticks:
        drawing.line(scale(value), TOP, scale(value), bottom, "grid")
        drawing.text(scale(value), bottom + 15, tick_text(value), "tick", _anchor(value, scale))
    drawing.line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis")
    drawing.text(LEFT, bottom + 32, axis, "axis-label")
    y = float(TOP)
    for row, extent in zip(rows, heights, strict=True):
        _row(drawing, scale, row, y)
        y += extent
    return drawing.markup()


def _row(drawing: Drawing, scale: Scale, row: Row, top: float) -> None:
    drawing.text(LEFT, top + 12, shortened(row.label, 44 - len(row.note)), "row-label halo")
    if row.note:
        drawing.text(WIDTH - RIGHT, top + 12, row.note, "note halo", "end")
    lanes = [top + LABEL + LANE * (i + 0.5) for i in range(len(row.marks))]
    if row.tick is not None:
        x = scale(row.tick)
        drawing.line(x, lanes[0] - 6, x, lanes[-1] + 6, "expected")
    ends = [(scale(e["value"]), y) for (_, e), y in zip(row.marks, lanes, strict=True) if e["value"] is not None]
    if row.linked and len(ends) == 2:
        drawing.path(ends, "link")
    if not ends:
        drawing.text(LEFT, sum(lanes) / len(lanes) + 4, estimate_text(row.marks[0][1]), "missing halo")
        return
    for values, y in zip(row.singles, lanes, strict=False):
        for value in values:
            drawing.dot(scale(value), y)
    for (shape, estimate), y in zip(row.marks, lanes, strict=True):
        if estimate["value"] is None:
            drawing.text(LEFT, y + 4, estimate_text(estimate), "missing halo")
            continue
        dashed = " imprecise" if estimate["status"] == "imprecise" else ""
        left, right = scale(estimate["low"]), scale(estimate["high"])
        drawing.line(left, y, right, y, f"interval {shape}{dashed}")
        for value, end in ((estimate["low"], left), (estimate["high"], right)):
            if scale.low <= value <= scale.high:  # else it goes on beyond the panel
                drawing.line(end, y - 3, end, y + 3, f"interval {shape}")
        drawing.marker(scale(estimate["value"]), y, shape)


def _anchor(value: float, scale: Scale) -> str:
    return "start" if value == scale.low else "end" if value == scale.high else "middle"


def _description(rows: Sequence[Row]) -> str:
    return " ".join(
        f"{row.label}: " + ", ".join(f"{shape} {estimate_text(estimate)}" for shape, estimate in row.marks) + "."
        for row in rows
    )
