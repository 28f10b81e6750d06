"""What a method notes of its rounds, guards and search is in the report, on the page, and told where it failed."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from equipoise.common.evaluation import BASE
from equipoise.server.report.blocks import Table
from equipoise.server.report.card import model_card
from equipoise.server.report.page import render
from equipoise.server.report.training import MOST_CANDIDATES, training_section
from tests.server.report_case import METHOD, NOTES, draw, make_report, make_study
from tests.server.test_report_schema import SCHEMA

Json = dict[str, Any]
PATIENTS = draw([300, 300, 20], {BASE: [1.0, -1.0, 0.0], METHOD: [0.0, 0.0, 0.0]})
POOL = {"rows": 200, "problems": [], "cannot_see": "whether a group is missing"}
MASK = {key: NOTES[key] for key in ("mask", "mask_mean")}


def guarded(collapsed: bool = False, blind: bool = False) -> Json:
    return {"separation_by_round": [2.5, 2.0, 1.25], "collapsed": collapsed, "guard_blind": blind}


def whitened(**guard: bool) -> Json:
    return {"space": "head", "directions": 9, "coordinates": 33, "clip_bound": 0.75, "pool": POOL, **guarded(**guard)}


def averaged(**guard: bool) -> Json:
    return {"steps_by_round": 17, "sampling_rate": 0.125, "clip_bound_by_round": [1.5, 1.75, 2.0], **guarded(**guard)}


def judged(rounds: int, value: float, held: bool) -> Json:
    return {"rounds": rounds, "value": value, "auc": value + 0.05, "held": held}


def search(held: bool, candidates: int = 12) -> Json:
    """Twelve candidates, of which those with the last numbers got furthest."""
    tried = [
        {
            "candidate": number,
            "bits": ["early", "late"][: number % 3],
            "lr": 0.01 * (number + 1),
            "rungs": [judged(1, 0.6, held), judged(3, 0.7, held)][: 1 + (number > 8)],
        }
        for number in range(candidates)
    ]
    winner = {"candidate": 11, "bits": ["early", "late"], "lr": 0.12, "rounds": 3} if held else None
    return {
        "objective": "largest_group_loss",
        "objective_asked": "worst_group_auc",
        "groups": ["light", "dark"],
        "floor": 0.7125,
        "base": judged(0, 0.65, True),
        "rounds_of_a_full_run": 3,
        "rounds_planned": 20,
        "bits": ["early", "late"],
        "candidates": tried,
        "winner": winner,
    }


def report_of(notes: Json, **evaluation: Any) -> Json:
    report = make_report(make_study(controls=(), **evaluation), PATIENTS, notes=notes)
    assert [error.message for error in Draft202012Validator(SCHEMA).iter_errors(report)] == []
    return report


def tables(report: Json) -> dict[str, Table]:
    (section,) = training_section(report)
    return {block.caption: block for block in section.blocks if isinstance(block, Table)}


def told(report: Json) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in report["notices"]:
        if row["code"].startswith("W33"):
            found.setdefault(row["code"], []).append(row["text"])
    return found


def test_both_phases_of_whitened_rounds_are_shown() -> None:
    report = report_of({"rounds": whitened(), "repair": {**whitened(), "clip_bound": 0.5}})
    first, second = (dict(table.rows) for table in tables(report).values())  # type: ignore[arg-type]
    bound = "clip bound of a patient, from the public pool"
    assert (first[bound], second[bound]) == ("0.7500", "0.5000")
    assert list(tables(report)) == ["Whitened rounds, first phase", "Whitened rounds, second phase (the head)"]
    assert list(tables(report_of({"rounds": whitened()}))) == ["Whitened rounds"]
    assert told(report) == {}


def test_averages_of_dp_sgd_are_shown_by_part() -> None:
    report = report_of({"dp_sgd": {"extractor": averaged(), "head": averaged(collapsed=True)}})
    extractor, head = tables(report)["Averages of DP-SGD"].rows
    assert extractor == [
        "extractor",
        "3",
        "17 at rate 0.125",
        "1.500, 1.750, 2.000",
        "2.50, 2.00, 1.25",
        "saw no collapse",
    ]
    assert head[-1] == "stopped the rounds: the model was forgetting the disease"
    assert list(told(report)) == ["W330"]


@pytest.mark.parametrize(
    ("notes", "where"),
    [
        (lambda guard: {"rounds": whitened(**guard)}, "training"),
        (lambda guard: {"rounds": whitened(**guard), "repair": whitened()}, "first phase"),
        (lambda guard: {"rounds": whitened(), "repair": whitened(**guard)}, "second phase"),
        (lambda guard: {"dp_sgd": {"extractor": averaged(**guard)}}, "training of the extractor"),
        (lambda guard: {"dp_sgd": {"whole": averaged(**guard)}}, "training of the whole model"),
    ],
)
def test_a_guard_that_ended_the_training_or_saw_nothing_is_told_before_any_figure(notes: Any, where: str) -> None:
    for guard, code, words in (
        ({"collapsed": True}, "W330", f"{where}: the guard against collapse ended it in round 3"),
        ({"blind": True}, "W331", f"{where}: the guard against collapse could not see"),
        ({"collapsed": True, "blind": True}, "W330", f"{where}: the guard against collapse ended it"),
    ):
        report = report_of(notes(guard))
        (text,) = told(report)[code]
        assert list(told(report)) == [code]
        assert text.startswith(words)
        page = render(report)
        head = page[: page.index("<table>")]
        assert ("Training was ended" in head, "Training was not guarded" in head) == (code == "W330", code == "W331")
        assert f"- {text}" in model_card(report)
    assert told(report_of(notes({}))) == {}


def test_what_a_search_chose_is_shown_with_the_candidates_that_got_furthest() -> None:
    report = report_of({"search": search(held=True) | {"final": judged(3, 0.72, True)}, **MASK})
    chose, tried = list(tables(report).values())[:2]
    rows = dict(chose.rows)  # type: ignore[arg-type]
    assert rows["chosen"] == "candidate 11, after 3 rounds"
    assert rows["parts that it trains beside the head"] == "all"
    assert rows["objective on the validation patients"].startswith("largest_group_loss (in the place of worst_group_au")
    assert rows["trained anew: objective, AUC"] == "0.720, 0.770: delivered"
    assert tried.caption == f"Candidates of the search, the {MOST_CANDIDATES} of 12 that got furthest"
    assert [row[0] for row in tried.rows] == ["9", "10", "11", "0", "1", "2", "3", "4", "5"]
    assert tried.rows[1] == ["10", "early", "0.11", "3", "0.700", "0.750", "yes"]
    assert tried.rows[0][1] == "none"
    assert told(report) == {}


def test_a_search_without_a_winner_says_that_nothing_was_changed() -> None:
    report = report_of({"search": search(held=False)})
    (text,) = told(report)["W332"]
    assert text.startswith(
        "the search had no winner: none of 12 candidates kept the AUC of the validation patients at 0.71"
    )
    assert dict(tables(report)["What the search chose"].rows)["chosen"].startswith("none:")  # type: ignore[arg-type]
    page = render(report)
    assert "Search without a winner: the model is unchanged" in page[: page.index("<table>")]


def test_where_small_cells_are_hidden_a_search_keeps_its_objective_to_itself() -> None:
    report = report_of({"search": search(held=True) | {"final": judged(3, 0.72, True)}}, min_cell=11)
    found = report["training"]["search"]
    every = [found["base"], found["final"], *(at for one in found["candidates"] for at in one["rungs"])]
    assert {at["value"] for at in every} == {None}
    assert len(tables(report)) == 2
