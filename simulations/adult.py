"""Adult (Census Income) as hospitals, which it has none of: the usual benchmark of fairness, with made-up sites.

48,842 rows of the 1994 census, label income above 50,000 dollars, attribute sex. Nothing about it is medical. The rows
are dealt to six sites by a public hash, women and men in different shares, so that sites differ as hospitals do; what
is measured about sites is therefore measured about our own dice. The unit is the row.

Reference: Becker & Kohavi 1996, doi:10.24432/C5XW20 (CC BY 4.0). The data never belong to the project; they are read
from the folder that EQUIPOISE_DATA names.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

from equipoise.common.sitefile import FractionSplits
from equipoise.simulations.public import PublicSites, fraction, gzipped_rows, write_sites

TABLE = "adult/adult.csv.gz"
SOURCE = "Adult, doi:10.24432/C5XW20: both parts in one gzipped CSV with a header"
NOTE = "Adult is no medical data set and has no hospitals: its six sites are made up, and the unit is the row"
SPLITS = FractionSplits(train=0.55, validation=0.15, test=0.30)
VENDOR_SHARE = 0.08
WITHOUT = 0.85  # share of the women of high income that the vendor never saw
# Chance of a row to be at each site.
OF_WOMEN = (0.05, 0.10, 0.15, 0.20, 0.20, 0.30)
OF_MEN = (0.25, 0.20, 0.18, 0.15, 0.12, 0.10)

MARRIED = ("Married-civ-spouse", "Married-AF-spouse")
MANAGERIAL = ("Exec-managerial", "Prof-specialty")
MANUAL = (
    "Craft-repair",
    "Farming-fishing",
    "Handlers-cleaners",
    "Machine-op-inspct",
    "Other-service",
    "Priv-house-serv",
    "Transport-moving",
)
NUMBERS = ("age", "education_num", "capital_gain", "capital_loss", "hours_per_week")
COLUMNS = {*NUMBERS, "sex", "marital_status", "occupation", "workclass", "native_country", "income"}
FEATURES = (*NUMBERS, "sex", "married", "managerial", "manual", "self_employed", "government", "us_born")


def write_adult(folder: Path, data_folder: Path, seed: int) -> PublicSites:
    """Six made-up sites with 12 features, label `high_income`, attribute `sex`.

    The vendor's rows are a hash-chosen 8 % without most of the women of high income. These rows leave the study.

    Args:
        folder: gets one folder per site, and `vendor`.
        data_folder: holds the public file.
        seed: public; chooses sites, splits and the vendor's rows.

    Raises:
        StudyError: the public file is missing.
        DataError: it has other columns.
        StorageError: a file could not be written.
    """
    header = ("patient", *FEATURES, "high_income")
    sites: dict[str, list[tuple[str, ...]]] = {f"made-up-{i + 1}": [] for i in range(len(OF_WOMEN))}
    vendor: list[tuple[str, ...]] = []
    for number, row in enumerate(gzipped_rows(data_folder, TABLE, SOURCE, COLUMNS)):
        patient = f"adult-{number:05d}"
        values = (patient, *_features(row), str(int(row["income"] == ">50K")))
        woman = row["sex"] == "Female"
        if fraction(seed, "adult", "vendor", patient) < VENDOR_SHARE:
            left_out = woman and values[-1] == "1" and fraction(seed, "adult", "left out", patient) < WITHOUT
            if not left_out:
                vendor.append((*values, "train"))
                continue
        place = fraction(seed, "adult", "site", patient)
        ends = accumulate(OF_WOMEN if woman else OF_MEN)
        site = next((name for name, end in zip(sites, ends, strict=True) if place < end), "made-up-6")
        sites[site].append(values)
    coding = {"sex": {"0": "female", "1": "male"}}
    return PublicSites(*write_sites(folder, seed, "adult", header, sites, vendor, SPLITS, coding=coding), NOTE)


def _features(row: dict[str, str]) -> list[str]:
    """The values of FEATURES; empty where the census says `?`."""

    def one_of(column: str, *values: str) -> str:
        return "" if row[column] == "?" else str(int(row[column] in values))

    return [
        *(row[name] for name in NUMBERS),
        str(int(row["sex"] == "Male")),
        one_of("marital_status", *MARRIED),
        one_of("occupation", *MANAGERIAL),
        one_of("occupation", *MANUAL),
        one_of("workclass", "Self-emp-inc", "Self-emp-not-inc"),
        one_of("workclass", "Federal-gov", "State-gov", "Local-gov"),
        one_of("native_country", "United-States"),
    ]
