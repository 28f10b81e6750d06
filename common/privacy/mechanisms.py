"""Additive noise on the int64 lattice: discrete Laplace and shares of it, discrete Gaussian, rounded Gaussian.

A mechanism knows its scale in lattice steps and nothing else; what scale a bound, a budget and a step call for, and
which event is accounted, stands in `plan.py`. All samples are exact (`samplers.py`), so none carries a slack in
delta. There is no parameter for a generator: every call keys a fresh one from the operating system.

>>> DiscreteLaplace(scale_steps=2.0).noise((2, 3)).dtype
dtype('int64')

References:
    [1] Canonne, Kamath, Steinke: The discrete Gaussian for differential privacy. NeurIPS 2020.
    [2] Ghosh, Roughgarden, Sundararajan: Universally utility-maximizing privacy mechanisms. STOC 2009.
    [3] Micciancio, Regev: Worst-case to average-case reductions based on Gaussian measures. SIAM J. Comput. 2007.
    [4] Mironov: On significance of the least significant bits for differential privacy. CCS 2012.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from equipoise.common.privacy.randomness import secret_generator
from equipoise.common.privacy.samplers import (
    MAXIMUM_SCALE,
    MINIMUM_SCALE,
    check_share,
    discrete_gaussian,
    discrete_laplace,
    polya_share,
    rounded_gaussian,
)

Points = NDArray[np.int64]
SMOOTHING_STEPS = 2.0  # tau of the lemma under DiscreteGaussian


class Mechanism(Protocol):
    """What adds noise to a sum on the lattice."""

    def noise(self, shape: tuple[int, ...]) -> Points:
        """Fresh noise, int64 lattice steps of `shape`."""

    def describe(self) -> dict[str, float | str]:
        """Law, scale and standard deviation (in steps), for reports and plans."""

    def tail_steps(self, probability: float) -> int:
        """A number of steps that one coordinate's noise exceeds, up or down, with at most `probability`."""


@dataclass(frozen=True)
class NoNoise:
    """Zeros: the mechanism of privacy mode `none`. It gives no guarantee."""

    def noise(self, shape: tuple[int, ...]) -> Points:
        """Zeros, int64 of `shape`."""
        return np.zeros(shape, dtype=np.int64)

    def describe(self) -> dict[str, float | str]:
        """Law and standard deviation."""
        return {"law": "none", "standard_deviation_steps": 0.0}

    def tail_steps(self, probability: float) -> int:
        """0, with certainty."""
        _check_probability(probability)
        return 0


@dataclass(frozen=True)
class DiscreteLaplace:
    """Two-sided geometric noise [2]: P(k) proportional to exp(-|k| / scale_steps), independent in each coordinate.

    Formal guarantee:
        Unit: patient; relation: add or remove one. If one patient moves the sum by at most D lattice steps in L1, the
        noised sum is (D / scale_steps)-differentially private. Its privacy loss is dominated by randomised response of
        that epsilon (Kairouz, Oh, Viswanath 2015), which is the law of the event `discrete_laplace`. If a patient
        moves m cells by one step each, the loss is exactly that of m such events of epsilon 1 / scale_steps.

    Edge cases:
        A shape with no element gives no noise. An empty sum (no patient) is noised as any other.

    Raises:
        ValueError: the scale lies outside 1/16 to 2^32 steps.
    """

    scale_steps: float

    def __post_init__(self) -> None:
        _check("scale_steps", self.scale_steps)

    def noise(self, shape: tuple[int, ...]) -> Points:
        """Fresh noise, int64 lattice steps of `shape`."""
        return _shaped(discrete_laplace, self.scale_steps, shape)

    def describe(self) -> dict[str, float | str]:
        """Law, scale and standard deviation."""
        # Variance 2 r / (1 - r)^2 with r = exp(-1 / scale), written so that a large scale loses no digits.
        deviation = 1 / (math.sqrt(2) * math.sinh(1 / (2 * self.scale_steps)))
        return {
            "law": "discrete_laplace",
            "scale_steps": self.scale_steps,
            "standard_deviation_steps": deviation,
        }

    def tail_steps(self, probability: float) -> int:
        """P(|K| >= j) <= 2 exp(-j / scale)."""
        return _exponential_tail(self.scale_steps, probability)


