"""What crosses the network: safetensors containers with one JSON header. Nothing is ever unpickled.

A request carries a header and the input bundles that the site does not hold yet; a reply carries the integers of one
contribution, or a generic code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from equipoise.common.canonical import canonical_json
from equipoise.common.errors import QuorumError
from equipoise.common.query import Arrays

PROTOCOL = 1
MAX_HEADER_BYTES = 4 * 2**20
_NO_CONTAINER = "a message is not a container of equipoise; sender and receiver differ in version"


def pack(header: Mapping[str, Any], arrays: Arrays) -> bytes:
    """A container of `arrays` with `header` in its metadata; the same content always gives the same bytes."""
    # NumPy's function makes a number without dimensions an array of one.
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    # One metadata key only: a container with several would not have one order of bytes.
    return bytes(save(contiguous, metadata={"header": canonical_json(header).decode("ascii")}))


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and arrays of a container.

    Raises:
        QuorumError: the bytes are not such a container.
    """
    header = read_header(data)
    try:
        arrays = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError):
        raise QuorumError(_NO_CONTAINER) from None
    return header, arrays


def read_header(data: bytes) -> dict[str, Any]:
    """Header of a container, whose arrays are not looked at.

    Raises:
        QuorumError: the bytes do not begin like such a container.
    """
    header_size = int.from_bytes(data[:8], "little")
    if not 0 < header_size <= min(MAX_HEADER_BYTES, len(data)):
        raise QuorumError(f"a message has a header of {header_size} bytes; the limit is {MAX_HEADER_BYTES}")
    try:
        top = json.loads(data[8 : 8 + header_size])
        header = json.loads(top["__metadata__"]["header"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise QuorumError(_NO_CONTAINER) from None
    if not isinstance(header, dict) or header.get("protocol") != PROTOCOL:
        raise QuorumError(f"a message speaks another protocol than {PROTOCOL}; install the same version of equipoise")
    return header


def pack_bundles(header: Mapping[str, Any], bundles: Mapping[str, Arrays]) -> bytes:
    """A container of several input bundles, each under its digest."""
    flat = {f"{digest}/{name}": array for digest, arrays in bundles.items() for name, array in arrays.items()}
    return pack(header, flat)


def split_bundles(arrays: Arrays) -> dict[str, dict[str, NDArray[Any]]]:
    """Input bundles by digest, from the arrays of a container."""
    bundles: dict[str, dict[str, NDArray[Any]]] = {}
    for key, array in arrays.items():
        digest, _, name = key.partition("/")
        bundles.setdefault(digest, {})[name] = array
    return bundles
