"""Made-up intensive-care patients of three hospitals who have a risk score already: tables alone, no model."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import yaml

from tests.e2e.terminal import ROOT

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


def write_hospitals(folder: Path) -> Path:
    """A study folder as docs/audit.md describes it: configs/icu-scores.yaml and the hospitals' tables."""
    for number, hospital in enumerate(HOSPITALS):
        place = folder / "icu" / hospital
        place.mkdir(parents=True)
        rows = rows_of(number)
        with (place / "cohort.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        shares = {"train": 0, "validation": 0, "test": 1}
        data = {"manifest": "cohort.csv", "splits": shares, "split_key": "0" * 32, "synthetic": True}
        (place / "site.yaml").write_text(yaml.safe_dump({"site": hospital, "data": data}))
    study = folder / "icu-scores.yaml"
    study.write_text((ROOT / "configs" / "icu-scores.yaml").read_text())
    return study
