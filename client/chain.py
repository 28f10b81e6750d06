"""A list of entries in a SQLite file that is only ever added to, each entry chained by hash to the one before.

A write is whole or not at all, on the disk when it returns, and alone among all processes that have the file open;
whoever writes has first taken in what the others wrote.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.common.canonical import canonical_json, digest_json
from equipoise.common.errors import StorageError

_ENTRIES = (
    "CREATE TABLE IF NOT EXISTS entry (seq INTEGER PRIMARY KEY, body TEXT NOT NULL, previous TEXT NOT NULL, "
    "hash TEXT NOT NULL) STRICT"
)
PAGE_BYTES = 16384


@dataclass(frozen=True)
class Entry:
    """One entry: its place, what it says (with `kind` and `time`), and the two hashes that chain it."""

    seq: int
    body: Mapping[str, Any]
    previous: str
    hash: str

    @property
    def kind(self) -> str:
        """What the entry is about."""
        return str(self.body["kind"])

    def expected_hash(self) -> str:
        """The hash that the entry's content gives."""
        return digest_json([self.seq, self.body, self.previous])


class Chain:
    """The chained entries of one file, and tables beside them that the owner writes in the same transactions.

    Args:
        path: the SQLite file; made if missing.
        tables: statements that make the owner's tables.
        take_in: told every entry once, in order.
        start_again: told to forget all entries; they will be told again.
        durable: wait for the disk at every write. Without it a write survives the end of the process, not that of the
            machine, and each page is written once, to the file itself.

    Raises:
        StorageError: the file cannot be opened or written.
    """

    def __init__(
        self,
        path: Path,
        tables: Sequence[str],
        take_in: Callable[[Entry], None],
        start_again: Callable[[], None],
        durable: bool,
    ) -> None:
        self._path, self._tables, self._durable = path, (_ENTRIES, *tables), durable
        self._take_in, self._start_again = take_in, start_again
        self._seq, self._head = 0, ""
        self.lock = threading.RLock()
        self._db: sqlite3.Connection | None = self._opened()

    @property
    def db(self) -> sqlite3.Connection:
        """The file, opened again where it was put to rest; hold `lock` meanwhile."""
        if self._db is None:
            self._db = self._opened()
        return self._db

    def _opened(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # No statement is kept: one would hold on to the last reply that it wrote.
            db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, cached_statements=0)
            # A sealed reply of megabytes in pages of the default size costs half as much again. Files that there are
            # keep the size that they were made with.
            db.execute(f"PRAGMA page_size={PAGE_BYTES}")
            db.execute(f"PRAGMA journal_mode={'WAL' if self._durable else 'PERSIST'}")
            db.execute(f"PRAGMA synchronous={'FULL' if self._durable else 'OFF'}")
            # What was let go is overwritten at a hospital, whatever its SQLite was built with; scratch is not worth it.
            db.execute(f"PRAGMA secure_delete={'ON' if self._durable else 'OFF'}")
            db.execute("PRAGMA cache_size=-64")
            for table in self._tables:
                db.execute(table)
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"ledger {self._path}: cannot be opened or written ({error})") from None
        return db

    @property
    def head(self) -> str:
        """Hash of the last entry taken in."""
        return self._head

    def append(self, **body: Any) -> None:
        """Add an entry; inside `writing` only.

        The head goes to the coordinator, and entries hold what no noise protects, such as the data's fingerprint. The
        nonce, which never leaves, keeps anybody from trying contents until one fits.
        """
        timed = {**body, "time": round(time.time(), 3), "nonce": secrets.token_hex(16)}
        entry = Entry(self._seq + 1, timed, self._head, "")
        digest = entry.expected_hash()
        text = canonical_json(timed).decode("ascii")
        self.db.execute("INSERT INTO entry VALUES (?, ?, ?, ?)", (entry.seq, text, self._head, digest))
        self._advance(Entry(entry.seq, timed, self._head, digest))

    def catch_up(self) -> None:
        """Take in what another process added."""
        for entry in self.entries(self._seq):
            self._advance(entry)

    def _advance(self, entry: Entry) -> None:
        self._seq, self._head = entry.seq, entry.hash
        self._take_in(entry)

    def entries(self, after: int = 0) -> list[Entry]:
        """All entries past a place, oldest first.

        Raises:
            StorageError: the file is damaged.
        """
        try:
            with self.lock:
                rows = self.db.execute(
                    "SELECT seq, body, previous, hash FROM entry WHERE seq > ? ORDER BY seq", (after,)
                ).fetchall()
            return [Entry(seq, json.loads(body), previous, found) for seq, body, previous, found in rows]
        except (sqlite3.Error, ValueError) as error:
            raise StorageError(f"ledger {self._path}: cannot be read ({error}); restore the file") from None

    def broken(self) -> Entry | None:
        """The first entry that does not fit its hash or the entry before it; None where the chain holds."""
        previous, last = "", 0
        for entry in self.entries():
            if entry.previous != previous or entry.hash != entry.expected_hash() or entry.seq != last + 1:
                return entry
            previous, last = entry.hash, entry.seq
        return None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One write.

        Raises:
            StorageError: it could not be written; nothing of it was.
        """
        with self.lock:
            before = self._seq
            try:
                self.db.execute("BEGIN IMMEDIATE")
                self.catch_up()
                before = self._seq
                yield
                self.db.execute("COMMIT")
            except BaseException as error:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                if self._seq != before:
                    self._seq, self._head = 0, ""
                    self._start_again()
                if isinstance(error, sqlite3.Error):
                    raise StorageError(f"ledger {self._path}: cannot be written ({error}); nothing was sent") from None
                raise

    def rest(self) -> None:
        """Close the file until it is next needed."""
        with self.lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def close(self) -> None:
        """Close the file."""
        self.db.close()
