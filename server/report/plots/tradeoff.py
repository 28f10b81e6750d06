"""Two figures of every model against each other, with the intervals of both: which model trades what for what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from equipoise.server.report.plots.svg import Drawing, Scale, tick_text

Json = dict[str, Any]
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 8, 44
WIDTH, HEIGHT = 540, 400  # of the panel and of its field, pixels: two stand side by side on a desk
STEP = 0.05  # ends of the axes lie on multiples of it


@dataclass(frozen=True)
class Point:
    """A model.

    Attributes:
        label: short; stands beside the marker.
        shape: as in `Drawing.marker`.
        across, up: cells of `side_by_side.over_seeds`; a model without a mean is left out.
    """

    label: str
    shape: str
    across: Json
    up: Json


def tradeoff(name: str, title: str, axes: tuple[str, str], points: Sequence[Point]) -> Markup:
    """A panel, one marker a model.

    Args:
        name: identifier of the element.
        title: what is shown, for screen readers.
        axes: labels of the horizontal and of the vertical axis.
        points: drawn in this order, so that the last lies on top.
    """
    drawn = [point for point in points if point.across["mean"] is not None and point.up["mean"] is not None]
    drawing = Drawing(name, title, _description(drawn), HEIGHT + TOP + BOTTOM, WIDTH)
    across = _scale([point.across for point in drawn], LEFT, WIDTH - RIGHT, low=0.0)
    up = _scale([point.up for point in drawn], TOP + HEIGHT, TOP)
    for value in across.ticks:
        drawing.line(across(value), TOP, across(value), TOP + HEIGHT, "grid")
        drawing.text(across(value), TOP + HEIGHT + 15, tick_text(value), "tick", "middle")
    for value in up.ticks:
        drawing.line(LEFT, up(value), WIDTH - RIGHT, up(value), "grid")
        drawing.text(LEFT - 6, up(value) + 4, tick_text(value), "tick", "end")
    drawing.path([(LEFT, TOP), (LEFT, TOP + HEIGHT), (WIDTH - RIGHT, TOP + HEIGHT)], "axis")
    drawing.text(LEFT + (WIDTH - LEFT - RIGHT) / 2, TOP + HEIGHT + 35, axes[0], "axis-label", "middle")
    drawing.text(13, TOP + HEIGHT / 2, axes[1], "axis-label", "middle", turn=True)
    for point in drawn:
        x, y = across(point.across["mean"]), up(point.up["mean"])
        if point.across["low"] is not None:
            drawing.line(across(point.across["low"]), y, across(point.across["high"]), y, f"interval {point.shape}")
        if point.up["low"] is not None:
            drawing.line(x, up(point.up["low"]), x, up(point.up["high"]), f"interval {point.shape}")
    for point in drawn:
        x, y = across(point.across["mean"]), up(point.up["mean"])
        drawing.marker(x, y, point.shape)
        drawing.text(x + 7, y - 6, point.label, "small halo")
    return drawing.markup()


def _scale(cells: Sequence[Json], start: float, end: float, low: float | None = None) -> Scale:
    """An axis that holds the means and the intervals, its ends on multiples of STEP."""
    values = [cell[key] for cell in cells for key in ("mean", "low", "high") if cell[key] is not None]
    least, largest = min(values, default=0.0), max(values, default=1.0)
    bottom = math.floor(least / STEP + 1e-9) * STEP if low is None else low
    top = math.ceil(largest / STEP - 1e-9) * STEP
    return Scale(bottom, max(top, bottom + STEP), start, end)


def _description(points: Sequence[Point]) -> str:
    return " ".join(f"{p.label}: {p.across['mean']:.3f} across, {p.up['mean']:.3f} up." for p in points)
