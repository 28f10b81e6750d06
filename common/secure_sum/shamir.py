"""Shamir's secret sharing of 32 bytes over a prime field: any `threshold` shares give the secret, fewer say nothing.

A secret s is the value at 0 of a polynomial of degree threshold - 1 whose other coefficients are uniform; share x is
its value at x = 1, 2, ... The prime is the least above 2^256, so that every 32 bytes are an element.

>>> shares = split(bytes(32), threshold=2, count=3)
>>> combine({1: shares[0], 3: shares[2]}) == bytes(32)
True

Design note: PyCryptodome, which Flower brings, shares 16 bytes at a time in GF(2^128), bit by bit in Python. For the
32 bytes of a key among 20 sites it takes 58 ms, integers 0.4 ms (one core; tests/common/test_secure_sum_shamir.py holds
the two against each other).

Reference: Shamir: How to share a secret. CACM 1979.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import lru_cache

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Shares 1 to `count` of `secret`, 33 bytes each; randomness from the operating system.

    Raises:
        ValueError: the secret has another length, or not 1 <= threshold <= count.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"secret of {len(secret)} bytes: expected {SECRET_BYTES}")
    if not 1 <= threshold <= count:
        raise ValueError(f"threshold={threshold} of {count} shares: expected 1 to {count}")
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    coefficients.append(int.from_bytes(secret, "big"))
    shares = []
    for x in range(1, count + 1):
        value = 0
        for coefficient in coefficients:  # Horner's rule, the constant last
            value = (value * x + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE_BYTES, "big"))
    return shares


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret that shares (x -> share), as many as the threshold, stand for.

    Fewer shares, or shares of different secrets, give other bytes: whoever combines must know the secret when seen.

    Raises:
        ValueError: no share, a share that is no element of the field, or a result of more than 32 bytes.
    """
    if not shares or min(shares) < 1:
        raise ValueError(f"shares at {sorted(shares)}: expected at least one, numbered from 1")
    values = {x: int.from_bytes(share, "big") for x, share in shares.items()}
    if any(len(share) != SHARE_BYTES for share in shares.values()) or max(values.values()) >= PRIME:
        raise ValueError(f"a share is no element of the field: expected {SHARE_BYTES} bytes below the prime")
    points = tuple(sorted(values))
    secret = sum(weight * values[x] for x, weight in zip(points, _weights(points), strict=True)) % PRIME
    if secret >= 2 ** (8 * SECRET_BYTES):
        raise ValueError("the shares are not of one secret")
    return secret.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=64)
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights at 0 of `points`: the same for every secret that is combined from the same sites."""
    weights = []
    for x in points:
        above = below = 1
        for other in points:
            if other != x:
                above = above * other % PRIME
                below = below * (other - x) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
