"""Named public random streams: shuffles, augmentation and permutations, never noise.

A stream is fixed by the study's public seed and by names (method, site, release), so a run repeats bit for bit and no
stream depends on the order in which sites answer. Privacy noise never comes from here: a site draws it from its own
cryptographic generator, which no seed reaches.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def stream_seed(seed: int, *names: str | int) -> int:
    """63 bits that depend on the seed and on every name."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_stream(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator of the named stream."""
    return np.random.default_rng(stream_seed(seed, *names))


def torch_stream(seed: int, *names: str | int) -> torch.Generator:
    """A CPU torch generator of the named stream."""
    generator = torch.Generator()
    generator.manual_seed(stream_seed(seed, *names))
    return generator
