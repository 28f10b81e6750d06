"""A declared intersection, from the study file to the page: sex by age, made at the hospitals, read as a list."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from equipoise.server.report.lists import NO_MAXIMUM
from tests.e2e.icu import HOSPITALS, THRESHOLD, rows_of
from tests.e2e.terminal import Run

Json = dict[str, Any]
NAME = "sex by age"
CUTS = (60, 92)  # of whom there are few
GROUPS = tuple(f"{sex} & {age}" for sex in ("female", "male") for age in ("<60", "60-<92", ">=92"))
EDGES = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
FORGOTTEN = 7  # every so many patients' sex is not known


@pytest.fixture
def study(icu: Path) -> Path:
    """The score study with the intersection; some patients' sex is unknown."""
    value = yaml.safe_load(icu.read_text())
    value["attributes"] = [
        {"name": "sex", "levels": ["female", "male"], "primary": True},
        {"name": "age", "kind": "cut", "cuts": list(CUTS)},
        {"name": NAME, "kind": "intersection", "of": ["sex", "age"]},
    ]
    icu.write_text(yaml.safe_dump(value))
    for site in HOSPITALS:
        file = icu.parent / "icu" / site / "cohort.csv"
        header, *rows = file.read_text().splitlines()
        file.write_text("\n".join([header, *map(_forgetting, rows)]) + "\n")
    return icu


def _forgetting(row: str) -> str:
    patient, risk, died, sex, age = row.split(",")
    return ",".join([patient, risk, died, "" if int(patient[1:]) % FORGOTTEN == 0 else sex, age])


