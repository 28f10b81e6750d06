"""A plane of two figures: curves and points with intervals to both sides (reliability, gap by threshold, trade-off)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from equipoise.server.report.plots.svg import WIDTH, Drawing, Scale, tick_text

LEFT, RIGHT, TOP, BOTTOM, HEIGHT = 48, 12, 8, 44, 320
RUG = 22  # pixels of the tallest mark of a rug


@dataclass(frozen=True)
class Axis:
    """A label with its unit, and the values at both ends."""

    label: str
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """A curve; `shape` is a marker of `Drawing.marker` or `front`, and fixes colour and stroke."""

    shape: str
    points: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Dot:
    """A marked point; intervals are (low, high) or None; `label` stands beside it."""

    shape: str
    x: float
    y: float
    across: tuple[float, float] | None = None
    up: tuple[float, float] | None = None
    label: str = ""


def plane(
    name: str,
    title: str,
    axes: tuple[Axis, Axis],
    lines: Sequence[Line],
    dots: Sequence[Dot],
    *,
    diagonal: bool = False,
    rug: Sequence[tuple[float, float]] = (),
) -> Markup:
    """A panel.

    Args:
        name: identifier of the element.
        title: what is shown, for screen readers.
        axes: horizontal, vertical.
        lines, dots: in the order of drawing.
        diagonal: whether equality of both figures is drawn.
        rug: (place, share of all patients) of marks that stand on the horizontal axis.
    """
    drawing = Drawing(name, title, _description(axes, dots), HEIGHT)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    across, up = Scale(axes[0].low, axes[0].high, LEFT, right), Scale(axes[1].low, axes[1].high, bottom, TOP)
    for value in across.ticks:
        drawing.line(across(value), TOP, across(value), bottom, "grid")
        drawing.text(across(value), bottom + 15, tick_text(value), "tick", "middle")
    for value in up.ticks:
        drawing.line(LEFT, up(value), right, up(value), "grid")
        drawing.text(LEFT - 6, up(value) + 4, tick_text(value), "tick", "end")
    if diagonal:
        low, high = max(axes[0].low, axes[1].low), min(axes[0].high, axes[1].high)
        drawing.line(across(low), up(low), across(high), up(high), "chance")
    for place, share in rug:
        drawing.line(across(place), bottom, across(place), bottom - max(RUG * share, 2.0), "rug")
    drawing.path([(LEFT, TOP), (LEFT, bottom), (right, bottom)], "axis")
    drawing.text((LEFT + right) / 2, HEIGHT - 8, axes[0].label, "axis-label", "middle")
    drawing.text(13, (TOP + bottom) / 2, axes[1].label, "axis-label", "middle", turn=True)
    for line in lines:
        drawing.path([(across(x), up(y)) for x, y in line.points], f"curve {line.shape}")
    for dot in dots:
        x, y = across(dot.x), up(dot.y)
        if dot.across is not None:
            drawing.line(across(dot.across[0]), y, across(dot.across[1]), y, f"interval {dot.shape}")
        if dot.up is not None:
            drawing.line(x, up(dot.up[0]), x, up(dot.up[1]), f"interval {dot.shape}")
        drawing.marker(x, y, dot.shape)
    for dot in dots:
        if dot.label:
            x, y = across(dot.x), up(dot.y)
            near_end = x > right - 7 * len(dot.label)
            drawing.text(x + (-9 if near_end else 9), y - 7, dot.label, "note halo", "end" if near_end else "start")
    return drawing.markup()


def _description(axes: tuple[Axis, Axis], dots: Sequence[Dot]) -> str:
    named = "; ".join(f"{dot.label or dot.shape} at {dot.x:.3f}, {dot.y:.3f}" for dot in dots)
    return f"Across: {axes[0].label}. Up: {axes[1].label}. {named}."
