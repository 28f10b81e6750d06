"""For whom a figure can speak: groups by hospital, each cell a word and a hatching, so that it reads without colour."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from equipoise.server.report.plots.svg import WIDTH, Drawing, identifier, shortened

LABEL, TOP, ROW = 96, 66, 24
SIGNS = {"ok": "ok", "imprecise": "≈", "not_estimable": "–", "suppressed": "·", "not_released": "×"}
STATUS_WORDS = {
    "ok": "estimable",
    "imprecise": "imprecise (interval wider than ±0.10)",
    "not_estimable": "not estimable (too few patients)",
    "suppressed": "suppressed (small cell)",
    "not_released": "not released",
}


def matrix(
    name: str, title: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]
) -> Markup:
    """A panel.

    Args:
        name: identifier of the element.
        title: what is shown, for screen readers.
        rows, columns: their labels.
        cells: for each row, a status (a key of `SIGNS`) a column.
    """
    drawing = Drawing(name, title, _description(rows, columns, cells), TOP + ROW * len(rows) + 8)
    fill = drawing.hatching(identifier(name, "hatch"))
    wide = min((WIDTH - LABEL - 4) / len(columns), 64.0)
    for place, column in enumerate(columns):
        x = LABEL + wide * (place + 0.5)
        drawing.slanted(x - 2, TOP - 6, shortened(column, 13))
    for line, (row, statuses) in enumerate(zip(rows, cells, strict=True)):
        y = TOP + ROW * line
        drawing.text(LABEL - 8, y + 16, shortened(row, 15), "row-label small", "end")
        for place, status in enumerate(statuses):
            box = (LABEL + wide * place + 1, y + 1, wide - 2, ROW - 2)
            if status == "ok":
                drawing.rect(*box, "cell ok")
            elif status == "imprecise":
                drawing.filled(*box, fill, "cell imprecise")
            else:
                drawing.rect(*box, "cell missing")
            drawing.text(box[0] + box[2] / 2, y + 16, SIGNS[status], "small halo", "middle")
    return drawing.markup()


def _description(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = []
    for row, statuses in zip(rows, cells, strict=True):
        named = (f"{column} {status.replace('_', ' ')}" for column, status in zip(columns, statuses, strict=True))
        lines.append(f"{row}: {', '.join(named)}.")
    return " ".join(lines)
