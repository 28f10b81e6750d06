"""Requests and replies in parts: a gRPC message is small, what the door passes may be hundreds of megabytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from equipoise.client import site_agent_pb2 as pb
from equipoise.common.errors import EquipoiseError

SERVICE = "equipoise.v1.SiteAgent"
CHUNK_BYTES = 512 * 1024


class TooLargeError(EquipoiseError):
    """More bytes than are allowed, or than the first part said."""

    code = "too_large"


def parts(data: bytes) -> Iterator[pb.Chunk]:
    """`data` in chunks, of which the first says the size of the whole."""
    view = memoryview(data)
    yield pb.Chunk(total_bytes=len(data), data=bytes(view[:CHUNK_BYTES]))
    for start in range(CHUNK_BYTES, len(data), CHUNK_BYTES):
        yield pb.Chunk(data=bytes(view[start : start + CHUNK_BYTES]))


def joined(chunks: Iterable[pb.Chunk], most_bytes: int) -> bytes:
    """The whole that `parts` took apart.

    Raises:
        TooLargeError: the first chunk promises more than `most_bytes`, or what came is not what it promised.
    """
    total: int | None = None
    data = bytearray()
    for chunk in chunks:
        if total is None:
            total = chunk.total_bytes
            if total > most_bytes:
                raise TooLargeError
        data += chunk.data
        if len(data) > total:
            raise TooLargeError
    if total is None or len(data) != total:
        raise TooLargeError
    return bytes(data)
