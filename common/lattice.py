"""The int64 lattice on which every contribution travels.

A site rounds its contribution to multiples of a public power of two and sends the integers. Integers add without
rounding, so the sum over sites is exact and depends neither on their order nor on the engine that carried them.

>>> lattice = Lattice(step=0.25)
>>> lattice.decode(lattice.encode(np.array([0.5, -1.1])))
array([ 0.5, -1. ])
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.common.errors import RefusedError

HEADROOM_BITS = 62  # sums stay below 2^62, so that int64 never wraps


@dataclass(frozen=True)
class Lattice:
    """Multiples of `step`, a power of two."""

    step: float

    def __post_init__(self) -> None:
        if not (self.step > 0 and math.frexp(self.step)[0] == 0.5):
            raise ValueError(f"step={self.step}: expected a positive power of two")

    @classmethod
    def for_bound(cls, bound: float, contributors: int) -> Lattice:
        """The finest lattice on which `contributors` values of size `bound` add up without overflow."""
        bits = math.ceil(math.log2(max(bound, 2.0**-200))) + math.ceil(math.log2(max(contributors, 1)))
        return cls(step=2.0 ** (bits - HEADROOM_BITS))

    def encode(self, values: NDArray[np.floating | np.integer], bound: float) -> NDArray[np.int64]:
        """Nearest lattice points as int64.

        Args:
            values: any shape, float64 (float32 is widened exactly).
            bound: the largest absolute value that the query allows.

        Raises:
            RefusedError: a value is NaN, infinite or larger than `bound`.
        """
        wide = np.asarray(values, dtype=np.float64)
        if not np.isfinite(wide).all():
            raise RefusedError("a contribution holds NaN or infinity; nothing was sent")
        if wide.size and float(np.abs(wide).max()) > bound:
            raise RefusedError(f"a contribution is larger than its declared bound {bound:g}; nothing was sent")
        return np.rint(wide / self.step).astype(np.int64)

    def decode(self, points: NDArray[np.int64]) -> NDArray[np.float64]:
        """The values that lattice points stand for, float64."""
        return points.astype(np.float64) * self.step
