"""Release functions under attack: right ones withstand it, and every planted bug is found."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from equipoise.common.privacy import randomness
from equipoise.common.privacy.calibration import calibrate
from equipoise.common.privacy.mechanisms import DiscreteLaplace
from equipoise.common.privacy.plan import ReleasePlan
from equipoise.common.privacy.rounding import clip_and_round
from tests.attacks import clopper_pearson, epsilon_lower_bound, neighbouring_subsets, stochastic_test

DELTA = 1e-5
SITES, ROUNDS, DIMENSIONS, TRIALS = 8, 8, 3, 4000
Rows = NDArray[np.float64]
Values = tuple[float, ...]

PATIENTS = np.random.default_rng(0).normal(size=(5, DIMENSIONS)) * 0.1
WORST = np.vstack([PATIENTS, [1e6, 0.0, 0.0]])  # an outlier whom clipping alone holds back


@pytest.fixture(autouse=True)
def fixed_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys from a counter instead of the system, so that these tests judge the same samples every time."""
    counter = itertools.count()
    monkeypatch.setattr(
        randomness.os, "urandom", lambda size: hashlib.shake_256(next(counter).to_bytes(8)).digest(size)
    )


def vector_release(plan: ReleasePlan, clip: float = 1.0, rounds: int = 1) -> Callable[[Rows], Rows]:
    """The clipped, rounded and noised sum over patients, once a round; float [rounds, dimensions]."""
    sampler = plan.sampler

    def release(rows: Rows) -> Rows:
        points = clip_and_round(rows, clip, plan.step).sum(axis=0)
        return (points + sampler.noise((rounds, DIMENSIONS))) * plan.step

    return release


def vector_plan(epsilon: float, releases: int) -> ReleasePlan:
    template = ReleasePlan.vector(1.0, DIMENSIONS, noise=1.0, releases=releases)
    return calibrate({"rounds": template}, {"rounds": 1.0}, epsilon, DELTA)["rounds"]


def shared_noise_released_alone(epsilon: float) -> Callable[[Rows], Rows]:
    share = ReleasePlan.vector(1.0, DIMENSIONS, noise=vector_plan(epsilon, 1).noise / math.sqrt(SITES))
    return vector_release(share)


RIGHT: dict[str, Callable[[float], Callable[[Rows], Rows]]] = {
    "one release": lambda epsilon: vector_release(vector_plan(epsilon, 1)),
    "all rounds": lambda epsilon: vector_release(vector_plan(epsilon, ROUNDS), rounds=ROUNDS),
}
BUGS: dict[str, Callable[[float], Callable[[Rows], Rows]]] = {
    "noise / sqrt(sites)": shared_noise_released_alone,
    "sensitivity doubled": lambda epsilon: vector_release(vector_plan(epsilon, 1), clip=2.0),
    "one round counted for all": lambda epsilon: vector_release(vector_plan(epsilon, 1), rounds=ROUNDS),
}


def audited(release: Callable[[Rows], Rows], curve: Literal["any", "gaussian"] = "gaussian") -> float:
    def along_her(noised: Rows) -> float:
        return float(noised[:, 0].sum())

    return epsilon_lower_bound(release, PATIENTS, WORST, along_her, TRIALS, DELTA, confidence=0.99, curve=curve)


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_release_stays_below_its_claim(name: str, epsilon: float) -> None:
    bound = audited(RIGHT[name](epsilon))
    assert bound < epsilon
    assert bound > 0.2 * epsilon  # the attack sees the patient: it is not blind


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(name: str, epsilon: float) -> None:
    assert audited(BUGS[name](epsilon)) > 1.2 * epsilon


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_a_table_by_the_bound_that_assumes_no_curve(epsilon: float) -> None:
    """Laplace noise is as bad as its epsilon says, so that the plain bound sees both the truth and the bugs."""
    patient, nobody = np.zeros((1, 1)), np.zeros((0, 1))

    def bound(noise: float, counted: int = 1) -> float:
        sampler = ReleasePlan.counts(cells=1, dimensions=1, noise=noise).sampler

        def release(rows: Rows) -> float:
            return float(counted * rows.shape[0] + sampler.noise(())[()])

        return epsilon_lower_bound(release, nobody, patient, float, 2000, delta=0.0, confidence=0.99)

    assert 0.5 * epsilon < bound(1 / epsilon) < epsilon
    assert bound(1 / epsilon / 2) > 1.3 * epsilon  # half the noise
    assert bound(1 / epsilon, counted=2) > 1.3 * epsilon  # two images of one patient


