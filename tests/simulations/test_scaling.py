"""The fitted growth by hand; the page is what the figures give."""

from __future__ import annotations

import json

import pytest

from equipoise.simulations.benchmarks import scaling


def test_the_power_of_growth_by_hand() -> None:
    rows = [{"size": 10.0, "cpu_s": 2.0}, {"size": 100.0, "cpu_s": 2.0 * 10**0.5}, {"size": 1000.0, "cpu_s": 20.0}]
    assert scaling.power(rows, "cpu_s") == pytest.approx(0.5)
    assert scaling.power([{"size": 1.0, "cpu_s": 3.0}, {"size": 8.0, "cpu_s": 3.0}], "cpu_s") == pytest.approx(0.0)


def test_the_page_is_written_from_the_figures() -> None:
    result = json.loads((scaling.HERE / "results" / "scaling.json").read_text())
    assert (scaling.ROOT / "docs" / "benchmarks-scaling.md").read_text() == scaling.page(result)
    assert [row["size"] for row in result["patients"]] == list(scaling.PATIENTS)
    assert [row["size"] for row in result["parameters"]] == [3074 * width + 1 for width in scaling.WIDTHS]
