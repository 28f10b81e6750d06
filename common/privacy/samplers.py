"""Exact samples of four laws on the integers, at the speed of floating-point ones.

Each sample is a monotone function of a real number U, uniform on [0, 1), of which 63 bits are drawn first. The function
is computed in float64 together with a bound on its error. Where the whole interval of error gives the same integer,
that integer is the exact answer; else (some ten in a million) the question is settled in arithmetic of arbitrary
precision, with further bits of U as long as they are needed. What comes out follows the law exactly: no tail is cut
off and no slack in delta is due (Mironov 2012 shows what happens to noise that is only nearly right).

    rounded Gaussian    round(sigma N), N standard normal:      |k| >= j  iff  U < erfc((j - 1/2) / (sigma sqrt 2))
    discrete Laplace    P(k) proportional to exp(-|k| / scale): |k| >= j  iff  U < exp(-j / scale), with (-, 0) rejected
    discrete Gaussian   P(k) proportional to exp(-k^2 / (2 sigma^2)): a rounded Gaussian, kept with the probability
                        A(k) = I(0) / I(k), I(k) = integral over t in [-1/2, 1/2] of exp(-(2 k t + t^2) / (2 sigma^2));
                        averaging over +-t gives 1 >= A(k) >= 1 / cosh(k / (2 sigma^2)), which settles most cases
    Polya share         difference of two negative binomials: a Poisson number of jumps of either sign, each of the
                        logarithmic law; two monotone functions, of one real number and of two (see `polya_share`)

What is assumed: the words are uniform; scipy's `ndtri` and numpy's `log` err by less than 2^-44 relative (Cephes and
the C library document about 2^-50; the tests measure it); mpmath keeps 88 of the 128 bits that it is given to spare.

Design note: OpenDP 0.16 has exact samplers of the two discrete laws. Measured on one core they cost 300 microseconds a
call and 7 to 11 s a million coordinates (here: 60 microseconds and 0.1 s), and 265 MB on every hospital's disk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from equipoise.common.privacy.exact import EXTRA_BITS, Uniform, arithmetic, settle
from equipoise.common.privacy.randomness import WORD_BITS, random_words

MINIMUM_SCALE, MAXIMUM_SCALE = 2.0**-4, 2.0**32  # steps of the lattice; beyond, too many samples need the slow path
MAXIMUM_SHARE_SCALE = 2.0**16  # of a Polya share, whose privacy is computed point by point (polya.py)
PREFIX_BITS = WORD_BITS - 1  # the first bit of a word is the sign
GUARD = 2.0**-44  # relative error granted to ndtri and log
CHUNK = 2**18  # samples drawn at once, so that the temporaries stay in the cache
MARGIN = 2  # words next to a threshold that are settled exactly
LEAST_PREFIX = 2**12  # below, the linear bounds of an error are not trusted

Points = NDArray[np.int64]


def _magnitudes(
    words: NDArray[np.uint64],
    offset: float,
    quantile: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    scale: float,
    survival: Callable[[int, Any], Any],
    generator: np.random.Generator,
) -> Points:
    """floor(scale * quantile(U) + offset) for the U that the last 63 bits of `words` begin, exactly."""
    prefixes = words & np.uint64(2**PREFIX_BITS - 1)
    uniforms = (prefixes.astype(np.float64) + 0.5) * 2.0**-PREFIX_BITS
    quantiles = quantile(uniforms)
    # Error of the quantile: of the function itself, of rounding U to 53 bits, and of the bits of U not yet drawn, for
    # which |d quantile / dU| <= 2.1 / U (Mills' ratio for the Gaussian; 1 / U for the exponential).
    errors = scale * (quantiles * GUARD + 2.0**-49 + 2.0**-61 / uniforms)
    centres = scale * quantiles + offset
    low = np.floor(centres - errors)
    undecided = (low != np.floor(centres + errors)) | (prefixes < 2**10)
    magnitudes = low.astype(np.int64)
    for index in np.flatnonzero(undecided):
        uniform = Uniform(int(prefixes[index]), PREFIX_BITS, generator)
        magnitudes[index] = settle(int(centres[index]), survival, uniform)
    return magnitudes


def _signs(words: NDArray[np.uint64]) -> Points:
    return np.where(words >> np.uint64(PREFIX_BITS), -1, 1).astype(np.int64)


def _check_scale(name: str, scale: float) -> None:
    if not MINIMUM_SCALE <= scale <= MAXIMUM_SCALE:
        raise ValueError(f"{name}={scale}: expected {MINIMUM_SCALE} to {MAXIMUM_SCALE:.0f} lattice steps")


def _in_chunks(draw: Callable[[int], Points], count: int) -> Points:
    parts = [draw(min(CHUNK, count - start)) for start in range(0, count, CHUNK)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def rounded_gaussian(sigma: float, count: int, generator: np.random.Generator) -> Points:
    """`count` independent samples of round(sigma * N), N standard normal; int64 [count].

    Raises:
        ValueError: `sigma` lies outside the supported range.
    """
    _check_scale("sigma", sigma)

    def survival(j: int, context: Any) -> Any:
        return context.erfc((j - context.mpf(0.5)) / (context.mpf(sigma) * context.sqrt(2)))

    def draw(size: int) -> Points:
        words = random_words(generator, size)
        return _signs(words) * _magnitudes(words, 0.5, lambda u: -ndtri(u / 2), sigma, survival, generator)

    return _in_chunks(draw, count)


def discrete_laplace(scale: float, count: int, generator: np.random.Generator) -> Points:
    """`count` independent samples k with P(k) proportional to exp(-|k| / scale); int64 [count].

    Raises:
        ValueError: `scale` lies outside the supported range.
    """
    _check_scale("scale", scale)

    def survival(j: int, context: Any) -> Any:
        return context.exp(-j / context.mpf(scale))

    def draw(size: int) -> Points:
        words = random_words(generator, size)
        magnitudes = _magnitudes(words, 0.0, lambda u: -np.log(u), scale, survival, generator)
        signs = _signs(words)
        again = np.flatnonzero((signs < 0) & (magnitudes == 0))  # zero has one sign only
        points = signs * magnitudes
        if again.size:
            points[again] = draw(again.size)
        return points

    return _in_chunks(draw, count)


def discrete_gaussian(sigma: float, count: int, generator: np.random.Generator) -> Points:
    """`count` independent samples k with P(k) proportional to exp(-k^2 / (2 sigma^2)); int64 [count].

    Raises:
        ValueError: `sigma` lies outside the supported range.
    """
    _check_scale("sigma", sigma)

    def draw(size: int) -> Points:
        points = rounded_gaussian(sigma, size, generator)
        again = np.flatnonzero(~_kept(points, sigma, generator))
        if again.size:
            points[again] = draw(again.size)
        return points

    return _in_chunks(draw, count)


def _kept(points: Points, sigma: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Which rounded Gaussians stay in the sample of discrete ones: each with probability A(k)."""
    words = random_words(generator, points.size)
    slopes = np.abs(points) / (2 * sigma * sigma)
    # 1 / cosh(x) >= 1 - x^2 / 2; what float64 may lose here is far below 2^-40.
    kept = words * 2.0**-WORD_BITS < 1 - slopes * slopes / 2 - 2.0**-40
    for index in np.flatnonzero(~kept):
        magnitude, word = abs(int(points[index])), int(words[index])
        low, high = _acceptance_words(magnitude, sigma)
        if low < word < high:
            uniform = Uniform(word, WORD_BITS, generator)
            kept[index] = uniform.below(partial(_acceptance, magnitude, sigma))
        else:
            kept[index] = word <= low
    return kept


