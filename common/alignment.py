"""Scores of each group brought to one scale: what one threshold on it means for each group.

A rule that flags a patient of group g where the score is at or above t_g is one threshold on scores that were moved,
for each group by itself, so that t_g falls on the same point. The map of a group is increasing, so no two patients of
one group change places, and the AUC within a group stays what it was. Nothing of the model changes: this is an
operating point, and whoever uses it must know the patient's group.

Maps are piecewise linear through `knots`, and go on beyond the ends with slope 1. Patients of unknown group keep their
scores.

>>> moved = Alignment(np.array([0.0, 1.0]), np.array([[0.0, 1.0], [2.0, 4.0], [0.0, 1.0]]))
>>> moved(np.array([0.5, 3.0, 5.0]), np.array([0, 1, 1])).tolist()
[0.5, 0.5, 2.0]
>>> moved.threshold(0.5).tolist()
[0.5, 3.0, 0.5]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEAST_STEP = 1e-6  # between knots, logit: maps are increasing, not only non-decreasing


@dataclass(frozen=True, eq=False)
class Alignment:
    """See the module's text.

    Attributes:
        common: (L,) increasing, the knots on the common scale, logits.
        of_group: (G + 1, L), the same knots as logits of the model for each group, increasing in each row; the last
            row is of patients of unknown group.
    """

    common: Floats
    of_group: Floats

    def __call__(self, logits: NDArray[np.floating], group: NDArray[np.int64]) -> Floats:
        """Scores on the common scale, (n,) float64.

        Args:
            logits: (n,) of the model.
            group: (n,) of the primary attribute.
        """
        moved = np.asarray(logits, dtype=np.float64).copy()
        for row, knots in enumerate(self.of_group):
            mine = group == row
            moved[mine] = _through(moved[mine], knots, self.common)
        return moved

    def threshold(self, common: float) -> Floats:
        """Each group's own threshold, (G + 1,) logits of the model, for a threshold on the common scale."""
        return np.array([_through(np.array([common]), self.common, knots)[0] for knots in self.of_group])

    def arrays(self) -> dict[str, Floats]:
        """As an input bundle of a query."""
        return {"common": self.common, "of_group": self.of_group}

    def to_json(self) -> dict[str, Any]:
        """As JSON values, from which `from_json` makes the same numbers again."""
        return {"common": self.common.tolist(), "of_group": self.of_group.tolist()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Alignment:
        """What `to_json` gave.

        Raises:
            ValueError: the knots do not increase, or rows have other lengths than the common scale.
        """
        return cls.checked(np.array(value["common"], dtype=np.float64), np.array(value["of_group"], dtype=np.float64))

    @classmethod
    def checked(cls, common: Floats, of_group: Floats) -> Alignment:
        """The alignment through these knots, which may come from a server: a search among knots that do not increase
        would let one patient move the next.

        Raises:
            ValueError: see `from_json`.
        """
        # First, since differences of unsigned numbers are never negative.
        common, of_group = (np.asarray(knots, dtype=np.float64) for knots in (common, of_group))
        if common.ndim != 1 or of_group.ndim != 2 or of_group.shape[1:] != common.shape or len(common) == 0:
            raise ValueError(f"knots of shapes {common.shape} and {of_group.shape}")
        if not (np.isfinite(common).all() and np.isfinite(of_group).all()):
            raise ValueError("knots that are not finite")
        if (np.diff(common) <= 0).any() or (np.diff(of_group, axis=1) <= 0).any():
            raise ValueError("knots that do not increase")
        return cls(common, of_group)


def increasing(values: Floats) -> Floats:
    """The nearest larger values that increase by at least a millionth each."""
    steps = LEAST_STEP * np.arange(len(values))
    risen: Floats = np.maximum.accumulate(values - steps) + steps
    return risen


def _through(values: Floats, knots: Floats, images: Floats) -> Floats:
    """The piecewise linear map with `knots` to `images`, of slope 1 beyond the ends."""
    inside: Floats = np.interp(values, knots, images)
    # Rounding may carry a value past the image of the next knot, and two patients would change places.
    after = np.searchsorted(knots, values, side="right")
    inside = np.clip(inside, images[np.maximum(after - 1, 0)], images[np.minimum(after, len(knots) - 1)])
    below, above = values < knots[0], values > knots[-1]
    inside[below] = images[0] + (values[below] - knots[0])
    inside[above] = images[-1] + (values[above] - knots[-1])
    return inside
