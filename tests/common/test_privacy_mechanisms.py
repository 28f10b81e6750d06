"""Noise laws: exactly those that are accounted, at exactly their scale."""

from __future__ import annotations

import time
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import chi2, chisquare, kstwo, norm

from equipoise.common.privacy import samplers
from equipoise.common.privacy.mechanisms import (
    DiscreteGaussian,
    DiscreteLaplace,
    Mechanism,
    NoNoise,
    RoundedGaussian,
)
from equipoise.common.privacy.randomness import keyed_generator

Sampler = Callable[[float, int, np.random.Generator], NDArray[np.int64]]
SAMPLERS: list[Sampler] = [samplers.discrete_laplace, samplers.discrete_gaussian, samplers.rounded_gaussian]
MECHANISMS = [DiscreteLaplace, DiscreteGaussian, RoundedGaussian]
by_name = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.__name__)


def generator(number: int = 0) -> np.random.Generator:
    return keyed_generator(bytes([number]) * 32)


def masses(name: str, scale: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Points and probabilities of a law, from its definition."""
    points = np.arange(-int(40 * scale + 40), int(40 * scale + 40) + 1)
    if name == "rounded_gaussian":
        # In the lower tail, where ndtr loses nothing.
        upper = -np.abs(points) + 0.5
        return points, ndtr(upper / scale) - ndtr((upper - 1) / scale)
    weights = np.exp(-np.abs(points) / scale if name == "discrete_laplace" else -(points**2) / (2 * scale**2))
    return points, weights / weights.sum()


def ks_p_value(sample: NDArray[np.int64], name: str, scale: float) -> float:
    """Kolmogorov and Smirnov's test against a law on the integers (conservative there)."""
    points, probabilities = masses(name, scale)
    empirical = np.searchsorted(np.sort(sample), points, side="right") / sample.size
    return float(kstwo.sf(np.abs(empirical - np.cumsum(probabilities)).max(), sample.size))


@by_name
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.7, 40.0])
def test_every_point_has_its_probability(sampler: Sampler, scale: float) -> None:
    sample = sampler(scale, 200_000, generator())
    points, probabilities = masses(sampler.__name__, scale)
    common = probabilities * sample.size >= 10
    observed = np.array([(sample == point).sum() for point in points[common]])
    rest = sample.size - observed.sum(), sample.size * (1 - probabilities[common].sum())
    if rest[1] >= 5:
        observed = np.append(observed, rest[0])
        expected = np.append(probabilities[common] * sample.size, rest[1])
    else:
        expected = probabilities[common] / probabilities[common].sum() * observed.sum()
    assert chisquare(observed, expected).pvalue > 1e-3


@by_name
@pytest.mark.parametrize("scale", [3.0, 5000.0])
def test_shape_is_accepted_at_its_scale_and_rejected_at_others(sampler: Sampler, scale: float) -> None:
    sample = sampler(scale, 5_000, generator(1))
    assert ks_p_value(sample, sampler.__name__, scale) > 0.01
    assert ks_p_value(sample, sampler.__name__, scale * 2 / 3) < 1e-6
    assert ks_p_value(sample, sampler.__name__, scale * 3 / 2) < 1e-6


@pytest.mark.parametrize("mechanism", [DiscreteGaussian(700.0), RoundedGaussian(700.0)])
def test_scale_of_gaussian_noise_lies_in_its_chi_square_interval(mechanism: Mechanism) -> None:
    size = 100_000
    squares = float((mechanism.noise((size,)).astype(float) ** 2).sum())
    low, high = chi2.ppf([1e-6, 1 - 1e-6], size)

    def fits(sigma: float) -> bool:
        return bool(low <= squares / sigma**2 <= high)

    assert fits(700.0)
    assert not fits(700.0 * 1.05)
    assert not fits(700.0 / 1.05)


def test_scale_of_laplace_noise_lies_in_its_interval() -> None:
    """|K| / scale is near a unit exponential, so twice their sum is chi-square with 2 n degrees of freedom."""
    size = 100_000
    total = 2 * float(np.abs(DiscreteLaplace(700.0).noise((size,))).sum())
    low, high = chi2.ppf([1e-6, 1 - 1e-6], 2 * size)
    assert low <= total / 700.0 <= high
    assert not low <= total / (700.0 * 1.05) <= high
    assert not low <= total / (700.0 / 1.05) <= high


