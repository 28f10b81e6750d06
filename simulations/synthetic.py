"""Synthetic dermoscopy: a vendor, hospitals and public pools with a known bias, made from a public seed in seconds.

The vendor's training set holds hardly any malignant lesion on dark skin, so its classifier takes dark skin for a sign
of benignity; the hospitals, whose patients are otherwise, can measure and reduce that. Benches A, B and C differ in
how many such lesions the vendor saw, and in nothing else.

>>> vendor_set("A", seed=0).images.shape
(4000, 32, 32, 3)

Design note: every set has a random stream of its own, named by the seed and the set (`stream`), so that more
hospitals, or more patients in one of them, change no other set.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from equipoise.client.cohort import Split
from equipoise.common.errors import StudyError
from equipoise.common.query import SPLITS
from equipoise.common.streams import numpy_stream
from equipoise.simulations.dermoscopy import DEVICES, SIZE, Integers, draw_images
from equipoise.simulations.sitefolder import SitePaths, write_site

Bench = Literal["A", "B", "C"]

TONES = ("light", "dark")
ATTRIBUTE = "tone"
VENDOR_IMAGES = 4000
VENDOR_DEVICES = (0, 1)
VENDOR_SHARE_DARK = 0.10
VENDOR_PREVALENCE_LIGHT = 0.55
VENDOR_PREVALENCE_DARK: dict[Bench, float] = {"A": 0.06, "B": 0.00, "C": 0.03}


@dataclass(frozen=True)
class Hospital:
    """Whom a hospital sees and with what.

    Attributes:
        share_dark: P(dark skin); 0 or 1 leave one group out.
        prevalence_light: P(malignant | light skin).
        prevalence_dark: P(malignant | dark skin).
        device: index into `DEVICES`.
    """

    share_dark: float
    prevalence_light: float
    prevalence_dark: float
    device: int


HOSPITALS = (
    Hospital(0.10, 0.45, 0.25, device=0),
    Hospital(0.20, 0.50, 0.30, device=1),
    Hospital(0.35, 0.40, 0.35, device=2),
    Hospital(0.50, 0.45, 0.25, device=3),
    Hospital(0.25, 0.55, 0.30, device=4),
    Hospital(0.60, 0.50, 0.40, device=5),
    Hospital(0.15, 0.40, 0.30, device=6),
    Hospital(0.40, 0.45, 0.30, device=7),
)


@dataclass(frozen=True)
class ImageSet:
    """Drawn patients, one image each.

    Attributes:
        images: (n, 32, 32, 3) uint8.
        label: (n,) int64, 1 malignant.
        group: (n,) int64, 1 dark skin.
    """

    images: NDArray[np.uint8]
    label: Integers
    group: Integers

    def as_split(self, attribute: str = ATTRIBUTE) -> Split:
        """The same patients as a site's decoded split."""
        return Split(
            inputs=torch.from_numpy(self.images).permute(0, 3, 1, 2).contiguous(),
            patient=torch.arange(len(self.label)),
            label=torch.from_numpy(self.label),
            groups={attribute: torch.from_numpy(self.group)},
        )


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """The public random stream of one set."""
    return numpy_stream(seed, "synthetic", *names)


def hospitals_of(count: int, single_group: int = 0) -> tuple[Hospital, ...]:
    """`count` hospitals; beyond eight the definitions repeat, with other patients.

    The first `single_group` of them see one group alone: dark skin where it is half of their patients or more.
    """
    hospitals = [HOSPITALS[index % len(HOSPITALS)] for index in range(count)]
    one = [replace(hospital, share_dark=float(hospital.share_dark >= 0.5)) for hospital in hospitals[:single_group]]
    return (*one, *hospitals[single_group:])


def draw_set(labels: Integers, groups: Integers, devices: Integers, rng: np.random.Generator) -> ImageSet:
    """One image of each patient, from the device with this index into `DEVICES`."""
    images = np.empty((len(labels), SIZE, SIZE, 3), dtype=np.uint8)
    for device in np.unique(devices):
        chosen = devices == device
        images[chosen] = draw_images(labels[chosen], groups[chosen], DEVICES[device], rng)
    return ImageSet(images, labels, groups)


def draw_patients(
    count: int, share_dark: float, prevalence: tuple[float, float], rng: np.random.Generator
) -> tuple[Integers, Integers]:
    """Labels and groups of `count` patients; `prevalence` on light and on dark skin."""
    groups = (rng.random(count) < share_dark).astype(np.int64)
    labels = (rng.random(count) < np.array(prevalence)[groups]).astype(np.int64)
    return labels, groups


def vendor_set(bench: Bench, seed: int) -> ImageSet:
    """The 4,000 images that the vendor trains on, from devices 0 and 1; `bench` sets P(malignant | dark skin)."""
    rng = stream(seed, "vendor", bench)
    prevalence = (VENDOR_PREVALENCE_LIGHT, VENDOR_PREVALENCE_DARK[bench])
    labels, groups = draw_patients(VENDOR_IMAGES, VENDOR_SHARE_DARK, prevalence, rng)
    return draw_set(labels, groups, rng.choice(np.array(VENDOR_DEVICES), VENDOR_IMAGES), rng)


def hospital_set(hospital: Hospital, patients: int, rng: np.random.Generator) -> ImageSet:
    """`patients` patients as they come to a hospital."""
    prevalence = (hospital.prevalence_light, hospital.prevalence_dark)
    labels, groups = draw_patients(patients, hospital.share_dark, prevalence, rng)
    return ImageSet(draw_images(labels, groups, DEVICES[hospital.device], rng), labels, groups)


