"""What sites agree on beforehand: numbers that protect, integers that do not wrap, and nothing else accepted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from equipoise.common.canonical import canonical_json
from equipoise.common.errors import SecureSumError, StudyError
from equipoise.common.privacy.mechanisms import DiscreteGaussian, DiscreteLaplace, Mechanism, NoNoise, RoundedGaussian
from equipoise.common.secure_sum.room import FAILURE, Room, choose_room
from equipoise.common.secure_sum.terms import Part, Terms
from equipoise.common.secure_sum.threshold import threshold
from tests.secure import identities, make_terms


def test_the_threshold() -> None:
    assert [threshold(count) for count in range(3, 13)] == [3, 3, 4, 5, 5, 6, 7, 7, 8, 9]


@pytest.mark.parametrize("count", range(3, 60))
def test_two_thresholds_share_an_honest_site_and_the_honest_are_enough(count: int) -> None:
    """2T > K + t: two lists of T signatures have more than t signers in common, so an honest one, who signs once."""
    terms = make_terms(24 if count > 24 else count)
    count, needed = len(terms.cohort), terms.threshold
    common = 2 * needed - count
    assert common > terms.colluding
    assert needed - terms.colluding >= 2  # or the colluding know what the one honest site sent
    make_terms(count, honest=needed - terms.colluding)
    with pytest.raises(StudyError, match=f"leave {needed - 1} for certain"):
        make_terms(count, honest=needed)


@pytest.mark.parametrize(
    ("count", "changes", "match"),
    [
        (2, {}, "a secure sum of 2 sites"),
        (1, {}, "a secure sum of 1 sites"),
        (4, {"colluding": 2}, "2 of 4 sites may collude"),
        (9, {"colluding": 5}, "5 of 9 sites may collude"),
        (3, {"colluding": -1}, "-1 of 3"),
        (5, {"quorum": 3}, "quorum=3 of 5 sites: expected 4 to 5"),
        (5, {"quorum": 6}, "quorum=6"),
        (5, {"honest": 4}, "honest=4"),
        (5, {"honest": 0}, "honest=0"),
        (3, {"parts": {}}, "no array"),
        (3, {"parts": {"a": Part(2**36, 64, 1)}}, "more than"),
        (3, {"parts": {"a": Part(1, 32, 2**31 // 3 + 1)}}, "does not fit into integers of 32 bits"),
        (3, {"parts": {"a": Part(1, 64, 2**63 // 3 + 1)}}, "does not fit into integers of 64 bits"),
        (3, {"parts": {"a": Part(1, 16, 1)}}, "does not fit"),
        (3, {"parts": {"a": Part(1, 32, 0)}}, "does not fit"),
    ],
)
def test_numbers_that_protect_nobody_are_no_terms(count: int, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(StudyError, match=match):
        make_terms(count, **changes)


def test_one_identity_key_for_two_sites_is_refused() -> None:
    key = identities(3)["site-00"].public
    with pytest.raises(StudyError, match="the same identity key"):
        make_terms(3, cohort={"a": key, "b": key, "c": identities(3)["site-01"].public})


def test_terms_say_what_they_tolerate() -> None:
    assert make_terms(3).words.startswith("3 sites: no site may drop out before their integers are sent, 0 after that")
    assert make_terms(10, quorum=8).words.startswith("10 sites: 2 of them may drop out before")
    assert "at most 2 of them act as one" in make_terms(9, colluding=2).words


def test_terms_survive_json_and_their_digest_covers_everything() -> None:
    terms = make_terms(4, honest=2)
    again = Terms.from_json(json.loads(canonical_json(terms.to_json())))
    assert again == terms
    assert again.digest == terms.digest
    others = [
        make_terms(4, honest=2, **change)
        for change in (
            {"run": "other"},
            {"number": 1},
            {"attempt": 1},
            {"query": "0" * 64},
            {"quorum": 4},
            {"colluding": 0},
            {"parts": {"table": Part(6, 32, 10**6)}},
            {"cohort": {**dict(list(terms.cohort.items())[:3]), "x": terms.cohort["site-03"]}},
        )
    ]
    others += [make_terms(4, honest=1), make_terms(4), make_terms(5, honest=2)]
    assert len({terms.digest, *(other.digest for other in others)}) == len(others) + 1


def test_attempts_have_everything_else_in_common() -> None:
    assert make_terms(4, attempt=1).lasting == make_terms(4, attempt=7).lasting
    assert make_terms(4).lasting != make_terms(5).lasting


CHANGES: list[Callable[[dict[str, Any]], Any]] = [
    lambda value: value.pop("run"),
    lambda value: value.update(more=1),
    lambda value: value.update(run=7),
    lambda value: value.update(run="r" * 201),
    lambda value: value.update(number=-1),
    lambda value: value.update(number=1.0),
    lambda value: value.update(number=True),
    lambda value: value.update(attempt="0"),
    lambda value: value.update(attempt=2**70) or value.update(quorum=2**70),
    lambda value: value.update(query="00"),
    lambda value: value.update(query=None),
    lambda value: value.update(cohort=[]),
    lambda value: value.update(cohort={}),
    lambda value: value["cohort"].update({"../x": value["cohort"]["site-00"]}),
    lambda value: value["cohort"].update({"site-00": "ed25519:AAAA"}),
    lambda value: value["cohort"].update({"site-00": 5}),
    lambda value: value.update(colluding=3),
    lambda value: value.update(quorum=2),
    lambda value: value.update(honest=9),
    lambda value: value.update(honest=0),
    lambda value: value.update(parts=None),
    lambda value: value["parts"].update(x=[1, 2]),
    lambda value: value["parts"].update(x=[1, 32, 2**31]),
    lambda value: value["parts"].update(x=[-1, 32, 5]),
    lambda value: value["parts"].update(x=[2**80, 64, 5]),
    lambda value: value["parts"].update(x={"size": 1}),
    lambda value: value["parts"].update(x="123"),
]


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_other_terms_in_a_message_are_refused(change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(canonical_json(make_terms(4, honest=2).to_json()))
    change(value)
    with pytest.raises(SecureSumError) as caught:
        Terms.from_json(value)
    assert caught.value.code == "terms"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, 3, [], "terms", {}, {"run": "r"}], ids=str)
def test_what_is_no_terms_at_all(value: Any) -> None:
    with pytest.raises(SecureSumError, match="terms"):
        Terms.from_json(value)


def test_tables_fit_into_32_bits_and_vectors_into_64() -> None:
    table = choose_room(16 * 10_000, sites=10, coordinates=24, noise=DiscreteLaplace(2.5))
    assert (table.bits, table.bound_steps) == (32, 160_000)
    vector = choose_room(2**58, sites=10, coordinates=11_000_000, noise=RoundedGaussian(2.0**30))
    assert (vector.bits, vector.bound_steps) == (64, 2**58)
    assert "10 sites send at most 288,230,376,151,711,744 + " in vector.words
    assert "below 2^63" in vector.words
    assert "at most 2^-40" in vector.words


@pytest.mark.parametrize("sites", [3, 10, 1000])
@pytest.mark.parametrize("bound", [1, 2**20, 2**31 // 3 - 1, 2**31, 2**62])
@pytest.mark.parametrize("noise", [NoNoise(), DiscreteLaplace(40.0), DiscreteGaussian(2.0**32)], ids=str)
def test_all_sites_at_their_reach_stay_below_half_of_the_modulus(sites: int, bound: int, noise: Mechanism) -> None:
    room = choose_room(bound, sites, 1000, noise)
    assert sites * room.reach <= 2 ** (room.bits - 1) - 1
    assert room.bound_steps <= bound
    if room.bound_steps < bound:  # cut to what fits, and to no less
        assert room.bits == 64
        assert sites * (room.reach + 1) > 2**63 - 1
    elif room.bits == 64:  # the smaller integers would not have done
        assert sites * room.reach > 2**31 - 1


def test_noise_beyond_its_part_is_rarer_than_the_declared_failure() -> None:
    """Exact tails: beyond `tail_steps` lies at most 2^-40 over all sites and coordinates; beyond half of it, more."""
    sites, coordinates = 10, 10**6

    def laplace(j: int) -> float:  # P(|K| > j), K discrete Laplace of scale 30
        return 2 * math.exp(-(j + 1) / 30) / (1 + math.exp(-1 / 30))

    def rounded(j: int) -> float:  # P(|round(30 N)| > j)
        return math.erfc((j + 0.5) / (30 * math.sqrt(2)))

    def discrete(j: int) -> float:  # P(|K| > j), K discrete Gaussian of 30
        points = np.arange(j + 1, j + 2000, dtype=np.float64)
        total = 1 + 2 * np.exp(-(np.arange(1.0, 3000) ** 2) / 1800).sum()
        return float(2 * np.exp(-(points**2) / 1800).sum() / total)

    for noise, tail in (
        (DiscreteLaplace(30), laplace),
        (RoundedGaussian(30), rounded),
        (DiscreteGaussian(30), discrete),
    ):
        kept = choose_room(5, sites, coordinates, noise).tail_steps
        assert sites * coordinates * tail(kept) <= FAILURE
        assert sites * coordinates * tail(kept // 2) > FAILURE
        assert kept == noise.tail_steps(FAILURE / (sites * coordinates))


def test_no_room() -> None:
    assert choose_room(7, 3, 1, NoNoise()) == Room(32, 3, 7, 0)
    with pytest.raises(StudyError, match="does not fit into 64 bits"):
        choose_room(1, 2**30, 1, DiscreteLaplace(2.0**32))
    for wrong in ((0, 3, 1), (1, 0, 1), (1, 3, 0)):
        with pytest.raises(ValueError, match="expected at least 1"):
            choose_room(*wrong, NoNoise())
    for probability in (0.0, 1.0):
        for noise in (NoNoise(), DiscreteLaplace(1.0), RoundedGaussian(1.0)):
            with pytest.raises(ValueError, match="probability"):
                noise.tail_steps(probability)
