"""report.html: one self-contained page made from report.json alone.

The page fetches nothing and runs no script; its policy forbids both. Text is escaped by default, so a group or a site
may have any name.
"""

from __future__ import annotations

from typing import Any

from equipoise.server.report.answers import answers
from equipoise.server.report.card import card_section
from equipoise.server.report.comparison import comparison_sections, key_figures
from equipoise.server.report.curves import score_sections
from equipoise.server.report.further import further_section
from equipoise.server.report.notices import notices_section
from equipoise.server.report.process import process_sections
from equipoise.server.report.results import result_sections
from equipoise.server.report.template import fill
from equipoise.server.report.training import STAMPS
from equipoise.server.report.within import within_section

Json = dict[str, Any]


def render(report: Json) -> str:
    """The page of a report."""
    return fill(
        "report.html",
        report=report,
        study=report["study"],
        verdict=report["verdict"],
        summary=report["summary"],
        title=_title(report),
        stamps=_stamps(report),
        key_figures=key_figures(report),
        answers=answers(report),
        sections=[
            *result_sections(report),
            *comparison_sections(report),
            within_section(report),
            *score_sections(report),
            further_section(report),
            notices_section(report),
            *process_sections(report),
            card_section(report),
        ],
    )


def _title(report: Json) -> str:
    """What the page is about."""
    return {
        "one_model": "how a classifier works for each group",
        "two_models": "two classifiers compared for each group",
        "method": f"bias of a classifier before and after {report['study']['method']['name']}",
    }[report["kind"]]


def _stamps(report: Json) -> list[str]:
    """What must be seen before any figure is read."""
    words = {"pass": "passed", "fail": "failed", "undecided": "undecided"}
    stamps = [] if report["verdict"] is None else [f"Declared test: {words[report['verdict']['outcome']]}"]
    if report["level_down"]:
        stamps.append("Level-down: sensitivity or AUC of a group fell")
    stamps += [STAMPS[code] for code in dict.fromkeys(row["code"] for row in report["notices"]) if code in STAMPS]
    if "group_thresholds" in report:
        stamps.append(f"Thresholds by group: {report['study']['primary']} is needed at use")
    if report["privacy"]["mode"] == "none":
        stamps.append("Privacy mode none: releases were not private")
    if report["data"]["synthetic"]:
        stamps.append("Synthetic data")
    elif report["data"]["simulated"]:
        stamps.append("Simulated hospitals")
    return stamps
