"""The command line as a user has it: what it prints on stdout and stderr, and its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from equipoise import cli
from equipoise.simulations import doors
from tests.e2e.studies import IMAGES, TABLE, Desk

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


@pytest.fixture
def equipoise(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process, as a new process would see the files."""
    # The commands switch telemetry off for the process; monkeypatch puts back what was there.
    for variable in ("FLWR_TELEMETRY_ENABLED", "FLWR_HOME", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(variable, os.environ.get(variable, ""))

    def run(*arguments: object) -> Ended:
        doors.cohorts.cache_clear()
        doors.bundles.cache_clear()
        monkeypatch.setattr(sys, "argv", ["equipoise", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Ended(code, *capfd.readouterr())

    return run


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """The same command as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", "from equipoise.cli import main; main()", *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,  # type: ignore[call-overload]
    )


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A study of tables over three hospitals' folders."""
    return Desk(tmp_path / "desk", TABLE)


@pytest.fixture
def pictures(tmp_path: Path) -> Desk:
    """The same with images."""
    return Desk(tmp_path / "pictures", IMAGES)
