"""Whether a ledger is the one that its agent left: it has to hold every entry that the audit log names.

Without this, a ledger that was deleted, or put back from an older copy, would be a fresh account without a word, and
patients would pay twice what the hospital's caps allow. The audit log names, in the line of each reply, the entry of
the ledger that says what it cost, and that line is on the disk before the reply leaves. Somebody who takes both files
away is not found here, but by the coordinator's transcript, which names the same entries.
"""

from __future__ import annotations

from pathlib import Path

from equipoise.client.ledger import Ledger
from equipoise.common.audit import read_rows
from equipoise.common.errors import StorageError

LEDGER, AUDIT = "ledger.sqlite", "audit.jsonl"


def check_ledger(state: Path) -> None:
    """Refuse a ledger that lacks an entry which the audit log of the same folder names; makes no file.

    Raises:
        StorageError: it does, or it is not there.
        TranscriptError: a line of the audit log is no row.
    """
    file, log = state / LEDGER, state / AUDIT
    named = [str(row["ledger"]) for row in read_rows(log) if "ledger" in row]
    if not named:
        return
    # All are looked for: a reply that was given again names an earlier entry.
    held = _heads(file)
    missing = next((head for head in reversed(named) if head not in held), None)
    if missing is not None:
        what = "lacks" if file.exists() else "is missing, and so is"
        raise StorageError(
            f"{file}: {what} entry {missing[:12]}, which {log} names: it was deleted, or an older copy was put back; "
            "restore it from a backup made since; if it is lost for good, see docs/deploy.md (A ledger that is lost)"
        )


def _heads(file: Path) -> set[str]:
    if not file.exists():
        return set()
    ledger = Ledger(file)
    try:
        return {entry.hash for entry in ledger.entries()}
    finally:
        ledger.close()
