"""Where a benchmark's figures come from: the code, the software and the machine, to be written beside them."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from equipoise import __version__

ROOT = Path(__file__).resolve().parents[2]


def commit() -> str:
    """The checked-out commit, with `+` where files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return found.stdout.strip() or "unknown"


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


def origin() -> dict[str, str]:
    """What stands beside figures that do not depend on the machine's speed."""
    return {
        "commit": commit(),
        "equipoise": __version__,
        "python": platform.python_version(),
        "torch": version("torch"),
        "machine": f"{platform.machine()}, CPU",
    }
