"""The benchmark of a deployment: that its page says what its figures say, and what it measures of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from equipoise.simulations.benchmarks import deployed
from equipoise.simulations.benchmarks.processes import memory_mib


def test_the_page_is_written_from_the_figures() -> None:
    result = json.loads((deployed.HERE / "results" / "deployed.json").read_text())
    assert (deployed.ROOT / "docs" / "benchmarks-deployed.md").read_text() == deployed.page(result)


def test_a_deployed_round_trip_is_quicker_than_flowers_plain_way() -> None:
    medians = json.loads((deployed.HERE / "results" / "deployed.json").read_text())["latency"]["median_s"]
    assert medians["equipoise"] < medians["plain"]


def test_memory_is_that_of_the_process_and_nothing_once_it_has_ended() -> None:
    code = "import sys; x = bytearray(64 * 2**20); print('there', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert memory_mib(child.pid) == pytest.approx(64, abs=16)
        child.communicate(b"")
    assert memory_mib(child.pid) == 0.0
    assert memory_mib(os.getpid()) > 16
