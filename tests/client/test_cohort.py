"""Reading a site's cohort: what a patient is, how values become the study's, and what is refused in one line."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from equipoise.client.cohort import Cohort, split_of
from equipoise.common.errors import DataError
from equipoise.common.images import decode_image
from equipoise.common.query import SPLITS
from equipoise.common.sitefile import FractionSplits, Site
from equipoise.common.study import Study

TABLE = {
    "kind": "table",
    "features": [{"name": "bp", "range": [80, 180], "missing": [0]}, {"name": "hr", "range": [0, 4]}],
}
ATTRIBUTES = [
    {"name": "age", "kind": "cut", "column": "age", "cuts": [40, 60], "primary": True},
    {"name": "sex", "levels": ["female", "male"]},
]
HEADER = "id,dis,age,sex,bp,hr,part\n"
ROWS = """\
a,1,39.9,F,130,1,train
b,0,40,M,0,,train
a,0,20,F,30,9,train
c,0,60,,180,4,test
d,2,,X,80,0,validation
"""
SITE: dict[str, Any] = {
    "site": "st-marys",
    "data": {"manifest": "", "patient": "id", "columns": {"disease": "dis"}, "splits": {"column": "part"}},
    "coding": {"sex": {"F": "female", "M": "male", "X": "unknown"}},
}


def study(**changes: Any) -> Study:
    return Study.model_validate(
        {
            "study": "test",
            "model": {"factory": "equipoise.common.models:mlp"},
            "inputs": TABLE,
            "label": {"column": "disease", "positive": [1, 2]},
            "attributes": ATTRIBUTES,
            "method": {"name": "none"},
            **changes,
        }
    )


def site(manifest: Path, **data: Any) -> Site:
    coding = data.pop("coding", SITE["coding"])
    return Site.model_validate({**SITE, "data": {**SITE["data"], "manifest": str(manifest), **data}, "coding": coding})


def csv_cohort(folder: Path, rows: str = ROWS, header: str = HEADER, **data: Any) -> Cohort:
    manifest = folder / "cohort.csv"
    manifest.write_text(header + rows)
    return Cohort(study(), site(manifest, **data))


def refused(folder: Path, *parts: str, rows: str = ROWS, header: str = HEADER, **data: Any) -> None:
    with pytest.raises(DataError) as error:
        csv_cohort(folder, rows, header, **data)
    message = str(error.value)
    assert all(part in message for part in (str(folder / "cohort.csv"), *parts)), message
    assert "\n" not in message


class TestPatients:
    def test_rows_of_a_patient_are_adjacent_and_make_one_label_and_one_group(self, tmp_path: Path) -> None:
        split = csv_cohort(tmp_path).split("train")
        assert split.patients == 2
        assert split.patient.tolist() == [0, 0, 1]
        assert split.label.tolist() == [1, 0]  # a: one of the two rows is positive
        assert split.groups["age"].tolist() == [0, 1]  # <40 and 40-<60: a cut belongs to the level above it
        assert split.groups["sex"].tolist() == [0, 1]
        assert {split.patient.dtype, split.label.dtype, *(g.dtype for g in split.groups.values())} == {torch.int64}

    def test_unknown_is_the_last_level(self, tmp_path: Path) -> None:
        cohort = csv_cohort(tmp_path)
        assert cohort.split("test").groups["sex"].tolist() == [2]  # empty
        assert cohort.split("validation").groups["sex"].tolist() == [2]  # coded so
        assert cohort.split("validation").groups["age"].tolist() == [3]
        assert cohort.split("test").groups["age"].tolist() == [2]  # >=60

    def test_table_values_are_clipped_scaled_and_flagged(self, tmp_path: Path) -> None:
        inputs = csv_cohort(tmp_path).split("train").inputs
        # patient a: 130 is the middle, 30 is clipped to 80, 9 to 4; patient b: 0 and the empty cell are missing
        expected = [[0.0, -0.5, 0, 0], [-1.0, 1.0, 0, 0], [0.0, 0.0, 1, 1]]
        assert inputs.tolist() == expected
        assert inputs.dtype == torch.float32

    def test_counts_and_the_fingerprint_need_no_decoding(self, tmp_path: Path) -> None:
        cohort = csv_cohort(tmp_path)
        assert cohort.patients == 4
        assert [cohort.split_patients(name) for name in SPLITS] == [2, 1, 1]
        assert cohort.members() == [("a", "train"), ("b", "train"), ("c", "test"), ("d", "validation")]
        assert len(cohort.fingerprint) == 64
        assert cohort.bytes_held == 5 * 4 * 4  # the table, and no split of it

    def test_the_fingerprint_is_that_of_the_data_and_of_how_they_are_read(self, tmp_path: Path) -> None:
        first = csv_cohort(tmp_path).fingerprint
        (tmp_path / "elsewhere").mkdir()
        assert csv_cohort(tmp_path / "elsewhere").fingerprint == first  # wherever they lie
        assert csv_cohort(tmp_path, account="second").fingerprint == first  # whoever pays
        shares = {"train": 0.5, "validation": 0.25, "test": 0.25}
        keyed = {"splits": shares, "split_key": "0" * 32}
        others = [
            csv_cohort(tmp_path, rows=ROWS.replace("39.9", "39.8")),
            csv_cohort(tmp_path, rows=ROWS + "e,0,50,M,90,1,train\n"),
            csv_cohort(tmp_path, coding={"sex": {"F": "female", "M": "male", "X": "male"}}),
            csv_cohort(tmp_path, columns={"disease": "dis", "hr": "bp"}),
            csv_cohort(tmp_path, patient="bp"),
            csv_cohort(tmp_path, **keyed),
            csv_cohort(tmp_path, **{**keyed, "split_key": "1" * 32}),
            csv_cohort(tmp_path, **{**keyed, "splits": {**shares, "train": 0.25, "test": 0.5}}),
        ]
        assert len({cohort.fingerprint for cohort in others} | {first}) == len(others) + 1

    def test_a_split_is_decoded_once(self, tmp_path: Path) -> None:
        cohort = csv_cohort(tmp_path)
        assert cohort.split("train") is cohort.split("train")

    def test_a_split_may_be_empty(self, tmp_path: Path) -> None:
        split = csv_cohort(tmp_path, "a,1,30,F,90,1,train\n").split("test")
        assert (split.patients, split.inputs.shape, split.groups["sex"].shape) == (0, (0, 4), (0,))

    def test_parquet_means_the_same_as_csv(self, tmp_path: Path) -> None:
        columns: dict[str, list[Any]] = {
            "id": ["a", "b", "a", "c", "d"],
            "dis": [1.0, 0.0, 0.0, 0.0, 2.0],  # a column of whole numbers that was saved as decimals
            "age": [39.9, 40.0, 20.0, 60.0, float("nan")],
            "sex": ["F", "M", "F", None, "X"],
            "bp": [130, 0, 30, 180, 80],
            "hr": [1, None, 9, 4, 0],
            "part": ["train", "train", "train", "test", "validation"],
        }
        pa.parquet.write_table(pa.table(columns), tmp_path / "cohort.parquet")
        cohort = Cohort(study(), site(tmp_path / "cohort.parquet"))
        same = csv_cohort(tmp_path)
        for name in SPLITS:
            one, other = cohort.split(name), same.split(name)
            assert torch.equal(one.inputs, other.inputs)
            assert torch.equal(one.label, other.label)
            assert all(torch.equal(one.groups[key], other.groups[key]) for key in ("age", "sex"))


class TestSplitByShares:
    SHARES = FractionSplits(train=0.5, validation=0.3, test=0.2)

    @given(st.text(max_size=20), st.binary(min_size=16, max_size=32))
    def test_it_depends_on_the_patient_and_the_key_alone(self, patient: str, key: bytes) -> None:
        assert split_of(patient, key, self.SHARES) == split_of(patient, key, self.SHARES)
        assert split_of(patient, key, FractionSplits(train=0, validation=1, test=0)) == "validation"
        assert split_of(patient, key, FractionSplits(train=0, validation=0, test=1)) == "test"

    def test_the_shares_are_kept(self) -> None:
        places = [split_of(f"p{number}", bytes(16), self.SHARES) for number in range(4000)]
        found = [places.count(name) / 4000 for name in SPLITS]
        np.testing.assert_allclose(found, [0.5, 0.3, 0.2], atol=0.03)  # four standard deviations

    def test_a_known_answer(self) -> None:
        # printf p1 | openssl dgst -sha256 -mac HMAC -macopt hexkey:<32 zeros> begins with 9241cf75,
        # which is .571 of 2^32; p0 begins with 734faa4d, .450. A change would move every patient.
        shares = FractionSplits(train=0.5714, validation=0.1, test=0.3286)
        assert split_of("p1", bytes(16), shares) == "train"
        shares = FractionSplits(train=0.5713, validation=0.1, test=0.3287)
        assert split_of("p1", bytes(16), shares) == "validation"
        assert split_of("p0", bytes(16), FractionSplits(train=0.4, validation=0.05, test=0.55)) == "test"

    def test_another_key_makes_another_split(self) -> None:
        splits = [[split_of(f"p{n}", bytes([key]) * 16, self.SHARES) for n in range(50)] for key in (0, 1)]
        assert splits[0] != splits[1]

    def test_further_rows_move_nobody(self, tmp_path: Path) -> None:
        shares = {"splits": {"train": 0.4, "validation": 0.3, "test": 0.3}, "split_key": "ab" * 16}
        rows = [f"p{number},{number % 2},30,F,90,1,train\n" for number in range(60)]
        before, after = (
            csv_cohort(tmp_path, "".join(rows[:30]), **shares),
            csv_cohort(tmp_path, "".join(rows), **shares),
        )
        for name in SPLITS:
            kept = before.split(name).label.tolist()
            assert after.split(name).label.tolist()[: len(kept)] == kept


class TestRefusals:
    def test_a_missing_column(self, tmp_path: Path) -> None:
        refused(tmp_path, "no column 'dis'", "label.column", "the manifest has", header=HEADER.replace("dis", "diag"))
        refused(tmp_path, "no column 'hr'", "feature hr", header=HEADER.replace("hr", "pulse"))
        refused(tmp_path, "no column 'sex'", "attribute sex", header=HEADER.replace("sex", "gender"), coding={})
        refused(tmp_path, "no column 'mrn'", "data.patient", patient="mrn")
        refused(tmp_path, "no column 'fold'", "data.splits.column", splits={"column": "fold"})

    def test_an_unmapped_level_names_site_row_value_levels_and_fix(self, tmp_path: Path) -> None:
        rows = ROWS.replace("c,0,60,,", "c,0,60,f,")
        refused(tmp_path, "site st-marys", "data row 4, column sex: 'f'", "female, male", "coding.sex", rows=rows)

    def test_a_number_that_is_none(self, tmp_path: Path) -> None:
        refused(tmp_path, "data row 2, column age: 'forty'", rows=ROWS.replace(",40,", ",forty,"))
        refused(tmp_path, "data row 5, column hr: '?'", "feature hr", rows=ROWS.replace("80,0,", "80,?,"))
        refused(tmp_path, "data row 1, column bp: 'inf'", rows=ROWS.replace("130", "inf"))

    def test_an_empty_label_or_patient(self, tmp_path: Path) -> None:
        refused(tmp_path, "data row 4, column dis: the label is empty", rows=ROWS.replace("c,0", "c,"))
        refused(tmp_path, "data row 2, column id: the patient identifier is empty", rows=ROWS.replace("b,", ","))

    def test_a_label_that_is_missing_in_words_or_not_declared(self, tmp_path: Path) -> None:
        """A missing outcome and a hospital's own word for one are no absence of the disease."""
        for word in ("NA", "n/a", "NaN", "?", "unknown"):
            where = f"data row 4, column dis: '{word}' reads as a missing label"
            refused(tmp_path, where, "label.negative", rows=ROWS.replace("c,0", f"c,{word}"))
        manifest = tmp_path / "cohort.csv"
        manifest.write_text(HEADER + ROWS.replace("c,0", "c,no"))
        label = {"column": "disease", "positive": [1, 2], "negative": [0]}
        with pytest.raises(DataError, match=r"row 4, column dis: 'no' is no declared label .*; negative: 0\); map it"):
            Cohort(study(label=label), site(manifest))
        told = study(label={**label, "negative": [0, "no"]})
        assert Cohort(told, site(manifest)).split("test").label.tolist() == [0]

    def test_rows_of_a_patient_that_disagree(self, tmp_path: Path) -> None:
        refused(tmp_path, "data row 3, column sex: disagrees with data row 1", rows=ROWS.replace("20,F", "20,M"))
        refused(tmp_path, "data row 3, column age", rows=ROWS.replace("20,F", "90,F"))
        refused(tmp_path, "data row 3, column part", rows=ROWS.replace("30,9,train", "30,9,test"))

    def test_a_split_that_is_none(self, tmp_path: Path) -> None:
        refused(tmp_path, "data row 4, column part: 'dev' is no split", rows=ROWS.replace("4,test", "4,dev"))

    def test_a_site_with_no_patients(self, tmp_path: Path) -> None:
        refused(tmp_path, "no patients", rows="")

    def test_a_table_that_is_none(self, tmp_path: Path) -> None:
        refused(tmp_path, "not a readable csv table", rows=ROWS + "e,1\n")
        refused(tmp_path, "'age' stands twice", header=HEADER.replace("part", "age"))
        refused(tmp_path, "not a readable csv table", header="", rows="")
        for mark, name in ((";", "semicolons"), ("\t", "tabs")):
            other = {"header": HEADER.replace(",", mark), "rows": ROWS.replace(",", mark)}
            refused(tmp_path, f"separated by {name}; save the table with commas", **other)
        for name, text in (("cohort.parquet", "no parquet"), ("cohort.xlsx", "")):
            (tmp_path / name).write_text(text)
            with pytest.raises(DataError, match=name):
                Cohort(study(), site(tmp_path / name))
        with pytest.raises(DataError, match=r"none\.csv: the manifest cannot be read"):
            Cohort(study(), site(tmp_path / "none.csv"))

    def test_a_coding_for_no_column(self, tmp_path: Path) -> None:
        refused(tmp_path, "coding.sexe", coding={"sexe": {"F": "female"}})


PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def png(pixels: np.ndarray[Any, Any], kind: str = "PNG", mode: str | None = None) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, kind)
    return file.getvalue()


class TestImages:
    HEADER = "id,dis,age,sex,part,file\n"
    ROWS = "a,1,30,F,train,1.png\nb,0,50,M,train,2.png\na,1,30,F,train,3.png\n"

    def cohort(self, folder: Path, files: dict[str, bytes], store: str) -> Cohort:
        (folder / "cohort.csv").write_text(self.HEADER + self.ROWS)
        if store == "zip":
            with zipfile.ZipFile(folder / "images.zip", "w") as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
            images = folder / "images.zip"
        else:
            images = folder / "images"
            images.mkdir()
            for name, content in files.items():
                (images / name).write_bytes(content)
        reads_images = study(inputs={"kind": "image", "size": 8})
        return Cohort(reads_images, site(folder / "cohort.csv", images=str(images), image_column="file"))

    @pytest.mark.parametrize("store", ["zip", "folder"])
    def test_images_of_the_right_size_are_unchanged(self, tmp_path: Path, store: str) -> None:
        files = {"1.png": png(PIXELS), "2.png": png(PIXELS[::-1]), "3.png": png(255 - PIXELS)}
        split = self.cohort(tmp_path, files, store).split("train")
        expected = np.stack([PIXELS, 255 - PIXELS, PIXELS[::-1]]).transpose(0, 3, 1, 2)
        assert split.inputs.dtype == torch.uint8
        np.testing.assert_array_equal(split.inputs.numpy(), expected)
        assert split.patient.tolist() == [0, 0, 1]

    @pytest.mark.parametrize("store", ["zip", "folder"])
    def test_an_image_that_is_another_makes_other_data(self, tmp_path: Path, store: str) -> None:
        files = {"1.png": png(PIXELS), "2.png": png(PIXELS[::-1]), "3.png": png(255 - PIXELS)}
        first = self.cohort(tmp_path, files, store)
        held = tmp_path / ("images.zip" if store == "zip" else "images/2.png")
        content = held.read_bytes()
        reads_images = study(inputs={"kind": "image", "size": 8})

        def again() -> str:
            images = tmp_path / ("images.zip" if store == "zip" else "images")
            described = site(tmp_path / "cohort.csv", images=str(images), image_column="file")
            return Cohort(reads_images, described).fingerprint

        assert again() == first.fingerprint
        held.write_bytes(content + b" ")
        assert again() != first.fingerprint

    @pytest.mark.parametrize("store", ["zip", "folder"])
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (None, "is missing"),
            (b"no image", "is not a PNG or JPEG"),
            (png(PIXELS)[:-40], "cannot be decoded"),
            (png(PIXELS, "GIF", "P"), "is not a PNG or JPEG"),
            (png(PIXELS[..., 0].astype(np.uint16)), "expected 8 bits per channel"),
            (png(np.zeros((5000, 1, 3), dtype=np.uint8)), "has 1 x 5000 pixels, expected at least 2 in each side"),
        ],
        ids=["missing", "text", "truncated", "gif", "16 bits", "a strip"],
    )
    def test_a_malformed_image_names_its_file_and_row(
        self, tmp_path: Path, store: str, content: bytes | None, reason: str
    ) -> None:
        files = {"1.png": png(PIXELS), "2.png": png(PIXELS)} | ({"3.png": content} if content else {})
        cohort = self.cohort(tmp_path, files, store)  # decoded at the first use
        with pytest.raises(DataError) as error:
            cohort.split("train")
        assert reason in str(error.value)
        assert "'3.png' (data row 3 of the manifest)" in str(error.value)
        assert "\n" not in str(error.value)

    def test_other_sizes_are_cropped_to_their_central_square_and_resized(self) -> None:
        wide = np.zeros((16, 30, 3), dtype=np.uint8)
        wide[:, 7:23] = 200  # the central square, (30 - 16) / 2 = 7 columns on either side
        assert (decode_image(png(wide), 8, "image") == 200).all()
        tall = decode_image(png(wide.transpose(1, 0, 2)), 8, "image")
        assert tall.shape == (8, 8, 3)
        assert (tall == 200).all()
        square = Image.fromarray(PIXELS).resize((4, 4), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(decode_image(png(PIXELS), 4, "image"), np.asarray(square))

    def test_an_image_is_enlarged_four_times_and_no_further(self) -> None:
        """A square of a few pixels shows the model nothing of the patient."""
        assert decode_image(png(PIXELS), 32, "image").shape == (32, 32, 3)
        with pytest.raises(
            DataError, match=r"image has 8 x 8 pixels, expected at least 9 in each side for inputs\.size"
        ):
            decode_image(png(PIXELS), 33, "image")

    def test_every_8_bit_mode_becomes_rgb(self) -> None:
        for mode in ("L", "LA", "P", "RGBA", "1"):
            assert decode_image(png(PIXELS, mode=mode), 8, "image").shape == (8, 8, 3)
        assert decode_image(png(PIXELS, "JPEG", "CMYK"), 8, "image").shape == (8, 8, 3)

    def test_an_image_that_unpacks_to_gigabytes_is_refused(self) -> None:
        big = io.BytesIO()
        Image.new("1", (2**13, 2**13 + 1)).save(big, "PNG")
        with pytest.raises(DataError, match="image has 8192 x 8193 pixels"):
            decode_image(big.getvalue(), 8, "image")

    def test_a_site_without_images_is_told_so(self, tmp_path: Path) -> None:
        (tmp_path / "cohort.csv").write_text(self.HEADER + self.ROWS)
        reads_images = study(inputs={"kind": "image", "size": 8})
        with pytest.raises(DataError, match=r"data\.images"):
            Cohort(reads_images, site(tmp_path / "cohort.csv"))
        with pytest.raises(DataError, match="neither a folder nor a"):
            Cohort(reads_images, site(tmp_path / "cohort.csv", images=str(tmp_path / "cohort.csv")))
        with pytest.raises(DataError, match="no column 'image'"):
            Cohort(reads_images, site(tmp_path / "cohort.csv", images=str(tmp_path)))


def test_an_identifier_that_was_saved_as_a_decimal_is_the_same_patient(tmp_path: Path) -> None:
    """In one file, where a patient would count twice; and over the years, where a split or an account would forget."""
    splits = {"splits": {"train": 0.5, "validation": 0.2, "test": 0.3}, "split_key": "ab" * 16}
    rows = "".join(f"{i},{i % 2},{20 + i},F,100,1,train\n" for i in range(40))
    before = csv_cohort(tmp_path, rows, **splits)
    again = csv_cohort(tmp_path, "".join(line.replace(",", ".0,", 1) + "\n" for line in rows.splitlines()), **splits)
    assert again.members() == before.members()
    both = csv_cohort(tmp_path, rows + "7.0,1,20,F,100,1,train\n", **splits)
    assert both.patients == before.patients == 40
