"""A command as its user sees it: what it printed on stdout and stderr, and its exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a failed command; whatever else it printed fails the test."""
        assert self.code != 0, self.err
        assert self.out == ""
        assert "Traceback" not in self.err
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0]


Run = Callable[..., Ended]


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """The same command as a process of its own."""
    # A shell that runs the tests in the background lets their processes ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _started(arguments, options)
    finally:
        signal.signal(signal.SIGINT, before)


def _started(arguments: Sequence[object], options: Mapping[str, object]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from equipoise.cli import main; main()", *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,  # type: ignore[call-overload]
    )


def interrupt_after(process: subprocess.Popen[str], chain: Path, releases: int) -> Ended:
    """Press Ctrl-C once a transcript has `releases` rows."""
    patience = time.monotonic() + 120
    while not (chain.exists() and chain.read_bytes().count(b"\n") >= releases):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < patience
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return Ended(process.returncode, out, err)
