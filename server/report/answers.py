"""The first screen: what a board asks, each with the shortest honest answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.common.evaluation import BASE
from equipoise.server.report.blocks import Table
from equipoise.server.report.summary import method_name, sides
from equipoise.server.report.words import LEVEL_TEXT, number, of_hundred

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A question and its answer: sentences, or on the page the table that says the same shorter."""

    question: str
    lines: Sequence[str]
    table: Table | None = None


def answers(report: Json) -> list[Answer]:
    """In the order in which they are asked."""
    summary = report["summary"]
    cannot = summary["cannot"] or ["Every declared group has enough patients for its true and false positive rate."]
    worse = [] if report["verdict"] is None else [Answer("Who got worse?", summary["worse"])]
    return [
        Answer("What does the model do for each group?", summary["plain"], _of_hundred(report)),
        Answer("Is the gap small enough?", [_margin(report)]),
        *worse,
        Answer("For whom can this report not speak?", cannot),
        Answer("What did it cost in privacy?", [_privacy(report)]),
    ]


def _of_hundred(report: Json) -> Table:
    """The primary attribute's rates as patients of a hundred, before and after."""
    attribute, label = report["study"]["primary"], report["study"]["label"]["column"]
    points = [report["models"][model]["attributes"][attribute]["points"]["rule"] for _, model in sides(report)]
    row = next(row for row in report["attributes"] if row["attribute"] == attribute)
    declared = [(place, group["group"]) for place, group in enumerate(row["groups"]) if group["declared"]]
    rows = [
        [name, *(of_hundred(point["by_group"][rate][place]) for rate in ("tpr", "fpr") for point in points)]
        for place, name in declared
    ]
    when = [""] if report["kind"] == "one_model" else [", before", ", after"]
    columns = [f"found, of 100 with it{word}" for word in when]
    columns += [f"wrongly flagged, of 100 without{word}" for word in when]
    caption = f"Patients by {attribute} (the disease: {label}; with {LEVEL_TEXT} intervals)"
    return Table(caption, (attribute, *columns), rows)


def _margin(report: Json) -> str:
    model = BASE if report["kind"] == "one_model" else method_name(report)
    statement = report["decisions"][model][report["study"]["primary"]]["statement"]
    text: str = statement["text"]
    return f"{text[:1].upper()}{text[1:]}." + (
        "" if statement["equivalent"] is None else " The margin was declared in the study; whether it is small enough "
        "is for people to decide."
    )  # fmt: skip


def _privacy(report: Json) -> str:
    privacy = report["privacy"]
    if "epsilon" not in privacy:
        return "Nothing was private: exact sums left the hospitals (mode none); treat this report as confidential."
    return (
        f"At each hospital epsilon {number(privacy['epsilon'], 2)} at delta {privacy['delta']:g}, for one patient: the "
        "smaller, the less a patient's presence can show."
    )
