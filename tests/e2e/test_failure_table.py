"""Every row of the failure table (docs/audit.md): what a user sees, at the hospital and in the report.

Rows that a hospital meets are driven through the command line over a score study; rows that a report shows are read
from the page and from the terminal's lines of made-up evaluations. In none of them does a 0 stand for an unknown.
"""

from __future__ import annotations

import csv
import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from equipoise.common.evaluation import BASE
from equipoise.server.report.page import render
from equipoise.server.report.summary import summary_lines
from tests.e2e.icu import HOSPITALS
from tests.e2e.terminal import Run
from tests.server.report_case import METHOD, draw, make_report, make_study

Json = dict[str, Any]
EQUAL = {BASE: [0.0] * 5, METHOD: [0.0] * 5}


def edit(study: Path, site: str, change: Callable[[list[dict[str, str]]], object]) -> None:
    """Change a hospital's table in place."""
    file = study.parent / "icu" / site / "cohort.csv"
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    columns = list(rows[0])
    change(rows)
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, columns)
        writer.writeheader()
        writer.writerows(rows)


def put(column: str, value: str, row: int = 3) -> Callable[[list[dict[str, str]]], object]:
    return lambda rows: rows[row].update({column: value})


def codes(report: Json) -> dict[str, str]:
    """The report's notices, which its page and its terminal lines must hold word for word."""
    found = {notice["code"]: notice["text"] for notice in report["notices"]}
    page, lines = render(report), summary_lines(report)
    for code, text in found.items():
        assert f"{code} {text}" in lines
        assert f">{code}</th>" in page
    return found


def rows_of_page(report: Json, *words: str) -> list[str]:
    """Table rows of the page that hold all the words."""
    return [row for row in re.findall(r"<tr>.*?</tr>", render(report), re.S) if all(word in row for word in words)]


# --- at the hospital ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "code", "words"),
    [
        ("sex", "F", "E120", ("cohort.csv", "'F'", "is no level of attribute sex", "coding.sex")),
        ("age", "adult", "E120", ("'adult' is not a number", "attribute age")),
        ("risk", "1.7", "E130", ("1 of", "scores are not", "other scale")),
        ("risk", "nan", "E130", ("1 of", "scores are not")),
    ],
)
def test_a_value_outside_the_declared_coding_is_refused_at_the_hospital(
    column: str,
    value: str,
    code: str,
    words: tuple[str, ...],
    icu: Path,
    equipoise: Run,
) -> None:
    edit(icu, "birch", put(column, value))
    error = equipoise("evaluate", icu, "--out", icu.parent / "run").error
    assert code in error
    assert all(word in error for word in words)
    assert not (icu.parent / "run" / "report.json").exists()


def test_e140_a_patient_with_two_groups_is_refused(icu: Path, equipoise: Run) -> None:
    def two_groups(rows: list[dict[str, str]]) -> None:
        rows.append({**rows[5], "sex": "male" if rows[5]["sex"] == "female" else "female"})

    edit(icu, "ash", two_groups)
    error = equipoise("evaluate", icu, "--out", icu.parent / "run").error
    assert "E140" in error
    assert "of the same patient" in error


def test_e110_values_mapped_to_unknown_are_counted_and_bounded(icu: Path, equipoise: Run) -> None:
    def forget(rows: list[dict[str, str]]) -> None:
        for row in rows:
            if row["died"] == "1":
                row["sex"] = ""

    edit(icu, "cedar", forget)
    site = icu.parent / "icu" / "cedar" / "site.yaml"
    site.write_text(site.read_text() + yaml.safe_dump({"coding": {"sex": {"": "unknown"}}}))
    ended = equipoise("evaluate", icu, "--out", icu.parent / "run")
    assert ended.code == 0, ended.err
    assert re.search(r"E110 sex: .*the group is unknown for \d+\.\d% of positives and 0\.0% of negatives", ended.out)
    page = (icu.parent / "run" / "report.html").read_text()
    assert "patients of unknown group were known" in page


def test_e150_too_few_hospitals_give_no_result(icu: Path, equipoise: Run) -> None:
    ended = equipoise("evaluate", icu, "--out", icu.parent / "run", "--set", "sites.minimum=4")
    assert "E150" in ended.error
    assert not (icu.parent / "run" / "report.json").exists()


