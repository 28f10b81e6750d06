"""Adult (Census Income) as hospitals, for methods on tables: four employers, and a vendor's model with a known bias.

Not medical: the standard benchmark of fairness on tables (Becker and Kohavi 1996, doi:10.24432/C5XW20). The unit is the
row. Label `income` above 50K, attribute `sex`. The vendor's rows are a hash-chosen fifth without four fifths of its
women of high income, so that its model learns that women earn little; they leave the study.
"""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

from equipoise.common.errors import StudyError
from equipoise.common.sitefile import FractionSplits
from equipoise.common.streams import stream_seed
from equipoise.common.study import Feature, TableInputs
from equipoise.simulations.sitefolder import SitePaths, write_site

TABLE = "adult/adult.csv.gz"
VENDOR = "vendor"
VENDOR_SHARE, LEFT_OUT = 0.2, 0.8
SPLITS = FractionSplits(train=0.5, validation=0.2, test=0.3)
NUMBERS = ("age", "education_num", "hours_per_week", "capital_gain", "capital_loss")
RANGES = ((15, 90), (1, 16), (0, 100), (0, 20000), (0, 3000))
INPUTS = TableInputs(
    features=[
        *(Feature(name=name, range=limits) for name, limits in zip(NUMBERS, RANGES, strict=True)),
        Feature(name="married", range=(0, 1)),
        Feature(name="manager", range=(0, 1)),
        Feature(name="male", range=(0, 1)),
    ]
)
HEADER = ("patient", *(feature.name for feature in INPUTS.features), "sex", "income")


def write_adult(folder: Path, data_folder: Path, seed: int) -> tuple[list[SitePaths], SitePaths]:
    """Write four hospitals and the vendor; returns both.

    Args:
        folder: gets one folder for each.
        data_folder: holds the public file.
        seed: public; chooses the vendor's rows and the splits.

    Raises:
        StudyError: the public file is missing.
    """
    path = data_folder / TABLE
    if not path.is_file():
        raise StudyError(f"EQUIPOISE_DATA={data_folder} lacks {TABLE} (Adult, doi:10.24432/C5XW20); put it there")
    sites: dict[str, list[tuple[object, ...]]] = {}
    vendor: list[tuple[object, ...]] = []
    for number, row in enumerate(csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode()))):
        person = f"a{number:05d}"
        high, woman = row["income"].startswith(">"), row["sex"] == "Female"
        values = (
            person,
            *(row[name] for name in NUMBERS),
            int(row["marital_status"].startswith("Married")),
            int(row["occupation"] in ("Exec-managerial", "Prof-specialty")),
            int(not woman),
            row["sex"].lower(),
            int(high),
        )
        if _fraction(seed, "vendor", person) < VENDOR_SHARE:
            if not (high and woman and _fraction(seed, "left out", person) < LEFT_OUT):
                vendor.append((*values, "train"))
            continue
        sites.setdefault(_employer(row["workclass"], seed, person), []).append(values)
    key = {"splits": SPLITS.model_dump()}
    written = [
        write_site(folder, site, HEADER, rows, data=key | {"split_key": _key(seed, site)})
        for site, rows in sorted(sites.items())
    ]
    data = {"splits": {"column": "split"}}
    return written, write_site(folder, VENDOR, (*HEADER, "split"), vendor, data=data)


def _employer(workclass: str, seed: int, person: str) -> str:
    if "gov" in workclass:
        return "government"
    if workclass.startswith("Self"):
        return "self-employed"
    return "private-1" if _fraction(seed, "private", person) < 0.5 else "private-2"


def _fraction(seed: int, *names: str) -> float:
    return (stream_seed(seed, "adult", *names) >> 10) / 2**53


def _key(seed: int, site: str) -> str:
    """Derived from the seed: the data are public, so nothing is hidden."""
    return "".join(f"{stream_seed(seed, 'adult', 'split key', site, part):016x}" for part in range(4))
