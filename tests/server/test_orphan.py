"""A ServerApp ends with its SuperLink, on real processes: a chain of three, of which the first or second is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from equipoise.server.orphan import parent_of

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
APP = """
import sys, time
from pathlib import Path
from equipoise.server.orphan import end_without_superlink
end_without_superlink(look_s=0.05)
import os
Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(60)
"""
STARTS = """
import subprocess, sys
subprocess.run(sys.argv[1:])
"""


@pytest.fixture
def chain(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The first process, by the name that it is given, and the last one's id: first -> SuperExec -> ServerApp."""
    starts, app, written = tmp_path / request.param, tmp_path / "flwr-serverapp", tmp_path / "pid"
    starts.write_text(STARTS)
    app.write_text(APP)
    executor = tmp_path / "superexec"
    executor.write_text(STARTS)
    python = sys.executable
    first = subprocess.Popen([python, starts, python, executor, python, app, written])
    end = time.monotonic() + 60
    while not (written.exists() and written.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    last = int(written.read_text())
    yield first, last
    for process in (last, first.pid):
        if alive(process):
            os.kill(process, signal.SIGKILL)
    first.wait()


def alive(process: int) -> bool:
    """Whether it still does something: one that has ended may wait for somebody who asks how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(process: int, within: float) -> bool:
    end = time.monotonic() + within
    while alive(process) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(process)


@pytest.mark.parametrize("chain", ["flower-superlink", "equipoise.server.superlink"], indirect=True)
def test_it_ends_with_the_superlink_although_the_superexec_lives(chain: tuple[subprocess.Popen[bytes], int]) -> None:
    first, last = chain
    executor = parent_of(last)
    assert executor is not None
    assert parent_of(executor) == first.pid
    assert not gone(last, 0.5)
    first.kill()
    assert gone(last, 20)


@pytest.mark.parametrize("chain", ["flower-superlink", "systemd"], indirect=True)
def test_it_ends_with_the_superexec(chain: tuple[subprocess.Popen[bytes], int]) -> None:
    executor = parent_of(chain[1])
    assert executor is not None
    os.kill(executor, signal.SIGKILL)
    assert gone(chain[1], 20)


@pytest.mark.parametrize("chain", ["shell"], indirect=True)
def test_who_else_started_the_superexec_may_end(chain: tuple[subprocess.Popen[bytes], int]) -> None:
    first, last = chain
    executor = parent_of(last)
    first.kill()
    assert not gone(last, 1.5)
    assert executor is not None
    os.kill(executor, signal.SIGKILL)


def test_a_process_that_is_not_there_has_no_parent() -> None:
    assert parent_of(2**22 + 1) is None
    assert parent_of(os.getpid()) == os.getppid()
