"""What the tests of a deployment have beside the deployment itself (`equipoise.simulations.loopback`)."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from equipoise.simulations.loopback import ROOT, command


def equipoise(*arguments: object, check: bool = True, timeout: float = 300, cwd: Path = ROOT) -> str:
    """The command as a user runs it; what it printed on stdout, or on stderr where it failed as expected."""
    ended = command(*arguments, timeout_s=timeout, cwd=cwd)
    assert "Traceback" not in ended.stderr, ended.stderr
    if check:
        assert ended.returncode == 0, f"{arguments}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout
    assert ended.returncode != 0, ended.stdout
    return ended.stderr


def programs(folder: Path) -> Path:
    """A folder with the command `equipoise` of this checkout, as an installation would have it."""
    place = folder / "bin"
    place.mkdir()
    (place / "equipoise").write_text(f"#!{sys.executable}\nfrom equipoise.cli import main\nmain()\n")
    (place / "equipoise").chmod(0o755)
    return place


def sums(run: Path) -> dict[str, bytes]:
    """Every released sum and every model of a run."""
    patterns = ("**/sums/*.safetensors", "**/model.safetensors")
    return {str(f.relative_to(run)): f.read_bytes() for pattern in patterns for f in sorted(run.glob(pattern))}


def short_folder(name: str) -> Iterator[Path]:
    """A folder whose path leaves room for the name of a socket."""
    folder = Path("/tmp") / f"eq-{name}-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
