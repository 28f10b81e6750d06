"""Which patients an account stands for: keyed hashes of their identifiers, which stay in the ledger's own file."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
from collections.abc import Iterable, Mapping

TAG_BYTES = 16
TABLES = (
    "CREATE TABLE IF NOT EXISTS member (tag BLOB PRIMARY KEY, account TEXT NOT NULL, split TEXT NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS note (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT",
)


class Members:
    """The members of all accounts, in the ledger's file; whoever writes holds the ledger's lock."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def fingerprint(self, account: str) -> str | None:
        """That of the data whose patients were kept last; None where none were."""
        found = self._note(f"patients of {account}")
        return None if found is None else found.decode()

    def tags(self, patients: Iterable[tuple[str, str]]) -> dict[bytes, str]:
        """Tag -> split: HMAC-SHA256 of each identifier under the ledger's secret key, cut to 16 bytes."""
        key = self._note("member key")
        if key is None:
            key = secrets.token_bytes(32)
            self._db.execute("INSERT INTO note VALUES ('member key', ?)", (key,))
        return {
            hmac.new(key, patient.encode(), hashlib.sha256).digest()[:TAG_BYTES]: split for patient, split in patients
        }

    def known(self, tags: Mapping[bytes, str]) -> tuple[set[str], int]:
        """Accounts that some of the patients belong to, and how many patients lay in another split before."""
        accounts, moved = set(), 0
        for tag, account, split in self._db.execute("SELECT tag, account, split FROM member"):
            if tag in tags:
                accounts.add(account)
                moved += split != tags[tag]
        return accounts, moved

    def keep(self, account: str, tags: Mapping[bytes, str], fingerprint: str, moved: bool) -> None:
        """Note that these are patients of the account, from data with this fingerprint.

        Where some `moved` to another split, all other accounts are registered anew before they are asked again: their
        data may still have those patients where they were.
        """
        if moved:
            self._db.execute("DELETE FROM note WHERE name LIKE 'patients of %'")
        rows = [(tag, account, split) for tag, split in tags.items()]
        self._db.executemany("INSERT OR REPLACE INTO member VALUES (?, ?, ?)", rows)
        note = (f"patients of {account}", fingerprint.encode())
        self._db.execute("INSERT OR REPLACE INTO note VALUES (?, ?)", note)

    def _note(self, name: str) -> bytes | None:
        found = self._db.execute("SELECT value FROM note WHERE name = ?", (name,)).fetchone()
        return None if found is None else bytes(found[0])