def cell_counts(total: int, hospitals: Sequence[Hospital]) -> Integers:
    """How many test patients of each cell lie at each hospital, (hospitals, 4) int64.

    Cells are (label, group) = (0, 0), (0, 1), (1, 0), (1, 1); no two differ by more than one patient in all. A cell's
    patients lie at the hospitals that see its group, evenly. Where every hospital sees both groups, neither two
    hospitals differ by more than one patient in all, nor two entries by more than one.

    Raises:
        StudyError: no hospital sees a group.
    """
    counts = np.zeros((len(hospitals), 4), dtype=np.int64)
    begin = 0
    for cell in range(4):
        dark = cell % 2
        seeing = [index for index, hospital in enumerate(hospitals) if hospital.share_dark != 1 - dark]
        if not seeing:
            raise StudyError(
                f"simulation.hospitals.single_group: no hospital of {len(hospitals)} sees {TONES[dark]} skin, so no "
                "gap could be measured; take fewer, or more hospitals"
            )
        # Dealt like cards, cell by cell: each cell begins at the hospital where the one before it ended.
        size = total // 4 + (cell < total % 4)
        np.add.at(counts[:, cell], np.array(seeing)[(begin + np.arange(size)) % len(seeing)], 1)
        begin += size
    return counts


def hospital_tests(seed: int, hospitals: int = 6, total: int = 1600, single_group: int = 0) -> list[ImageSet]:
    """The test patients of each hospital, from its own device; together `total`, the four cells equal.

    Raises:
        StudyError: no hospital sees a group.
    """
    defined = hospitals_of(hospitals, single_group)
    counts = cell_counts(total, defined)
    tests = []
    for index, hospital in enumerate(defined):
        rng = stream(seed, "hospital", index, "test")
        cells = rng.permutation(np.repeat(np.arange(4), counts[index]))
        labels, groups = cells // 2, cells % 2
        tests.append(ImageSet(draw_images(labels, groups, DEVICES[hospital.device], rng), labels, groups))
    return tests


def joint_test(seed: int, hospitals: int = 6, total: int = 1600) -> ImageSet:
    """All hospitals' test patients together."""
    return concatenate(hospital_tests(seed, hospitals, total))


def concatenate(sets: Sequence[ImageSet]) -> ImageSet:
    """Several sets as one."""
    return ImageSet(
        np.concatenate([part.images for part in sets]),
        np.concatenate([part.label for part in sets]),
        np.concatenate([part.group for part in sets]),
    )


def vendor_pool(bench: Bench, seed: int, count: int = 800) -> NDArray[np.uint8]:
    """Public pool U1: the vendor's first `count` training images, without their labels."""
    return vendor_set(bench, seed).images[:count]


def diverse_pool(seed: int, hospitals: int = 6, count: int = 600) -> NDArray[np.uint8]:
    """Public pool U2: half dark skin, half malignant, devices other than the hospitals', without labels.

    With eight hospitals or more every device is in use, and the pool comes from the last two.
    """
    rng = stream(seed, "pool")
    cells = rng.permutation(np.arange(count) % 4)
    free = np.arange(min(hospitals, len(DEVICES) - 2), len(DEVICES))
    return draw_set(cells // 2, cells % 2, rng.choice(free, count), rng).images


def write_hospitals(
    folder: Path,
    seed: int,
    *,
    hospitals: int = 6,
    single_group: int = 0,
    patients: int = 300,
    validation: int = 100,
    test: int = 1600,
) -> list[SitePaths]:
    """Write hospitals as folders with a manifest, zipped images and a site file that declares them synthetic.

    The bench is the vendor's alone: the hospitals of benches A, B and C are the same.

    Args:
        folder: gets one folder per hospital, `hospital-1` and so on.
        seed: public; the same seed gives the same bytes.
        hospitals: how many.
        single_group: how many of them, from the first on, see one group alone.
        patients: training patients of each hospital.
        validation: validation patients of each hospital.
        test: test patients of all hospitals together.

    Raises:
        StorageError: a file could not be written.
        StudyError: no hospital sees a group.
    """
    tests = hospital_tests(seed, hospitals, test, single_group)
    written = []
    for index, hospital in enumerate(hospitals_of(hospitals, single_group)):
        train = hospital_set(hospital, patients, stream(seed, "hospital", index, "train"))
        held_out = hospital_set(hospital, validation, stream(seed, "hospital", index, "validation"))
        cohort = concatenate([train, held_out, tests[index]])
        splits = np.repeat(SPLITS, [len(part.label) for part in (train, held_out, tests[index])])
        names = [f"{number:05d}.png" for number in range(len(cohort.label))]
        rows = [
            (f"h{index + 1}-{number:05d}", name, TONES[group], label, split)
            for number, (name, group, label, split) in enumerate(
                zip(names, cohort.group, cohort.label, splits, strict=True)
            )
        ]
        data = {"images": "images.zip", "splits": {"column": "split"}, "synthetic": True}
        header = ("patient", "image", "tone", "malignant", "split")
        files = {"images.zip": zip_images(names, cohort.images)}
        written.append(write_site(folder, f"hospital-{index + 1}", header, rows, data=data, files=files))
    return written


def zip_images(names: Sequence[str], images: NDArray[np.uint8]) -> bytes:
    """A zip file of PNG images, (n, h, w, 3) uint8, stored as they are; the same images give the same bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, image in zip(names, images, strict=True):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG", compress_level=1)
            archive.writestr(zipfile.ZipInfo(name), png.getvalue())  # ZipInfo's date is fixed
    return file.getvalue()
