"""A hash-chained log of what happened, one JSON line each: who asked what, what left, what it cost.

Each line holds the hash of the line before it, so that a line which is changed or taken out breaks the chain. Lines
that are cut off at the end are found only against a copy, or against the other side's log. No patient value is ever
written: rows name runs, releases, codes, digests and sizes.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

from equipoise.common.canonical import canonical_json, digest_json
from equipoise.common.errors import TranscriptError
from equipoise.common.files import append_line, drop_unfinished_line

Row = dict[str, Any]


class AuditLog:
    """The log in one file; made at the first line.

    Args:
        path: the file. A last line that a crash left unfinished is cut off.

    Raises:
        TranscriptError: the file's last line is none of a log's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_unfinished_line(path)
        rows = read_rows(path)
        self._last = str(rows[-1].get("hash")) if rows else ""

    def append(self, event: str, **facts: object) -> None:
        """Write one line and wait for the disk.

        Raises:
            StorageError: it could not be written; the chain stays as it was.
        """
        with self._lock:
            row: Row = {"time": round(time.time(), 3), "event": event, **facts, "previous": self._last}
            row["hash"] = digest_json(row)
            append_line(self._path, canonical_json(row))
            self._last = row["hash"]


def read_rows(path: Path) -> list[Row]:
    """All rows, oldest first; none where there is no file.

    Raises:
        TranscriptError: a line is no row.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise TranscriptError(f"{path}: line {number} is no row of an audit log; restore the file")
        rows.append(row)
    return rows


def check_rows(path: Path) -> int:
    """Check the chain; how many rows hold.

    Raises:
        TranscriptError: the first row that was changed, or that does not follow from the one before it.
    """
    previous = ""
    rows = read_rows(path)
    for number, row in enumerate(rows, start=1):
        bare = {key: value for key, value in row.items() if key != "hash"}
        if row.get("previous") != previous or row.get("hash") != digest_json(bare):
            raise TranscriptError(
                f"{path}: line {number} was changed, or a line before it was taken out; restore the file from a backup"
            )
        previous = row["hash"]
    return len(rows)
