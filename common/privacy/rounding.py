"""Clipping and rounding of what one patient contributes, with the rounding inside the bound.

A patient's vector is clipped in L2 and every coordinate is rounded to the nearest multiple of the lattice step; the
integers of the patients are then added, which is exact. One patient therefore moves the sum, in L2, by at most

    clip + step * sqrt(dimensions)

lattice included. Nearest rounding of each patient uses half of the second term, stochastic rounding of each patient
all of it, and rounding only the finished sum all of it as well; the one bound covers the three. With nearest rounding
the other half of the term swallows the floating-point error of the clipping.

>>> choose_step(1.0, 10_000)
7.62939453125e-06
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

NEGLIGIBLE = 1e-3  # share of the bound that rounding may add
ROUNDING = 1 - 2.0**-40  # room for float64's rounding of a norm, so that a clipped vector never exceeds its bound


def rounding_term(dimensions: int) -> float:
    """What rounding adds to the bound, in steps: sqrt(dimensions)."""
    if dimensions < 1:
        raise ValueError(f"dimensions={dimensions}: expected at least 1")
    return math.sqrt(dimensions)


def lattice_sensitivity(clip: float, step: float, dimensions: int) -> float:
    """How far one patient moves the sum on the lattice, in the unit of `clip`.

    Raises:
        ValueError: `clip` is not positive and finite, or `dimensions` is below 1.
    """
    if not 0 < clip < math.inf:
        raise ValueError(f"clip={clip}: expected a positive, finite bound")
    return clip + step * rounding_term(dimensions)


def choose_step(clip: float, dimensions: int) -> float:
    """The largest power of two whose rounding adds at most 0.1 % to the bound."""
    return 2.0 ** math.floor(math.log2(NEGLIGIBLE * clip / rounding_term(dimensions)))


def clip_and_round(rows: NDArray[np.floating], clip: float, step: float) -> NDArray[np.int64]:
    """Each patient's row clipped to `clip` and rounded to the nearest lattice point.

    Args:
        rows: one row a patient, float [patients, dimensions].
        clip: bound of a row's L2 norm, in the unit of the rows.
        step: lattice step, a power of two, in the unit of the rows.

    Returns:
        Lattice points, int64 [patients, dimensions]; their sum over patients is the query's answer.

    Formal guarantee:
        Unit: patient; relation: add or remove one. Each row of the result has an L2 norm of at most
        `lattice_sensitivity(clip, step, dimensions)` / `step`, whatever the row held.

    Edge cases:
        A row with NaN or infinity contributes zeros (refusing it would tell that the patient is there). No row gives
        an array of no rows.

    Raises:
        ValueError: the step is no power of two or so fine that floating-point error is no longer inside the bound.
    """
    wide = np.asarray(rows, dtype=np.float64)
    dimensions = wide.shape[1]
    term = rounding_term(dimensions)
    if not (step > 0 and math.frexp(step)[0] == 0.5):
        raise ValueError(f"step={step}: expected a positive power of two")
    if step * term / 2 < clip * dimensions * 2.0**-50:
        raise ValueError(f"step={step}: too fine for clip={clip} in {dimensions} dimensions; use choose_step")
    finite = np.isfinite(wide).all(axis=1, keepdims=True)
    wide = np.where(finite, wide, 0.0)
    largest = np.abs(wide).max(axis=1, keepdims=True)
    # Dividing by the largest entry first keeps the squares of huge and of tiny rows inside float64.
    scaled = np.divide(wide, largest, out=np.zeros_like(wide), where=largest > 0)
    lengths = np.linalg.norm(scaled, axis=1)[:, None]
    factors = np.minimum(largest, np.divide(clip, lengths, out=np.zeros_like(lengths), where=lengths > 0))
    points: NDArray[np.int64] = np.rint(scaled * factors / step).astype(np.int64)
    return points
