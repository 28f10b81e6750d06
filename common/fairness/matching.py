"""Whether two models flag as many patients as each other, where their gaps are compared at equal selection rates.

At equal rates a model that only moved its scores, or flags fewer, has no advantage. A threshold is an edge of the score
bins, so few bins may have none near the rate that was asked for, and test patients differ from those that a threshold
was chosen on. The rates that came of it are therefore counted, told, and equal only up to `LARGEST_MISMATCH`: one
patient in twenty, where the edges of 16 bins leave 0.03.

>>> import numpy as np
>>> table = np.array([[[[50, 10], [10, 0]], [[0, 0], [0, 30]]]])
>>> found = Matching.of(table)
>>> found.before.value, found.after.value, found.unlike
(0.4, 0.4, '')
"""

from __future__ import annotations

from dataclasses import dataclass

from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.noise import CellNoise, cell_variances
from equipoise.common.fairness.rates import overall_rate
from equipoise.common.fairness.tables import Counts, counts_after, counts_before

LARGEST_MISMATCH = 0.05


@dataclass(frozen=True)
class Matching:
    """Selection rates of two models over the same patients.

    Attributes:
        before, after: over all patients, those of unknown group included.
        rate: what both should be; None where each should be the other's.
    """

    before: Estimate
    after: Estimate
    rate: float | None = None

    @classmethod
    def of(
        cls,
        pair: Counts,
        rate: float | None = None,
        *,
        level: float = LEVEL,
        minimum: int = MINIMUM_PATIENTS,
        noise: CellNoise = 0.0,
    ) -> Matching:
        """Of pair[g, y, before, after] at one operating point; `noise` is the variance of its cells."""
        variances = cell_variances(noise, pair)
        before, after = (
            overall_rate("selection_rate", side(pair), level=level, minimum=minimum, noise=side(variances))
            for side in (counts_before, counts_after)
        )
        return cls(before, after, rate)

    @property
    def unlike(self) -> str:
        """Why the rates are not equal; empty where they are, or where one is not estimable."""
        if self.before.value is None or self.after.value is None:
            return ""
        rates = [self.before.value, self.after.value, *([] if self.rate is None else [self.rate])]
        if max(rates) - min(rates) <= LARGEST_MISMATCH:
            return ""
        return f"selection rates are more than {LARGEST_MISMATCH:g} {'apart' if self.rate is None else 'from it'}"


def flagged(before: Estimate, after: Estimate) -> str:
    """What may be shown of two rates: ` (flagged: 0.592 and 0.571 of all patients)`, or nothing."""
    if before.value is None or after.value is None:
        return ""
    return f" (flagged: {before.value:.3f} and {after.value:.3f} of all patients)"
