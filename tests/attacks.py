"""Black-box checks of a release function against the epsilon that is claimed for it.

Both run the function many times on two data sets that differ in one patient and look for outputs that tell them apart
better than epsilon and delta allow. They can prove a claim wrong; passing proves nothing. Every bound is Clopper and
Pearson's, so that a right claim is called wrong with at most the stated probability.

References:
    Jagielski, Ullman, Oprea: Auditing differentially private machine learning. NeurIPS 2020.
    Nasr et al.: Tight auditing of differentially private machine learning. USENIX Security 2023.
    Wilson et al.: Differentially private SQL with bounded user contribution. PoPETs 2020 (the stochastic tester).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Literal, TypeVar

import numpy as np
from dp_accounting import get_epsilon_gaussian
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import beta

Data = TypeVar("Data")
Output = TypeVar("Output")
LEAST_IN_BUCKET = 10


def epsilon_lower_bound(
    release: Callable[[Data], Output],
    data: Data,
    neighbour: Data,
    score: Callable[[Output], float],
    trials: int,
    delta: float,
    confidence: float = 0.95,
    curve: Literal["any", "gaussian"] = "any",
) -> float:
    """An epsilon that the release certainly exceeds: any claim below it is wrong, at `confidence`.

    Args:
        release: the function under audit, with its clipping, its noise and all its rounds.
        data: a data set.
        neighbour: the same with one patient, best the worst possible one, added.
        score: a number that should be larger on `neighbour`, for instance the sum along her direction.
        trials: releases of each data set; the first quarter chooses the test, the rest judges.
        delta: of the claim.
        confidence: of the bound.
        curve: `any` judges the one claim (epsilon, delta). `gaussian` judges the claim that the release is mu-Gaussian
            private, with the mu that belongs to epsilon at delta (Nasr et al. 2023): the claim that Gaussian noise
            without sampling makes, and one that far fewer trials can refute.

    Returns:
        The lower bound, at least 0.
    """
    without = np.array([score(release(data)) for _ in range(trials)])
    within = np.array([score(release(neighbour)) for _ in range(trials)])
    first = trials // 4
    bound = _gaussian_bound if curve == "gaussian" else _any_bound
    # Each candidate (threshold, side) is judged by the very bound that will be reported.
    candidates = np.unique(
        np.quantile(np.concatenate([without[:first], within[:first]]), np.linspace(0.005, 0.995, 199))
    )
    bounds = [_both_sides(without[:first], within[:first], cut, delta, confidence, bound) for cut in candidates]
    best = int(np.argmax([max(pair) for pair in bounds]))
    side = int(np.argmax(bounds[best]))
    cut = float(candidates[best])
    return max(0.0, _both_sides(without[first:], within[first:], cut, delta, confidence, bound)[side])


def _both_sides(
    without: NDArray[np.float64],
    within: NDArray[np.float64],
    cut: float,
    delta: float,
    confidence: float,
    bound: Callable[[float, float, float], float],
) -> tuple[float, float]:
    """Bounds from the event score > cut, likelier with her, and from score <= cut, likelier without."""
    tail = (1 - confidence) / 2
    with_low = clopper_pearson(int((within > cut).sum()), within.size, tail)[0]
    without_high = clopper_pearson(int((without > cut).sum()), without.size, tail)[1]
    return bound(with_low, without_high, delta), bound(1 - without_high, 1 - with_low, delta)


def _any_bound(likely: float, unlikely: float, delta: float) -> float:
    """The least epsilon at which an event of probability `unlikely` may become one of `likely`."""
    return math.log((likely - delta) / unlikely) if likely > delta else -math.inf


def _gaussian_bound(likely: float, unlikely: float, delta: float) -> float:
    """The same for Gaussian differential privacy, whose mu is what separates the two normal quantiles."""
    mu = float(ndtri(likely) - ndtri(unlikely))
    return float(get_epsilon_gaussian(1 / mu, delta)) if mu > 0 else -math.inf


def clopper_pearson(successes: int, trials: int, tail: float) -> tuple[float, float]:
    """Lower and upper bound of a probability, each missed with probability at most `tail`."""
    low = float(beta.ppf(tail, successes, trials - successes + 1)) if successes > 0 else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def neighbouring_subsets(patients: Sequence[Data]) -> Iterator[tuple[tuple[Data, ...], tuple[Data, ...]]]:
    """Every pair of subsets of `patients` of which the second lacks one patient of the first."""
    for size in range(1, len(patients) + 1):
        for subset in combinations(patients, size):
            for left_out in range(size):
                yield subset, subset[:left_out] + subset[left_out + 1 :]


def stochastic_test(
    release: Callable[[tuple[Data, ...]], float],
    patients: Sequence[Data],
    epsilon: float,
    delta: float,
    trials: int,
    buckets: int = 24,
    confidence: float = 0.999,
) -> str | None:
    """Looks for a pair of neighbouring subsets of `patients` that a released number tells apart too well.

    Args:
        release: from a data set to one released number.
        patients: few (three give eight subsets and twelve pairs).
        epsilon: claimed.
        delta: claimed.
        trials: releases of each subset.
        buckets: intervals into which the released numbers are sorted.
        confidence: probability with which a right claim passes.

    Returns:
        None, or one line that says where the claim fails.
    """
    pairs = list(neighbouring_subsets(patients))
    samples: dict[tuple[Data, ...], NDArray[np.float64]] = {}
    for subset in {side for pair in pairs for side in pair}:
        samples[subset] = np.array([release(subset) for _ in range(trials)], dtype=np.float64)
    # Quantiles of one half of the samples make the buckets, the other half is judged in them.
    half = trials // 2
    pooled = np.concatenate([sample[:half] for sample in samples.values()])
    # Points that take much of the mass (a release without noise) get a bucket of their own.
    edges = np.unique(np.quantile(pooled, np.linspace(0, 1, buckets + 1)))
    edges = np.unique(np.concatenate([edges, np.nextafter(edges, math.inf)]))
    counts = {
        subset: np.bincount(np.searchsorted(edges, sample[half:], side="right"), minlength=edges.size + 1)
        for subset, sample in samples.items()
    }
    tail = (1 - confidence) / (4 * len(pairs) * (edges.size + 1))  # two bounds and two directions a pair and bucket
    judged = trials - half
    for larger, smaller in pairs:
        for first, second in ((larger, smaller), (smaller, larger)):
            for bucket in np.flatnonzero(counts[first] >= LEAST_IN_BUCKET):
                low = clopper_pearson(int(counts[first][bucket]), judged, tail)[0]
                high = clopper_pearson(int(counts[second][bucket]), judged, tail)[1]
                if low > math.exp(epsilon) * high + delta:
                    ratio = math.log(low / high)
                    return f"{first} against {second}: epsilon is at least {ratio:.2f}, claimed are {epsilon}"
    return None