@dataclass(frozen=True)
class PolyaShare:
    """One of `shares` shares of discrete Laplace noise: the difference of two negative binomials, in each coordinate.

    Formal guarantee:
        Unit: patient; relation: add or remove one. In a sum that holds at least `shares` such samples of sites that do
        not collude, the noise is discrete Laplace of `scale_steps` plus independent noise: that sum is private as under
        DiscreteLaplace, exactly, at every number of sites from `shares` up (the rest is post-processing). One share
        alone, to a server with all other sites, is private by less: for each cell that moves by one step (ln R(0),
        0)-differentially private, several times 1 / scale_steps (`polya.py` has the proof and the law of the loss).

    Edge cases:
        As for DiscreteLaplace. `shares` = 1 is DiscreteLaplace; most samples of many shares are 0.

    Raises:
        ValueError: the scale lies outside 1/16 to 2^16 steps, or `shares` outside 1 to 1000.
    """

    scale_steps: float
    shares: int

    def __post_init__(self) -> None:
        check_share(self.scale_steps, self.shares)

    def noise(self, shape: tuple[int, ...]) -> Points:
        """Fresh noise, int64 lattice steps of `shape`."""
        return polya_share(self.scale_steps, self.shares, math.prod(shape), secret_generator()).reshape(shape)

    def describe(self) -> dict[str, float | str]:
        """Law, scale of the whole noise, and standard deviation of this share of it."""
        whole = 1 / (math.sqrt(2) * math.sinh(1 / (2 * self.scale_steps)))
        return {
            "law": "polya_share",
            "scale_steps": self.scale_steps,
            "shares": float(self.shares),
            "standard_deviation_steps": whole / math.sqrt(self.shares),
        }

    def tail_steps(self, probability: float) -> int:
        """P(|X - Y| >= j) <= P(X >= j) + P(Y >= j) <= 2 exp(-j / scale): X is at most one geometric number, in law."""
        return _exponential_tail(self.scale_steps, probability)


@dataclass(frozen=True)
class DiscreteGaussian:
    """P(k) proportional to exp(-k^2 / (2 sigma_steps^2)) [1], independent in each coordinate.

    Formal guarantee:
        Unit: patient; relation: add or remove one. If one patient moves the sum by at most D lattice steps in L2, the
        noised sum is D^2 / (2 sigma^2)-concentrated private ([1], Theorem 4 and its multivariate form), as the Gaussian
        is. Its hockey-stick curve is *not* below the Gaussian's of the same sigma (sigma 1, D 1, delta 1e-5: epsilon
        4.430 against 4.377), so it is accounted in one of two ways.

        Counts: a patient moves m cells by one step each; the loss is m times that of the exact probability mass
        function (event `discrete_gaussian`).

        Vectors, sigma > tau = 2: event `gaussian` of sigma' = sqrt(sigma^2 - tau^2). Lemma ([3]): let y be Gaussian
        of sigma' around an integer x, and k drawn from the discrete Gaussian of tau centred at y. k is post-processing
        of y. By Poisson summation the sum of exp(-(k - y)^2 / (2 tau^2)) over the integers k is tau sqrt(2 pi) (1 +- h)
        with h = 2.1 exp(-2 pi^2 tau^2) < 2e-34 for every y, so that the law of k is that of x plus discrete Gaussian
        noise of sigma within a factor (1 + h) / (1 - h) at every point. In d coordinates the curve delta(epsilon) is
        thus at most e^(4 d h) times the Gaussian's at epsilon - 8 d h: for d = 1e9 less than 1e-23, below the rounding
        of the accountant.

        Shares: a sum of n independent samples of sigma_s >= 4 is a discrete Gaussian of sqrt(n) sigma_s within a
        factor of (1 + 3 h)^n at every point, by the same summation.

    Edge cases:
        As for DiscreteLaplace.

    Raises:
        ValueError: sigma lies outside 1/16 to 2^32 steps.
    """

    sigma_steps: float

    def __post_init__(self) -> None:
        _check("sigma_steps", self.sigma_steps)

    def noise(self, shape: tuple[int, ...]) -> Points:
        """Fresh noise, int64 lattice steps of `shape`."""
        return _shaped(discrete_gaussian, self.sigma_steps, shape)

    def describe(self) -> dict[str, float | str]:
        """Law, scale and standard deviation (sigma: from one step up the two agree to 1e-7; below, it is a bound)."""
        return {
            "law": "discrete_gaussian",
            "scale_steps": self.sigma_steps,
            "standard_deviation_steps": self.sigma_steps,
        }

    def tail_steps(self, probability: float) -> int:
        """P(|K| >= j) <= 2 exp(-j^2 / (2 sigma^2)), by Chernoff.

        E exp(tK) = exp(t^2 sigma^2 / 2) S(t sigma^2) / S(0), S(c) the sum of exp(-(k - c)^2 / (2 sigma^2)) over the
        integers k, which is largest at c = 0.
        """
        return _gaussian_tail(self.sigma_steps, probability)


