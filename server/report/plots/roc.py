"""ROC curves of one group before and after, with the operating points and the intervals of their rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from equipoise.server.report.plots.svg import WIDTH, Drawing, Scale, tick_text

Json = dict[str, Any]
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 8, 44


def roc(
    name: str,
    title: str,
    curves: Mapping[str, Sequence[Sequence[float]]],
    points: Mapping[str, tuple[Json, Json]],
) -> Markup:
    """A square panel.

    Args:
        name: identifier of the element.
        title: what is shown, for screen readers.
        curves: marker (`before`, `after`) -> points (fpr, tpr).
        points: marker -> estimates of the fpr and the tpr at the operating point; left out where one has no number.
    """
    side = WIDTH - LEFT - RIGHT
    drawing = Drawing(name, title, _description(points), side + TOP + BOTTOM)
    across = Scale(0.0, 1.0, LEFT, LEFT + side)
    up = Scale(0.0, 1.0, TOP + side, TOP)
    for value in across.ticks:
        drawing.line(across(value), TOP, across(value), TOP + side, "grid")
        drawing.line(LEFT, up(value), LEFT + side, up(value), "grid")
        drawing.text(across(value), TOP + side + 15, tick_text(value), "tick", "middle")
        drawing.text(LEFT - 6, up(value) + 4, tick_text(value), "tick", "end")
    drawing.line(LEFT, TOP + side, LEFT + side, TOP, "chance")
    drawing.path([(LEFT, TOP), (LEFT, TOP + side), (LEFT + side, TOP + side)], "axis")
    drawing.text(
        LEFT + side / 2, TOP + side + 35, "false positive rate (share of those without it)", "axis-label", "middle"
    )
    drawing.text(13, TOP + side / 2, "true positive rate (share of those with it)", "axis-label", "middle", turn=True)
    for shape, curve in curves.items():
        drawing.path([(across(x), up(y)) for x, y in curve], f"curve {shape}")
    for shape, (fpr, tpr) in points.items():
        if fpr["value"] is None or tpr["value"] is None:
            continue
        x, y = across(fpr["value"]), up(tpr["value"])
        drawing.line(across(fpr["low"]), y, across(fpr["high"]), y, f"interval {shape}")
        drawing.line(x, up(tpr["low"]), x, up(tpr["high"]), f"interval {shape}")
        drawing.marker(x, y, shape)
    return drawing.markup()


def _description(points: Mapping[str, tuple[Json, Json]]) -> str:
    return " ".join(
        f"{shape}: operating point at false positive rate {fpr['value']:.3f}, true positive rate {tpr['value']:.3f}."
        for shape, (fpr, tpr) in points.items()
        if fpr["value"] is not None and tpr["value"] is not None
    )
