"""The bias loss over rounds, the phases told apart by marker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from equipoise.server.report.plots.svg import WIDTH, Drawing, Scale, rounded_up, tick_text

Json = dict[str, Any]
LEFT, RIGHT, TOP, BOTTOM, HEIGHT = 52, 14, 22, 44, 260


def loss_curve(name: str, title: str, axis: str, rounds: Sequence[Json]) -> Markup:
    """A panel.

    Args:
        name: identifier of the element.
        title: what is shown, for screen readers.
        axis: label of the vertical axis.
        rounds: `round`, `phase` and `value`, in order; phase `before` is the model as delivered.
    """
    values = [row["value"] for row in rounds]
    description = f"From {values[0]:.3f} before the first round to {values[-1]:.3f} after round {rounds[-1]['round']}."
    drawing = Drawing(name, title, description, HEIGHT)
    across = Scale(0.0, float(max(rounds[-1]["round"], 1)), LEFT, WIDTH - RIGHT)
    up = Scale(min(0.0, *values), rounded_up(max(*values, 1e-6)), HEIGHT - BOTTOM, TOP)
    for value in up.ticks:
        drawing.line(LEFT, up(value), WIDTH - RIGHT, up(value), "grid")
        drawing.text(LEFT - 6, up(value) + 4, tick_text(value), "tick", "end")
    step = max(1, -(-len(rounds) // 12))
    for row in rounds[::step]:
        drawing.text(across(row["round"]), HEIGHT - BOTTOM + 15, str(row["round"]), "tick", "middle")
    drawing.path([(LEFT, TOP), (LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)], "axis")
    drawing.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "round (0: the model as delivered)", "axis-label", "middle")
    drawing.text(13, (TOP + HEIGHT - BOTTOM) / 2, axis, "axis-label", "middle", turn=True)
    _phases(drawing, across, rounds)
    drawing.path([(across(row["round"]), up(row["value"])) for row in rounds], "curve after")
    for row in rounds:
        shape = {"before": "before", "head": "control"}.get(row["phase"], "after")
        drawing.marker(across(row["round"]), up(row["value"]), shape)
    return drawing.markup()


def _phases(drawing: Drawing, across: Scale, rounds: Sequence[Json]) -> None:
    """A thin line where a phase begins, and its name above."""
    start = 1
    for index in range(1, len(rounds)):
        last = index + 1 == len(rounds)
        if last or rounds[index + 1]["phase"] != rounds[index]["phase"]:
            left, right = rounds[start]["round"] - 0.5, rounds[index]["round"] + (0.0 if last else 0.5)
            drawing.line(across(left), TOP - 8, across(left), HEIGHT - BOTTOM, "divider")
            drawing.text((across(left) + across(right)) / 2, TOP - 8, rounds[index]["phase"], "note halo", "middle")
            start = index + 1
