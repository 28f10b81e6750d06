"""CPU time and memory of a command and of everything that it starts, daemons and their workers included (Linux).

Processor time of children counts for a parent only once it has waited for them, and a daemon is waited for by nobody.
So the command runs under a launcher that takes in orphans (PR_SET_CHILD_SUBREAPER) and waits for all of them: their
time is then the launcher's children's. A process whose own parent let the kernel clear it away would still be missing;
so the tree is also looked at all the time, and what was seen of each process is added up. The larger figure counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from equipoise.simulations.benchmarks.processes import memory_mib

LOOK_S = 0.25  # between two looks; every eighth is at memory too, which takes longer
LINGER_S = 60  # that what a command leaves behind may take to end; then it is killed
LAUNCHER = f"""
import ctypes, json, os, resource, signal, subprocess, sys, time
if ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0):
    sys.exit("prctl(PR_SET_CHILD_SUBREAPER) failed; this meter needs Linux")
begun = time.monotonic()
code = subprocess.call(sys.argv[2:])
wall = time.monotonic() - begun
while True:
    try:
        ended, _ = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        break
    if not ended:
        if time.monotonic() - begun > wall + {LINGER_S}:
            for child in open(f"/proc/self/task/{{os.getpid()}}/children").read().split():
                os.kill(int(child), signal.SIGKILL)
        time.sleep(0.05)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as note:
    json.dump([used.ru_utime + used.ru_stime, wall], note)
sys.exit(code)
"""


@dataclass(frozen=True)
class TreeSpent:
    """What a command and all that it started took.

    Attributes:
        cpu_s: CPU seconds, the larger of the two figures below.
        waited_s: of processes that somebody has waited for.
        seen_s: of processes as they were last seen.
        wall_s: seconds until the command itself ended.
        peak_mib: largest memory of all together; what they share is counted once.
        processes: most at one time.
    """

    cpu_s: float
    waited_s: float
    seen_s: float
    wall_s: float
    peak_mib: float
    processes: int


def spend_tree(command: Sequence[str | Path], environment: Mapping[str, str], folder: Path) -> TreeSpent:
    """Run a command in `folder` to its end, and to the end of what it started.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryFile() as log, tempfile.NamedTemporaryFile() as note:
        launch = [sys.executable, "-S", "-c", LAUNCHER, note.name, *map(str, command)]
        launcher = subprocess.Popen(launch, stdout=log, stderr=log, cwd=folder, env=dict(environment))
        seen, peak, most = _watch(launcher)
        log.seek(0)
        text = log.read().decode(errors="replace")
        if launcher.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))} failed: {text[-2000:]}")
        waited, wall = json.load(note)
    return TreeSpent(max(waited, seen), waited, seen, wall, peak, most)


def _watch(launcher: subprocess.Popen[bytes]) -> tuple[float, float, int]:
    """CPU seconds of all processes as last seen, peak memory in MiB, most processes; until the launcher has ended."""
    seen: dict[tuple[int, int], float] = {}
    peak, most, looks = 0.0, 0, 0
    while launcher.poll() is None:
        table = _processes()
        tree = _below(launcher.pid, table)
        for number in tree:
            seen[number, table[number].born] = table[number].cpu_s
        if looks % 8 == 0:
            peak = max(peak, sum(map(memory_mib, tree)))
        looks += 1
        most = max(most, len(tree))
        time.sleep(LOOK_S)
    return sum(seen.values()), peak, most


@dataclass(frozen=True)
class _Process:
    parent: int
    born: int  # clock ticks since the machine started: a number is given out again
    cpu_s: float


def _processes() -> dict[int, _Process]:
    """All processes of the machine, by number."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            found[int(folder.name)] = _Process(int(fields[1]), int(fields[19]), cpu)
    return found


def _below(root: int, table: Mapping[int, _Process]) -> list[int]:
    """Children of `root`, their children, and so on."""
    children: dict[int, list[int]] = {}
    for number, process in table.items():
        children.setdefault(process.parent, []).append(number)
    tree = list(children.get(root, []))
    for number in tree:  # grows while it is walked
        tree += children.get(number, [])
    return tree
