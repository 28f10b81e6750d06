"""Public data as hospitals: UCI Heart Disease (four hospitals) and HAM10000 (four sources of dermatoscopic images).

The data never belong to the project. They are read from the folder that the environment variable EQUIPOISE_DATA names,
and each hospital is written as a folder of its own (`equipoise.simulations.sitefolder`), beside the vendor's rows,
which leave the study.

Neither data set has patient identifiers. The unit of every count, and of every privacy guarantee, is therefore the row
(heart) or the lesion (HAM10000), and whatever is run on them must say so: `PublicSites.note`.

References: Janosi et al. 1988, doi:10.24432/C52P4X; Tschandl et al. 2018, doi:10.1038/sdata.2018.161 (non-commercial
licence).
"""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from equipoise.common.errors import DataError, StudyError
from equipoise.common.manifest import number, read_manifest, same
from equipoise.common.sitefile import FractionSplits
from equipoise.common.streams import numpy_stream, stream_seed
from equipoise.common.study import TableInputs
from equipoise.simulations.sitefolder import SitePaths, write_site

VARIABLE = "EQUIPOISE_DATA"
VENDOR = "vendor"

HEART_TABLE = "uci_heart_disease/heart_4hospitals.csv"
HEART_FEATURES = (
    "age",
    "sex",
    "cp",
    "trestbps",
    "chol",
    "fbs",
    "restecg",
    "thalach",
    "exang",
    "oldpeak",
    "slope",
    "ca",
    "thal",
)
POOL, POOL_LEVELS = 600, 7
HEART_NOTE = "UCI Heart Disease has no patient identifiers: the unit is the row"
HEART_VENDOR_SITE = "cleveland"
HEART_VENDOR_SHARE = 0.40
# Few women in the study are diseased: a smaller test share leaves fewer than ten of them, and no estimate.
HEART_SPLITS = FractionSplits(train=0.45, validation=0.15, test=0.40)

HAM_TABLE = "ham10000/ham10000_metadata.csv"
HAM_IMAGES = "ham10000/ham10000_200x150_jpeg.zip"
HAM_NOTE = "HAM10000 has no patient identifiers: the unit is the lesion"
HAM_VENDOR_TRAIN = 0.35
HAM_VENDOR_HELD_OUT = 0.15
HAM_OLD = 60  # years; where base "b" cuts age
HAM_SPLITS = FractionSplits(train=0.5, validation=0.15, test=0.35)

_SOURCES = {
    HEART_TABLE: "UCI Heart Disease, doi:10.24432/C52P4X: the four processed files in one CSV, with columns site and "
    "disease",
    HAM_TABLE: "HAM10000, doi:10.7910/DVN/DBW86T: the metadata as CSV, with columns dataset and malignant",
    HAM_IMAGES: "HAM10000, doi:10.7910/DVN/DBW86T: the images as JPEG in one zip, named by image_id",
}


@dataclass(frozen=True)
class PublicSites:
    """Written hospitals of a public data set.

    Attributes:
        sites: the hospitals of the study.
        vendor: the rows that the vendor's model is made from (split `train`; HAM10000 also `validation`, held out for
            threshold checks and, without labels, as the public pool). None of them is in `sites`.
        note: what the unit is; to be printed with every result.
    """

    sites: list[SitePaths]
    vendor: SitePaths
    note: str


def public_data_folder() -> Path:
    """The folder that EQUIPOISE_DATA names.

    Raises:
        StudyError: it is unset, or names no folder.
    """
    value = os.environ.get(VARIABLE, "")
    if not value or not Path(value).is_dir():
        found = f"{VARIABLE}={value}: no such folder" if value else f"{VARIABLE} is not set"
        raise StudyError(
            f"{found}; name a folder that holds {HEART_TABLE} (heart) or {HAM_TABLE} and {HAM_IMAGES} (ham10000)"
        )
    return Path(value).resolve()


