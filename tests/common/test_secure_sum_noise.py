"""The noise of a secure sum is at least the noise that is accounted, whoever drops out and whoever colludes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2, chisquare, kstwo, nbinom

from equipoise.common.privacy.mechanisms import Mechanism
from equipoise.common.privacy.plan import ReleasePlan
from equipoise.common.secure_sum.messages import Stage
from equipoise.common.secure_sum.room import choose_room
from equipoise.common.secure_sum.terms import Part
from equipoise.common.secure_sum.threshold import threshold
from tests.secure import Release, draw_points, make_terms, site_names

SIZE = 40_000
LAPLACE, GAUSSIAN = 6.0, 40.0  # the accounted scales, in steps
Law = NDArray[np.float64]


def plans(honest: int) -> dict[str, ReleasePlan]:
    return {
        "polya": ReleasePlan.counts(cells=1, dimensions=SIZE, noise=LAPLACE, honest=honest),
        "counts": ReleasePlan.counts(1, SIZE, GAUSSIAN, mechanism="discrete_gaussian", honest=honest),
        "local": ReleasePlan.counts(cells=1, dimensions=SIZE, noise=LAPLACE),
    }


def law_of(kind: str, scale: float, parts: float, reach: int) -> Law:
    """Probabilities at -reach to reach of `parts` times the accounted noise (in its divisible sense)."""
    points = np.arange(-reach, reach + 1)
    if kind == "counts":
        weights = np.exp(-(points**2) / (2 * parts * scale**2))
        return np.asarray(weights / weights.sum())
    one = nbinom.pmf(np.arange(60 * math.ceil(scale) + reach), parts, -math.expm1(-1 / scale))
    both = np.convolve(one, one[::-1])
    middle = one.size - 1
    return np.asarray(both[middle - reach : middle + reach + 1])


def p_values(sample: NDArray[np.int64], law: Law) -> tuple[float, float]:
    """Chi-square and Kolmogorov and Smirnov's test of integers against probabilities at -reach to reach."""
    reach = law.size // 2
    points = np.arange(-reach, reach + 1)
    expected = law * sample.size
    common = expected >= 10
    observed = np.array([(sample == point).sum() for point in points[common]])
    chi = chisquare(
        np.append(observed, sample.size - observed.sum()),
        np.append(expected[common], sample.size - expected[common].sum()),
    ).pvalue
    empirical = np.searchsorted(np.sort(sample), points, side="right") / sample.size
    below = (1 - law.sum()) / 2  # what lies beyond the points
    return float(chi), float(kstwo.sf(np.abs(empirical - below - np.cumsum(law)).max(), sample.size))


@dataclass
class Outcome:
    """What a release left in the total beside the contributions, and each site's own noise."""

    noise: NDArray[np.int64]
    shares: dict[str, NDArray[np.int64]]
    cohort: tuple[str, ...]


def run(count: int, sampler: Mechanism, dropping: dict[str, int]) -> Outcome:
    """A secure sum of `count` sites, each of which adds a sample of `sampler`."""
    room = choose_room(1000, count, SIZE, sampler)
    terms = make_terms(count, parts={"table": Part(SIZE, room.bits, room.reach)})
    data = draw_points(make_terms(count, parts={"table": Part(SIZE, room.bits, 1000)}))
    shares = {site: sampler.noise((SIZE,)) for site in terms.sites}
    points = {site: {"table": data[site]["table"] + shares[site]} for site in terms.sites}
    release = Release(terms, points)
    total = release.run(dropping)["table"]
    cohort = release.coordinator.cohort
    return Outcome(total - sum(data[site]["table"] for site in cohort), shares, cohort)


def dropouts(count: int, drops: bool) -> dict[str, int]:
    """As many as may drop out, spread over the stages, from the input on back."""
    spare = count - threshold(count) if drops else 0
    return {site: int(Stage.INPUT) - place % 3 for place, site in enumerate(site_names(count)[:spare])}


