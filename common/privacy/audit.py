"""Black-box checks of a release function against the epsilon that is claimed for it.

Both run the function many times on two data sets that differ in one patient and look for outputs that tell them apart
better than epsilon and delta allow. They can prove a claim wrong; passing proves nothing. Every bound is Clopper and
Pearson's, so that a right claim is called wrong with at most the stated probability.

References:
    [1] Jagielski, Ullman, Oprea: Auditing differentially private machine learning. NeurIPS 2020.
    [2] Wilson et al.: Differentially private SQL with bounded user contribution. PoPETs 2020 (the
        stochastic tester).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
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
) -> float:
    """An epsilon that the release certainly exceeds: any claim below it is wrong, at `confidence`.

    Args:
        release: the function under audit, with its clipping, its noise and all its rounds.
        data: a data set.
        neighbour: the same with one patient, best the worst possible one, added.
        score: a number that should be larger on `neighbour`, for instance the sum along her direction.
        trials: releases of each data set; the first half chooses the test, the second half judges.
        delta: of the claim.
        confidence: of the bound.

    Returns:
        The lower bound, at least 0.
    """
    without = np.array([score(release(data)) for _ in range(trials)])
    within = np.array([score(release(neighbour)) for _ in range(trials)])
    half = trials // 2
    # Each candidate (threshold, side) is judged by the very bound that will be reported.
    candidates = np.unique(np.quantile(np.concatenate([without[:half], within[:half]]), np.linspace(0.005, 0.995, 199)))
    bounds = [_both_sides(without[:half], within[:half], cut, delta, confidence) for cut in candidates]
    best = int(np.argmax([max(pair) for pair in bounds]))
    side = int(np.argmax(bounds[best]))
    return max(0.0, _both_sides(without[half:], within[half:], float(candidates[best]), delta, confidence)[side])


def _both_sides(
    without: NDArray[np.float64], within: NDArray[np.float64], cut: float, delta: float, confidence: float
) -> tuple[float, float]:
    """Bounds from the event score > cut, likelier with her, and from score <= cut, likelier without."""
    above, also = int((within > cut).sum()), int((without > cut).sum())
    return (
        _log_ratio(above, within.size, also, without.size, delta, confidence),
        _log_ratio(without.size - also, without.size, within.size - above, within.size, delta, confidence),
    )


def _log_ratio(likely: int, trials: int, unlikely: int, others: int, delta: float, confidence: float) -> float:
    tail = (1 - confidence) / 2
    gain = clopper_pearson(likely, trials, tail)[0] - delta
    return math.log(gain / clopper_pearson(unlikely, others, tail)[1]) if gain > 0 else -math.inf


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
