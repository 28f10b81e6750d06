"""The site's ledger: written before anything is computed, sealed before anything is sent, chained."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import threading
from pathlib import Path

import pytest

from equipoise.client.ledger import Ledger
from equipoise.common.errors import RefusedError, StorageError


def opened(folder: Path) -> Ledger:
    return Ledger(folder / "site" / "ledger.sqlite")


def fill(ledger: Ledger, count: int = 3, run: str = "run") -> None:
    for number in range(count):
        ledger.reserve(run, number, f"query {number}", "cell_statistics", "train", f"head {number}")
        ledger.seal(run, number, b"reply %d" % number)


def test_a_sealed_reply_is_recalled_byte_for_byte_and_by_its_own_request_alone(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    assert ledger.recall("run", 0, "query 0") is None
    ledger.reserve("run", 0, "query 0", "cell_statistics", "train", "head")
    assert ledger.recall("run", 0, "query 0") is None
    ledger.seal("run", 0, bytes(range(256)))
    assert ledger.recall("run", 0, "query 0") == bytes(range(256))
    assert ledger.recall("other", 0, "query 0") is None
    with pytest.raises(RefusedError, match="release 0 was another query before"):
        ledger.recall("run", 0, "query 1")
    ledger.close()
    again = opened(tmp_path)
    assert again.recall("run", 0, "query 0") == bytes(range(256))


def test_a_reply_is_kept_until_the_run_goes_on(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    fill(ledger, 2)
    fill(ledger, 1, run="other")
    assert ledger.recall("run", 0, "query 0") is None
    assert ledger.recall("run", 1, "query 1") == b"reply 1"  # another run's releases do not touch it
    with pytest.raises(RefusedError):
        ledger.recall("run", 0, "query 1")  # the number stays used


def test_reserving_twice_writes_once(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    for head in ("first", "second"):
        ledger.reserve("run", 0, "query", "cell_statistics", "train", head)
    assert [row.head for row in ledger.rows()] == ["first"]


def test_rows_are_chained_over_all_runs(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    fill(ledger, 2)
    fill(ledger, 2, run="other")
    rows = ledger.rows()
    assert [row.previous for row in rows] == ["", *(row.hash for row in rows[:-1])]
    assert ledger.broken_row() is None


@pytest.mark.parametrize("column", ["run", "number", "query", "name", "split", "head", "previous", "hash"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_edited_row_is_found(tmp_path: Path, column: str, place: int) -> None:
    ledger = opened(tmp_path)
    fill(ledger)
    ledger._db.execute(f"UPDATE release SET {column} = ? WHERE number = ?", (77, place))
    broken = ledger.broken_row()
    assert broken is not None
    assert ledger.rows().index(broken) in (place, place + 1)


def test_a_removed_row_is_found(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    fill(ledger)
    ledger._db.execute("DELETE FROM release WHERE number = 1")
    broken = ledger.broken_row()
    assert broken is not None
    assert broken.number == 2


def _die_inside(path: Path) -> None:
    ledger = Ledger(path)
    fill(ledger, 2)
    ledger._db.execute("BEGIN IMMEDIATE")
    ledger._db.execute("UPDATE release SET reply = X'00'")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_killed_inside_a_write_leaves_the_rows_whole(tmp_path: Path) -> None:
    path = tmp_path / "site" / "ledger.sqlite"
    process = multiprocessing.get_context("fork").Process(target=_die_inside, args=(path,))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    ledger = Ledger(path)
    assert ledger.broken_row() is None
    assert ledger.recall("run", 1, "query 1") == b"reply 1"


def test_two_threads_reserve_without_a_gap(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    threads = [threading.Thread(target=fill, args=(ledger, 20, name)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.rows()) == 40
    assert ledger.broken_row() is None


def test_what_cannot_be_written_is_one_line_and_nothing_is_half_written(tmp_path: Path) -> None:
    (tmp_path / "site").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match=r"ledger .* cannot be opened"):
        opened(tmp_path)
    ledger = opened(tmp_path / "good")
    fill(ledger, 1)
    ledger._db.execute("PRAGMA max_page_count = 1")  # a full disk
    with pytest.raises(StorageError, match="cannot be written") as caught:
        ledger.seal("run", 0, bytes(2**20))
    assert "\n" not in str(caught.value)
    ledger._db.execute("PRAGMA max_page_count = 100000")
    assert ledger.recall("run", 0, "query 0") == b"reply 0"
    assert ledger.broken_row() is None


def test_a_busy_file_is_reported(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    fill(ledger, 1)
    ledger._db.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(tmp_path / "site" / "ledger.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match=r"locked\); nothing was sent"):
        ledger.reserve("run", 1, "query", "cell_statistics", "train", "head")
    other.execute("ROLLBACK")
    ledger.reserve("run", 1, "query", "cell_statistics", "train", "head")
    assert len(ledger.rows()) == 2
