"""What every test has: one torch thread, since sums must not depend on the cores, and all the time that it takes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Two workers share two cores, so how long an example takes says nothing. The same examples in every run.
settings.register_profile("equipoise", deadline=None, derandomize=True)
settings.load_profile("equipoise")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """A site agent that runs in the test's own process closes the files of its process to others."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)
