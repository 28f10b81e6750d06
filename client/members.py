"""Which patients an account stands for: keyed hashes of their identifiers, which stay in the ledger's own file."""

from __future__ import annotations

import hashlib
import hmac
from typing import NamedTuple

TAG_BYTES = 16
MEMBERS = "CREATE TABLE IF NOT EXISTS member (tag BLOB PRIMARY KEY, account TEXT NOT NULL, split TEXT NOT NULL) STRICT"


class Member(NamedTuple):
    """One patient of an account."""

    tag: bytes
    account: str
    split: str


def tag_of(key: bytes, patient: str) -> bytes:
    """HMAC-SHA256 of the identifier under the ledger's secret key, cut to 16 bytes."""
    return hmac.new(key, patient.encode(), hashlib.sha256).digest()[:TAG_BYTES]