def _acceptance(magnitude: int, sigma: float, context: Any) -> Any:
    """A(k), with I(k) = exp(k^2 / (2 sigma^2)) * (Phi((k + 1/2) / sigma) - Phi((k - 1/2) / sigma)) up to a constant."""
    root = context.mpf(sigma) * context.sqrt(2)
    half = context.mpf(0.5)

    def integral(j: int) -> Any:
        return context.exp((j / root) ** 2) * (context.erfc((j - half) / root) - context.erfc((j + half) / root))

    return integral(0) / integral(magnitude)


@lru_cache(maxsize=2**14)
def _acceptance_words(magnitude: int, sigma: float) -> tuple[int, int]:
    """Words (low, high): a word <= low is below A(k) * 2^64 with its bits to come, a word >= high is above it."""
    context = arithmetic(WORD_BITS + EXTRA_BITS)
    position = int(context.floor(context.ldexp(_acceptance(magnitude, sigma, context), WORD_BITS)))
    return position - 2, position + 2


def polya_share(scale: float, shares: int, count: int, generator: np.random.Generator) -> Points:
    """`count` independent samples of X - Y, X and Y negative binomial with 1/shares successes; int64 [count].

    P(X = k) = C(k + r - 1, k) (1 - q)^r q^k with r = 1 / shares and q = exp(-1 / scale). The sum of `shares` samples
    follows the discrete Laplace law of `scale`, since the r of independent negative binomials add up and X - Y with r =
    1 is the difference of two geometric numbers.

    X is a sum of Poisson(-r ln(1 - q)) numbers of the logarithmic law P(L = l) = q^l / (-l ln(1 - q)) [1], so X - Y is
    one of Poisson(-2 r ln(1 - q)) of them with random signs. Given a uniform U, L is 1 + a geometric number of ratio
    1 - (1 - q)^U [2]: L = 1 + floor(ln V / ln(1 - (1 - q)^U)) for another uniform V, monotone in both.

    [1] Quenouille: A relation between the logarithmic, Poisson, and negative binomial series. Biometrics 1949.
    [2] Kemp: Efficient generation of logarithmically distributed pseudo-random variables. Applied Statistics 1981.

    Raises:
        ValueError: `scale` or `shares` lies outside the supported range.
    """
    check_share(scale, shares)

    def draw(size: int) -> Points:
        jumps = _poisson(scale, shares, size, generator)
        lengths = _logarithmic(scale, int(jumps.sum()), generator)
        points = np.zeros(size, dtype=np.int64)
        np.add.at(points, np.repeat(np.arange(size), jumps), lengths)
        return points

    return _in_chunks(draw, count)


