"""What crosses the network: containers that hold what was packed, or are refused."""

from __future__ import annotations

import json
import pickle  # noqa: TID251 - to show that it is refused
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from equipoise.common.errors import QuorumError
from equipoise.common.wire import MAX_HEADER_BYTES, PROTOCOL, pack, pack_bundles, split_bundles, unpack

HEADER = {"protocol": PROTOCOL, "code": "ok", "number": 3, "text": "é", "nested": {"a": [1, 2.5, None, True]}}
DTYPES = st.sampled_from([np.int64, np.int32, np.uint8, np.float32, np.float64, np.bool_])


@given(
    st.dictionaries(
        st.text("abcz./", min_size=1, max_size=8),
        DTYPES.flatmap(lambda d: arrays(d, array_shapes(min_dims=0, max_side=4))),
    )
)
def test_what_was_packed_is_unpacked(content: dict[str, np.ndarray]) -> None:
    header, found = unpack(pack(HEADER, content))
    assert header == HEADER
    assert set(found) == set(content)
    for name, array in content.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_the_same_content_gives_the_same_bytes() -> None:
    one = pack({"protocol": PROTOCOL, "a": 1}, {"x": np.arange(3), "y": np.ones((2, 2))})
    other = pack({"a": 1, "protocol": PROTOCOL}, {"y": np.ones((4, 2))[::2], "x": np.arange(6)[::2] // 2})
    assert one == other


def test_bundles_keep_their_digests() -> None:
    bundles = {"d1": {"x": np.arange(3)}, "d2": {"x": np.ones(1), "deep/name": np.zeros((0, 2))}}
    again = split_bundles(unpack(pack_bundles({"protocol": PROTOCOL}, bundles))[1])
    assert {d: {n: v.shape for n, v in b.items()} for d, b in again.items()} == {
        d: {n: v.shape for n, v in b.items()} for d, b in bundles.items()
    }


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(QuorumError) as caught:
        unpack(data)
    assert "\n" not in str(caught.value)


@settings(max_examples=200)
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_gives_a_container(place: int, bit: int) -> None:
    data = bytearray(pack(HEADER, {"x": np.arange(5), "y": np.ones(3)}))
    data[place % len(data)] ^= 1 << bit
    try:
        header, _ = unpack(bytes(data))
    except QuorumError:
        return
    assert header["protocol"] == PROTOCOL


def raw(metadata: object, tail: bytes = b"") -> bytes:
    text = json.dumps({"__metadata__": metadata}).encode()
    return struct.pack("<Q", len(text)) + text + tail


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", MAX_HEADER_BYTES + 1) + bytes(MAX_HEADER_BYTES + 1),
        raw({}),
        raw({"header": "[]"}),
        raw({"header": "{}"}),
        raw({"header": json.dumps({"protocol": PROTOCOL + 1})}),
        raw({"header": "[" * 10**5}),
        raw({"header": 7}),
        raw({"header": json.dumps({"protocol": PROTOCOL})}, b"tail"),
        raw("x"),
        pickle.dumps({"header": HEADER}),
    ],
    ids=range(12),
)
def test_a_container_that_is_not_ours_is_refused(data: bytes) -> None:
    with pytest.raises(QuorumError, match="a message"):
        unpack(data)
