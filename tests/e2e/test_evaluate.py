"""`equipoise evaluate`: scores in a hospital's table are enough, and the figures are those of the pooled patients."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from tests.e2e.terminal import ROOT, Run

HOSPITALS, PATIENTS, THRESHOLD = ("ash", "birch", "cedar"), 400, 0.2
Rows = list[dict[str, str]]


def rows_of(number: int) -> Rows:
    """Patients of one hospital; the score tells less about women, and every tenth patient was seen twice."""
    rng = np.random.default_rng(number)
    rows = []
    for patient in range(PATIENTS):
        woman, died = rng.random() < 0.4, rng.random() < 0.3
        age = str(int(rng.integers(18, 95)))
        for _ in range(2 if patient % 10 == 0 else 1):
            logit = rng.normal(-1.5 + (0.9 if woman else 2.0) * died, 1.0)
            rows.append(
                {
                    "patient": f"p{patient}", "risk": repr(float(1 / (1 + np.exp(-logit)))), "died": str(int(died)),
                    "sex": "female" if woman else "male", "age": age,
                }
            )  # fmt: skip
    return rows


@pytest.fixture
def icu(tmp_path: Path) -> Path:
    """A study folder as docs/audit.md describes it: configs/icu-scores.yaml and the hospitals' tables."""
    for number, hospital in enumerate(HOSPITALS):
        folder = tmp_path / "icu" / hospital
        folder.mkdir(parents=True)
        rows = rows_of(number)
        with (folder / "cohort.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        shares = {"train": 0, "validation": 0, "test": 1}
        data = {"manifest": "cohort.csv", "splits": shares, "split_key": "0" * 32, "synthetic": True}
        (folder / "site.yaml").write_text(yaml.safe_dump({"site": hospital, "data": data}))
    study = tmp_path / "icu-scores.yaml"
    study.write_text((ROOT / "configs" / "icu-scores.yaml").read_text())
    return study


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


def test_a_study_that_trains_is_sent_to_simulate(icu: Path, equipoise: Run) -> None:
    error = equipoise("evaluate", icu, "--set", "method.name=swift").error
    assert "evaluate trains nothing" in error


def test_a_score_outside_its_scale_is_one_line(icu: Path, equipoise: Run) -> None:
    table = icu.parent / "icu" / "birch" / "cohort.csv"
    text = table.read_text().splitlines()
    patient, _, *others = text[5].split(",")
    text[5] = ",".join([patient, "1.7", *others])
    table.write_text("\n".join(text) + "\n")
    error = equipoise("evaluate", icu, "--out", icu.parent / "run").error
    assert "risk" in error
    assert "cohort.csv" in error
