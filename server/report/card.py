"""What a board asks of a model beside its figures: as a section of the page, and as model_card.md.

Words come from the study's `card`; what nobody provided is said to be missing, in the page in red, and never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from equipoise.server.report.answers import answers
from equipoise.server.report.blocks import Section, Table
from equipoise.server.report.comparison import key_figures
from equipoise.server.report.further import further_section
from equipoise.server.report.results import result_sections
from equipoise.server.report.training import STAMPS
from equipoise.server.report.words import NOT_PROVIDED

Json = dict[str, Any]

QUESTIONS = {
    "intended_use": "Intended use",
    "intended_users": "Intended users",
    "population": "Intended population",
    "out_of_scope": "Out of scope",
    "period": "Patients: period and inclusion",
    "label_source": "Label: reference standard",
    "group_source": "Attributes: who recorded them, and why these",
    "equipment": "Devices and laboratories",
    "overlap": "Overlap of test patients with the vendor's training data",
    "residual_risk": "Residual risk",
    "monitoring": "Monitoring: when it is measured again",
    "owner": "Who decides",
}


def card_section(report: Json) -> Section:
    """The section of the page."""
    rows = [[label, report["card"][key] or NOT_PROVIDED] for key, label in QUESTIONS.items()]
    missing = sum(not report["card"][key] for key in QUESTIONS)
    text = (
        f"In the words of whoever declared the study (`card`); {missing} of {len(QUESTIONS)} were not provided. No "
        "figure can answer these.",
    )
    table = Table("What a board asks", ("question", "answer"), rows, frozenset({0, 1}))
    return Section("card", "What no figure can say", text, (table,))


def model_card(report: Json) -> str:
    """The whole of model_card.md."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Json) -> Iterator[str]:
    study = report["study"]
    yield from (f"# Model card: {study['name']}", "", report["summary"]["headline"], "")
    yield from ("## Identity", "")
    for label, value in (
        ("Model", study["model"]["factory"]),
        ("Weights before (SHA-256)", study["model"]["sha256"]),
        ("Label", f"{study['label']['column']} = {' or '.join(study['label']['positive'])}"),
        ("Method", study["method"]["title"]),
        ("Hospitals", str(len(report["sites"]["connected"]))),
        ("Test patients", str(report["attributes"][0]["n"])),
        ("Data", report["data"]["source"]),
        ("Study hash", study["hash"]),
        ("Software", f"equipoise {report['software']['equipoise']}"),
    ):
        yield f"- {label}: {value if value else NOT_PROVIDED}"
    yield from ("", "## Use", "")
    yield from (f"- {label}: {report['card'][key] or NOT_PROVIDED}" for key, label in QUESTIONS.items())
    yield from ("", "## In short", "")
    for answer in answers(report):
        yield from (f"**{answer.question}** " + " ".join(answer.lines), "")
    yield from ("## Figures", "")
    yield from _table(key_figures(report))
    for section in (*result_sections(report), further_section(report)):
        if section.anchor in ("gates", "patients", "rates", "gaps", "roc", "further"):
            for block in section.blocks:
                yield from _table(block if isinstance(block, Table) else block.table)
    yield from ("## Warnings and limits", "")
    came = (notice["text"] for notice in report["notices"] if notice["code"] in STAMPS)
    yield from (f"- {line}" for line in (*came, *report["summary"]["warnings"], *report["limits"]))
    yield from ("", "## Privacy", "", report["privacy"]["text"], "", report["small_cells"]["text"], "")
    yield "A measurement on these patients, not a certificate."


def _table(table: Table) -> Iterator[str]:
    yield from (f"### {table.caption}", "")
    yield "| " + " | ".join(map(_cell, table.columns)) + " |"
    yield "|" + "---|" * len(table.columns)
    yield from ("| " + " | ".join(map(_cell, row)) + " |" for row in table.rows)
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
