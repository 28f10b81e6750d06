"""What a row of intervals draws: ends inside the panel, single values, and a link only between before and after."""

from __future__ import annotations

import re
from typing import Any

from equipoise.server.report.plots.intervals import LEFT, RIGHT, Row, interval_rows
from equipoise.server.report.plots.svg import WIDTH, Scale


def estimate(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "status": "ok", "level": 0.95, "reason": None}


def panel(row: Row) -> str:
    return str(interval_rows("p", "A panel", "gap", [row], high=1.0))


def caps(drawn: str, shape: str) -> list[float]:
    """Places of the upright ends of an interval."""
    lines = re.findall(rf'<line x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)" y2="[\d.]+" class="interval {shape}"/>', drawn)
    return [float(x1) for x1, x2 in lines if x1 == x2]


def test_an_interval_that_goes_on_beyond_the_panel_has_no_end_there() -> None:
    marks = [("before", estimate(0.2, -0.1, 0.5)), ("after", estimate(0.2, 0.1, 0.5))]
    drawn = panel(Row("a gap", marks))
    place = Scale(0.0, 1.0, LEFT, WIDTH - RIGHT)
    assert caps(drawn, "before") == [round(place(0.5), 1)]
    assert caps(drawn, "after") == [round(place(0.1), 1), round(place(0.5), 1)]


def test_single_values_are_dots_at_their_places_in_the_row_of_their_mark() -> None:
    marks = [("before", estimate(0.2, 0.1, 0.5)), ("after", estimate(0.3, 0.1, 0.5))]
    drawn = panel(Row("a gap", marks, singles=[[0.1, 0.3], [0.9]]))
    dots = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="2" class="single"', drawn)]
    place = Scale(0.0, 1.0, LEFT, WIDTH - RIGHT)
    assert [x for x, _ in dots] == [round(place(value), 1) for value in (0.1, 0.3, 0.9)]
    assert dots[0][1] == dots[1][1] < dots[2][1]
    assert 'class="single"' not in panel(Row("a gap", marks))


def test_two_things_that_are_not_one_before_and_after_have_no_link() -> None:
    marks = [("before", estimate(0.2, 0.1, 0.5)), ("after", estimate(0.3, 0.1, 0.5))]
    assert 'class="link"' in panel(Row("a gap", marks))
    assert 'class="link"' not in panel(Row("a gap", marks, linked=False))
