"""Sizes that queries have, from what a study declares in public, and the phases that its budget is shared among."""

from __future__ import annotations

from equipoise.common.errors import StudyError
from equipoise.common.study import Study
from equipoise.common.study_simulation import SyntheticHospitals

# Largest L2 norm of one patient's weighted gradient, and largest change of a weight in one local training. Without
# privacy they bound the lattice and catch a site whose numbers run away; nothing is clipped.
GRADIENT_BOUND = 2.0**12
UPDATE_BOUND = 2.0**8

# Phases that a study's budget is shared among, by split.
COUNTS, MASK, ROUNDS, HISTOGRAM, TABLES = "counts", "mask", "rounds", "histogram", "tables"
SEARCH = "search"  # of candidates that are compared on validation patients
LOSSES = "losses"


def groups_of(study: Study, attribute: str | None = None) -> int:
    """Number of groups of an attribute (of the primary one), `unknown` included."""
    chosen = study.primary if attribute is None else study.attribute(attribute)
    return len(chosen.groups) + 1


def declared_total(study: Study) -> int:
    """Patients over all sites, as declared in public."""
    return max(sum(study.sites.declared_patients.values()), 1)


def expected_patients(study: Study) -> list[int]:
    """Declared training patients of each site; before a simulation has declared them, those it is going to draw.

    Raises:
        StudyError: nothing says how many they are.
    """
    declared = list(study.sites.declared_patients.values())
    simulated = None if study.simulation is None else study.simulation.hospitals
    if not declared and isinstance(simulated, SyntheticHospitals):
        declared = [simulated.patients] * simulated.count
    if sum(declared) == 0:
        raise StudyError(
            "sites.declared_patients is missing: the sampling rate of DP-SGD follows from it; name every hospital with "
            "its number of training patients"
        )
    return declared


def sites_of(study: Study) -> list[str]:
    """The hospitals in the order of vectors that have a place for each."""
    return list(study.sites.declared_patients)
