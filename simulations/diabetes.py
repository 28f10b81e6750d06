"""Diabetes 130-US hospitals as sites, whose hospitals the public file does not name: six made-up ones.

Inpatients with diabetes, 1999 to 2008; label: readmitted within 30 days; attributes race, gender, age. The unit is the
patient: each one's first encounter, and nobody who died or went to a hospice, who cannot be readmitted (as in Strack et
al.). The file holds no identifier of a hospital. Sites are made up from the medical specialty, so that their case mix
differs as that of hospitals does; where the specialty is missing, from a public hash. What is measured about sites is
measured about this making-up.

References: Strack et al., BioMed Res Int 2014;2014:781670; data: doi:10.24432/C5230J (CC BY 4.0). The data never belong
to the project; they are read from the folder that EQUIPOISE_DATA names.
"""

from __future__ import annotations

from pathlib import Path

from equipoise.common.sitefile import FractionSplits
from equipoise.simulations.public import PublicSites, fraction, gzipped_rows, write_sites

TABLE = "uci_diabetes130/diabetic_data.csv.gz"
SOURCE = "Diabetes 130-US hospitals, doi:10.24432/C5230J: diabetic_data.csv, gzipped"
NOTE = "Diabetes 130 names no hospitals: its six sites are made up, and the unit is the patient, by the first encounter"
SPLITS = FractionSplits(train=0.4, validation=0.2, test=0.4)
VENDOR_SHARE = 0.1
GONE = ("11", "13", "14", "19", "20", "21")  # discharge_disposition_id: died, or went to a hospice
SITE_OF_SPECIALTY = {
    "InternalMedicine": "made-up-internal",
    "Family/GeneralPractice": "made-up-family",
    "Cardiology": "made-up-cardiology",
    "Emergency/Trauma": "made-up-emergency",
}
OTHER_SPECIALTY, NO_SPECIALTY = "made-up-others", "made-up-unnamed"
NUMBERS = (
    "time_in_hospital",
    "num_lab_procedures",
    "num_procedures",
    "num_medications",
    "number_outpatient",
    "number_emergency",
    "number_inpatient",
    "number_diagnoses",
)
FLAGS = ("male", "a1c_measured", "a1c_high", "glucose_high", "insulin", "changed", "medicated", "emergency", "home")
FEATURES = ("age", *NUMBERS, *FLAGS)
HEADER = ("patient", *FEATURES, "race", "gender", "readmitted")


def write_diabetes(folder: Path, data_folder: Path, seed: int) -> PublicSites:
    """Six made-up sites with 18 features, label `readmitted`, attributes `race`, `gender` and `age`.

    The vendor's rows are a hash-chosen tenth of the patients as they are. These leave the study. The age is the middle
    of the public band of ten years. A missing race is empty.

    Args:
        folder: gets one folder per site, and `vendor`.
        data_folder: holds the public file.
        seed: public; chooses the splits, the vendor's rows and the site of patients without a specialty.

    Raises:
        StudyError: the public file is missing.
        DataError: it has other columns.
        StorageError: a file could not be written.
    """
    names = (*SITE_OF_SPECIALTY.values(), OTHER_SPECIALTY, NO_SPECIALTY)
    sites: dict[str, list[tuple[str, ...]]] = {name: [] for name in names}
    vendor: list[tuple[str, ...]] = []
    for row in first_encounters(data_folder):
        patient = f"diabetes-{row['patient_nbr']}"
        values = (patient, *_features(row), row["race"].replace("?", ""), row["gender"], _label(row))
        if fraction(seed, "diabetes", "vendor", patient) < VENDOR_SHARE:
            vendor.append((*values, "train"))
            continue
        specialty = row["medical_specialty"]
        site = NO_SPECIALTY if specialty == "?" else SITE_OF_SPECIALTY.get(specialty, OTHER_SPECIALTY)
        if specialty == "?" and fraction(seed, "diabetes", "site", patient) < 0.5:
            site = OTHER_SPECIALTY
        sites[site].append(values)
    coding = {"gender": {"Female": "female", "Male": "male", "Unknown/Invalid": "unknown"}}
    return PublicSites(*write_sites(folder, seed, "diabetes", HEADER, sites, vendor, SPLITS, coding=coding), NOTE)


def first_encounters(data_folder: Path) -> list[dict[str, str]]:
    """The first encounter of every patient who could be readmitted, in the order of the encounters.

    Raises:
        StudyError: the public file is missing.
        DataError: it has other columns.
    """
    wanted = {*NUMBERS, "encounter_id", "patient_nbr", "race", "gender", "age", "medical_specialty", "readmitted"}
    wanted |= {"discharge_disposition_id", "admission_type_id", "A1Cresult", "max_glu_serum", "insulin", "change"}
    wanted.add("diabetesMed")
    first: dict[str, dict[str, str]] = {}
    for row in sorted(gzipped_rows(data_folder, TABLE, SOURCE, wanted), key=lambda row: int(row["encounter_id"])):
        first.setdefault(row["patient_nbr"], row)
    return [row for row in first.values() if row["discharge_disposition_id"] not in GONE]


def _label(row: dict[str, str]) -> str:
    return str(int(row["readmitted"] == "<30"))


def _features(row: dict[str, str]) -> list[str]:
    """The values of FEATURES; empty where the file says that the sex is unknown."""
    low, high = row["age"].strip("[)").split("-")
    flags = (
        row["A1Cresult"] != "None",
        row["A1Cresult"] in (">7", ">8"),
        row["max_glu_serum"] in (">200", ">300"),
        row["insulin"] != "No",
        row["change"] == "Ch",
        row["diabetesMed"] == "Yes",
        row["admission_type_id"] == "1",
        row["discharge_disposition_id"] == "1",
    )
    male = {"Male": "1", "Female": "0"}.get(row["gender"], "")
    return [str((int(low) + int(high)) // 2), *(row[name] for name in NUMBERS), male, *(str(int(x)) for x in flags)]
