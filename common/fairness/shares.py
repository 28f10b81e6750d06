"""Which cells of a table a rate is made of, and rates with the noise in their counts.

`counts[..., y, decision]`: label and decision are 0 or 1, and a score at the threshold is a positive decision.

>>> above, below = fraction(np.array([[80, 20], [10, 90]]), "tpr")
>>> int(above), int(below)
(90, 100)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.common.errors import StudyError
from equipoise.common.fairness.intervals import noise_variance
from equipoise.common.fairness.noise import shortage
from equipoise.common.fairness.tables import Counts, Floats, T

# (label, decision) cells of the numerator and of the denominator, and what the denominator counts.
_POSITIVES, _NEGATIVES = ((1, 0), (1, 1)), ((0, 0), (0, 1))
_CALLED, _CLEARED = ((0, 1), (1, 1)), ((0, 0), (1, 0))
_EVERYONE = _NEGATIVES + _POSITIVES
RATES = {
    "tpr": (((1, 1),), _POSITIVES, "positives"),
    "fnr": (((1, 0),), _POSITIVES, "positives"),
    "fpr": (((0, 1),), _NEGATIVES, "negatives"),
    "tnr": (((0, 0),), _NEGATIVES, "negatives"),
    "ppv": (((1, 1),), _CALLED, "positive decisions"),
    "npv": (((0, 0),), _CLEARED, "negative decisions"),
    "selection_rate": (_CALLED, _EVERYONE, "patients"),
    "accuracy": (((0, 0), (1, 1)), _EVERYONE, "patients"),
    "prevalence": (_POSITIVES, _EVERYONE, "patients"),
}


def fraction(counts: NDArray[T], rate: str) -> tuple[NDArray[T], NDArray[T]]:
    """Numerator and denominator of a rate; counts[..., y, decision] gives arrays of the leading shape.

    Variance tables of noise are summed alike.

    Raises:
        StudyError: no rate of this name.
    """
    if rate not in RATES:
        raise StudyError(f"metric={rate}: unknown rate; choose one of balanced_accuracy, {', '.join(RATES)}")
    above, below, _ = RATES[rate]
    cells = [sum((counts[..., y, decision] for y, decision in part), np.int64(0)) for part in (above, below)]
    return np.asarray(cells[0]), np.asarray(cells[1])


@dataclass(frozen=True)
class Shares:
    """Independent rates, ready for an interval.

    Attributes:
        rates: names of the rates.
        counted: (P,) numerators as counted; under noise they may lie outside 0..trials.
        trials: (P,) denominators as counted.
        inside, outside: (P,) variances of the noise in the numerators and in the rest of the denominators.
    """

    rates: tuple[str, ...]
    counted: Floats
    trials: Floats
    inside: Floats
    outside: Floats

    @property
    def shares(self) -> Floats:
        """The rates, cut to 0..1; the denominators must not be 0."""
        cut: Floats = np.clip(self.counted / self.trials, 0.0, 1.0)
        return cut

    @property
    def noise(self) -> Floats:
        """(P,) variances that the noise alone gives the rates."""
        return noise_variance(self.shares, self.trials, self.inside, self.outside)

    @property
    def noisy(self) -> bool:
        """Whether any count carries noise."""
        return bool(self.inside.any() or self.outside.any())

    @property
    def cut(self) -> str:
        """One clause for each rate that noise put outside 0..1; empty where it did not."""
        beyond = zip(self.rates, self.counted, self.trials, strict=True)
        said = [
            f"noise left {int(above)} of {int(below)} {RATES[rate][2]}, shown as {'0' if above < 0 else '1'}"
            for rate, above, below in beyond
            if not 0 <= above <= below
        ]
        return "; ".join(said)

    def lacking(self, minimum: int) -> str:
        """Why a rate has too few patients; empty where all have enough."""
        whole = self.inside + self.outside
        counted = zip(self.rates, self.trials, whole, strict=True)
        return "; ".join(
            found for rate, n, variance in counted if (found := shortage(int(n), RATES[rate][2], minimum, variance))
        )


def shares_of(chosen: Sequence[tuple[str, Counts, Floats]]) -> Shares:
    """The rates of several (rate, counts[y, decision], variances[y, decision])."""
    columns = [(*fraction(counts, rate), *fraction(variances, rate)) for rate, counts, variances in chosen]
    above, below, inside, whole = (np.array(column, dtype=np.float64) for column in zip(*columns, strict=True))
    return Shares(tuple(rate for rate, _, _ in chosen), above, below, inside, whole - inside)
