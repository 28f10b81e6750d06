"""rounds.jsonl: time and bytes of every release, one line each, always written."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from equipoise.common.canonical import canonical_json
from equipoise.common.files import append_line
from equipoise.common.query import Query
from equipoise.server.engine import Finished


class RoundLog:
    """A watcher that writes a line per completed release; replayed ones have their line already."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def began(self, run: str, query: Query, number: int, planned: int, sites: Sequence[str]) -> None:
        """Nothing is known yet."""

    def answered(self, site: str) -> None:
        """A release is one line, not one per site."""

    def finished(self, run: str, release: Finished) -> None:
        """Append the line."""
        if release.replayed:
            return
        row = {
            "time": round(time.time(), 3),
            "run": run,
            "release": release.number,
            "query": release.query.name,
            "phase": release.query.phase,
            "sites": list(release.cohort),
            "seconds": round(release.seconds, 4),
            "bytes_down": release.bytes_down,
            "bytes_up": release.bytes_up,
        }
        append_line(self._path, canonical_json(row))


def read_rounds(path: Path) -> list[dict[str, Any]]:
    """The rows of a rounds.jsonl; a last line that a crash cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines if line]
