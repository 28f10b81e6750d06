"""Flower's `flwr-clientapp`, without the parts of the SuperNode that it never uses.

A SuperNode starts this program anew for every message, and two fifths of its time went into loading the SuperNode's
own server (measured; docs/decisions/0053). The folder of a site puts it before Flower's on the SuperNode's path. What
runs is Flower's own function; only the package around it is not loaded.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path


def main() -> None:
    """Run Flower's `flwr-clientapp` with this process's arguments."""
    supernode = importlib.import_module("flwr.supernode")
    name = "flwr.supernode.cli"
    package = types.ModuleType(name)
    package.__path__ = [str(Path(str(supernode.__file__)).parent / "cli")]
    sys.modules[name] = package
    importlib.import_module(f"{name}.flwr_clientapp").flwr_clientapp()


if __name__ == "__main__":
    main()
