"""The synthetic hospitals: what the public seed fixes, what each knob does, and what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise.client.cohort import Cohort
from equipoise.common.errors import StorageError, StudyError
from equipoise.common.query import SPLITS
from equipoise.common.sitefile import load_site
from equipoise.common.study import Study
from equipoise.common.study_simulation import Simulation, SyntheticHospitals
from equipoise.simulations.dermoscopy import DEVICES, draw_images
from equipoise.simulations.hospitals import build_hospitals
from equipoise.simulations.synthetic import (
    HOSPITALS,
    Bench,
    Hospital,
    cell_counts,
    diverse_pool,
    hospital_set,
    hospital_tests,
    hospitals_of,
    joint_test,
    stream,
    vendor_pool,
    vendor_set,
    write_hospitals,
)

STUDY = Study.model_validate(
    {
        "study": "synthetic",
        "model": {"factory": "equipoise.common.models:resnet_small"},
        "inputs": {"kind": "image", "size": 32},
        "label": {"column": "malignant", "positive": 1},
        "attributes": [{"name": "tone", "levels": ["light", "dark"], "primary": True}],
        "method": {"name": "none"},
    }
)
ONES, ZEROS = np.ones(300, dtype=np.int64), np.zeros(300, dtype=np.int64)


def corner(images: np.ndarray) -> np.ndarray:
    """Colour of the skin: mean over the four corners, (3,) on a 0 to 1 scale."""
    colour: np.ndarray = images[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(axis=(0, 1)) / 255
    return colour


def roughness(images: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels around the lesion, on a 0 to 1 scale."""
    grey = images[:, 8:24, 8:24].mean(axis=3) / 255
    return float(np.abs(np.diff(grey, axis=2)).mean())


class TestImages:
    def test_the_skin_has_the_colours_of_the_specification(self) -> None:
        # tone .20: .8 (.90, .72, .62) + .2 (.40, .27, .21); tone .78: .22 and .78 of them; illumination averages out
        light = draw_images(ZEROS, ZEROS, DEVICES[0], stream(0, "test"))
        dark = draw_images(ZEROS, ONES, DEVICES[0], stream(0, "test"))
        np.testing.assert_allclose(corner(light), [0.80, 0.63, 0.538], atol=0.015)
        np.testing.assert_allclose(corner(dark), [0.51, 0.369, 0.3002], atol=0.015)

    def test_dark_skin_shows_the_lesion_less(self) -> None:
        drawn = [draw_images(ONES, group, DEVICES[0], stream(0, "test")) for group in (ZEROS, ONES)]
        contrast = [1 - images[:, 13:19, 13:19].mean() / 255 / corner(images).mean() for images in drawn]
        assert contrast[1] / contrast[0] == pytest.approx(0.42 / 0.62, rel=0.05)

    def test_malignant_lesions_are_rougher_in_both_groups(self) -> None:
        for group in (ZEROS, ONES):
            benign, malignant = (draw_images(label, group, DEVICES[0], stream(1, "test")) for label in (ZEROS, ONES))
            assert roughness(malignant) > 1.05 * roughness(benign)

    def test_devices_change_colour_blur_and_noise_of_the_same_scene(self) -> None:
        def scene(device: int) -> np.ndarray:
            return draw_images(ZEROS, ONES, DEVICES[device], stream(2, "test"))

        np.testing.assert_allclose(corner(scene(1)) / corner(scene(0)), DEVICES[1].gain, atol=0.01)
        expected = corner(scene(0)) ** 1.1 * DEVICES[2].gain  # gamma 1.1, no blur
        np.testing.assert_allclose(corner(scene(2)), expected, atol=0.01)

        def fine(images: np.ndarray) -> float:
            """Standard deviation of a corner pixel's difference to its neighbour: noise, and a little slope."""
            return float((images[:, 0, 0].astype(float) - images[:, 0, 1]).std() / 255)

        noise = [fine(scene(device)) for device in (0, 2)]
        np.testing.assert_allclose(noise, [0.03 * 2**0.5, 0.04 * 2**0.5], rtol=0.1)

    def test_a_stream_repeats_and_another_seed_differs(self) -> None:
        drawn = [hospital_set(HOSPITALS[4], 20, stream(seed, "x")).images for seed in (0, 0, 1)]
        assert np.array_equal(drawn[0], drawn[1])
        assert not np.array_equal(drawn[0], drawn[2])
        assert drawn[0].dtype == np.uint8


