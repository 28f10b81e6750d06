"""The first screen: what a board asks, each with the shortest honest answer."""

from __future__ import annotations

from typing import Any

from equipoise.common.evaluation import BASE
from equipoise.server.report.summary import method_name
from equipoise.server.report.words import number

Json = dict[str, Any]


def answers(report: Json) -> list[tuple[str, list[str]]]:
    """(question, sentences), in the order in which they are asked."""
    summary = report["summary"]
    asked = [
        ("What does the model do for each group?", summary["plain"]),
        ("Is the gap small enough?", [_margin(report)]),
    ]
    if report["verdict"] is not None:
        asked.append(("Who got worse?", summary["worse"]))
    cannot = summary["cannot"] or ["Every declared group has enough patients for its true and false positive rate."]
    return [
        *asked,
        ("For whom can this report not speak?", cannot),
        ("What did it cost in privacy?", [_privacy(report)]),
    ]


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
