"""Masks: the ChaCha20 key stream of a 32-byte key, added to integers modulo 2^32 or 2^64.

The stream of block b is that of RFC 8439 with nonce b (12 bytes, big-endian) and a counter from 0, read as
little-endian words. Keys are never used for anything else (`keys.py`), so neither nonce nor counter repeats under one.

>>> words = np.zeros(1, dtype=np.uint64)
>>> add_masks(words, [(bytes(32), 1)], block=0)
>>> int(words[0]).to_bytes(8, "little").hex()  # RFC 8439, A.1, test vector 1
'76b8e0ada0f13d90'
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms
from numpy.typing import NDArray

KEY_BYTES = 32
CHUNK_BYTES = 2**18  # stream made at once: it is added while it is in the cache (measured: 16 KiB to 1 MiB, +-10 %)
MOST_BYTES = 2**37  # of one stream; its 32-bit counter of 64-byte blocks would come round at twice as many

Words = NDArray[np.uint32] | NDArray[np.uint64]
_ZEROS = bytes(CHUNK_BYTES)


def add_masks(words: Words, masks: Iterable[tuple[bytes, int]], block: int) -> None:
    """Add the streams of several keys to `words`, in place, modulo 2^32 or 2^64.

    Args:
        words: uint32 or uint64, one dimension, contiguous.
        masks: pairs of key (32 bytes) and sign (1 or -1).
        block: number of the array within the message; the same key gives another stream for another block.

    Raises:
        ValueError: the words are of another kind or too many, a key has another length or a sign is no sign.
    """
    if words.dtype not in (np.uint32, np.uint64) or words.ndim != 1 or not words.flags.c_contiguous:
        raise ValueError(f"words of {words.dtype}, shape {words.shape}: expected contiguous uint32 or uint64 [n]")
    if words.nbytes > MOST_BYTES:
        raise ValueError(f"words of {words.nbytes} bytes: expected at most {MOST_BYTES}")
    streams = []
    for key, sign in masks:
        if sign not in (1, -1):
            raise ValueError(f"sign={sign}: expected 1 or -1")
        streams.append((_stream(key, block), np.add if sign == 1 else np.subtract))
    buffer = bytearray(CHUNK_BYTES)
    stream = np.frombuffer(buffer, dtype=words.dtype.newbyteorder("<"))
    for start in range(0, words.size, stream.size):
        part = words[start : start + stream.size]
        zeros = memoryview(_ZEROS)[: part.nbytes]
        for context, operate in streams:
            context.update_into(zeros, buffer)
            operate(part, stream[: part.size], out=part)


def _stream(key: bytes, block: int) -> CipherContext:
    if len(key) != KEY_BYTES:
        raise ValueError(f"key of {len(key)} bytes: expected {KEY_BYTES}")
    # The library's nonce of 16 bytes is the counter (little-endian) and the nonce of RFC 8439.
    return Cipher(algorithms.ChaCha20(key, bytes(4) + block.to_bytes(12, "big")), mode=None).encryptor()
