"""Masks are ChaCha20 as it was published, added modulo 2^32 or 2^64, and every key has one use."""

from __future__ import annotations

import hmac
import time
from typing import Any

import numpy as np
import pytest

from equipoise.common.errors import StudyError
from equipoise.common.secure_sum import masks
from equipoise.common.secure_sum.keys import FreshKey, Identity, commitment, derive, is_signed, parse_key, seal, unseal
from equipoise.common.secure_sum.masks import CHUNK_BYTES, add_masks

# RFC 8439, appendix A.1: (key, nonce, counter) -> key stream of one block.
VECTORS = [
    (bytes(32), 0, 0, "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
     "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"),
    (bytes(32), 0, 1, "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
     "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"),
    (bytes(31) + b"\x01", 0, 1, "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
     "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0"),
    (b"\x00\xff" + bytes(30), 0, 2, "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
     "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096"),
    (bytes(32), 2, 0, "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"
     "8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "nonce", "counter", "stream"), VECTORS)
@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_published_vectors(key: bytes, nonce: int, counter: int, stream: str, dtype: Any) -> None:
    """The words added to zeros are the published key stream, its later blocks included."""
    words = np.zeros((counter + 1) * 64 // np.dtype(dtype).itemsize, dtype=dtype)
    add_masks(words, [(key, 1)], block=nonce)
    assert words.astype(np.dtype(dtype).newbyteorder("<")).tobytes()[counter * 64 :].hex() == stream


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_masks_add_and_cancel_across_chunks(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    size = 2 * CHUNK_BYTES // np.dtype(dtype).itemsize + 17
    words = rng.integers(0, 2**32, size).astype(dtype)
    keys = [bytes([k]) * 32 for k in range(4)]
    masked = words.copy()
    add_masks(masked, [(keys[0], 1), (keys[1], -1)], block=3)
    assert (masked != words).mean() > 0.999
    other = np.zeros(size, dtype=dtype)
    add_masks(other, [(keys[1], 1)], block=3)
    add_masks(other, [(keys[0], -1)], block=3)
    assert (masked + other == words).all()


def test_the_stream_does_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.zeros(1000, dtype=np.uint64)
    add_masks(whole, [(b"k" * 32, 1)], block=1)
    monkeypatch.setattr(masks, "CHUNK_BYTES", 64)
    parts = np.zeros(1000, dtype=np.uint64)
    add_masks(parts, [(b"k" * 32, 1)], block=1)
    assert (whole == parts).all()


def test_another_block_has_another_stream() -> None:
    streams = []
    for block in range(3):
        words = np.zeros(8, dtype=np.uint64)
        add_masks(words, [(bytes(32), 1)], block=block)
        streams.append(words.tobytes())
    assert len(set(streams)) == 3


@pytest.mark.parametrize(
    ("words", "mask"),
    [
        (np.zeros(2, dtype=np.int64), (bytes(32), 1)),
        (np.zeros((2, 2), dtype=np.uint64), (bytes(32), 1)),
        (np.zeros(4, dtype=np.uint64)[::2], (bytes(32), 1)),
        (np.zeros(2, dtype=np.uint64), (bytes(16), 1)),
        (np.zeros(2, dtype=np.uint64), (bytes(32), 2)),
    ],
    ids=["signed", "two dimensions", "strided", "short key", "no sign"],
)
def test_what_cannot_be_masked(words: Any, mask: tuple[bytes, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        add_masks(words, [mask], block=0)


def test_ten_masks_of_a_million_integers_take_a_fraction_of_a_second() -> None:
    words = np.zeros(10**6, dtype=np.uint64)
    best = np.inf
    for _ in range(3):
        start = time.process_time()
        add_masks(words, [(bytes([k]) * 32, 1) for k in range(10)], block=0)
        best = min(best, time.process_time() - start)
    assert best < 0.25


def test_an_identity_signs_and_is_written_as_text() -> None:
    """RFC 8032, section 7.1, test 1."""
    identity = Identity(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert identity.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    signature = identity.sign(b"")
    assert signature.hex().startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155")
    assert is_signed(identity.public, signature, b"")
    assert not is_signed(identity.public, signature, b"x")
    assert not is_signed(Identity.generate().public, signature, b"")
    assert not is_signed(identity.public, signature[:-1], b"")
    assert Identity(identity.private).text == identity.text == "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
    assert parse_key(identity.text) == identity.public


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ed25519:",
        "ed25519:AAAA",
        "ed25519:" + "é" * 44,
        "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
        "rsa:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
        "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURp=",
    ],
)
def test_what_is_no_key(text: str) -> None:
    """The last differs in bits that base64 does not carry: one key has one spelling."""
    with pytest.raises(StudyError, match="expected ed25519:"):
        parse_key(text)


def test_agreement_is_that_of_rfc_7748() -> None:
    """RFC 7748, section 6.1; what is used is derived from the agreed secret, never the secret itself."""
    alice = FreshKey(bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = FreshKey(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    assert alice.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    shared = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert alice.agree(bob.public, "use") == bob.agree(alice.public, "use") == derive(shared, "use")


def test_each_use_has_its_own_key() -> None:
    one, other = FreshKey.generate(), FreshKey.generate()
    uses = [("mask", "a"), ("shares", "a"), ("mask", "b"), ("mask", "a", ""), ("maska",)]
    assert len({one.agree(other.public, *use) for use in uses}) == len(uses)
    assert len({derive(bytes(32), *use) for use in uses}) == len(uses)
    assert len({commitment(bytes(32), *use) for use in uses}) == len(uses)


def test_hkdf_is_that_of_rfc_5869() -> None:
    """Against the definition: PRK = HMAC(0, secret), T(1) = HMAC(PRK, info || 1)."""
    info = b'["equipoise secure sum 1","use"]'
    key = hmac.digest(bytes(32), b"s" * 32, "sha256")
    assert derive(b"s" * 32, "use") == hmac.digest(key, info + b"\x01", "sha256")


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_points_of_small_order_are_not_safe(point: bytes) -> None:
    key = FreshKey.generate()
    assert not key.is_safe(point)
    assert key.is_safe(FreshKey.generate().public)
    with pytest.raises(ValueError):  # noqa: PT011 - the library's own words
        key.agree(point, "use")


def test_sealed_bytes_open_with_their_key_and_unchanged_only() -> None:
    key = bytes(range(32))
    sealed = seal(key, b"shares")
    assert unseal(key, sealed) == b"shares"
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(ValueError, match="do not fit"):
            unseal(key, bytes(changed))
    with pytest.raises(ValueError, match="do not fit"):
        unseal(bytes(32), sealed)
