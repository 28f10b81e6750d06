"""Shamir's sharing: any threshold of shares gives the secret, fewer fit every secret equally well."""

from __future__ import annotations

import itertools
import secrets
import time

import pytest
from Crypto.Protocol.SecretSharing import Shamir
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.common.secure_sum import shamir
from equipoise.common.secure_sum.shamir import PRIME, SECRET_BYTES, SHARE_BYTES, combine, split

EDGES = [bytes(32), b"\xff" * 32, bytes(31) + b"\x01", b"\x80" + bytes(31)]


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.binary(min_size=32, max_size=32), st.sampled_from(EDGES)), st.data())
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 20))
    needed = data.draw(st.integers(1, count))
    shares = dict(enumerate(split(secret, needed, count), start=1))
    chosen = data.draw(st.sets(st.sampled_from(sorted(shares)), min_size=needed, max_size=count))
    assert combine({x: shares[x] for x in chosen}) == secret
    assert all(len(share) == SHARE_BYTES for share in shares.values())


def test_every_subset_of_six() -> None:
    secret = secrets.token_bytes(SECRET_BYTES)
    shares = dict(enumerate(split(secret, 4, 6), start=1))
    for size in range(1, 7):
        for chosen in itertools.combinations(shares, size):
            given_shares = {x: shares[x] for x in chosen}
            if size >= 4:
                assert combine(given_shares) == secret
            else:
                assert not gives(given_shares, secret)


def gives(shares: dict[int, bytes], secret: bytes) -> bool:
    try:
        return combine(shares) == secret
    except ValueError:
        return False


def test_fewer_shares_fit_every_secret() -> None:
    """For each other secret there is one polynomial through the same shares: they do not tell the two apart."""
    secret, other = secrets.token_bytes(32), secrets.token_bytes(32)
    shares = dict(enumerate(split(secret, 3, 5), start=1))
    two = {1: shares[1], 4: shares[4]}
    # Lagrange through (0, other) and the two shares gives a third share, which completes them to the other secret.
    points = {0: int.from_bytes(other, "big"), **{x: int.from_bytes(share, "big") for x, share in two.items()}}
    third = 0
    for x, value in points.items():
        weight = value
        for y in points:
            if y != x:
                weight = weight * (2 - y) * pow(x - y, -1, PRIME) % PRIME
        third = (third + weight) % PRIME
    assert combine({**two, 2: third.to_bytes(SHARE_BYTES, "big")}) == other
    assert combine({**two, 2: shares[2]}) == secret


def test_a_share_is_uniform_and_never_repeats() -> None:
    """The same secret shared twice has nothing in common; half of the shares have their top bit set."""
    drawn = [split(bytes(32), 2, 3)[0] for _ in range(2000)]
    assert len(set(drawn)) == len(drawn)
    ones = sum(share[1] >> 7 for share in drawn)
    assert abs(ones - 1000) < 5 * (2000 * 0.25) ** 0.5


def test_the_prime_is_the_least_above_two_to_the_256() -> None:
    """Fermat's test to ten bases for the prime; one base shows that no smaller number above 2^256 is one."""
    assert all(pow(base, PRIME - 1, PRIME) == 1 for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29))
    assert all(pow(3, number - 1, number) != 1 for number in range(2**256 + 1, PRIME, 2))


@pytest.mark.parametrize(
    "shares",
    [
        {},
        {0: bytes(33)},
        {1: bytes(32)},
        {1: PRIME.to_bytes(33, "big")},
        {1: b"\xff" * 33},
        {1: (2**256).to_bytes(33, "big")},  # an element, but no secret
    ],
    ids=str,
)
def test_what_is_no_share(shares: dict[int, bytes]) -> None:
    with pytest.raises(ValueError, match="share"):
        combine(shares)


def test_what_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="secret of 31 bytes"):
        split(bytes(31), 2, 3)
    for needed, count in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match="threshold"):
            split(bytes(32), needed, count)


def test_it_is_faster_than_the_library_that_is_at_hand() -> None:
    """The design note: PyCryptodome's sharing of the same 32 bytes, split and combined for 20 sites."""

    def ours() -> None:
        shares = split(secret, 14, 20)
        assert combine(dict(enumerate(shares[:14], start=1))) == secret

    def theirs() -> None:
        halves = [Shamir.split(14, 20, half) for half in (secret[:16], secret[16:])]
        assert b"".join(Shamir.combine(half[:14]) for half in halves) == secret

    secret = secrets.token_bytes(32)
    times = []
    for work in (ours, theirs):
        start = time.process_time()
        for _ in range(3):
            shamir._weights.cache_clear()
            work()
        times.append(time.process_time() - start)
    assert times[0] * 10 < times[1]
