"""Flower's `flower-supernode`, which looks for the next message more often while a run goes on.

A SuperNode that finds no message waits 3 s before it looks again, and nothing configures that. A release through the
secure sum is five round trips, each of which would wait for the slowest of these looks (docs/decisions/0054). What runs
is Flower's own program; only the length of its pauses is another. The folder of a site puts this program before
Flower's on the path of its start script.
"""

from __future__ import annotations

import importlib
import time
from types import SimpleNamespace

IDLE_S = 3.0
"""Flower's own pause where no message was there."""
LOOK_S = 1.0
"""The pause while a run goes on. A look costs some 30 ms of processor time, half of it at the SuperLink."""
LOCAL_S = 0.1
"""The pause while the SuperNode waits for a process of its own, which asks nobody else."""
QUIET_AFTER_S = 120.0
"""Time without a message after which the pauses are Flower's own again."""


class Pauses:
    """Stands for the module `time` in the SuperNode's loop: its pauses, shortened while there is work."""

    def __init__(self) -> None:
        self._worked = -QUIET_AFTER_S

    def sleep(self, seconds: float) -> None:
        """Flower pauses for less than `IDLE_S` only where it has a message in hand."""
        if seconds < IDLE_S:
            self._worked = time.monotonic()
            time.sleep(min(seconds, LOCAL_S))
        else:
            busy = time.monotonic() - self._worked < QUIET_AFTER_S
            time.sleep(LOOK_S if busy else seconds)


def main() -> None:
    """Run Flower's `flower-supernode` with this process's arguments."""
    loop = importlib.import_module("flwr.supernode.start_client_internal")
    vars(loop)["time"] = SimpleNamespace(sleep=Pauses().sleep)
    importlib.import_module("flwr.supernode.cli.flower_supernode").flower_supernode()


if __name__ == "__main__":
    main()
