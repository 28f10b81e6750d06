"""Horizontal bars under their labels: the mask by tensor, bytes by site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from equipoise.server.report.plots.svg import WIDTH, Drawing, Scale, identifier, shortened, tick_text

LEFT, RIGHT, TOP, BOTTOM = 8, 14, 6, 40
LABEL, BAR = 15, 8


@dataclass(frozen=True)
class Bar:
    """A label and its lengths.

    Attributes:
        label: at the left, above the bars.
        note: at the right, above the bars.
        values: one bar each, from top to bottom; the second is hatched.
    """

    label: str
    note: str
    values: Sequence[float]


def bars(
    name: str, title: str, axis: str, rows: Sequence[Bar], *, high: float, line: float | None = None, unit: float = 1.0
) -> Markup:
    """A panel of bars over one axis from 0.

    Args:
        name: identifier of the element.
        title: what is shown, for screen readers.
        axis: label of the axis, with its unit.
        rows: from top to bottom.
        high: end of the axis.
        line: a value marked over all bars, such as their mean.
        unit: what a tick's label is divided by.
    """
    extent = LABEL + BAR * max(len(row.values) for row in rows) + 7
    height = TOP + extent * len(rows) + BOTTOM
    bottom = height - BOTTOM
    description = "; ".join(f"{row.label}: {row.note}" for row in rows) + "."
    drawing = Drawing(name, title, description, height)
    fill = drawing.hatching(identifier(name, "hatch"))
    scale = Scale(0.0, high, LEFT, WIDTH - RIGHT)
    for value in scale.ticks:
        drawing.line(scale(value), TOP, scale(value), bottom, "grid")
        anchor = "start" if value == 0 else "end" if value == high else "middle"
        drawing.text(scale(value), bottom + 15, tick_text(value / unit), "tick", anchor)
    drawing.line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis")
    drawing.text(LEFT, bottom + 32, axis, "axis-label")
    for number, row in enumerate(rows):
        y = TOP + extent * number
        for lane, value in enumerate(row.values):
            place = (LEFT, y + LABEL + BAR * lane, scale(value) - LEFT, BAR - 1.5)
            if lane == 1:
                drawing.filled(*place, fill, "bar hatched")
            else:
                drawing.rect(*place, "bar")
    if line is not None:
        drawing.line(scale(line), TOP, scale(line), bottom, "expected")
    for number, row in enumerate(rows):
        y = TOP + extent * number
        drawing.text(LEFT, y + 11, shortened(row.label, 46 - len(row.note)), "row-label small halo")
        drawing.text(WIDTH - RIGHT, y + 11, row.note, "note halo", "end")
    return drawing.markup()