def test_a_run_goes_on_with_the_study_that_it_began_with(icu: Path, equipoise: Run) -> None:
    assert equipoise("evaluate", icu, "--out", icu.parent / "run").code == 0
    before = (icu.parent / "run" / "report.json").read_bytes()
    error = equipoise(
        "evaluate", icu, "--out", icu.parent / "run", "--resume", "--set", "evaluation.threshold.rule=given:0.3"
    ).error
    assert "the run there is of another study (evaluation differs)" in error
    assert (icu.parent / "run" / "report.json").read_bytes() == before


# --- hospitals with one group, one label; where the groups are treated ----------------------------------------------


@pytest.fixture
def by_site(icu: Path) -> Path:
    """The score study with each hospital's own table; ash has men alone, birch nobody who died."""
    edit(icu, "ash", lambda rows: [row.update(sex="male") for row in rows])
    edit(icu, "birch", lambda rows: [row.update(died="0") for row in rows])
    icu.write_text(icu.read_text().replace("evaluation: {", "evaluation: {by_site: true, "))
    return icu


def test_e101_e102_and_w310_name_hospitals_that_cannot_be_compared(by_site: Path, equipoise: Run) -> None:
    out = by_site.parent / "run"
    ended = equipoise("evaluate", by_site, "--out", out)
    assert ended.code == 0, ended.err
    assert "E101 sex: one group only at ash" in ended.out
    assert "(2 of 3 hospitals have two groups or more)" in ended.out
    assert "E102 sex: patients of one label only at birch" in ended.out
    assert "W310 sex: cedar has 100 % of the positives of female" in ended.out
    report = json.loads((out / "report.json").read_text())
    for entry in report["hospitals"]["sex"]["contrasts"]:
        own = {row["hospital"]: row for row in entry["base"]["hospitals"]}
        assert own["ash"]["difference"]["status"] == "not_estimable"
        assert own["ash"]["difference"]["value"] is None
        assert own["ash"]["weight"] == 0.0
        pooled = entry["base"]["pooled"]["value"]
        assert pooled == pytest.approx(entry["base"]["within"]["value"] + entry["base"]["composition"])
    forest_rows = [row for row in rows_of_page(report, ">ash</td>") if "true positive rate: female" in row]
    assert forest_rows
    assert all("not estimable" in row and "0.000" not in row for row in forest_rows)
    assert equipoise("verify", out).code == 0


def test_w302_composition_is_named_and_no_cause_is_claimed(icu: Path, equipoise: Run) -> None:
    def women_where_the_model_misses(rows: list[dict[str, str]], site: str) -> None:
        for row in rows:
            patient = int(row["patient"][1:])
            row["sex"] = "female" if (site == "ash") != (patient % 10 == 0) else "male"
            if row["died"] == "1":
                row["risk"] = "0.05" if site == "ash" and patient // 10 % 2 else "0.9"

    for site in HOSPITALS:
        edit(icu, site, lambda rows, site=site: women_where_the_model_misses(rows, site))  # type: ignore[misc]
    icu.write_text(icu.read_text().replace("evaluation: {", "evaluation: {by_site: true, "))
    out = icu.parent / "run"
    ended = equipoise("evaluate", icu, "--out", out)
    assert ended.code == 0, ended.err
    (found,) = re.findall(r"^ *W302 sex: of the pooled difference in tpr of female less male, (.*)$", ended.out, re.M)
    report = json.loads((out / "report.json").read_text())
    entry = next(one for one in report["hospitals"]["sex"]["contrasts"] if one["rate"] == "tpr")["base"]
    assert entry["composition"] < -0.2
    assert abs(entry["within"]["value"]) < 0.1
    assert entry["pooled"]["value"] == pytest.approx(entry["within"]["value"] + entry["composition"])
    value, low, high = (f"{x:.3f}".replace("-", "−") for x in (entry["composition"], *entry["composition_interval"]))
    words = f"{value} (95 % interval {low} to {high})"
    assert found == f"{words} is composition: where the groups are treated, which is no cause yet."
    assert found in html.unescape((out / "report.html").read_text())
    assert "Neither names a cause" in (out / "report.html").read_text()


