"""`equipoise evaluate`: scores in a hospital's table are enough, and the figures are those of the pooled patients."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from equipoise.server.rundir import RunFolder
from equipoise.server.verify import write_seal
from tests.e2e.icu import HOSPITALS, THRESHOLD, rows_of
from tests.e2e.terminal import Run


def pooled() -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Mean score, label and sex of every patient of all hospitals."""
    found: dict[tuple[int, str], list[dict[str, str]]] = {}
    for number in range(len(HOSPITALS)):
        for row in rows_of(number):
            found.setdefault((number, row["patient"]), []).append(row)
    score = np.array([np.mean([float(row["risk"]) for row in rows]) for rows in found.values()])
    died = np.array([rows[0]["died"] == "1" for rows in found.values()])
    woman = np.array([rows[0]["sex"] == "female" for rows in found.values()])
    return score, died, woman


def test_scores_alone_give_the_figures_of_the_pooled_patients(icu: Path, equipoise: Run) -> None:
    out = icu.parent / "run"
    ended = equipoise("evaluate", icu, "--out", out)
    assert ended.code == 0, ended.err
    assert equipoise("verify", out).code == 0
    score, died, woman = pooled()
    report = json.loads((out / "report.json").read_text())
    sex = report["models"]["base"]["attributes"]["sex"]
    rates = {row["group"]: row["value"] for row in sex["points"]["rule"]["by_group"]["tpr"]}
    areas = {row["group"]: row for row in sex["auc_by_group"]}
    for name, group in (("female", woman), ("male", ~woman)):
        tpr = float(((score >= THRESHOLD) & died & group).sum() / (died & group).sum())
        assert rates[name] == pytest.approx(tpr, abs=1e-12)
        area = roc_auc_score(died[group], score[group])
        assert areas[name]["value"] == pytest.approx(area, abs=areas[name]["binning_bound"])


def test_scores_of_two_digits_are_cut_as_they_are_written(icu: Path, equipoise: Run) -> None:
    """18 of 100 is 0.18 in a table: whoever has it is positive at 0.18, in one row and in two."""
    patients = []
    for hospital in HOSPITALS:
        table = icu.parent / "icu" / hospital / "cohort.csv"
        header, *lines = table.read_text().splitlines()
        cells = [line.split(",") for line in lines]
        first = {row[0]: f"{float(row[1]):.2f}" for row in reversed(cells)}
        table.write_text("\n".join([header, *(",".join([row[0], first[row[0]], *row[2:]]) for row in cells)]) + "\n")
        patients += [(float(first[row[0]]), row[2] == "1") for row in {row[0]: row for row in cells}.values()]
    score, died = (np.array(column) for column in zip(*patients, strict=True))
    for threshold in (0.18, 0.58):
        out = icu.parent / f"run-{threshold}"
        assert (
            equipoise("evaluate", icu, "--out", out, "--set", f"evaluation.threshold.rule=given:{threshold}").code == 0
        )
        rates = json.loads((out / "report.json").read_text())["models"]["base"]["points"]["rule"]
        assert (score == threshold).any()
        assert rates["tpr"]["value"] == pytest.approx(float((score >= threshold)[died].mean()), abs=1e-12)
        assert rates["fpr"]["value"] == pytest.approx(float((score >= threshold)[~died].mean()), abs=1e-12)


def test_equal_selection_rates_are_those_of_a_threshold_that_many_scores_equal(icu: Path, equipoise: Run) -> None:
    """Halved scores rank alike, so as many patients as under the first model are the very same patients."""
    for hospital in HOSPITALS:
        place = icu.parent / "icu" / hospital
        header, *lines = (place / "cohort.csv").read_text().splitlines()
        rows = [f"{i}{line[line.index(',') :]}" for i, line in enumerate(lines)]
        rounded = [f"{float(row.split(',')[1]):.2f}" for row in rows]
        rows = [f"{row},{score},{float(score) / 2}" for row, score in zip(rows, rounded, strict=True)]
        (place / "cohort.csv").write_text("\n".join([f"{header},two_digits,halved", *rows]) + "\n")
        site = (place / "site.yaml").read_text()
        (place / "site.yaml").write_text(
            site.replace("test: 1", "test: 0.5").replace("validation: 0", "validation: 0.5")
        )
    settings = ("inputs.before=two_digits", "inputs.after=halved", "evaluation.threshold.rule=given:0.22")
    out = icu.parent / "run"
    assert equipoise("evaluate", icu, "--out", out, *(part for one in settings for part in ("--set", one))).code in (
        0,
        3,
    )
    before, after = (
        json.loads((out / "report.json").read_text())["models"][model]["points"]["base_rate"]["selection_rate"]["value"]
        for model in ("base", "audit")
    )
    assert after == pytest.approx(before, abs=1e-12)


def test_a_report_or_notes_that_are_none_are_named_in_one_line_under_a_new_seal(icu: Path, equipoise: Run) -> None:
    out = icu.parent / "run"
    assert equipoise("evaluate", icu, "--out", out).code == 0
    for name in ("report.json", "notes.json"):
        kept = (out / name).read_text()
        for content in ("{", "[]"):
            (out / name).write_text(content)
            write_seal(RunFolder(out))
            assert f"{out / name}: " in equipoise("verify", out).error
        (out / name).write_text(kept)


def test_a_study_that_trains_is_sent_to_simulate(icu: Path, equipoise: Run) -> None:
    error = equipoise("evaluate", icu, "--set", "method.name=swift").error
    assert "evaluate trains nothing" in error


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            ("--coordinator", "coordinator", "--out", "run"),
            "--out: no effect here; leave it out, or leave --coordinator",
        ),
        (("--coordinator", "coordinator", "--resume", "--format", "json"), "--resume, --format: no effect here"),
        (("--name", "a", "--wait"), "--name, --wait: no effect here; leave it out, or give --coordinator"),
    ],
)
def test_an_option_of_the_other_place_is_refused(
    options: tuple[str, ...], named: str, icu: Path, equipoise: Run
) -> None:
    ended = equipoise("evaluate", icu, *options)
    assert ended.code == 2
    assert named in ended.err


def test_a_score_outside_its_scale_is_one_line(icu: Path, equipoise: Run) -> None:
    table = icu.parent / "icu" / "birch" / "cohort.csv"
    text = table.read_text().splitlines()
    patient, _, *others = text[5].split(",")
    text[5] = ",".join([patient, "1.7", *others])
    table.write_text("\n".join(text) + "\n")
    error = equipoise("evaluate", icu, "--out", icu.parent / "run").error
    assert "risk" in error
    assert "cohort.csv" in error