@pytest.mark.parametrize("kind", ["polya", "counts"])
@pytest.mark.parametrize(("count", "drops"), [(3, False), (8, False), (8, True), (20, False), (20, True)])
def test_shares_of_those_who_are_left_make_up_the_accounted_noise(count: int, drops: bool, kind: str) -> None:
    """Exactly the accounted law remains when all but h survivors take their own shares off; the whole has more."""
    honest = threshold(count) - 1
    plan = plans(honest)[kind]
    outcome = run(count, plan.sampler, dropouts(count, drops))
    assert len(outcome.cohort) == count - len(dropouts(count, drops)) >= threshold(count)
    scale = plan.noise
    # The worst view: everybody but h honest survivors knows and subtracts what it added.
    known = [outcome.shares[site] for site in outcome.cohort[honest:]]
    left = outcome.noise - sum(known)
    for sample, parts in ((left, 1.0), (outcome.noise, len(outcome.cohort) / honest)):
        reach = math.ceil(14 * scale * max(1, parts)) if kind == "polya" else math.ceil(6 * scale * math.sqrt(parts))
        right, less, more = (
            p_values(sample, law_of(kind, scale * factor, parts, reach)) for factor in (1, 2 / 3, 3 / 2)
        )
        assert min(right) > 1e-6  # the noise has no seed; both tests, of both samples
        assert max(less) < 1e-9
        assert max(more) < 1e-9


@pytest.mark.parametrize("kind", ["polya", "counts", "local"])
@pytest.mark.parametrize(("count", "drops"), [(3, False), (8, True), (20, True)])
def test_the_variance_is_never_below_the_claim(count: int, drops: bool, kind: str) -> None:
    """A one-sided chi-square bound for Gaussian shares; for heavier tails by the fourth moment of the sample."""
    honest = threshold(count) - 1
    plan = plans(honest)[kind]
    outcome = run(count, plan.sampler, dropouts(count, drops))
    claim = 1 / (2 * math.sinh(1 / (2 * LAPLACE)) ** 2) if kind != "counts" else GAUSSIAN**2
    squares = outcome.noise.astype(float) ** 2
    survivors = len(outcome.cohort)
    expected = claim * (survivors if kind == "local" else survivors / honest)
    error = squares.std() / math.sqrt(SIZE)
    assert abs(squares.mean() - expected) < 5 * error
    # h < survivors, so there is more than is claimed: by seven errors at 20 sites, of which chance may take five.
    assert squares.mean() - 2 * error > claim
    if kind == "counts":
        assert squares.sum() / expected < chi2.isf(1e-6, SIZE)


def test_halved_noise_would_be_seen() -> None:
    """The power of the bound above: shares made for twice as many honest sites fall below the claim."""
    honest = threshold(8) - 1
    outcome = run(8, plans(2 * honest)["polya"].sampler, dropouts(8, True))
    claim = 1 / (2 * math.sinh(1 / (2 * LAPLACE)) ** 2)
    squares = outcome.noise.astype(float) ** 2
    assert squares.mean() + 5 * squares.std() / math.sqrt(SIZE) < claim


def test_vectors_carry_the_accounted_gaussian() -> None:
    """Gaussian shares of a vector on its own fine lattice: what h survivors add lies above sigma, by the smoothing."""
    plan = ReleasePlan.vector(clip=1.0, dimensions=SIZE, noise=2.0, honest=5)
    outcome = run(8, plan.sampler, dropouts(8, True))
    left = outcome.noise - sum(outcome.shares[site] for site in outcome.cohort[5:])
    squares = float((left.astype(float) ** 2).sum()) * plan.step**2
    low, high = chi2.ppf([1e-6, 1 - 1e-6], SIZE)
    assert low <= squares / 4.0 <= high
    assert not low <= squares / (4.0 * 1.1) <= high
    assert not low <= squares / (4.0 / 1.1) <= high
