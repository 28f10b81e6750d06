"""Where a benchmark's figures come from: the code, the software and the machine, to be written beside them."""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from equipoise import __version__

ROOT = Path(__file__).resolve().parents[2]


WRITTEN = ("docs", "simulations/benchmarks/results")  # what benchmarks write, below ROOT


def commit() -> str:
    """The checked-out commit, with `+` where files differ from it, but for those that an earlier benchmark wrote."""
    others = [f":(exclude){place}" for place in WRITTEN]
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *others)
    return (_git("describe", "--always") or "unknown") + ("+" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return found.stdout.strip()


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    names = [
        line.partition(":")[2].strip()
        for line in (Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else [])
        if line.startswith("model name")
    ]
    packages = ("equipoise", "torch", "flwr", "numpy")
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def commit_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """The commit that rows were made at; of several each, with how many rows it made.

    >>> commit_of([{"commit": "a"}, {"commit": "b"}, {"commit": "a"}])
    'a (2 rows), b (1)'
    """
    made = Counter(str(row["commit"]) for row in rows)
    if len(made) == 1:
        return next(iter(made))
    words = [f"{name} ({count}{' rows' if not place else ''})" for place, (name, count) in enumerate(made.items())]
    return ", ".join(words)


def origin(rows: Iterable[Mapping[str, Any]] | None = None) -> dict[str, str]:
    """What stands beside figures that do not depend on the machine's speed; of rows made over time, their commits."""
    return {
        "commit": commit() if rows is None else commit_of(rows),
        "equipoise": __version__,
        "python": platform.python_version(),
        "torch": version("torch"),
        "machine": f"{platform.machine()}, CPU",
    }
