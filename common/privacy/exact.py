"""A uniform real number whose bits are drawn as they are needed, and arithmetic to settle questions about it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from equipoise.common.privacy.randomness import WORD_BITS, random_words

EXTRA_BITS = 128  # of the arithmetic, beyond the bits of U: the difference of two erfc loses at most 40
_local = threading.local()


def arithmetic(bits: int) -> Any:
    """mpmath arithmetic of this thread alone, at `bits` of precision (mpmath's own context is shared by all)."""
    if not hasattr(_local, "context"):
        import mpmath  # which only noise needs

        _local.context = mpmath.MPContext()
    _local.context.prec = bits
    return _local.context


class Uniform:
    """A real number uniform on [0, 1), whose bits are drawn as they are needed."""

    def __init__(self, prefix: int, bits: int, generator: np.random.Generator) -> None:
        self.prefix, self.bits, self.generator = prefix, bits, generator

    def below(self, threshold: Callable[[Any], Any]) -> bool:
        """Whether the number is below `threshold(context)`, a number of [0, 1]."""
        while True:
            context = arithmetic(self.bits + EXTRA_BITS)
            position = context.ldexp(threshold(context), self.bits)
            error = context.ldexp(1, -32)  # far above the error of mpmath, far below one bit of the prefix
            if self.prefix + 1 <= position - error:
                return True
            if self.prefix >= position + error:
                return False
            self.extend()

    def extend(self) -> None:
        """Draw 64 bits more."""
        self.prefix = (self.prefix << WORD_BITS) | int(random_words(self.generator, 1)[0])
        self.bits += WORD_BITS


def settle(guess: int, survival: Callable[[int, Any], Any], uniform: Uniform) -> int:
    """The largest j with U < survival(j), searched from `guess`; survival(0) = 1."""
    magnitude = max(guess, 0)
    while uniform.below(partial(survival, magnitude + 1)):
        magnitude += 1
    while magnitude > 0 and not uniform.below(partial(survival, magnitude)):
        magnitude -= 1
    return magnitude
