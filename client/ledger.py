"""The site's ledger: every release it ever made, in a SQLite file of its own, each row chained to the one before.

A release goes through two writes: `reserve`, before any patient is read, and `seal`, before the first byte leaves the
door. A request that comes again is answered with the sealed reply, byte for byte; a different request under the same
number is refused. Each row keeps the head of the coordinator's transcript as the request named it, so a transcript
that is forged later no longer fits what the sites remember.
"""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

from equipoise.common.canonical import digest_json
from equipoise.common.errors import RefusedError, StorageError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS release (
    run TEXT NOT NULL, number INTEGER NOT NULL, query TEXT NOT NULL, name TEXT NOT NULL, split TEXT NOT NULL,
    head TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL, reply BLOB,
    PRIMARY KEY (run, number)
) STRICT
"""


@dataclass(frozen=True)
class Row:
    """One release: who asked what, and the transcript's head before it."""

    run: str
    number: int
    query: str
    name: str
    split: str
    head: str
    previous: str
    hash: str

    def expected_hash(self) -> str:
        """The hash that the row's content gives."""
        return digest_json([self.run, self.number, self.query, self.name, self.split, self.head, self.previous])


class Ledger:
    """The releases of one site.

    Args:
        path: the SQLite file; made if missing.
        durable: wait for the disk at every write. A simulation, whose sites are scratch, does not.
    """

    def __init__(self, path: Path, durable: bool = True) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # No statement is kept: one would hold on to the last reply that it wrote.
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=0)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
            self._db.execute("PRAGMA cache_size=-64")
            self._db.execute(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"ledger {path}: cannot be opened or written ({error})") from None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def recall(self, run: str, number: int, query: str) -> bytes | None:
        """The sealed reply to this very request, or None where nothing was sealed.

        Raises:
            RefusedError: release `number` of the run was another query.
        """
        with self._lock:
            found = self._db.execute(
                "SELECT query, reply FROM release WHERE run = ? AND number = ?", (run, number)
            ).fetchone()
        if found is None:
            return None
        if found[0] != query:
            raise RefusedError(f"run {run}: release {number} was another query before; a number is used once")
        reply: bytes | None = found[1]
        return reply

    def reserve(self, run: str, number: int, query: str, name: str, split: str, head: str) -> None:
        """Write the release down before anything is computed; does nothing where it stands already."""
        with self._lock, self._writing():
            if self._db.execute("SELECT 1 FROM release WHERE run = ? AND number = ?", (run, number)).fetchone():
                return
            last = self._db.execute("SELECT hash FROM release ORDER BY rowid DESC LIMIT 1").fetchone()
            previous = last[0] if last else ""
            row = Row(run, number, query, name, split, head, previous, "")
            # The replies of earlier releases are in the coordinator's transcript by now.
            self._db.execute("UPDATE release SET reply = NULL WHERE run = ? AND reply IS NOT NULL", (run,))
            self._db.execute(
                "INSERT INTO release (run, number, query, name, split, head, previous, hash) VALUES (?,?,?,?,?,?,?,?)",
                (run, number, query, name, split, head, previous, row.expected_hash()),
            )

    def seal(self, run: str, number: int, reply: bytes) -> None:
        """Keep the reply before it is sent."""
        with self._lock, self._writing():
            self._db.execute("UPDATE release SET reply = ? WHERE run = ? AND number = ?", (reply, run, number))

    def rows(self) -> list[Row]:
        """All releases, oldest first.

        Raises:
            StorageError: the file is damaged.
        """
        try:
            with self._lock:
                found = self._db.execute(
                    "SELECT run, number, query, name, split, head, previous, hash FROM release ORDER BY rowid"
                ).fetchall()
        except sqlite3.Error as error:
            raise StorageError(f"ledger {self._path}: cannot be read ({error}); restore the file") from None
        return [Row(*row) for row in found]

    def broken_row(self) -> Row | None:
        """The first row that does not fit its hash or the row before it; None where the chain holds."""
        previous = ""
        for row in self.rows():
            if row.previous != previous or row.hash != row.expected_hash():
                return row
            previous = row.hash
        return None

    def _writing(self) -> _Transaction:
        return _Transaction(self._db, self._path)


class _Transaction:
    """One write: whole or not at all."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db, self._path = db, path

    def __enter__(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise StorageError(f"ledger {self._path}: cannot be written ({error}); nothing was sent") from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            try:
                self._db.execute("COMMIT")
                return
            except sqlite3.Error as failure:
                error = failure
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error):
            raise StorageError(f"ledger {self._path}: cannot be written ({error}); nothing was sent") from None
