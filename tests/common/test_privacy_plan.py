"""A release plan cannot disagree with itself: bound, noise, sampler and event follow from one set of fields."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from equipoise.common.canonical import canonical_json
from equipoise.common.privacy.events import Event
from equipoise.common.privacy.mechanisms import DiscreteGaussian, DiscreteLaplace, NoNoise, PolyaShare, RoundedGaussian
from equipoise.common.privacy.plan import ReleasePlan

PLANS = [
    ReleasePlan.counts(cells=3, dimensions=24, noise=2.5, releases=2),
    ReleasePlan.counts(cells=12, dimensions=96, noise=9.0, mechanism="discrete_gaussian"),
    ReleasePlan.counts(cells=12, dimensions=96, noise=30.0, mechanism="discrete_gaussian", honest=4),
    ReleasePlan.vector(clip=1.5, dimensions=400, noise=4.0),
    ReleasePlan.vector(clip=1.0, dimensions=64, noise=12.0, releases=20, honest=5),
    ReleasePlan.dp_sgd(clip=0.7, dimensions=10_000, noise=1.1, rate=0.125, steps=40),
    ReleasePlan.none(step=0.25),
    ReleasePlan.counts(cells=2, dimensions=16, noise=5.0, releases=3, honest=4),
]


def test_counts_with_laplace_noise() -> None:
    plan = PLANS[0]
    assert (plan.norm, plan.sensitivity) == ("l1", 3.0)
    assert plan.sampler == DiscreteLaplace(2.5)
    assert plan.event == Event("discrete_laplace", noise=2.5, count=6)  # three cells, twice


def test_counts_with_gaussian_noise() -> None:
    plan = PLANS[1]
    assert (plan.norm, plan.sensitivity) == ("l2", math.sqrt(12))
    assert plan.sampler == DiscreteGaussian(9.0)
    assert plan.event == Event("discrete_gaussian", noise=9.0, count=12)


def test_vectors_count_their_rounding_as_sensitivity() -> None:
    plan = PLANS[3]
    assert plan.sensitivity == 1.5 + 20 * plan.step
    assert plan.sampler == RoundedGaussian(4.0 / plan.step)
    assert plan.event == plan.event_if_others_collude == Event("gaussian", noise=4.0 / plan.sensitivity)


def test_shares_make_up_the_noise_and_one_share_alone_is_what_collusion_leaves() -> None:
    plan = PLANS[4]
    assert isinstance(plan.sampler, DiscreteGaussian)
    share = plan.sampler.sigma_steps
    # tau = 2 of the smoothing lemma is taken off before the event is charged, for the sum and for the one share.
    assert math.sqrt(5 * share**2 - 4) * plan.step >= 12.0
    assert math.sqrt(share**2 - 4) * plan.step == pytest.approx(12.0 / math.sqrt(5), rel=1e-12)
    assert plan.event == Event("gaussian", noise=12.0 / plan.sensitivity, count=20)
    assert plan.event_if_others_collude.noise == pytest.approx(12.0 / math.sqrt(5) / plan.sensitivity, rel=1e-12)


def test_polya_shares_make_up_laplace_noise_and_one_alone_is_a_law_of_its_own() -> None:
    plan = PLANS[7]
    assert plan.sampler == PolyaShare(5.0, 4)
    assert plan.event == Event("discrete_laplace", noise=5.0, count=6)
    assert plan.event_if_others_collude == Event("polya_share", noise=5.0, count=6, shares=4)
    whole = replace(plan, honest=1)
    assert whole.sampler == DiscreteLaplace(5.0)
    assert whole.event == whole.event_if_others_collude == plan.event
    assert plan.scaled(2.0, 0.5).sampler == PolyaShare(2.0 * 2 * math.sqrt(3 / (2 * 0.5)), 4)


def test_dp_sgd_is_a_sampled_gaussian_for_every_step() -> None:
    plan = PLANS[5]
    assert plan.event == Event("gaussian", noise=1.1 / plan.sensitivity, count=40, rate=0.125)
    assert plan.sampler == RoundedGaussian(1.1 / plan.step)


def test_none_has_no_noise_and_no_guarantee() -> None:
    plan = ReleasePlan.none()
    assert plan.sampler == NoNoise()
    assert plan.event == Event("none")
    assert plan.sensitivity == math.inf


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.kind}-{plan.mechanism}")
def test_a_plan_survives_json(plan: ReleasePlan) -> None:
    written = canonical_json(plan.to_json())
    assert ReleasePlan.from_json(json.loads(written)) == plan
    event = json.loads(canonical_json(plan.event.to_json()))
    assert Event.from_json(event) == plan.event


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.kind}-{plan.mechanism}")
def test_a_changed_plan_is_found(plan: ReleasePlan) -> None:
    """Less noise, a larger bound or a cheaper event, each alone, disagrees with the rest."""
    changes: list[Callable[[dict[str, Any]], None]] = [
        lambda value: value["derived"]["event"].update(count=7),
        lambda value: value["derived"]["sampler"].update(law="other"),
        lambda value: value.update(extra=1),
        lambda value: value.pop("clip"),
        lambda value: value["derived"].update(relation="replace_one"),
    ]
    if plan.kind != "none":
        changes.append(lambda value: value.update(noise=value["noise"] * 1.5))
        changes.append(lambda value: value.update(releases=value["releases"] + 1))
        changes.append(lambda value: value["derived"].update(sensitivity=0.5))
    for change in changes:
        value = json.loads(canonical_json(plan.to_json()))
        change(value)
        with pytest.raises(ValueError, match=r"plan|kind"):
            ReleasePlan.from_json(value)


def test_a_plan_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        PLANS[0].noise = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(
    "wrong",
    [
        {"mechanism": "discrete_laplace"},  # L2 bound with L1 noise
        {"mechanism": "none"},
        {"kind": "other"},
        {"step": 0.3},
        {"step": 2.0**-40},  # noise of more steps than the samplers support
        {"noise": 0.0},
        {"noise": math.nan},
        {"clip": math.inf},
        {"clip": 0.0},
        {"dimensions": 0},
        {"releases": 0},
        {"rate": 0.5},  # sampling without DP-SGD
        {"honest": 3},  # rounded Gaussians do not add up
    ],
    ids=str,
)
def test_what_has_no_proof_is_no_plan(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="="):
        replace(ReleasePlan.vector(clip=1.5, dimensions=400, noise=4.0), **wrong)


def test_what_the_constructors_refuse() -> None:
    with pytest.raises(ValueError, match="shares need"):
        replace(PLANS[5], honest=3)  # a site's own noisy steps
    with pytest.raises(ValueError, match="shares need"):
        replace(PLANS[0], honest=0)
    with pytest.raises(ValueError, match="lattice steps for shares"):
        replace(PLANS[0], honest=3, noise=1e5)
    with pytest.raises(ValueError, match="a share is below 4"):
        ReleasePlan.counts(cells=1, dimensions=4, noise=6.0, mechanism="discrete_gaussian", honest=4)
    with pytest.raises(ValueError, match="cells"):
        ReleasePlan.counts(cells=5, dimensions=4, noise=6.0)
    with pytest.raises(ValueError, match="rate"):
        ReleasePlan.dp_sgd(clip=1.0, dimensions=4, noise=1.0, rate=0.0, steps=3)
    with pytest.raises(ValueError, match="share"):
        PLANS[6].scaled(1.0, 0.5)


def test_a_phase_gets_noise_by_its_share() -> None:
    """s * bound / sqrt(share) for Gaussians, s * L1 / sqrt(2 share) for Laplace, T releases each a T-th."""
    assert PLANS[3].scaled(2.0, 0.25).noise == pytest.approx(2.0 * PLANS[3].sensitivity / 0.5)
    assert PLANS[4].scaled(2.0, 0.25).noise == pytest.approx(2.0 * PLANS[4].sensitivity / 0.5 * math.sqrt(20))
    assert PLANS[0].scaled(2.0, 0.25).noise == pytest.approx(2.0 * 3 * math.sqrt(2 / 0.5))
    assert PLANS[5].scaled(2.0, 1.0).noise == pytest.approx(2.0 * PLANS[5].sensitivity * 0.125 * math.sqrt(40))
    gaussians = [PLANS[3].scaled(2.0, 0.25).event, PLANS[4].scaled(2.0, 0.75).event]
    assert sum(event.count / event.noise**2 for event in gaussians) == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"law": "uniform"},
        {"noise": 0.0},
        {"noise": -1.0},
        {"noise": math.inf},
        {"count": 0},
        {"rate": 0.0},
        {"rate": 1.2},
        {"law": "discrete_laplace", "rate": 0.5},
        {"law": "none"},
        {"law": "polya_share"},
        {"law": "polya_share", "shares": 0},
        {"shares": 2},
    ],
    ids=str,
)
def test_what_is_no_event(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="="):
        Event(**({"law": "gaussian", "noise": 1.0} | wrong))


def test_an_event_of_another_relation_is_refused() -> None:
    value = Event("gaussian", 1.0).to_json()
    with pytest.raises(ValueError, match="add_or_remove_one"):
        Event.from_json(value | {"relation": "replace_one"})
    with pytest.raises(ValueError, match="keys"):
        Event.from_json({"relation": value["relation"], "law": "gaussian"})
