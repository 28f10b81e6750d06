"""Memory and processor time of the processes of a deployment, as Linux counts them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from equipoise.simulations.loopback import Deployment


class Meter:
    """Memory and processor time of the processes of a deployment."""

    def __init__(self, there: Deployment) -> None:
        self._there = there
        self.peak_mib = 0.0
        self.server_peak_mib = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look every two seconds."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(2.0):
                everything = self._there.running()
                self.peak_mib = max(self.peak_mib, sum(map(memory_mib, everything)))
                server = sum(map(memory_mib, self._there.running("flwr-serverapp")))
                self.server_peak_mib = max(self.server_peak_mib, server)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def cpu_s(self) -> float:
        """Processor time so far, of the processes that are there and of what they have waited for."""
        total = 0.0
        for number in self._there.running():
            with suppress(OSError):
                fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
                total += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        return total


def memory_mib(process: int) -> float:
    """Memory of a process, what it shares divided by those who share it; 0 where it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def free_mib() -> float:
    """Memory that new processes can have."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1024