def test_w311_a_hospital_whose_rate_lies_far_from_the_others_is_named(icu: Path, equipoise: Run) -> None:
    edit(icu, "birch", lambda rows: [row.update(risk="0.9") for row in rows if row["sex"] == "male"])
    icu.write_text(icu.read_text().replace("evaluation: {", "evaluation: {by_site: true, "))
    ended = equipoise("evaluate", icu, "--out", icu.parent / "run")
    assert ended.code == 0, ended.err
    report = json.loads((icu.parent / "run" / "report.json").read_text())
    farthest = report["hospitals"]["sex"]["far"][0]
    assert (farthest["hospital"], farthest["group"], farthest["rate"]) == ("birch", "male", "fpr")
    text = next(notice["text"] for notice in report["notices"] if notice["code"] == "W311" and "sex" in notice["text"])
    assert f"birch's false positive rate of male lies {farthest['z']:.1f} standard errors above" in text
    assert f"W311 {text}" in ended.out


def test_hospitals_own_tables_need_mode_none(icu: Path, equipoise: Run) -> None:
    changes = ("--set", "evaluation.by_site=true", "--set", "privacy.mode=local", "--set", "privacy.epsilon=1")
    error = equipoise("evaluate", icu, "--out", icu.parent / "run", *changes).error
    assert "evaluation.by_site" in error
    assert "no private form" in error


# --- in the report --------------------------------------------------------------------------------------------------


def test_e201_a_group_without_positives_has_no_rate_and_gaps_say_so() -> None:
    patients = draw([300, 300, 40], EQUAL)
    label = patients.label.copy()
    label[patients.group == 2] = 0
    study = make_study(("young", "old", "oldest"))
    report = make_report(study, type(patients)(label, patients.group, patients.logits))
    assert "tone, group oldest: no positives anywhere" in codes(report)["E201"]
    sick = rows_of_page(report, "true positive rate", "oldest")
    assert sick
    assert all("not estimable" in row and "0.000" not in row for row in sick)
    gap = report["models"][BASE]["attributes"]["tone"]["points"]["rule"]["gaps"]["equalized_odds_difference"]
    assert gap["value"] is not None
    assert "oldest" in gap["reason"]


def test_e202_an_empty_group_keeps_its_row() -> None:
    report = make_report(make_study(("young", "old", "oldest")), draw([300, 300, 0], EQUAL))
    assert "this report cannot speak for this group" in codes(report)["E202"]
    assert any("no patients" in row for row in rows_of_page(report, "oldest"))
    assert not any("0.000" in row for row in rows_of_page(report, "positive rate", "oldest"))


def test_e203_fewer_than_ten_are_no_number() -> None:
    report = make_report(make_study(("young", "old", "oldest")), draw([300, 300, 12], EQUAL))
    assert "6 positives and 6 negatives, 10 of each needed" in codes(report)["E203"]
    assert "oldest" in report["summary"]["cannot"][0]


def test_e204_constant_scores_are_no_auc_of_a_half() -> None:
    patients = draw([300, 300], EQUAL)
    flat = {model: scores * 0.0 for model, scores in patients.logits.items()}
    report = make_report(make_study(), type(patients)(patients.label, patients.group, flat))
    assert "constant scores" in codes(report)["E204"]
    assert all("not estimable" in row for row in rows_of_page(report, "AUC, all patients"))


def test_w301_another_prevalence_is_said_and_predictive_values_are_standardised() -> None:
    patients = draw([600, 600], EQUAL)
    label = patients.label.copy()
    label[(patients.group == 1) & (patients.label == 1) & (patients.logits[BASE] < 0.5)] = 0
    report = make_report(make_study(), type(patients)(label, patients.group, patients.logits))
    assert "depend on the prevalence" in codes(report)["W301"]
    assert rows_of_page(report, "positive predictive value at prevalence", "dark")


def test_a_group_that_the_method_serves_worse_is_said_first() -> None:
    report = make_report(make_study(), draw([600, 600], {BASE: [0, 0], METHOD: [0, -1.5]}))
    assert "sensitivity or AUC fell for dark (tone)" in report["summary"]["headline"]
    assert "<li>Level-down: sensitivity or AUC of a group fell</li>" in render(report)
    assert "Worse for dark (tone)" in "\n".join(summary_lines(report))
