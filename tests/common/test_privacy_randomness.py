"""The site's own randomness: keyed by the operating system, out of reach of every seed."""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from equipoise.common.privacy import randomness
from equipoise.common.privacy.mechanisms import DiscreteGaussian, DiscreteLaplace, Mechanism, RoundedGaussian
from equipoise.common.privacy.randomness import bernoulli, keyed_generator, poisson_sample, secret_generator

MECHANISMS: list[Mechanism] = [DiscreteLaplace(50.0), DiscreteGaussian(50.0), RoundedGaussian(50.0)]


def seed_numpy() -> None:
    np.random.seed(0)


def seed_python() -> None:
    random.seed(0)


def seed_torch() -> None:
    torch.manual_seed(0)


def test_the_generator_is_chacha20_of_its_key() -> None:
    """First block of the all-zero key, counter and nonce (draft-agl-tls-chacha20poly1305, section 7)."""
    words = keyed_generator(bytes(32)).integers(0, 2**64, size=8, dtype=np.uint64)
    assert words.astype("<u8").tobytes().hex() == (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
    )


@pytest.mark.parametrize("seed", [seed_numpy, seed_python, seed_torch])
@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda mechanism: type(mechanism).__name__)
def test_no_global_seed_reaches_the_noise(mechanism: Mechanism, seed: Callable[[], None]) -> None:
    seed()
    first = mechanism.noise((64,))
    seed()
    assert (mechanism.noise((64,)) != first).any()


@pytest.mark.parametrize("seed", [seed_numpy, seed_python, seed_torch])
def test_no_global_seed_reaches_private_sampling(seed: Callable[[], None]) -> None:
    seed()
    first = poisson_sample(0.5, 256)
    seed()
    assert not np.array_equal(poisson_sample(0.5, 256), first)


def test_noise_leaves_the_global_generators_alone() -> None:
    np.random.seed(7)
    random.seed(7)
    expected = np.random.random(), random.random()
    np.random.seed(7)
    random.seed(7)
    MECHANISMS[0].noise((1000,))
    assert (np.random.random(), random.random()) == expected


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda mechanism: type(mechanism).__name__)
def test_every_release_asks_the_system_for_one_fresh_key(mechanism: Mechanism, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def urandom(size: int) -> bytes:
        asked.append(size)
        return bytes([len(asked)]) * size

    monkeypatch.setattr(randomness.os, "urandom", urandom)
    first, second = mechanism.noise((64,)), mechanism.noise((64,))
    assert asked == [32, 32]
    assert (first != second).any()
    asked.clear()
    assert np.array_equal(mechanism.noise((64,)), first)  # the key is all that the noise depends on


def test_no_mechanism_takes_a_generator_or_a_seed() -> None:
    for mechanism in MECHANISMS:
        assert list(inspect.signature(mechanism.noise).parameters) == ["shape"]
    assert not inspect.signature(secret_generator).parameters


def test_a_forked_process_draws_other_noise() -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, MECHANISMS[2].noise((8,)).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 64) != MECHANISMS[2].noise((8,)).tobytes()


def test_a_generator_of_ones_own_repeats() -> None:
    key = bytes(range(32))
    assert np.array_equal(keyed_generator(key).random(5), keyed_generator(key).random(5))
    with pytest.raises(ValueError, match="31 bytes"):
        keyed_generator(key[:31])


@pytest.mark.parametrize("rate", [0.04, 0.5, 0.93])
def test_coins_fall_at_their_rate(rate: float) -> None:
    heads = int(bernoulli(rate, 200_000, keyed_generator(bytes(range(32)))).sum())
    assert binomtest(heads, 200_000, rate).pvalue > 1e-3


def test_coins_at_the_ends_of_the_range() -> None:
    generator = secret_generator()
    assert bernoulli(1.0, 1000, generator).all()
    assert not bernoulli(0.0, 1000, generator).any()
    assert not bernoulli(2.0**-65, 1000, generator).any()  # never more often than the rate
    with pytest.raises(ValueError, match="probability"):
        bernoulli(1.5, 1, generator)


def test_poisson_batches_vary_and_may_be_empty() -> None:
    sizes = {poisson_sample(0.05, 20).size for _ in range(200)}
    assert 0 in sizes
    assert len(sizes) > 2
    assert poisson_sample(0.5, 0).size == 0