def check_share(scale: float, shares: int) -> None:
    """Refuse a Polya share that is not supported.

    Raises:
        ValueError: `scale` or `shares` is out of range.
    """
    if not MINIMUM_SCALE <= scale <= MAXIMUM_SHARE_SCALE:
        raise ValueError(
            f"scale={scale}: expected {MINIMUM_SCALE} to {MAXIMUM_SHARE_SCALE:.0f} lattice steps for shares"
        )
    if not 1 <= shares <= 1000:
        raise ValueError(f"shares={shares}: expected 1 to 1000")


def _log_ratio(scale: float, context: Any) -> Any:
    """-ln(1 - q), q = exp(-1 / scale)."""
    return -context.log(-context.expm1(-1 / context.mpf(scale)))


def _poisson_survival(scale: float, shares: int, n: int, context: Any) -> Any:
    """P(N >= n) of the Poisson law with mean -2 ln(1 - q) / shares."""
    mean = 2 * _log_ratio(scale, context) / shares
    term = below = context.mpf(1)
    for k in range(1, n):
        term = term * mean / k
        below += term
    return 1 - context.exp(-mean) * below if n else context.mpf(1)


@lru_cache(maxsize=64)
def _poisson_words(scale: float, shares: int) -> NDArray[np.uint64]:
    """floor(P(N >= n) 2^64) for n = 1, 2, ... down to 0."""
    words: list[int] = []
    while not words or words[-1] > 0:
        context = arithmetic(WORD_BITS + EXTRA_BITS)
        survival = _poisson_survival(scale, shares, len(words) + 1, context)
        words.append(max(0, int(context.floor(context.ldexp(survival, WORD_BITS)))))
    table = np.array(words, dtype=np.uint64)
    table.flags.writeable = False  # it is kept
    return table