class TestSets:
    @pytest.mark.parametrize(("bench", "prevalence"), [("A", 0.06), ("B", 0.0), ("C", 0.03)])
    def test_the_benches_differ_in_the_malignant_lesions_on_dark_skin(self, bench: Bench, prevalence: float) -> None:
        vendor = vendor_set(bench, seed=3)
        dark = vendor.group == 1
        assert vendor.images.shape == (4000, 32, 32, 3)
        assert dark.mean() == pytest.approx(0.10, abs=0.02)  # four standard deviations, here and below
        assert vendor.label[~dark].mean() == pytest.approx(0.55, abs=0.035)
        assert vendor.label[dark].mean() == pytest.approx(prevalence, abs=0.05 if prevalence else 0)

    def test_a_hospital_sees_whom_it_declares(self) -> None:
        seen = hospital_set(Hospital(0.35, 0.40, 0.20, device=2), 4000, stream(0, "x"))
        dark = seen.group == 1
        assert dark.mean() == pytest.approx(0.35, abs=0.03)
        assert seen.label[~dark].mean() == pytest.approx(0.40, abs=0.04)
        assert seen.label[dark].mean() == pytest.approx(0.20, abs=0.045)

    @pytest.mark.parametrize("share", [0, 1])
    def test_a_group_may_be_missing(self, share: int) -> None:
        assert (hospital_set(Hospital(share, 0.5, 0.5, device=0), 50, stream(0, "x")).group == share).all()

    def test_hospitals_repeat_after_eight(self) -> None:
        many = hospitals_of(11)
        assert many[8:] == HOSPITALS[:3]
        assert [hospital.device for hospital in HOSPITALS] == list(range(8))

    @given(st.integers(0, 500), st.integers(1, 30))
    def test_test_patients_are_dealt_evenly(self, total: int, hospitals: int) -> None:
        counts = cell_counts(total, hospitals_of(hospitals))
        assert counts.sum() == total
        for even in (counts, counts.sum(axis=0), counts.sum(axis=1)):
            assert np.ptp(even) <= 1

    def test_hospitals_of_a_single_group_keep_the_one_they_see_most(self) -> None:
        assert [hospital.share_dark for hospital in hospitals_of(6, 5)] == [0, 0, 0, 1, 0, 0.60]
        assert hospitals_of(11, 0) == hospitals_of(11)

    @given(st.integers(0, 500), st.integers(4, 30), st.data())
    def test_test_patients_lie_where_their_group_is_seen(self, total: int, hospitals: int, data: st.DataObject) -> None:
        seen = hospitals_of(hospitals, data.draw(st.integers(0, hospitals)))
        counts = cell_counts(total, seen)
        assert np.ptp(counts.sum(axis=0)) <= 1
        assert counts.sum() == total
        for hospital, row in zip(seen, counts, strict=True):
            assert not (row[[0, 2]].any() and hospital.share_dark == 1)
            assert not (row[[1, 3]].any() and hospital.share_dark == 0)
        for cell in range(4):  # evenly among those that see the group
            seeing = [hospital.share_dark != 1 - cell % 2 for hospital in seen]
            assert np.ptp(counts[seeing, cell]) <= 1

    def test_a_group_that_no_hospital_sees_is_refused(self) -> None:
        with pytest.raises(StudyError, match=r"single_group: no hospital of 3 sees dark skin"):
            hospital_tests(0, 3, single_group=3)

    def test_no_more_hospitals_of_a_single_group_than_there_are(self) -> None:
        with pytest.raises(ValueError, match="single_group is 3, of 2 hospitals; expected no more"):
            SyntheticHospitals(kind="synthetic", count=2, single_group=3)

    def test_the_joint_test_set_has_four_equal_cells(self) -> None:
        test = joint_test(seed=0, hospitals=6, total=200)
        assert np.unique(2 * test.label + test.group, return_counts=True)[1].tolist() == [50] * 4

    def test_more_hospitals_leave_the_others_as_they_are(self) -> None:
        few, many = (hospital_tests(0, hospitals, total=16 * hospitals) for hospitals in (2, 3))
        assert all(np.array_equal(one.images, other.images) for one, other in zip(few, many, strict=False))

    def test_the_pools(self) -> None:
        assert np.array_equal(vendor_pool("A", 0, count=30), vendor_set("A", 0).images[:30])
        pool = diverse_pool(0, count=200)
        assert pool.shape == (200, 32, 32, 3)
        skin = pool[:, [0, 0, -1, -1], [0, -1, 0, -1], 0].mean(axis=1)
        assert (skin < 168).sum() == pytest.approx(100, abs=6)  # half dark: the two tones lie at 130 and 204

    def test_a_set_is_a_split(self) -> None:
        drawn = hospital_set(HOSPITALS[3], 10, stream(0, "x"))
        split = drawn.as_split("skin")
        assert split.inputs.shape == (10, 3, 32, 32)
        assert torch.equal(split.inputs[7].permute(1, 2, 0), torch.from_numpy(drawn.images[7]))
        assert (split.patients, split.groups["skin"].tolist()) == (10, drawn.group.tolist())


