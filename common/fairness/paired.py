"""One rate of the same patients before and after: its 2 x 2 table, the noise in it, and how both estimates correlate.

>>> pair = np.array([[[70, 5], [5, 20]], [[10, 15], [5, 70]]])
>>> PairedRate("tpr", rate_table("tpr", pair), np.zeros((2, 2))).shares
array([0.75, 0.85])
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.common.errors import StudyError
from equipoise.common.fairness.intervals import paired_correlation
from equipoise.common.fairness.noise import shortage
from equipoise.common.fairness.shares import RATES
from equipoise.common.fairness.tables import Floats, T, Table

_PROPORTIONS = ("tpr", "fnr", "fpr", "tnr", "selection_rate", "accuracy")
MEMBERS = np.array([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])  # cells that count for the rate before, and after


def rate_table(rate: str, pair: NDArray[T]) -> NDArray[T]:
    """The 2 x 2 table [before, after] of a paired proportion from pair[y, before, after]; index 1 counts for the rate.

    Variance tables of noise are summed alike.

    Raises:
        StudyError: the rate is no proportion of the same patients before and after.
    """
    flipped = pair[:, ::-1, ::-1]
    tables: dict[str, NDArray[T]] = {
        "tpr": pair[1],
        "fnr": flipped[1],
        "fpr": pair[0],
        "tnr": flipped[0],
        "selection_rate": pair[0] + pair[1],
        "accuracy": flipped[0] + pair[1],
    }
    if rate not in tables:
        known = ", ".join((*_PROPORTIONS, "balanced_accuracy", "ppv", "npv"))
        raise StudyError(f"metric={rate}: its change is not defined; choose one of {known}")
    return tables[rate]


@dataclass(frozen=True)
class PairedRate:
    """A rate of the same patients before and after.

    Attributes:
        rate: its name.
        table: (2, 2) patients [before, after]; index 1 counts for the rate.
        variances: (2, 2) variances of the noise in `table`.
    """

    rate: str
    table: Table
    variances: Floats

    @property
    def n(self) -> int:
        """Patients, as counted."""
        return round(float(self.table.sum()))

    @property
    def trials(self) -> Floats:
        """(2,) the denominator before and after: the same patients."""
        return np.repeat(float(self.n), 2)

    @property
    def shares(self) -> Floats:
        """(2,) the rate before and after, cut to 0..1."""
        cut: Floats = np.clip(np.array([self.table[1].sum(), self.table[:, 1].sum()]) / self.n, 0.0, 1.0)
        return cut

    @property
    def parts_of_noise(self) -> tuple[Floats, Floats]:
        """(2,) variances of the noise in the numerators and in the rest of the denominators, before and after."""
        inside = np.array([self.variances[1].sum(), self.variances[:, 1].sum()])
        return inside, self.variances.sum() - inside

    def lacking(self, minimum: int) -> str:
        """Why there are too few patients; empty where there are enough."""
        return shortage(self.n, RATES[self.rate][2], minimum, float(self.variances.sum()))

    @property
    def weights(self) -> Floats:
        """(2, 4) what one more patient in each cell 00, 01, 10, 11 does to n times the rate before and after."""
        return MEMBERS - self.shares[:, None]

    @property
    def noise_covariance(self) -> Floats:
        """(2, 2) covariance that the noise alone gives the rates before and after."""
        covariance: Floats = (self.weights * self.variances.ravel()) @ self.weights.T / self.n**2
        return covariance

    @property
    def change_noise(self) -> float:
        """Variance that the noise alone gives the change."""
        (before, shared), (_, after) = self.noise_covariance
        return float(before + after - 2 * shared)

    @property
    def correlation(self) -> float:
        """Correlation of the estimates before and after, from sampling and noise together."""
        sampled = paired_correlation(np.maximum(self.table, 0))
        if not self.variances.any():
            return sampled
        spread = self.shares * (1 - self.shares) / self.n
        shared = sampled * float(spread.prod()) ** 0.5
        covariance = self.noise_covariance + np.array([[spread[0], shared], [shared, spread[1]]])
        return float(covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]) ** 0.5)
