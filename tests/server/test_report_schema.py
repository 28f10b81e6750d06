"""report.json against its schema, which never lets a 0 stand for an unknown; and the table and card made from it."""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from equipoise.common.evaluation import BASE
from equipoise.server.report.card import QUESTIONS, model_card
from equipoise.server.report.export import ABSENT, estimates, report_csv
from tests.server.report_case import METHOD, draw, make_report, make_study

Json = dict[str, Any]
SCHEMA = json.loads((files("equipoise.server") / "report" / "schema.json").read_text())
SHIFTS = {BASE: [1.0, -1.0, 0.0, 0.0], METHOD: [0.0, 0.0, 0.0, 0.0], "plain": [0.5, -0.5, 0.0, 0.0]}


@pytest.fixture(scope="module")
def report() -> Json:
    """Two large groups, a group of eight, twenty of unknown group."""
    return make_report(make_study(("light", "dark", "=rare")), draw([300, 300, 8, 20], SHIFTS))


def problems(report: Json) -> list[str]:
    return [
        f"{list(error.absolute_path)}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(report)
    ]


def every_estimate(value: object) -> Iterator[Json]:
    if isinstance(value, dict):
        if {"metric", "value", "status"} <= set(value):
            yield value
        for item in value.values():
            yield from every_estimate(item)
    elif isinstance(value, list):
        for item in value:
            yield from every_estimate(item)


def test_a_report_fits_its_schema(report: Json) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert problems(report) == []


def first_with(report: Json, status: str) -> Json:
    by_group = report["models"][BASE]["attributes"]["tone"]["points"]["rule"]["by_group"]["tpr"]
    return next(row for row in by_group if row["status"] == status)


@pytest.mark.parametrize(
    ("status", "change"),
    [
        ("not_estimable", {"value": 0.0}),
        ("not_estimable", {"low": 0.0, "high": 0.0}),
        ("not_estimable", {"reason": ""}),
        ("not_estimable", {"status": "fine"}),
        ("ok", {"low": None, "high": None}),
        ("ok", {"value": None}),
        ("ok", {"status": "suppressed"}),
    ],
)
def test_a_number_without_support_is_no_report(report: Json, status: str, change: Json) -> None:
    broken = copy.deepcopy(report)
    first_with(broken, status).update(change)
    assert problems(broken)


@pytest.mark.parametrize(
    "place",
    [
        lambda r: r["scores"][BASE]["tone"]["calibration"][2]["ece"],
        lambda r: r["scores"][METHOD]["tone"]["auprc"][2],
        lambda r: r["decisions"][METHOD]["tone"]["by_group"]["ppv"][2],
        lambda r: r["decisions"][METHOD]["tone"]["reference"]["differences"]["tpr"][1],
        lambda r: r["changes"][0]["attributes"]["tone"]["auc_by_group"][2],
    ],
)
def test_every_part_of_the_report_is_held_to_it(report: Json, place: Callable[[Json], Json]) -> None:
    broken = copy.deepcopy(report)
    assert place(broken)["status"] in ("not_estimable", "not_released")
    place(broken)["value"] = 0.0
    assert problems(broken)


def test_no_estimate_anywhere_has_a_number_without_support(report: Json) -> None:
    found = list(every_estimate(report))
    silent = [row for row in found if row["status"] not in ("ok", "imprecise")]
    assert len(found) > 500
    assert len(silent) > 50
    assert all(row["value"] is row["low"] is row["high"] is None and row["reason"] for row in silent)


def test_the_table_has_every_estimate_once_and_no_empty_cell(report: Json) -> None:
    rows = list(csv.DictReader(io.StringIO(report_csv(report))))
    parts = {key: report[key] for key in ("attributes", "models", "changes", "scores", "decisions", "hospitals")}
    assert len(rows) == len(list(every_estimate(parts))) == len(list(estimates(report)))
    assert all(cell for row in rows for cell in row.values())
    (tpr,) = [
        row
        for row in rows
        if (row["part"], row["model"], row["operating_point"], row["metric"]) == ("models", METHOD, "rule", "tpr")
        and row["group"] == "light"
    ]
    by_group = report["models"][METHOD]["attributes"]["tone"]["points"]["rule"]["by_group"]["tpr"]
    assert (float(tpr["value"]), float(tpr["high"]), tpr["attribute"]) == (
        by_group[0]["value"],
        by_group[0]["high"],
        "tone",
    )
    silent = [row for row in rows if row["status"] == "not_estimable"]
    assert silent
    assert all(row["value"] == row["low"] == row["high"] == ABSENT and row["reason"] != ABSENT for row in silent)
    changed = [row for row in rows if row["part"] == "changes" and row["metric"] == "tpr_change"]
    assert {row["model"] for row in changed} == {f"{BASE} to {METHOD}", f"{BASE} to plain", f"plain to {METHOD}"}


def test_a_name_that_a_spreadsheet_would_run_is_quoted(report: Json) -> None:
    groups = {row["group"] for row in estimates(report)}
    assert "'=rare" in groups
    assert not any(group.startswith("=") for group in groups)


def test_the_card_says_what_nobody_provided(report: Json) -> None:
    text = model_card(report)
    assert text.count("NOT PROVIDED") == len(QUESTIONS)
    told = make_report(make_study(), draw([300, 300, 0], {BASE: [1, -1, 0], METHOD: [0, 0, 0]}))
    told["card"] = {**told["card"], "owner": "Dr A. | B.", "intended_use": "triage"}
    assert "- Who decides: Dr A. | B." in model_card(told)
    assert model_card(told).count("NOT PROVIDED") == len(QUESTIONS) - 2
    rows = [line for line in text.splitlines() if "| =rare |" in line]
    assert any("not estimable" in row for row in rows)
    assert not any("0.000" in row for row in rows if "true positive rate" in row)
