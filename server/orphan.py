"""Ends a ServerApp whose SuperLink is gone.

Flower's calls try again without end, so a ServerApp that outlives its SuperLink would hold the run's lock, and `status`
would say that it goes on, while nothing can come of it: a SuperLink that is started again knows none of its tokens.
All that a run has written is whole at any moment, so ending it is what a power cut would be (`equipoise resume`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

LOOK_S = 1.0
SUPERLINKS = (b"flower-superlink", b"equipoise.server.superlink")
_PROC = Path("/proc")


def end_without_superlink(end: Callable[[int], object] = os._exit, look_s: float = LOOK_S) -> threading.Thread:
    """Watch this process's SuperExec and, where that is its child, the SuperLink; `end` once either is gone.

    A SuperLink that was started apart from its SuperExec is not watched, since whatever started the SuperExec may well
    end before it. Where the system has no /proc, the SuperExec alone is watched.
    """
    executor = os.getppid()
    above = parent_of(executor)
    superlink = above if above is not None and _is_superlink(above) else None

    def watch() -> None:
        while os.getppid() == executor and (superlink is None or parent_of(executor) == superlink):
            time.sleep(look_s)
        end(1)

    thread = threading.Thread(target=watch, daemon=True, name="superlink-watch")
    thread.start()
    return thread


def parent_of(process: int) -> int | None:
    """The parent of a process; None where it has ended or the system does not tell."""
    try:
        fields = (_PROC / str(process) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1])


def _is_superlink(process: int) -> bool:
    try:
        command = (_PROC / str(process) / "cmdline").read_bytes()
    except OSError:
        return False
    return any(name in command for name in SUPERLINKS)
