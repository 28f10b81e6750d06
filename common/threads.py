"""One thread for all arithmetic: last bits must not depend on how many cores a machine has, or on who else uses them.

A transcript holds the digests of what was sent, weights and directions included. Another order of additions gives other
last bits there, and a run that is resumed or verified elsewhere would no longer follow from its own sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch's operations in this thread, and BLAS (NumPy, SciPy) in the whole process, take one thread meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)