@pytest.mark.parametrize("law", MECHANISMS)
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_a_mechanism_states_its_own_standard_deviation(law: Callable[[float], Mechanism], scale: float) -> None:
    mechanism = law(scale)
    described = mechanism.describe()
    points, probabilities = masses(str(described["law"]), scale)
    deviation = float(np.sqrt((points.astype(float) ** 2 * probabilities).sum()))
    assert described["standard_deviation_steps"] == pytest.approx(deviation, rel=1e-3)


@by_name
@pytest.mark.parametrize("scale", [0.3, 2.7, 1e6])
def test_the_slow_path_settles_as_the_fast_one(sampler: Sampler, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no trust in float64 at all, every sample goes to arbitrary precision; the answers are the same."""
    fast = sampler(scale, 800, generator(2))
    monkeypatch.setattr(samplers, "GUARD", 1e9)
    assert np.array_equal(sampler(scale, 800, generator(2)), fast)


def test_bits_are_added_until_a_sample_is_settled() -> None:
    """A uniform whose known bits straddle the threshold draws more, and then decides as the longer number does."""
    third = (2**63) // 3
    seen = set()
    for number in range(40):
        uniform = samplers.Uniform(third, 63, generator(number))
        below = uniform.below(lambda context: context.mpf(1) / 3)
        assert uniform.bits > 63
        assert below == (3 * uniform.prefix < 2**uniform.bits)
        seen.add(below)
    assert seen == {True, False}


def test_float_functions_are_far_better_than_the_guard() -> None:
    """What samplers.py assumes of scipy and numpy, over the whole range of 63-bit uniforms."""
    context = mpmath.MPContext()
    context.prec = 200
    uniforms = np.concatenate([2.0 ** -np.arange(1.0, 63), np.random.default_rng(0).random(400)])
    for u in uniforms:
        exact = -context.mpf(1) * context.sqrt(2) * context.erfinv(2 * context.mpf(u / 2) - 1)
        error = abs(context.mpf(float(-ndtri(u / 2))) - exact)
        assert error <= samplers.GUARD / 16 * abs(exact) + 2.0**-52
        assert abs(context.mpf(float(-np.log(u))) + context.log(context.mpf(u))) <= samplers.GUARD / 16 * -np.log(u)


def test_the_margin_covers_the_error_that_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantile that errs by 0.9 of the guard changes no sample: those that it could change are settled exactly."""
    monkeypatch.setattr(samplers, "GUARD", 1e-6)
    plain = samplers.rounded_gaussian(1e4, 20_000, generator(3))
    monkeypatch.setattr(samplers, "ndtri", lambda u: ndtri(u) * (1 + 0.9e-6))
    assert np.array_equal(samplers.rounded_gaussian(1e4, 20_000, generator(3)), plain)


def test_tails_are_not_cut() -> None:
    """A word of leading zeros gives the far tail that its 63 bits mean, beyond what 53-bit uniforms can reach."""

    class Zeros:
        def integers(self, low: int, high: int, size: int, dtype: type) -> NDArray[np.uint64]:
            return np.full(size, 5, dtype=np.uint64)

    (point,) = samplers.rounded_gaussian(1000.0, 1, Zeros())  # type: ignore[arg-type]
    assert point == round(1000 * norm.isf((5 + 5 / 2**64) * 2.0**-64))
    assert point > 8900
    (point,) = samplers.discrete_laplace(1000.0, 1, Zeros())  # type: ignore[arg-type]
    assert point == int(-1000 * np.log(5 * 2.0**-63))


def test_a_million_coordinates_take_a_fraction_of_a_second() -> None:
    best = np.inf
    for _ in range(3):
        start = time.process_time()
        noise = RoundedGaussian(4e6).noise((1000, 1000))
        best = min(best, time.process_time() - start)
    assert noise.shape == (1000, 1000)
    assert noise.dtype == np.int64
    assert best < 0.3


@pytest.mark.parametrize("law", MECHANISMS)
def test_shapes_and_scales_at_the_edges(law: Callable[[float], Mechanism]) -> None:
    assert law(2.0).noise(()).shape == ()
    assert law(2.0).noise((0, 3)).shape == (0, 3)
    for scale in (0.0, -1.0, 2.0**33, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="expected"):
            law(scale)
    with pytest.raises(ValueError, match="expected"):
        samplers.rounded_gaussian(0.0, 1, generator())


def test_no_noise_is_none() -> None:
    assert not NoNoise().noise((3,)).any()
    assert NoNoise().describe()["law"] == "none"
