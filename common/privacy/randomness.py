"""The site's own randomness: a ChaCha20 generator whose key comes from the operating system.

Noise and private sampling draw from here and from nowhere else. A key is drawn anew for every release and dropped with
the generator, so that nothing is left to leak afterwards and a forked process repeats nothing. No function takes a
seed, and no global seed of numpy, random or torch reaches the key.

>>> secret_generator().integers(0, 6, size=3).shape
(3,)

Design note: a generator is a parameter only of the samplers (`samplers.py`), where tests give one of their own; the
mechanisms (`mechanisms.py`), which a site uses, take none.
"""

from __future__ import annotations

import os
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from randomgen import ChaCha

KEY_BYTES = 32
WORD_BITS = 64


def secret_generator() -> np.random.Generator:
    """A numpy generator over ChaCha with 20 rounds and a fresh 256-bit key of the operating system."""
    return keyed_generator(os.urandom(KEY_BYTES))


def keyed_generator(key: bytes) -> np.random.Generator:
    """The generator of a 32-byte `key`; the same key gives the same words (RFC 8439 block function, counter 0).

    Raises:
        ValueError: the key has another length.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"key of {len(key)} bytes: expected {KEY_BYTES}")
    return np.random.Generator(ChaCha(key=int.from_bytes(key, "little"), rounds=20))


def random_words(generator: np.random.Generator, count: int) -> NDArray[np.uint64]:
    """`count` uniform 64-bit words."""
    return generator.integers(0, 2**WORD_BITS, size=count, dtype=np.uint64)


def bernoulli(rate: float, count: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """`count` independent coins, true with probability floor(rate * 2^64) / 2^64: `rate`, or less by under 2^-64.

    Raises:
        ValueError: `rate` lies outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate={rate}: expected a probability")
    threshold = int(Fraction(rate) * 2**WORD_BITS)
    if threshold == 2**WORD_BITS:
        return np.ones(count, dtype=np.bool_)
    return random_words(generator, count) < np.uint64(threshold)


def poisson_sample(rate: float, patients: int) -> NDArray[np.int64]:
    """Positions of the patients that one step of DP-SGD takes: each independently with probability `rate`.

    Formal guarantee:
        Unit: patient. A patient is taken with probability at most `rate`, independently of all others; the accounted
        event is monotone in that probability, so the rate of the plan is the one that counts.

    Edge cases:
        No patient may be taken (the step then releases noise alone); `patients` = 0 gives an empty array.
    """
    return np.flatnonzero(bernoulli(rate, patients, secret_generator())).astype(np.int64)