def test_a_release_without_noise_is_found() -> None:
    assert audited(lambda rows: clip_and_round(rows, 1.0, 2.0**-10).sum(axis=0)[None] * 2.0**-10, "any") > 5


THREE = (1.0, -3.0, 250.0)
COUNTS = ReleasePlan.counts(cells=1, dimensions=1, noise=1.0)  # epsilon 1
SUMS = calibrate({"sum": ReleasePlan.vector(1.0, 1, noise=1.0)}, {"sum": 1.0}, 1.0, DELTA)["sum"]


def clipped_sum(values: Values) -> float:
    return float(clip_and_round(np.array(values).reshape(-1, 1), 1.0, SUMS.step).sum())


def noised_count(values: Values) -> float:
    return float(len(values) + COUNTS.sampler.noise(())[()])


def noised_sum(values: Values) -> float:
    return float(clipped_sum(values) + SUMS.sampler.noise(())[()])


def unclipped_sum(values: Values) -> float:
    return float(sum(values) / SUMS.step + SUMS.sampler.noise(())[()])


def a_third_of_the_noise(values: Values) -> float:
    return float(len(values) + DiscreteLaplace(1 / 3).noise(())[()])


def no_noise_on_an_empty_cell(values: Values) -> float:
    return noised_count(values) if values else 0.0


def noise_that_grows_with_the_data(values: Values) -> float:
    return float(len(values) + DiscreteLaplace(0.5 + len(values)).noise(())[()])


def one_seed_for_all_noise(values: Values) -> float:
    return float(len(values) + np.random.default_rng(0).geometric(0.5))


@pytest.mark.parametrize("release", [noised_count, noised_sum], ids=lambda release: release.__name__)
def test_the_stochastic_tester_passes_private_releases(release: Callable[[Values], float]) -> None:
    assert stochastic_test(release, THREE, epsilon=1.0, delta=DELTA, trials=1200, buckets=12) is None


@pytest.mark.parametrize(
    "release",
    [
        unclipped_sum,
        a_third_of_the_noise,
        no_noise_on_an_empty_cell,
        noise_that_grows_with_the_data,
        one_seed_for_all_noise,
    ],
    ids=lambda release: release.__name__,
)
def test_the_stochastic_tester_fails_broken_releases(release: Callable[[Values], float]) -> None:
    found = stochastic_test(release, THREE, epsilon=1.0, delta=DELTA, trials=1200, buckets=12)
    assert found is not None
    assert "claimed are 1.0" in found


def test_three_patients_have_twelve_neighbouring_pairs() -> None:
    pairs = list(neighbouring_subsets("abc"))
    assert len(pairs) == len(set(pairs)) == 12
    assert all(len(larger) == len(smaller) + 1 and set(smaller) < set(larger) for larger, smaller in pairs)


def test_clopper_pearson_bounds() -> None:
    """Nothing in n trials: the upper bound is 1 - tail^(1/n) (the rule of three at 5 %)."""
    assert clopper_pearson(0, 100, 0.05) == (0.0, pytest.approx(1 - 0.05 ** (1 / 100)))
    assert clopper_pearson(100, 100, 0.05) == (pytest.approx(0.05 ** (1 / 100)), 1.0)
    low, high = clopper_pearson(5, 10, 0.025)
    assert (low, high) == (pytest.approx(0.1871, abs=1e-4), pytest.approx(0.8129, abs=1e-4))