def pooled() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean score, label and group (a name, or empty) of every patient of all hospitals."""
    found: dict[tuple[int, str], list[dict[str, str]]] = {}
    for number in range(len(HOSPITALS)):
        for row in rows_of(number):
            found.setdefault((number, row["patient"]), []).append(row)
    score = np.array([np.mean([float(row["risk"]) for row in rows]) for rows in found.values()])
    died = np.array([rows[0]["died"] == "1" for rows in found.values()])
    group = np.array([_group(rows[0]) for rows in found.values()])
    return score, died, group


def _group(row: dict[str, str]) -> str:
    if int(row["patient"][1:]) % FORGOTTEN == 0:
        return ""
    ages = ("<60", "60-<92", ">=92")
    return f"{row['sex']} & {ages[int(np.searchsorted(CUTS, int(row['age']), side='right'))]}"


def estimates(value: Any) -> Iterator[Json]:
    """Every figure below a JSON value."""
    if isinstance(value, dict) and {"metric", "status"} <= set(value):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from estimates(one)


def parts(report: Json) -> list[Json]:
    """Everything that the report says of the intersection."""
    found = [model["attributes"][NAME] for model in report["models"].values()]
    found += [change["attributes"][NAME] for change in report["changes"]]
    found += [model[NAME] for part in ("scores", "decisions") for model in report[part].values() if NAME in model]
    return found + ([report["hospitals"][NAME]] if report["hospitals"] else [])


def test_its_figures_are_those_of_the_pooled_patients_and_small_groups_have_none(study: Path, equipoise: Run) -> None:
    out = study.parent / "run"
    ended = equipoise("evaluate", study, "--out", out, "--set", "evaluation.by_site=true")
    assert ended.code == 0, ended.err
    assert equipoise("verify", out).code == 0
    report = json.loads((out / "report.json").read_text())
    score, died, group = pooled()
    coverage = next(row for row in report["attributes"] if row["attribute"] == NAME)
    assert coverage["of"] == ["sex", "age"]
    counted = {row["group"]: (row["n"], row["positives"]) for row in coverage["groups"]}
    expected = {name: (int((group == name).sum()), int(died[group == name].sum())) for name in GROUPS}
    assert counted == {**expected, "unknown": (int((group == "").sum()), int(died[group == ""].sum()))}
    figures = report["models"]["base"]["attributes"][NAME]
    rates = {row["group"]: row for row in figures["points"]["rule"]["by_group"]["tpr"]}
    areas = {row["group"]: row for row in figures["auc_by_group"]}
    small = [name for name in GROUPS if expected[name][0] < 50]
    assert 0 < len(small) < len(GROUPS)
    for name in GROUPS:
        mine = group == name
        if name in small:
            needed = f"{expected[name][0]} patients in the intersection, 50 needed"
            assert (rates[name]["value"], areas[name]["value"]) == (None, None)
            assert needed == rates[name]["reason"] == areas[name]["reason"]
            assert name not in report["roc"][NAME]
        else:
            tpr = float((score >= THRESHOLD)[mine & died].mean())
            assert rates[name]["value"] == pytest.approx(tpr, abs=1e-12)
            area = roc_auc_score(died[mine], score[mine])
            assert areas[name]["value"] == pytest.approx(area, abs=areas[name]["binning_bound"])
            assert name in report["roc"][NAME]
    shown = [figure for part in parts(report) for figure in estimates(part) if figure["value"] is not None]
    assert len(shown) > 50
    assert all(figure["group"] and not any(name in figure["group"] for name in small) for figure in shown)
    assert any("less" in figure["group"] for figure in shown)


def test_the_page_lists_its_groups_and_no_largest_gap(study: Path, equipoise: Run) -> None:
    out = study.parent / "run"
    ended = equipoise("evaluate", study, "--out", out)
    assert ended.code == 0, ended.err
    report, page = json.loads((out / "report.json").read_text()), (out / "report.html").read_text()
    whole = [figure for part in parts(report) for figure in estimates(part) if figure["group"] is None]
    assert len(whole) >= 8
    assert {figure["reason"] for figure in whole} == {NO_MAXIMUM}
    assert report["scores"]["base"][NAME]["gap_by_threshold"] == []
    assert f"{NAME}: {NO_MAXIMUM}" in page
    assert f"Gaps between the groups of {NAME}" not in page
    assert "Gaps between the groups of sex," in page
    rates = page.partition(f"<caption><span>Rates by {NAME}")[2].partition("</table>")[0]
    for name in GROUPS:
        assert name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in rates
    assert "not estimable" in rates
    assert any(line.startswith(f"{NAME}: female & >=92") for line in report["summary"]["cannot"])


def test_two_models_the_change_of_each_group_and_who_got_worse(study: Path, equipoise: Run) -> None:
    for site in HOSPITALS:
        file = study.parent / "icu" / site / "cohort.csv"
        header, *rows = file.read_text().splitlines()
        file.write_text("\n".join([f"{header},later", *map(_later, rows)]) + "\n")
    out = study.parent / "run"
    ended = equipoise(
        "evaluate", study, "--out", out, "--set", "inputs.after=later", "--set", "evaluation.rate_match.from=test"
    )
    assert ended.code == 0, ended.err
    assert equipoise("verify", out).code == 0
    report = json.loads((out / "report.json").read_text())
    lost = {(row["attribute"], row["group"]) for row in report["level_down"] if row["metric"].startswith("tpr")}
    assert (NAME, "male & <60") in lost
    assert not [group for attribute, group in lost if attribute == NAME and not group.startswith("male & <60")]
    changes = report["changes"][0]["attributes"][NAME]["points"]["rule"]
    assert all(figure["value"] is None for figure in changes["gaps"].values())


def _later(row: str) -> str:
    """The second score misses young men alone."""
    _, risk, _, sex, age = row.split(",")
    return f"{row},{0.01 if sex == 'male' and int(age) < 60 else risk}"


def test_it_is_priced_as_one_more_table_and_its_noise_is_said(study: Path, equipoise: Run) -> None:
    private = ("--set", "privacy.mode=local", "--set", "privacy.epsilon=3", "--set", f"inputs.edges={EDGES}")

    def tables() -> tuple[int, float, float]:
        """Bytes, noise and bound of the decision tables, from the lines of the plan."""
        ended = equipoise("plan", study, *private)
        assert ended.code == 0, ended.err
        costs = re.findall(r"each hospital, .*: epsilon (\d\.\d+)", ended.out)
        assert costs
        assert all(2.9 < float(cost) <= 3 for cost in costs)
        ((sent, noise, bound),) = re.findall(r" decision_table .* ([\d,]+) .* ([\d.]+) \((\d)\)$", ended.out, re.M)
        return int(sent.replace(",", "")), float(noise), float(bound)

    with_it = tables()
    value = yaml.safe_load(study.read_text())
    text = study.read_text()
    study.write_text(yaml.safe_dump({**value, "attributes": value["attributes"][:2]}))
    without = tables()
    assert (without[2], with_it[2]) == (2, 3)
    assert with_it[1] == pytest.approx(1.5 * without[1], rel=0.02)
    assert with_it[0] > without[0]
    study.write_text(text)
    ended = equipoise("evaluate", study, "--out", study.parent / "run", *private)
    assert ended.code in (0, 2), ended.err
    report = json.loads((study.parent / "run" / "report.json").read_text())
    rates = report["models"]["base"]["attributes"][NAME]["points"]["rule"]["by_group"]["fpr"]
    assert any(row["noise_sd"] for row in rates)
    assert all("counted with noise" in row["reason"] for row in rates[:-1] if row["value"] is None)
    areas = report["models"]["base"]["attributes"][NAME]
    assert {row["status"] for row in (*areas["auc_by_group"], areas["auc_gap"])} == {"not_released"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"of": ["sex"]}, "must name two or more different attributes"),
        ({"of": ["sex", "sex"]}, "must name two or more different attributes"),
        ({"of": ["sex", "race"]}, "names race; declared without an intersection are: sex, age"),
        ({"of": ["sex", NAME]}, f"names {NAME}; declared"),
        ({"primary": True}, "is not primary"),
        ({"column": "sexage"}, "has no column"),
        ({"levels": ["a", "b"]}, "leave out `levels`"),
        ({"kind": "levels", "levels": ["a", "b"]}, "kind 'intersection' needs `of`"),
    ],
)
def test_what_is_no_intersection_is_one_line(change: Json, words: str, study: Path, equipoise: Run) -> None:
    value = yaml.safe_load(study.read_text())
    value["attributes"][2].update(change)
    study.write_text(yaml.safe_dump(value))
    assert words in equipoise("plan", study).error
