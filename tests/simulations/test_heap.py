"""Memory that a simulation frees and needs again is not given back to the system in between."""

import platform
import subprocess
import sys

import pytest

SITES, ARRAYS, BYTES, PAGE = 40, 16, 4 * 2**20, 4096
WORK = f"""
import resource, sys
import numpy as np
from equipoise.simulations.heap import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({SITES}):
    [np.ones({BYTES}, dtype=np.uint8) for _ in range({ARRAYS})]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_cleared(how: str) -> int:
    """Pages that the system handed out while arrays came and went."""
    ran = subprocess.run([sys.executable, "-c", WORK, how], check=True, capture_output=True, text=True)
    return int(ran.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_the_same_pages_serve_one_array_after_the_other() -> None:
    once = ARRAYS * BYTES // PAGE
    assert pages_cleared("kept") < 3 * once
    assert pages_cleared("given back") > SITES * once / 4