class TestWrittenHospitals:
    def test_are_read_back_as_they_were_drawn(self, tmp_path: Path) -> None:
        written = write_hospitals(tmp_path, 5, hospitals=3, patients=12, validation=7, test=40)
        assert [paths.site for paths in written] == ["hospital-1", "hospital-2", "hospital-3"]
        sites = [load_site(paths.site_file) for paths in written]
        cohorts = [Cohort(STUDY, site) for site in sites]
        assert all(site.data.synthetic for site in sites)
        assert [[cohort.split_patients(name) for name in SPLITS] for cohort in cohorts] == [
            [12, 7, 14],
            [12, 7, 13],
            [12, 7, 13],
        ]
        joint = joint_test(5, hospitals=3, total=40).as_split("tone")
        splits = [cohort.split("test") for cohort in cohorts]
        assert torch.equal(torch.cat([split.inputs for split in splits]), joint.inputs)
        assert torch.equal(torch.cat([split.label for split in splits]), joint.label)
        assert torch.equal(torch.cat([split.groups["tone"] for split in splits]), joint.groups["tone"])

    def test_of_a_single_group_hold_no_patient_of_the_other(self, tmp_path: Path) -> None:
        wanted = {"kind": "synthetic", "count": 5, "single_group": 4, "patients": 30, "validation": 10, "test": 40}
        study = STUDY.model_copy(update={"simulation": Simulation.model_validate({"hospitals": wanted})})
        files = build_hospitals(study, tmp_path).sites.values()
        cohorts = [Cohort(STUDY, load_site(file)) for file in files]
        seen = [
            {group for split in SPLITS for group in cohort.split(split).groups["tone"].tolist()} for cohort in cohorts
        ]
        assert seen == [{0}, {0}, {0}, {1}, {0, 1}]

    def test_have_the_bytes_of_their_seed(self, tmp_path: Path) -> None:
        def content(name: str, seed: int) -> list[bytes]:
            write_hospitals(tmp_path / name, seed, hospitals=2, patients=5, validation=1, test=8)
            return [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.*"))]

        first = content("a", 0)
        assert len(first) == 6
        assert first == content("b", 0)
        assert first != content("c", 1)

    def test_share_no_patient_identifier(self, tmp_path: Path) -> None:
        written = write_hospitals(tmp_path, 0, hospitals=2, patients=5, validation=1, test=8)
        patients = [line.split(",")[0] for paths in written for line in paths.manifest.read_text().splitlines()[1:]]
        assert len(set(patients)) == len(patients) == 20

    def test_a_place_that_cannot_be_written_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "hospital-1").write_text("a file where the folder belongs")
        with pytest.raises(StorageError, match="hospital-1 could not be written"):
            write_hospitals(tmp_path, 0, hospitals=1, patients=1, validation=0, test=4)