@dataclass(frozen=True)
class RoundedGaussian:
    """round(sigma_steps * N), N standard normal, independent in each coordinate.

    Formal guarantee:
        Unit: patient; relation: add or remove one. The sum is an integer vector x, so x + round(sigma N) =
        round(x + sigma N): the release is post-processing of the Gaussian mechanism of the same sigma. If one patient
        moves x by at most D lattice steps in L2, the event is `gaussian` with noise sigma / D, exactly, in every
        dimension. The samples round a *real* Gaussian, of which as many bits are drawn as the rounding needs, so the
        attack of [4] has nothing to find and the slack in delta is 0 (samplers.py says what is assumed).

    Edge cases:
        As for DiscreteLaplace. Shares of a joint noise: use DiscreteGaussian; rounded Gaussians do not add up to one.

    Raises:
        ValueError: sigma lies outside 1/16 to 2^32 steps.
    """

    sigma_steps: float

    def __post_init__(self) -> None:
        _check("sigma_steps", self.sigma_steps)

    def noise(self, shape: tuple[int, ...]) -> Points:
        """Fresh noise, int64 lattice steps of `shape`."""
        return _shaped(rounded_gaussian, self.sigma_steps, shape)

    def describe(self) -> dict[str, float | str]:
        """Law, scale and standard deviation."""
        return {
            "law": "rounded_gaussian",
            "scale_steps": self.sigma_steps,
            # Sheppard's correction: rounding adds a twelfth of a step squared.
            "standard_deviation_steps": math.sqrt(self.sigma_steps**2 + 1 / 12),
        }

    def tail_steps(self, probability: float) -> int:
        """P(|round(sigma N)| >= j) = P(|N| >= (j - 1/2) / sigma) <= 2 exp(-(j - 1/2)^2 / (2 sigma^2))."""
        return _gaussian_tail(self.sigma_steps, probability) + 1


def _shaped(
    sample: Callable[[float, int, np.random.Generator], Points], scale: float, shape: tuple[int, ...]
) -> Points:
    return sample(scale, math.prod(shape), secret_generator()).reshape(shape)


def _exponential_tail(scale: float, probability: float) -> int:
    _check_probability(probability)
    return math.ceil(scale * math.log(2 / probability))


def _gaussian_tail(sigma: float, probability: float) -> int:
    _check_probability(probability)
    return math.ceil(sigma * math.sqrt(2 * math.log(2 / probability)))


def _check_probability(probability: float) -> None:
    if not 0 < probability < 1:
        raise ValueError(f"probability={probability}: expected more than 0, less than 1")


def _check(name: str, scale: float) -> None:
    if not MINIMUM_SCALE <= scale <= MAXIMUM_SCALE:
        raise ValueError(f"{name}={scale}: expected {MINIMUM_SCALE} to {MAXIMUM_SCALE:.0f} lattice steps")
