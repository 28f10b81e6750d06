"""From the noisy sum of patients' energies to sensitivities of known accuracy, and to a soft mask.

The released sum holds two levels and, in units of a public pool, how tensors differ from the pool
(`equipoise.common.equalisation`). Noise is the same in all directions; what patients differ by is not. Each direction
is shrunk towards the pool by what the noise leaves of it (empirical Bayes, Efron & Morris 1973,
doi:10.1080/01621459.1973.10481350): with prior variance t l_j, where l_j is the pool's own mean square in direction j,
and noise variance v, by the factor t l_j / (t l_j + v). The one unknown, t, is fitted to the sum itself by maximum
likelihood: it is what the sum varies beyond its noise, and 0 where noise explains everything. Then the sensitivities
are the pool's, and the mask is the one that the public pool alone would give. It is never a mask of noise, and `source`
says which it is.

>>> found = PrivateSensitivities.from_total(total, public, noise_sd, weighted_patients(counts, *weights))
>>> mask = found.mask(layout)

All of this is post-processing of released and public values: it costs no privacy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.common.cells import Cells
from equipoise.common.equalisation import Equalisation
from equipoise.common.layout import Layout
from equipoise.common.mask import SoftMask

Vector = NDArray[np.float64]
Source = Literal["patients", "pool"]

LEVEL_LOG_SD = 1.0  # of a level about what the pool would give for as many patients: mostly within a factor of 7
DEVIATIONS = 2.0  # of the task sensitivity's own error: the least that stands in a denominator
FLOOR = 0.05  # added to the denominator, in units of the mean task sensitivity (`SoftMask.from_sensitivities`)
SHIFTS = np.exp(np.linspace(-14.0, 20.0, 341))  # candidates of t, in units of noise variance over prior variance
LEVELS = np.exp(np.linspace(-6.0, 6.0, 1201))  # candidates of a level, in units of the expected one


@dataclass(frozen=True)
class PrivateSensitivities:
    """Sensitivities by tensor and how well they are known.

    Attributes:
        bias, task: (T,) sensitivities, at least 0, in the pool's units: their absolute size is left out, since it
            cancels in a mask.
        bias_sd, task_sd: (T,) posterior standard deviations, what noise and shrinking leave open, at the levels as
            estimated; 0 without noise, and 0 where the pool stands in.
        source: `patients`, or `pool` where the release could not be told from noise and the pool stands in alone.
        levels: of bias and task, in units of what the pool would give for as many patients; far from 1, the pool is
            unlike the patients. 1 where the source is the pool.
        shift: t, how far the patients' sensitivities lie from the pool's, in units of the pool's own spread; 0 where
            the source is the pool, infinite without noise.
    """

    bias: Vector
    task: Vector
    bias_sd: Vector
    task_sd: Vector
    source: Source
    levels: tuple[float, float]
    shift: float

    @classmethod
    def from_total(
        cls, total: Vector, public: Equalisation, noise_sd: float, patients: tuple[float, float]
    ) -> PrivateSensitivities:
        """Read a released sum.

        Args:
            total: (2T,) sum of `contributions` over all patients of all sites, with all noise.
            public: what the sites used.
            noise_sd: standard deviation of the noise on each entry of `total`: one site's, times the square root of
                the number of sites in mode `local`; 0 without privacy.
            patients: released numbers of patients, weighted as the bias and the task energies are
                (`weighted_patients`).

        Formal guarantee:
            Post-processing: depends on the release and on public values alone.

        Edge cases:
            The result is the pool's (`source`) where noise explains the difference from the pool (t = 0), where
            nobody contributed, and where by the counts nobody could contribute to the bias or to the task. A model of
            one tensor has nothing beside the levels, hence the pool's too. Without noise nothing is shrunk.

        Raises:
            ValueError: the total has another length or is not finite, or noise_sd is negative or not finite.
        """
        if total.shape != (public.dimensions,) or not np.isfinite(total).all() or not 0 <= noise_sd < np.inf:
            raise ValueError(
                f"total of shape {total.shape}, noise_sd={noise_sd}: expected ({public.dimensions},) finite, >= 0"
            )
        along = public.directions @ total
        shift, factor = shrinking(along, public.spread, noise_sd**2)
        # The mean over tensors, of which the sites kept a part; were patients like the pool, it would be `expected`.
        noise = noise_sd / public.kept / np.sqrt(public.tensors)
        means = total.reshape(2, -1).mean(axis=1) / public.kept
        expected = np.array(patients) * (public.mean / public.unit)[:, 0]
        if shift == 0 or min(expected) <= 0:
            return cls.from_pool(public)
        levels = np.array([_level(*known) for known in zip(means, noise, expected, strict=True)])
        if min(levels) <= 0:
            return cls.from_pool(public)
        relative = 1 + ((factor * along) @ public.directions).reshape(2, -1) / levels[:, None]
        error = noise_sd * np.sqrt(factor @ public.directions**2).reshape(2, -1) / levels[:, None]
        bias, task = np.maximum(relative, 0.0) * public.mean
        bias_sd, task_sd = error * public.mean
        ratios = levels / expected
        return cls(bias, task, bias_sd, task_sd, "patients", (float(ratios[0]), float(ratios[1])), shift)

    @classmethod
    def from_pool(cls, public: Equalisation) -> PrivateSensitivities:
        """What the public pool alone says: its mean energies."""
        nothing = np.zeros(public.tensors)
        return cls(public.mean[0], public.mean[1], nothing, nothing, "pool", (1.0, 1.0), 0.0)

    @property
    def divisor(self) -> Vector:
        """(T,) task sensitivities, none counted as less than `DEVIATIONS` of its own error: what a ratio divides by."""
        known: Vector = np.maximum(self.task, DEVIATIONS * self.task_sd)
        return known

    def mask(self, layout: Layout, floor: float = FLOOR) -> SoftMask:
        """tanh(bias / (task + floor)), both divided by their means over tensors; the task's are those of `divisor`.

        Args:
            layout: the tensors, in the order of the sensitivities.
            floor: added to the denominator, in units of the mean task sensitivity.

        Raises:
            ValueError: another number of tensors.
        """
        if len(layout.shapes) != len(self.bias):
            raise ValueError(f"layout of {len(layout.shapes)} tensors, {len(self.bias)} sensitivities: must agree")
        return SoftMask.from_sensitivities(layout, self.bias, self.divisor, "tensor", "mean", floor)

    def summary(self) -> dict[str, float | str]:
        """For the report: who speaks, the patients or the pool, and how far the two lie apart."""
        return {
            "source": self.source,
            "shift": self.shift,
            "bias_level": self.levels[0],
            "task_level": self.levels[1],
            "largest_relative_error": float((self.bias_sd / np.maximum(self.bias, 1e-300)).max(initial=0.0)),
        }


def weighted_patients(counts: Cells, bias_weight: Cells, task_weight: Cells) -> tuple[float, float]:
    """Released patients by cell, (G + 1, 2), summed with the weights of the bias and of the task energies."""
    n = np.maximum(counts, 0.0)
    return float((n * bias_weight).sum()), float((n * task_weight).sum())


def _level(mean: float, sd: float, expected: float) -> float:
    """The most likely level given its noisy sum and a lognormal prior about the expected one.

    A level is above 0 while its noise may be larger than itself, so the sum alone would not do as a divisor.
    """
    if sd == 0:
        return mean
    misfit = ((mean - expected * LEVELS) / sd) ** 2 + (np.log(LEVELS) / LEVEL_LOG_SD) ** 2
    return float(expected * LEVELS[np.argmin(misfit)])


def shrinking(along: Vector, spread: Vector, variance: float) -> tuple[float, Vector]:
    """The most likely t for along_j ~ N(0, t spread_j + variance), and t spread / (t spread + variance)."""
    if not along.any():
        return 0.0, np.zeros_like(along)
    if variance == 0:
        return np.inf, np.ones_like(along)
    candidates = np.concatenate([[0.0], SHIFTS * (variance / spread.mean())])
    total = candidates[:, None] * spread + variance
    t = float(candidates[np.argmin((np.log(total) + along**2 / total).sum(axis=1))])
    factor: Vector = t * spread / (t * spread + variance)
    return t, factor
