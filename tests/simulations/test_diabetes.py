"""Diabetes 130 as made-up sites, from a made-up file with the public columns: who stays, where, in which words."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise.client.cohort import Cohort
from equipoise.common.config import read_yaml
from equipoise.common.errors import DataError, StudyError
from equipoise.common.manifest import read_manifest
from equipoise.common.query import SPLITS
from equipoise.common.sitefile import load_site
from equipoise.common.study import Study
from equipoise.simulations.diabetes import GONE, HEADER, NUMBERS, SITE_OF_SPECIALTY, TABLE, write_diabetes
from equipoise.simulations.public import PublicSites
from equipoise.simulations.sitefolder import SitePaths

CONFIG = Path(__file__).parents[2] / "configs" / "diabetes.yaml"
PATIENTS = 600
SPECIALTIES = (*SITE_OF_SPECIALTY, "Nephrology", "?")
COLUMNS = (
    "encounter_id", "patient_nbr", "race", "gender", "age", "admission_type_id", "discharge_disposition_id",
    "medical_specialty", "A1Cresult", "max_glu_serum", "insulin", "change", "diabetesMed", "readmitted", *NUMBERS,
)  # fmt: skip
Row = dict[str, str]


def draw(number: int, patient: int, rng: np.random.Generator) -> Row:
    """One encounter, in the public file's words."""
    choices = {
        "race": ("Caucasian", "AfricanAmerican", "?"), "gender": ("Female", "Male"),
        "age": ("[0-10)", "[50-60)", "[90-100)"), "admission_type_id": ("1", "3"),
        "discharge_disposition_id": ("1", "6", "11"), "medical_specialty": SPECIALTIES,
        "A1Cresult": ("None", "Norm", ">8"), "max_glu_serum": ("None", ">300"), "insulin": ("No", "Steady"),
        "change": ("No", "Ch"), "diabetesMed": ("Yes", "No"), "readmitted": ("<30", ">30", "NO"),
    }  # fmt: skip
    drawn = {name: str(rng.choice(values)) for name, values in choices.items()}
    counts = {name: str(int(rng.integers(1, 9))) for name in NUMBERS}
    return {"encounter_id": str(number), "patient_nbr": str(patient), **drawn, **counts}


def write_table(folder: Path, rows: list[Row], columns: tuple[str, ...] = COLUMNS) -> None:
    file = folder / TABLE
    file.parent.mkdir(parents=True)
    with gzip.open(file, "wt", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def encounters() -> list[Row]:
    """Two encounters of every other patient, the later ones first in the file; one of unknown sex."""
    rng = np.random.default_rng(0)
    first = [draw(1000 + patient, patient, rng) for patient in range(PATIENTS)]
    first[1].update(gender="Unknown/Invalid", discharge_disposition_id="1")
    return [draw(9000 + patient, patient, rng) for patient in range(0, PATIENTS, 2)] + first


@pytest.fixture(scope="module")
def written(encounters: list[Row], tmp_path_factory: pytest.TempPathFactory) -> PublicSites:
    folder = tmp_path_factory.mktemp("diabetes")
    write_table(folder, encounters)
    return write_diabetes(folder / "sites", folder, seed=0)


def rows(paths: SitePaths) -> list[Row]:
    manifest = read_manifest(paths.manifest)
    return [{name: column[row] for name, column in manifest.columns.items()} for row in range(manifest.rows)]


def test_each_patient_is_once_somewhere_by_the_first_encounter_and_the_dead_are_nowhere(
    written: PublicSites, encounters: list[Row]
) -> None:
    first = {row["patient_nbr"]: row for row in encounters if row["encounter_id"] < "9000"}
    alive = {f"diabetes-{number}" for number, row in first.items() if row["discharge_disposition_id"] not in GONE}
    everywhere = [row["patient"] for paths in (*written.sites, written.vendor) for row in rows(paths)]
    assert len(everywhere) == len(set(everywhere))
    assert set(everywhere) == alive
    assert 0 < len(alive) < PATIENTS
    for paths in written.sites:
        for row in rows(paths):
            mine = first[row["patient"].removeprefix("diabetes-")]
            assert [row[name] for name in NUMBERS] == [mine[name] for name in NUMBERS]
            assert row["readmitted"] == str(int(mine["readmitted"] == "<30"))
            assert row["race"] == mine["race"].replace("?", "")
            assert int(row["age"]) in (5, 55, 95)
            assert row["a1c_high"] == str(int(mine["A1Cresult"] == ">8"))


def test_the_specialty_says_the_site_and_a_hash_where_there_is_none(
    written: PublicSites, encounters: list[Row]
) -> None:
    first = {f"diabetes-{row['patient_nbr']}": row for row in encounters if row["encounter_id"] < "9000"}
    found = {paths.site: {first[row["patient"]]["medical_specialty"] for row in rows(paths)} for paths in written.sites}
    named = {site: {specialty} for specialty, site in SITE_OF_SPECIALTY.items()}
    assert found == {**named, "made-up-others": {"Nephrology", "?"}, "made-up-unnamed": {"?"}}
    vendor = len(rows(written.vendor))
    assert vendor == pytest.approx(0.1 * 400, abs=24)  # a tenth of those alive, four standard deviations
    assert "made up" in written.note
    assert "the unit is the patient" in written.note


def test_the_study_of_configs_reads_them(written: PublicSites) -> None:
    study = Study.model_validate(read_yaml(CONFIG))
    assert tuple(feature.name for feature in study.inputs.features) == HEADER[1:-3]  # type: ignore[union-attr]
    unknown = 0
    for paths in (*written.sites, written.vendor):
        cohort = Cohort(study, load_site(paths.site_file))
        splits = [cohort.split(name) for name in SPLITS]
        inputs, mine = torch.cat([split.inputs for split in splits]), rows(paths)
        assert inputs.shape == (len(mine), 2 * len(HEADER[1:-3]))
        assert sum(int(split.label.sum()) for split in splits) == sum(row["readmitted"] == "1" for row in mine)
        races = torch.cat([split.groups["race"] for split in splits]).bincount(minlength=6).tolist()
        assert races[5] == sum(row["race"] == "" for row in mine) > 0
        ages = torch.cat([split.groups["age"] for split in splits]).bincount(minlength=5).tolist()
        assert ages[4] == 0
        unknown += int(torch.cat([split.groups["gender"] for split in splits]).eq(2).sum())
    assert unknown == 1


def test_the_same_seed_gives_the_same_bytes_and_another_other_sites(
    encounters: list[Row], written: PublicSites, tmp_path: Path
) -> None:
    write_table(tmp_path, encounters)
    again, other = (write_diabetes(tmp_path / str(seed), tmp_path, seed) for seed in (0, 1))
    for mine, same in zip((*written.sites, written.vendor), (*again.sites, again.vendor), strict=True):
        assert mine.manifest.read_bytes() == same.manifest.read_bytes()
        assert mine.site_file.read_bytes() == same.site_file.read_bytes()
    assert written.vendor.manifest.read_bytes() != other.vendor.manifest.read_bytes()


def test_a_missing_file_and_missing_columns_are_named(encounters: list[Row], tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"lacks uci_diabetes130/.*doi:10\.24432/C5230J.*put it there"):
        write_diabetes(tmp_path / "sites", tmp_path, 0)
    write_table(tmp_path, encounters, tuple(name for name in COLUMNS if name not in ("race", "insulin")))
    with pytest.raises(DataError, match="lacks the columns insulin, race"):
        write_diabetes(tmp_path / "sites", tmp_path, 0)
    assert not (tmp_path / "sites").exists()
