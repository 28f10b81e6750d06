"""Flower's `flower-supernode`, which looks for messages more often while a run goes on, and ends when it gives up.

A SuperNode that finds no message waits 3 s before it looks again, and nothing configures that. A release through the
secure sum is five round trips, each of which would wait for the slowest of these looks (docs/decisions/0054). What runs
is Flower's own program; only its pauses and its end are others. The folder of a site puts this program before
Flower's on the path of its start script.

Where Flower gives a connection up for good, as it does when the coordinator's certificate has ended, its loop ends, but
a thread keeps the process: it would stand there, doing nothing, and nobody would start it again.
"""

from __future__ import annotations

import importlib
import os
import sys
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
    """Run Flower's `flower-supernode` with this process's arguments; it ends by a signal, or with code 1."""
    loop = importlib.import_module("flwr.supernode.start_client_internal")
    vars(loop)["time"] = SimpleNamespace(sleep=Pauses().sleep)
    importlib.import_module("flwr.supernode.cli.flower_supernode").flower_supernode()
    print("gave up the connection to the coordinator; `equipoise site check` says why", file=sys.stderr, flush=True)
    os._exit(1)


if __name__ == "__main__":
    main()
