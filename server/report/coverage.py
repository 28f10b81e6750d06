"""For whom the report can speak: a matrix of groups and hospitals."""

from __future__ import annotations

from typing import Any

from equipoise.common.evaluation import BASE
from equipoise.server.report.blocks import Figure, Panel, Table
from equipoise.server.report.plots.matrix import SIGNS, STATUS_WORDS, matrix
from equipoise.server.report.plots.svg import identifier

Json = dict[str, Any]
WORST = ("ok", "imprecise", "suppressed", "not_estimable", "not_released")  # the later, the less can be said
MOST_HOSPITALS = 12


def coverage_figures(report: Json) -> list[Figure]:
    """One figure an attribute."""
    return [_figure(report, index, row) for index, row in enumerate(report["attributes"])]


def _figure(report: Json, index: int, row: Json) -> Figure:
    attribute = row["attribute"]
    groups = [group["group"] for group in row["groups"] if group["declared"]]
    columns, cells = _cells(report, attribute, groups)
    title = f"Groups of {attribute} whose true and false positive rates can be estimated"
    drawn = slice(0, MOST_HOSPITALS)
    drawing = matrix(identifier("coverage", index), title, groups, columns[drawn], [line[drawn] for line in cells])
    rows = [[group, *(STATUS_WORDS[status] for status in line)] for group, line in zip(groups, cells, strict=True)]
    table = Table(title, (attribute, *columns), rows, frozenset(range(len(columns) + 1)))
    there = {status for line in cells for status in line}
    legend = "; ".join(
        f"{SIGNS[status]} {words}"
        for status, words in STATUS_WORDS.items()
        if status != "suppressed" or status in there
    )
    alone = "" if report["hospitals"] else " Single hospitals were not asked for figures of their own."
    return Figure(f"{title}: {legend}.{alone}", [Panel(f"coverage by {attribute}", drawing)], table)


def _cells(report: Json, attribute: str, groups: list[str]) -> tuple[list[str], list[list[str]]]:
    """Columns, and for each group the worse status of its two rates in each column."""
    by_group = report["models"][BASE]["attributes"][attribute]["points"]["rule"]["by_group"]
    pooled = [_worse(by_group["tpr"][i]["status"], by_group["fpr"][i]["status"]) for i in range(len(groups))]
    hospitals = [] if report["hospitals"] is None else report["hospitals"][attribute]["coverage"]
    single = [[_worse(cell["tpr"], cell["fpr"]) for cell in hospital["groups"]] for hospital in hospitals]
    columns = ["all hospitals", *(hospital["hospital"] for hospital in hospitals)]
    return columns, [[pooled[i], *(column[i] for column in single)] for i in range(len(groups))]


def _worse(first: str, second: str) -> str:
    return max(first, second, key=WORST.index)
