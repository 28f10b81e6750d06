"""Public data as hospitals: who goes where, and what is said where the data are missing."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from equipoise.client.cohort import Cohort
from equipoise.common.errors import DataError, StudyError
from equipoise.common.manifest import Manifest, read_manifest
from equipoise.common.query import SPLITS
from equipoise.common.sitefile import load_site
from equipoise.common.study import Study
from equipoise.simulations.comparison import resplit_of
from equipoise.simulations.hospitals import Hospitals
from equipoise.simulations.public import PublicSites, public_data_folder, write_ham10000, write_heart
from equipoise.simulations.sitefolder import SitePaths

HEART_STUDY = {
    "study": "heart",
    "model": {"factory": "equipoise.common.models:mlp", "arguments": {"features": 26}},
    "inputs": {
        "kind": "table",
        "features": [
            {"name": "age", "range": [20, 90]},
            {"name": "sex", "range": [0, 1]},
            {"name": "cp", "range": [1, 4]},
            {"name": "trestbps", "range": [80, 220], "missing": [0]},
            {"name": "chol", "range": [100, 600], "missing": [0]},
            {"name": "fbs", "range": [0, 1]},
            {"name": "restecg", "range": [0, 2]},
            {"name": "thalach", "range": [60, 220]},
            {"name": "exang", "range": [0, 1]},
            {"name": "oldpeak", "range": [-3, 7]},
            {"name": "slope", "range": [1, 3]},
            {"name": "ca", "range": [0, 3]},
            {"name": "thal", "range": [3, 7]},
        ],
    },
    "label": {"column": "disease", "positive": 1},
    "attributes": [
        {"name": "sex", "levels": ["female", "male"], "primary": True},
        {"name": "age", "kind": "cut", "column": "age", "cuts": [55]},
    ],
    "method": {"name": "none"},
}
HAM_STUDY = {
    "study": "ham10000",
    "model": {"factory": "equipoise.common.models:resnet_small"},
    "inputs": {"kind": "image", "size": 32},
    "label": {"column": "malignant", "positive": 1},
    "attributes": [
        {"name": "age", "kind": "cut", "column": "age", "cuts": [60], "primary": True},
        {"name": "sex", "levels": ["female", "male"]},
    ],
    "method": {"name": "none"},
}


@pytest.fixture(scope="module")
def data() -> Path:
    if not os.environ.get("EQUIPOISE_DATA"):
        pytest.skip("EQUIPOISE_DATA is not set; it names the folder of the public data (uci_heart_disease, ham10000)")
    return public_data_folder()


def cohort(study: dict[str, object], paths: SitePaths) -> Cohort:
    return Cohort(Study.model_validate(study), load_site(paths.site_file))


def patients(paths: SitePaths) -> set[str]:
    return set(read_manifest(paths.manifest).columns["patient"])


def rows(manifest: Manifest) -> list[dict[str, str]]:
    return [{name: column[row] for name, column in manifest.columns.items()} for row in range(manifest.rows)]


@pytest.fixture(scope="module")
def heart(data: Path, tmp_path_factory: pytest.TempPathFactory) -> PublicSites:
    return write_heart(tmp_path_factory.mktemp("heart"), data, seed=0)


@pytest.fixture(scope="module")
def ham(data: Path, tmp_path_factory: pytest.TempPathFactory) -> PublicSites:
    return write_ham10000(tmp_path_factory.mktemp("ham"), data, seed=0)


class TestHeart:
    def test_every_row_is_the_vendors_or_a_hospitals(self, heart: PublicSites) -> None:
        assert [paths.site for paths in heart.sites] == ["cleveland", "hungarian", "switzerland", "va"]
        sizes = [len(patients(paths)) for paths in heart.sites]
        vendor = len(patients(heart.vendor))
        assert sizes[1:] == [294, 123, 200]
        assert sizes[0] + vendor == 303
        assert not patients(heart.vendor) & patients(heart.sites[0])
        # 278 rows are not of diseased women; a hash-chosen 40 % of them, give or take four standard deviations
        assert vendor == pytest.approx(0.4 * 278, abs=33)

    def test_the_vendor_saw_no_diseased_woman_and_the_study_keeps_them_all(self, heart: PublicSites) -> None:
        def diseased_women(paths: SitePaths) -> int:
            found = rows(read_manifest(paths.manifest))
            return sum(row["sex"] == "0.0" and row["disease"] == "1" for row in found)

        assert diseased_women(heart.vendor) == 0
        assert [diseased_women(paths) for paths in heart.sites] == [25, 12, 10, 3]

    def test_a_study_reads_them(self, heart: PublicSites) -> None:
        va = cohort(HEART_STUDY, heart.sites[3])
        splits = [va.split(name) for name in SPLITS]
        assert sum(split.patients for split in splits) == 200
        assert torch.cat([split.groups["sex"] for split in splits]).bincount().tolist() == [6, 194]
        assert torch.cat([split.groups["age"] for split in splits]).bincount().tolist() == [42, 158]
        assert sum(int(split.label.sum()) for split in splits) == 149
        inputs = torch.cat([split.inputs for split in splits])
        assert inputs.shape == (200, 26)
        assert inputs.abs().max() <= 1
        assert int(inputs[:, 13 + 4].sum()) == 49 + 7  # cholesterol: 49 zeros and 7 empty cells
        assert cohort(HEART_STUDY, heart.vendor).split_patients("train") == len(patients(heart.vendor))

    def test_another_seed_chooses_other_rows(self, heart: PublicSites, data: Path, tmp_path: Path) -> None:
        again, other = (write_heart(tmp_path / str(seed), data, seed) for seed in (0, 1))
        assert patients(again.vendor) == patients(heart.vendor)
        assert again.sites[0].site_file.read_text() == heart.sites[0].site_file.read_text()
        assert patients(other.vendor) != patients(heart.vendor)

    def test_another_seed_splits_the_same_patients_anew_and_a_comparison_counts_them(
        self, heart: PublicSites, data: Path, tmp_path: Path
    ) -> None:
        other = write_heart(tmp_path, data, 1)
        before, after = (cohort(HEART_STUDY, place.sites[3]) for place in (heart, other))
        assert {who for who, _ in before.members()} == {who for who, _ in after.members()}
        assert sorted(before.members()) != sorted(after.members())
        study = Study.model_validate({**HEART_STUDY, "simulation": {"hospitals": {"kind": "heart"}}})
        hospitals = Hospitals({paths.site: paths.site_file for paths in heart.sites}, None)
        cohorts = [cohort(HEART_STUDY, paths) for paths in heart.sites]
        counted = {split: sum(one.split_patients(split) for one in cohorts) for split in ("train", "test")}
        assert resplit_of(study, hospitals) == counted

    def test_the_unit_is_said(self, heart: PublicSites) -> None:
        assert "the unit is the row" in heart.note


class TestHam10000:
    def test_lesions_are_at_one_place_and_those_of_two_sources_at_none(self, ham: PublicSites) -> None:
        sets = [patients(paths) for paths in (*ham.sites, ham.vendor)]
        assert sum(map(len, sets)) == len(set().union(*sets)) == 7470 - 9
        assert [paths.site for paths in ham.sites] == ["rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias"]
        assert len(sets[-1]) == pytest.approx(0.5 * 7461, abs=175)  # four standard deviations

    def test_the_vendor_trains_on_35_and_holds_out_15_of_100(self, ham: PublicSites) -> None:
        vendor = cohort(HAM_STUDY, ham.vendor)
        assert vendor.split_patients("train") == pytest.approx(0.35 * 7461, abs=165)
        assert vendor.split_patients("validation") == pytest.approx(0.15 * 7461, abs=125)

    def test_base_b_deletes_the_malignant_young_and_most_of_the_benign_old(
        self, ham: PublicSites, data: Path, tmp_path: Path
    ) -> None:
        other = write_ham10000(tmp_path, data, seed=0, base="b")

        def cells(paths: SitePaths, split: str) -> list[int]:
            counts = [0, 0, 0, 0]
            for row in rows(read_manifest(paths.manifest)):
                if row["split"] == split and row["age"]:
                    counts[2 * int(row["malignant"]) + (float(row["age"]) >= 60)] += 1
            return counts

        natural, biased = cells(ham.vendor, "train"), cells(other.vendor, "train")
        assert (biased[0], biased[3]) == (natural[0], natural[3])
        assert biased[2] == 0 < natural[2]
        assert biased[1] / natural[1] == pytest.approx(0.4, abs=0.08)
        assert cells(other.vendor, "validation") == cells(ham.vendor, "validation")
        assert [patients(paths) for paths in other.sites] == [patients(paths) for paths in ham.sites]

    def test_a_study_reads_images_ages_and_unknowns(self, ham: PublicSites, data: Path) -> None:
        dias = cohort(HAM_STUDY, ham.sites[3])
        split = dias.split("validation")
        assert split.inputs.shape[1:] == (3, 32, 32)
        assert split.patients <= len(split.inputs)
        with zipfile.ZipFile(data / "ham10000/ham10000_200x150_jpeg.zip") as archive:
            name = read_manifest(ham.sites[3].manifest).columns["image"][0]
            crop = Image.open(io.BytesIO(archive.read(name))).crop((25, 0, 175, 150))
        expected = np.asarray(crop.resize((32, 32), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
        images = torch.cat([dias.split(name).inputs for name in SPLITS]).numpy()
        assert (images == expected).all(axis=(1, 2, 3)).any()
        modern = cohort(HAM_STUDY, ham.sites[1])
        unknown = sum(int((group == 2).sum()) for group in modern._groups.values())
        assert unknown > 0  # ages and sexes that nobody wrote down stay in the study

    def test_the_unit_is_said(self, ham: PublicSites) -> None:
        assert "the unit is the lesion" in ham.note


class TestMissingData:
    @pytest.mark.parametrize("value", [None, "", "no/such/folder"])
    def test_the_variable_and_the_files_are_named(self, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
        if value is None:
            monkeypatch.delenv("EQUIPOISE_DATA", raising=False)
        else:
            monkeypatch.setenv("EQUIPOISE_DATA", value)
        with pytest.raises(StudyError) as error:
            public_data_folder()
        assert "uci_heart_disease/heart_4hospitals.csv" in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("write", "source"),
        [(write_heart, "doi:10.24432/C52P4X"), (write_ham10000, "doi:10.7910/DVN/DBW86T")],
    )
    def test_a_missing_file_is_named_with_its_source(
        self, tmp_path: Path, write: Callable[[Path, Path, int], PublicSites], source: str
    ) -> None:
        with pytest.raises(StudyError, match="put it there") as error:
            write(tmp_path / "sites", tmp_path, 0)
        assert source in str(error.value)
        assert not (tmp_path / "sites").exists()

    def test_a_table_with_other_columns_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "uci_heart_disease/heart_4hospitals.csv"
        file.parent.mkdir()
        file.write_text("site,age,num\ncleveland,60,1\n")
        with pytest.raises(DataError, match="no column 'sex'"):
            write_heart(tmp_path / "sites", tmp_path, 0)
