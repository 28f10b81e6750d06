"""The speed benchmark: what it measures of a process, and that its page says what its figures say."""

from __future__ import annotations

import json
import sys

import pytest

from equipoise.simulations.benchmarks import speed


def test_cpu_and_memory_are_those_of_the_process() -> None:
    idle = speed.spend([sys.executable, "-c", "import time; time.sleep(0.5)"])
    busy = speed.spend(
        [sys.executable, "-c", "import time; x = bytearray(200 * 2**20)\nwhile time.process_time() < 0.5: pass"]
    )
    assert idle.wall_s >= 0.5 > idle.cpu_s
    assert busy.cpu_s >= 0.5
    assert busy.peak_mib - idle.peak_mib == pytest.approx(200, abs=20)


def test_a_command_that_fails_is_no_figure() -> None:
    with pytest.raises(RuntimeError, match="no good"):
        speed.spend([sys.executable, "-c", "import sys; sys.exit('no good')"])


def test_the_page_is_written_from_the_figures() -> None:
    result = json.loads((speed.HERE / "results" / "speed.json").read_text())
    assert (speed.ROOT / "docs" / "benchmarks.md").read_text() == speed.page(result)