def _poisson(scale: float, shares: int, count: int, generator: np.random.Generator) -> Points:
    """Numbers of jumps: the n with P(N >= n + 1) <= U < P(N >= n)."""
    thresholds = _poisson_words(scale, shares)
    words = random_words(generator, count)
    rising = thresholds[::-1]
    numbers = (rising.size - np.searchsorted(rising, words, side="right")).astype(np.int64)
    margin = np.uint64(MARGIN)
    # A word whose neighbourhood holds a threshold, or ends at 0, where the table ends.
    near = np.searchsorted(rising, np.minimum(words, np.uint64(2**64 - 1 - MARGIN)) + margin, side="right")
    far = np.searchsorted(rising, np.maximum(words, margin) - margin, side="left")
    for index in np.flatnonzero((near != far) | (words <= margin)):
        uniform = Uniform(int(words[index]), WORD_BITS, generator)
        numbers[index] = settle(int(numbers[index]), partial(_poisson_survival, scale, shares), uniform)
    return numbers


def _logarithmic(scale: float, count: int, generator: np.random.Generator) -> Points:
    """Lengths of jumps with random signs."""
    words, first = random_words(generator, count), random_words(generator, count)
    mask = np.uint64(2**PREFIX_BITS - 1)
    prefixes_u, prefixes_v = first & mask, words & mask
    u, v = ((prefixes.astype(np.float64) + 0.5) * 2.0**-PREFIX_BITS for prefixes in (prefixes_u, prefixes_v))
    exponents = u * float(_log_ratio(scale, arithmetic(WORD_BITS + EXTRA_BITS)))
    # -ln(1 - exp(-y)), each half where it loses no digits.
    near = exponents < 0.5
    rates = np.empty_like(u)
    rates[near] = -np.log(-np.expm1(-exponents[near]))
    rates[~near] = -np.log1p(-np.exp(-exponents[~near]))
    logs = -np.log(v)
    centres = logs / rates
    # Error of ln V: of the function, of rounding V, of its bits not yet drawn (as above). Error of the rate: the same
    # of U, times at most 1 + y, since |d ln(rate) / d ln(y)| = y exp(-y) / ((1 - exp(-y)) rate) <= 1 + y.
    errors = (logs * GUARD + 2.0**-49 + 2.0**-61 / v) / rates
    errors += centres * (2 + exponents) * (4 * GUARD + 2.0**-61 / u)
    low = np.floor(centres - errors)
    undecided = (low != np.floor(centres + errors)) | (np.minimum(prefixes_u, prefixes_v) < LEAST_PREFIX)
    lengths = low.astype(np.int64) + 1
    for index in np.flatnonzero(undecided):
        one = Uniform(int(prefixes_u[index]), PREFIX_BITS, generator)
        other = Uniform(int(prefixes_v[index]), PREFIX_BITS, generator)
        lengths[index] = 1 + _settle_ratio(scale, one, other)
    return _signs(words) * lengths


def _settle_ratio(scale: float, u: Uniform, v: Uniform) -> int:
    """floor(ln V / ln(1 - (1 - q)^U)) from as many bits of both as it takes."""
    while True:
        context = arithmetic(max(u.bits, v.bits) + EXTRA_BITS)
        slope = _log_ratio(scale, context)

        def rate(prefix: int) -> Any:
            return -context.log(-context.expm1(-slope * context.ldexp(prefix, -u.bits)))  # noqa: B023 - used here

        def log(prefix: int) -> Any:
            return -context.log(context.ldexp(prefix, -v.bits))  # noqa: B023 - used here

        if u.prefix > 0 and v.prefix > 0:
            margin = context.ldexp(1, -32 - max(u.bits, v.bits))  # far above the error of mpmath
            low = log(v.prefix + 1) / rate(u.prefix) * (1 - margin)
            high = log(v.prefix) / rate(u.prefix + 1) * (1 + margin)
            if context.floor(low) == context.floor(high):
                return int(context.floor(low))
        u.extend()
        v.extend()