def write_heart(folder: Path, data_folder: Path, seed: int) -> PublicSites:
    """Four hospitals with 13 features, label `disease`, attributes `sex` and `age`.

    The vendor's rows are a hash-chosen 40 % of Cleveland's without its diseased women: its model never saw heart
    disease in a woman. These rows leave the study. Manifests hold the public values as they are: `sex` 1 and 0, coded
    as male and female by the site file; `chol` 0 where it was not measured; empty where a value is missing.

    Args:
        folder: gets one folder per hospital, and `vendor`.
        data_folder: holds the public files (`public_data_folder`).
        seed: public; chooses the vendor's rows and the splits.

    Raises:
        StudyError: the public file is missing.
        DataError: the public file has other columns.
        StorageError: a file could not be written.
    """
    table = read_manifest(existing(data_folder, HEART_TABLE, _SOURCES[HEART_TABLE]))
    header = ("patient", *HEART_FEATURES, "disease")
    columns = [table.column(name, HEART_TABLE) for name in header[1:]]
    at_site = table.column("site", HEART_TABLE)
    sexes, diseases = table.column("sex", HEART_TABLE), table.column("disease", HEART_TABLE)
    cohorts: dict[str, list[tuple[str, ...]]] = {site: [] for site in sorted(set(at_site))}
    vendor: list[tuple[str, ...]] = []
    numbers = dict.fromkeys(cohorts, 0)
    for row, site in enumerate(at_site):
        numbers[site] += 1
        patient = f"{site}-{numbers[site]:03d}"
        values = (patient, *(column[row] for column in columns))
        diseased_woman = same(sexes[row]) == "0" and same(diseases[row]) == "1"
        chosen = fraction(seed, "heart", "vendor", patient) < HEART_VENDOR_SHARE
        if site == HEART_VENDOR_SITE and chosen and not diseased_woman:
            vendor.append((*values, "train"))
        else:
            cohorts[site].append(values)
    coding = {"sex": {"0": "female", "1": "male"}}
    sites = write_sites(folder, seed, "heart", header, cohorts, vendor, HEART_SPLITS, coding=coding)
    return PublicSites(*sites, HEART_NOTE)


def range_pool(inputs: TableInputs, seed: int, data_set: str) -> Tensor:
    """600 public rows as the study's inputs, float32 (600, F): draws from the declared ranges, none of them a patient.

    A feature whose declared range has at most seven whole numbers is drawn among them, any other evenly over its range.
    """
    stream = numpy_stream(seed, data_set, "pool")
    columns = []
    for feature in inputs.features:
        low, high = feature.range
        whole = float(low).is_integer() and float(high).is_integer() and high - low < POOL_LEVELS
        drawn = stream.integers(int(low), int(high) + 1, POOL) if whole else stream.uniform(low, high, POOL)
        columns.append(2 * (drawn - low) / (high - low) - 1)
    values = torch.tensor(np.array(columns).T, dtype=torch.float32)
    return torch.cat([values, torch.zeros_like(values)], dim=1)


