"""What the tests of the command line have: the command itself, and a study that they may damage."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from equipoise import cli
from equipoise.simulations import doors
from tests.e2e.icu import write_hospitals
from tests.e2e.studies import IMAGES, TABLE, Desk
from tests.e2e.terminal import Ended, Run


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


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A study of tables over three hospitals' folders."""
    return Desk(tmp_path / "desk", TABLE)


@pytest.fixture
def pictures(tmp_path: Path) -> Desk:
    """The same with images."""
    return Desk(tmp_path / "pictures", IMAGES)


@pytest.fixture
def icu(tmp_path: Path) -> Path:
    """A study of scores over three hospitals' folders, as docs/audit.md describes it."""
    return write_hospitals(tmp_path)
