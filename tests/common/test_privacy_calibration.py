"""The noise of a split: all of the budget, none above it, every phase its share."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from equipoise.common.privacy import calibration
from equipoise.common.privacy.accounting import cost_of, epsilon_of, rdp_epsilon_of
from equipoise.common.privacy.calibration import calibrate
from equipoise.common.privacy.events import Event
from equipoise.common.privacy.plan import ReleasePlan

DELTA = 1e-5
TABLE = ReleasePlan.counts(cells=1, dimensions=4, noise=1.0)
GAUSSIAN_TABLES = ReleasePlan.counts(cells=12, dimensions=96, noise=1.0, mechanism="discrete_gaussian")
MASK = ReleasePlan.vector(clip=1.5, dimensions=400, noise=1.0)
ROUNDS = ReleasePlan.vector(clip=1.0, dimensions=32, noise=1.0, releases=10)
SHARED = ReleasePlan.vector(clip=1.0, dimensions=32, noise=1.0, releases=10, honest=4)
SGD = ReleasePlan.dp_sgd(clip=1.0, dimensions=1000, noise=1.0, rate=0.1, steps=200)
LONG_SGD = ReleasePlan.dp_sgd(clip=1.0, dimensions=1000, noise=1.0, rate=0.04, steps=2250)


def scale_of(found: ReleasePlan, template: ReleasePlan, share: float) -> float:
    """The noise scale at which a phase with this share of the budget has the noise of `found`."""
    return found.noise / template.scaled(1.0, share).noise


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0, 8.0])
@pytest.mark.parametrize(
    "shares",
    [
        [(TABLE, 0.03), (MASK, 0.15), (ROUNDS, 0.82)],
        [(TABLE, 0.1), (SGD, 0.9)],
        [(GAUSSIAN_TABLES, 0.5), (TABLE, 0.5)],
        [(TABLE, 1.0)],
        [(SHARED, 1.0)],
    ],
    ids=["swift", "dp-sgd", "tables", "laplace", "shares"],
)
def test_a_split_spends_its_budget_and_no_more(epsilon: float, shares: list[tuple[ReleasePlan, float]]) -> None:
    phases = {str(index): plan for index, (plan, _) in enumerate(shares)}
    found = calibrate(phases, {str(index): share for index, (_, share) in enumerate(shares)}, epsilon, DELTA)
    events = [plan.event for plan in found.values()]
    spent = epsilon_of(events, DELTA)
    assert 0.9998 * epsilon <= spent <= epsilon
    assert rdp_epsilon_of(events, DELTA) >= 0.999 * spent  # PLD's grid rounds up; a single Laplace release shows it
    scale = scale_of(found["0"], *shares[0])
    for index, (plan, share) in enumerate(shares):
        assert found[str(index)] == replace(plan, noise=found[str(index)].noise)
        assert scale_of(found[str(index)], plan, share) == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize(("epsilon", "mu"), [(1, 0.268), (3, 0.719), (8, 1.666)])
def test_gaussian_phases_reach_the_mu_of_the_closed_form(epsilon: float, mu: float) -> None:
    found = calibrate({"mask": MASK, "rounds": ROUNDS}, {"mask": 0.2, "rounds": 0.8}, epsilon, DELTA)
    mask, rounds = found["mask"], found["rounds"]
    scale = mask.noise / mask.sensitivity * math.sqrt(0.2)
    assert 1 / scale == pytest.approx(mu, abs=6e-4)
    assert rounds.noise == pytest.approx(scale * rounds.sensitivity / math.sqrt(0.8 / 10))


def test_collusion_is_priced_beside_the_honest_view() -> None:
    cost = cost_of([calibrate({"rounds": SHARED}, {"rounds": 1.0}, 1.0, DELTA)["rounds"]], DELTA)
    assert cost.epsilon == pytest.approx(1.0, rel=2e-4)
    assert cost.epsilon_if_others_collude == pytest.approx(2.15, abs=0.02)


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0, 8.0])
@pytest.mark.parametrize(
    "shares",
    [
        [(TABLE, 0.05), (LONG_SGD, 0.95)],
        [(TABLE, 0.03), (MASK, 0.15), (ROUNDS, 0.82)],
        [(GAUSSIAN_TABLES, 0.5), (TABLE, 0.5)],
        [(TABLE, 1.0)],
    ],
    ids=["long dp-sgd", "swift", "tables", "laplace"],
)
def test_a_split_is_calibrated_in_few_questions_to_the_accountant(
    epsilon: float, shares: list[tuple[ReleasePlan, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pricing a long study once takes a good part of a second, so what counts is how often the search does it."""
    asked = []

    def counted(events: list[Event], delta: float) -> float:
        asked.append(events)
        return epsilon_of(events, delta)

    monkeypatch.setattr(calibration, "epsilon_of", counted)
    phases = {str(index): plan for index, (plan, _) in enumerate(shares)}
    calibrate(phases, {str(index): share for index, (_, share) in enumerate(shares)}, epsilon, DELTA)
    assert len(asked) <= 8  # 3 to 6; halving an interval would take some 17 to come within a ten-thousandth


def test_what_cannot_be_calibrated_is_refused() -> None:
    one = {"rounds": 1.0}
    with pytest.raises(ValueError, match="expected one for each"):
        calibrate({"rounds": ROUNDS}, {"mask": 1.0}, 1.0, DELTA)
    with pytest.raises(ValueError, match="sum to"):
        calibrate({"rounds": ROUNDS, "mask": MASK}, {"rounds": 0.5, "mask": 0.4}, 1.0, DELTA)
    for epsilon, delta in ((0.0, DELTA), (1.0, 0.0), (1.0, 1.0), (math.inf, DELTA)):
        with pytest.raises(ValueError, match="epsilon"):
            calibrate({"rounds": ROUNDS}, one, epsilon, delta)
    with pytest.raises(ValueError, match="lattice steps"):
        calibrate({"table": TABLE}, {"table": 1.0}, 60.0, DELTA)  # noise below what the lattice of counts carries
    with pytest.raises(ValueError, match="kind none"):
        calibrate({"rounds": ReleasePlan.none()}, one, 1.0, DELTA)