def write_ham10000(
    folder: Path, data_folder: Path, seed: int, *, base: Literal["a", "b"] = "a", splits: FractionSplits = HAM_SPLITS
) -> PublicSites:
    """Four sources of dermatoscopic images, label `malignant`, attributes `age` and `sex`, unit the lesion.

    A lesion-disjoint half is the vendor's: of the lesions, 35 in 100 train its model and 15 are held out. Lesions seen
    at two sources are left out. An unknown age is empty, an unknown sex `unknown`. The images stay in their zip.

    Args:
        folder: gets one folder per source, and `vendor`.
        data_folder: holds the public files (`public_data_folder`).
        seed: public; chooses the vendor's lesions and the splits.
        base: "a": the vendor trains on its lesions as they are; "b": without any malignant one under 60 years of age
            and without 60 % of the benign ones from 60 on, so that its model learns that young means benign.
        splits: shares of the hospitals' lesions.

    Raises:
        StudyError: a public file is missing.
        DataError: the public table has other columns.
        StorageError: a file could not be written.
    """
    table = read_manifest(existing(data_folder, HAM_TABLE, _SOURCES[HAM_TABLE]))
    images = existing(data_folder, HAM_IMAGES, _SOURCES[HAM_IMAGES])
    header = ("patient", "image", "malignant", "age", "sex", "localization", "dx")
    public = {name: table.column(name, HAM_TABLE) for name in ("lesion_id", "image_id", "dataset", *header[2:])}
    seen_at: dict[str, set[str]] = {}
    for lesion, site in zip(public["lesion_id"], public["dataset"], strict=True):
        seen_at.setdefault(lesion, set()).add(site)
    cohorts: dict[str, list[tuple[str, ...]]] = {site: [] for site in sorted(set(public["dataset"]))}
    vendor: list[tuple[str, ...]] = []
    for row, lesion in enumerate(public["lesion_id"]):
        if len(seen_at[lesion]) > 1:
            continue
        of_row = {name: column[row] for name, column in public.items()}
        values = (lesion, f"{of_row['image_id']}.jpg", *(of_row[name] for name in header[2:]))
        place = fraction(seed, "ham10000", "vendor", lesion)
        if place >= HAM_VENDOR_TRAIN + HAM_VENDOR_HELD_OUT:
            cohorts[of_row["dataset"]].append(values)
        elif place >= HAM_VENDOR_TRAIN:
            vendor.append((*values, "validation"))
        elif base == "a" or not _left_out(seed, of_row):
            vendor.append((*values, "train"))
    in_zip = {"images": str(images)}
    return PublicSites(*write_sites(folder, seed, "ham10000", header, cohorts, vendor, splits, data=in_zip), HAM_NOTE)


def _left_out(seed: int, row: Mapping[str, str]) -> bool:
    """Whether base "b" deletes a row of the vendor's training lesions."""
    age = number(row["age"])
    if age is None:
        return False
    if same(row["malignant"]) == "1":
        return age < HAM_OLD
    return age >= HAM_OLD and fraction(seed, "ham10000", "base b", row["lesion_id"]) < 0.60


def fraction(seed: int, *names: str) -> float:
    """A public hash of the names as a number in [0, 1)."""
    return (stream_seed(seed, *names) >> 10) / 2**53


def write_sites(
    folder: Path,
    seed: int,
    data_set: str,
    header: Sequence[str],
    cohorts: Mapping[str, Iterable[Sequence[str]]],
    vendor: Iterable[Sequence[str]],
    splits: FractionSplits,
    *,
    coding: Mapping[str, Mapping[str, str]] | None = None,
    data: Mapping[str, object] = MappingProxyType({}),
) -> tuple[list[SitePaths], SitePaths]:
    """Write the hospitals and the vendor; the vendor's rows end with their split.

    A hospital's splits have a key that is derived from the seed: the data are public, so nothing is hidden.

    Raises:
        StorageError: a file could not be written.
    """
    sites = []
    for site, rows in cohorts.items():
        key = "".join(f"{stream_seed(seed, data_set, 'split key', site, part):016x}" for part in range(4))
        own = {**data, "splits": splits.model_dump(), "split_key": key}
        sites.append(write_site(folder, site, header, rows, data=own, coding=coding))
    given = {**data, "splits": {"column": "split"}}
    return sites, write_site(folder, VENDOR, (*header, "split"), vendor, data=given, coding=coding)


def gzipped_rows(data_folder: Path, name: str, source: str, wanted: set[str]) -> list[dict[str, str]]:
    """The rows of a gzipped CSV by column.

    Raises:
        StudyError: the public file is missing.
        DataError: it lacks a wanted column, or has no rows.
    """
    file = existing(data_folder, name, source)
    with gzip.open(file, "rt", encoding="utf-8", newline="") as text:
        rows = list(csv.DictReader(text))
    lacking = wanted - set(rows[0] if rows else ())
    if lacking:
        raise DataError(f"{file}: lacks the columns {', '.join(sorted(lacking))}")
    return rows


def existing(data_folder: Path, name: str, source: str) -> Path:
    """A public file, which comes from `source`.

    Raises:
        StudyError: it is missing.
    """
    path = data_folder / name
    if not path.is_file():
        raise StudyError(f"{VARIABLE}={data_folder} lacks {name} ({source}); put it there")
    return path.resolve()
