"""What a computation hands to the door: cells that patients fill, vectors of patients, or a total.

Only the door (`equipoise.client.release`) turns one into numbers that may leave, and what it may do with it hangs on
the query's release plan: where noise protects the patients, a total has no place, since nothing bounds what one patient
did to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.common.query import Arrays


@dataclass(frozen=True)
class Fills:
    """Cells of integer tables.

    Attributes:
        cells: block -> (n, m) int64, for each patient the flat indices of the m cells that it fills; -1 for none.
    """

    cells: Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Rows:
    """One vector a patient.

    Attributes:
        parts: float64 arrays (n_i, dimensions), in any number, that have a row for each patient once; the dimensions
            are those of the query's blocks, one after the other.
    """

    parts: Iterable[NDArray[np.float64]]


@dataclass(frozen=True)
class Totals:
    """Sums over patients, or a site's update, by block; exact."""

    values: Arrays


@dataclass(frozen=True)
class Noised:
    """A site's update whose every step was clipped, sampled and noised by the query's own plan (DP-SGD), by block."""

    values: Arrays


Contribution = Fills | Rows | Totals | Noised
"""Everything a computation can return."""
