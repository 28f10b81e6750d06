"""The site's ledger: written before anything is computed, sealed before anything is sent, chained, never too low."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.client import chain
from equipoise.client.accounts import Account
from equipoise.client.ledger import MOST_ATTEMPTS, MOST_RESENDS, Charge, Ledger
from equipoise.client.request import Request
from equipoise.common.canonical import sha256
from equipoise.common.errors import RefusedError, StorageError
from equipoise.common.privacy.accounting import ORDERS, PrivacyCost, rdp_curve
from equipoise.common.query import Query
from tests.client.books import CAPS, STUDY, answer, begin, by_split, kinds, open_count, opened, request, reserve, table
from tests.client.books import vector as vector_query

QUERIES = [vector_query(0), vector_query(1), table(2)]


def fill(ledger: Ledger, run: str = "run", caps: PrivacyCost | None = None) -> None:
    """A whole run: begun, asked, ended."""
    begin(ledger, QUERIES, run, caps)
    for query in QUERIES:
        answer(ledger, query, request(query.index or 0, run), compute=lambda q=query: b"reply %d" % (q.index or 0))
    ledger.end_run(request(3, run, head="last"), done=True)


def spent(account: Account, split: str, *, with_reserved: bool = False) -> float:
    """Renyi cost of a split at order 2, of which Gaussian releases have 1 / noise^2 each."""
    return float(account.spent(split, with_reserved=with_reserved).honest[ORDERS.index(2.0)])


def price(*queries: Query) -> float:
    """The same of queries, all on one split."""
    return float(rdp_curve([query.plan.event for query in queries], [2.0])[0])


# --- the head ---


def test_nobody_can_try_contents_until_one_fits_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head leaves with every reply, and entries name the data's fingerprint and the number of patients."""
    monkeypatch.setattr(chain.time, "time", lambda: 1e9)
    ledgers = [opened(tmp_path / name) for name in ("one", "other")]
    for ledger in ledgers:
        begin(ledger, [vector_query(0)])
        ledger.pin_data(STUDY, "run", "f" * 64)
    first, second = (ledger.entries() for ledger in ledgers)
    nonces = {entry.body["nonce"] for entry in (*first, *second)}
    assert len(nonces) == len(first) + len(second)
    assert all(len(nonce) == 32 for nonce in nonces)
    assert not {entry.hash for entry in first} & {entry.hash for entry in second}


# --- reserve, seal, close -----------------------------------------------------------------------------------------


def test_a_run_reserves_all_charges_what_it_asks_and_gives_the_rest_back(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    assert spent(ledger.account("main"), "train") == 0
    begin(ledger, QUERIES)
    assert spent(ledger.account("main"), "train") == 0
    assert spent(ledger.account("main"), "train", with_reserved=True) == pytest.approx(price(*QUERIES[:2]))
    assert spent(ledger.account("main"), "test", with_reserved=True) == pytest.approx(price(QUERIES[2]))
    answer(ledger, QUERIES[0])
    assert spent(ledger.account("main"), "train") == pytest.approx(price(QUERIES[0]))
    # What left reserved entered charged: together they stay what the plan costs.
    assert spent(ledger.account("main"), "train", with_reserved=True) == pytest.approx(price(*QUERIES[:2]))
    ledger.end_run(request(1, head="last of an arm"), done=False)
    assert spent(ledger.account("main"), "train", with_reserved=True) == pytest.approx(price(*QUERIES[:2]))
    ledger.end_run(request(1, head="last"), done=True)
    assert spent(ledger.account("main"), "train", with_reserved=True) == pytest.approx(price(QUERIES[0]))
    assert spent(ledger.account("main"), "test", with_reserved=True) == 0
    assert kinds(ledger) == ["study", "release", "seal", "close", "close"]


def test_a_release_is_charged_before_it_is_computed_and_whatever_then_happens(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    begin(ledger, QUERIES)

    def fail() -> bytes:
        assert spent(ledger.account("main"), "train") == pytest.approx(price(QUERIES[0]))
        raise MemoryError

    with pytest.raises(MemoryError):
        answer(ledger, QUERIES[0], compute=fail)
    assert kinds(ledger) == ["study", "release"]
    again = opened(tmp_path)
    assert spent(again.account("main"), "train") == pytest.approx(price(QUERIES[0]))
    # Nothing left the door, so to try it once more costs nothing more.
    assert answer(again, QUERIES[0]) == b"reply"
    assert kinds(again) == ["study", "release", "seal"]
    assert spent(again.account("main"), "train") == pytest.approx(price(QUERIES[0]))


def test_entries_say_what_was_asked_and_what_it_cost(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    begin(ledger, QUERIES)
    before = ledger.head
    charge = reserve(ledger, QUERIES[0], request(0, head="head 0"))
    ledger.seal(charge, b"reply")
    study, release, seal = (entry.body for entry in ledger.entries())
    assert study["reserved"]["train"]["events"] == [query.plan.event.to_json() for query in QUERIES[:2]]
    assert set(study["reserved"]) == {"train", "test"}
    assert (study["study"], study["run"], study["account"], study["plan"]) == (STUDY, "run", "main", "p" * 64)
    assert (release["study"], release["run"], release["number"]) == (STUDY, "run/swift", 0)
    assert (release["head"], release["index"], release["query"]) == ("head 0", 0, QUERIES[0].digest)
    assert release["event"] == QUERIES[0].plan.event.to_json()
    assert release["event_if_others_collude"] == QUERIES[0].plan.event_if_others_collude.to_json()
    assert (release["name"], release["split"], release["account"]) == ("whitened_gradient", "train", "main")
    assert seal["reply"] == sha256(b"reply")
    # The charge names the ledger as it stands with this release in it.
    assert charge.head == ledger.entries()[1].hash != before


def test_a_release_without_noise_is_counted_and_has_no_price(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    begin(ledger, [open_count()])
    answer(ledger, open_count())
    account = ledger.account("main")
    assert account.unprotected == 1
    assert spent(account, "train", with_reserved=True) == 0


def test_what_was_not_begun_or_has_ended_asks_nothing(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    with pytest.raises(RefusedError, match="run run: nothing is reserved for it at account 'main'"):
        reserve(ledger, QUERIES[0])
    begin(ledger, QUERIES)
    with pytest.raises(RefusedError, match="nothing is reserved for it at account 'second'"):
        reserve(ledger, QUERIES[0], account="second")
    with pytest.raises(RefusedError, match="run other: nothing is reserved"):
        reserve(ledger, QUERIES[0], request(0, run="other"))
    ledger.end_run(request(0), done=True)
    with pytest.raises(RefusedError, match="run run has ended; it may ask nothing more"):
        reserve(ledger, QUERIES[0])
    with pytest.raises(RefusedError, match="has ended; start another run"):
        begin(ledger, QUERIES)
    ledger.end_run(request(0), done=True)  # once more changes nothing
    ledger.end_run(request(0, run="a run that never began"), done=True)
    assert kinds(ledger) == ["study", "close"]


def test_a_run_keeps_its_plan_and_begins_once(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    for _ in range(3):
        begin(ledger, QUERIES, caps=CAPS)
    assert kinds(ledger) == ["study"]
    with pytest.raises(RefusedError, match="began with another plan"):
        begin(ledger, QUERIES, plan="q" * 64)
    begin(ledger, QUERIES, run="other", plan="q" * 64)


def test_an_index_of_the_plan_is_asked_once_under_any_number_arm_and_process(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    begin(ledger, QUERIES)
    answer(ledger, QUERIES[0])
    again = opened(tmp_path)
    for book in (ledger, again):
        for asked in (request(1), request(0, arm="plain"), request(7, arm="evaluation")):
            with pytest.raises(RefusedError, match="query 0 of the plan was asked already"):
                answer(book, QUERIES[0], asked)
    begin(ledger, QUERIES, run="other")
    answer(ledger, QUERIES[0], request(0, run="other"))
    assert spent(again.account("main"), "train") == pytest.approx(2 * price(QUERIES[0]))


# --- once, and byte for byte --------------------------------------------------------------------------------------


def test_a_sealed_reply_is_recalled_byte_for_byte_and_by_its_own_request_alone(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    begin(ledger, QUERIES)
    assert ledger.recall(request(0), QUERIES[0].digest) is None
    charge = reserve(ledger, QUERIES[0])
    assert ledger.recall(request(0), QUERIES[0].digest) is None
    ledger.seal(charge, bytes(range(256)))
    assert ledger.recall(request(0), QUERIES[0].digest) == bytes(range(256))
    assert ledger.recall(request(0, arm="other"), QUERIES[0].digest) is None
    assert ledger.recall(Request("6" * 64, "run/swift", 0, "head"), QUERIES[0].digest) is None
    with pytest.raises(RefusedError, match="release 0 was another query before"):
        ledger.recall(request(0), QUERIES[1].digest)
    ledger.close()
    again = opened(tmp_path)
    assert again.recall(request(0), QUERIES[0].digest) == bytes(range(256))


def test_a_reply_is_let_go_when_its_run_goes_on_and_is_then_refused(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    begin(ledger, QUERIES)
    begin(ledger, QUERIES, run="other")
    answer(ledger, QUERIES[0])
    answer(ledger, QUERIES[0], request(0, run="other"))
    answer(ledger, QUERIES[1])
    for book in (ledger, opened(tmp_path)):
        with pytest.raises(RefusedError, match="release 0 was answered, and its reply was let go"):
            answer(book, QUERIES[0])
        assert book.recall(request(1), QUERIES[1].digest) == b"reply"
        assert book.recall(request(0, run="other"), QUERIES[0].digest) == b"reply"  # another run does not touch it
    kept = ledger._chain.db.execute("SELECT run, number FROM sealed WHERE reply IS NOT NULL ORDER BY run").fetchall()
    assert kept == [("other/swift", 0), ("run/swift", 1)]


def test_what_a_hospitals_ledger_lets_go_is_no_longer_in_its_file(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    begin(ledger, QUERIES)
    answer(ledger, QUERIES[0], compute=lambda: b"the reply of release 0" * 10_000)
    answer(ledger, QUERIES[1])
    assert ledger._chain.db.execute("PRAGMA secure_delete").fetchone() == (1,)  # which few builds of SQLite begin with
    scratch = opened(tmp_path / "scratch", durable=False)
    assert scratch._chain.db.execute("PRAGMA secure_delete").fetchone() == (0,)
    ledger.close()  # which writes back what lies beside the file
    assert [file.name for file in (tmp_path / "site").iterdir()] == ["ledger.sqlite"]
    assert b"the reply of release 0" not in (tmp_path / "site" / "ledger.sqlite").read_bytes()


def test_a_computation_that_breaks_off_is_tried_a_bounded_number_of_times(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    begin(ledger, QUERIES)

    def fail() -> bytes:
        raise MemoryError

    for _ in range(MOST_ATTEMPTS):
        with pytest.raises(MemoryError):
            answer(ledger, QUERIES[0], compute=fail)
    for book in (ledger, opened(tmp_path)):
        with pytest.raises(RefusedError, match=f"release 0 broke off {MOST_ATTEMPTS} times; it is not tried again"):
            answer(book, QUERIES[0])
    assert kinds(ledger) == ["study", "release"]


def test_a_reply_is_sent_a_bounded_number_of_times(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    begin(ledger, QUERIES)
    for _ in range(MOST_RESENDS + 1):
        assert answer(ledger, QUERIES[0]) == b"reply"
    for book in (ledger, opened(tmp_path)):
        with pytest.raises(RefusedError, match=f"release 0 was sent {MOST_RESENDS + 1} times; it is not sent again"):
            answer(book, QUERIES[0])


def test_of_two_processes_with_one_request_one_seals_and_the_other_sends_nothing(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    begin(first, QUERIES)
    assert first.recall(request(0), QUERIES[0].digest) is None
    assert second.recall(request(0), QUERIES[0].digest) is None
    # Both have begun to compute, each with its own noise: only one of the two may leave, since one is charged.
    charges = [reserve(book, QUERIES[0]) for book in (first, second)]
    second.seal(charges[1], b"noise of the second")
    with pytest.raises(RefusedError, match="sealed by another process"):
        first.seal(charges[0], b"noise of the first")
    for book in (first, second):
        assert book.recall(request(0), QUERIES[0].digest) == b"noise of the second"
        assert kinds(book) == ["study", "release", "seal"]
    with pytest.raises(RefusedError, match="sealed"):
        reserve(first, QUERIES[0])  # an answer is there already: nothing may be computed anew
    answer(second, QUERIES[1])
    with pytest.raises(RefusedError, match="sealed by another process"):
        first.seal(charges[0], b"noise of the first")
    assert spent(first.account("main"), "train") == pytest.approx(price(*QUERIES[:2]))


def test_a_number_cannot_be_paid_for_by_another_query_that_came_at_the_same_time(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    begin(first, QUERIES)
    assert first.recall(request(0), QUERIES[0].digest) is None
    assert second.recall(request(0), QUERIES[1].digest) is None
    reserve(first, QUERIES[0], request(0))
    with pytest.raises(RefusedError, match="release 0 was another query before"):
        reserve(second, QUERIES[1], request(0))
    assert [entry.body["index"] for entry in second.entries() if entry.kind == "release"] == [0]


# --- charges ------------------------------------------------------------------------------------------------------


def test_a_charge_comes_from_the_ledger_and_pays_once_for_its_query(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="a charge comes from the ledger"):
        Charge(request(0), QUERIES[0].digest, "head", object())
    ledger = opened(tmp_path)
    begin(ledger, QUERIES)
    charge = reserve(ledger, QUERIES[0])
    for query in (QUERIES[1], QUERIES[0].with_inputs(model={})):
        with pytest.raises(RefusedError, match="pays for one release of one query"):
            charge.use(query.digest)
    charge.use(QUERIES[0].digest)
    with pytest.raises(RefusedError, match="pays for one release of one query"):
        charge.use(QUERIES[0].digest)


# --- the chain ----------------------------------------------------------------------------------------------------


def test_entries_are_chained_over_all_runs(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    fill(ledger)
    fill(ledger, run="other")
    entries = ledger.entries()
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert [entry.previous for entry in entries] == ["", *(entry.hash for entry in entries[:-1])]
    assert ledger.head == entries[-1].hash
    assert ledger.broken_entry() is None
    assert opened(tmp_path).head == ledger.head


def edited(ledger: Ledger, seq: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what an entry says, behind the ledger's back."""
    (text,) = ledger._chain.db.execute("SELECT body FROM entry WHERE seq = ?", (seq,)).fetchone()
    body = json.loads(text)
    change(body)
    ledger._chain.db.execute("UPDATE entry SET body = ? WHERE seq = ?", (json.dumps(body), seq))


@pytest.mark.parametrize("seq", range(1, 9))
def test_an_edited_entry_is_found(tmp_path: Path, seq: int) -> None:
    ledger = opened(tmp_path)
    fill(ledger)
    keys = list(ledger.entries()[seq - 1].body)
    for key in keys:
        shutil.copytree(tmp_path / "site", tmp_path / key / "site")
        book = opened(tmp_path / key)
        edited(book, seq, lambda body, key=key: body.update({key: "another"}))
        broken = book.broken_entry()
        assert broken is not None, key
        assert broken.seq == seq, key


@pytest.mark.parametrize("column", ["previous", "hash"])
def test_an_edited_hash_is_found(tmp_path: Path, column: str) -> None:
    ledger = opened(tmp_path)
    fill(ledger)
    ledger._chain.db.execute(f"UPDATE entry SET {column} = ? WHERE seq = 3", ("0" * 64,))
    broken = ledger.broken_entry()
    assert broken is not None
    assert broken.seq == 3


def test_a_removed_or_renumbered_entry_is_found(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    fill(ledger)
    ledger._chain.db.execute("BEGIN")
    for change in ("DELETE FROM entry WHERE seq = 3", "UPDATE entry SET seq = 30 WHERE seq = 8"):
        ledger._chain.db.execute("SAVEPOINT here")
        ledger._chain.db.execute(change)
        broken = ledger.broken_entry()
        assert broken is not None
        assert broken.seq in (4, 30)
        ledger._chain.db.execute("ROLLBACK TO here")
    assert ledger.broken_entry() is None


# --- the disk -----------------------------------------------------------------------------------------------------


def test_a_hospitals_ledger_waits_for_the_disk_and_a_simulations_does_not(tmp_path: Path) -> None:
    for durable, level, journal in ((True, 2, "wal"), (False, 0, "persist")):
        ledger = opened(tmp_path / str(durable), durable)
        assert ledger._chain.db.execute("PRAGMA synchronous").fetchone() == (level,)
        assert ledger._chain.db.execute("PRAGMA journal_mode").fetchone() == (journal,)


def test_a_ledger_at_rest_has_no_file_open_and_goes_on_where_it_was(tmp_path: Path) -> None:
    for durable in (True, False):
        ledger, other = opened(tmp_path / str(durable), durable), opened(tmp_path / str(durable), durable)
        begin(ledger, QUERIES)
        file = str(tmp_path / str(durable))
        assert len(open_files(file)) >= 2
        ledger.rest()
        ledger.rest()
        other.rest()
        assert open_files(file) == []
        begin(other, QUERIES)  # begun already, as it finds
        assert answer(other, QUERIES[0]) == b"reply"
        other.rest()
        assert answer(ledger, QUERIES[0], compute=lambda: b"another") == b"reply"
        assert kinds(ledger) == ["study", "release", "seal"]
        assert ledger.broken_entry() is None


def open_files(folder: str) -> list[str]:
    """Files of this process below a folder."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(link))
    return [name for name in found if name.startswith(folder)]


def test_what_cannot_be_written_is_one_line_and_nothing_is_half_written(tmp_path: Path) -> None:
    (tmp_path / "site").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match=r"ledger .* cannot be opened"):
        opened(tmp_path)
    ledger = opened(tmp_path / "good")
    begin(ledger, QUERIES)
    answer(ledger, QUERIES[0])
    charge = reserve(ledger, QUERIES[1])
    before = ledger.head
    ledger._chain.db.execute("PRAGMA max_page_count = 1")  # a full disk
    with pytest.raises(StorageError, match=r"cannot be written .*; nothing was sent") as caught:
        ledger.seal(charge, bytes(2**20))
    assert "\n" not in str(caught.value)
    assert ledger.head == before
    ledger._chain.db.execute("PRAGMA max_page_count = 100000")
    # The release is still open and can be tried again.
    assert answer(ledger, QUERIES[1]) == b"reply"
    assert ledger.broken_entry() is None


def test_a_busy_file_is_reported(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    begin(ledger, QUERIES)
    ledger._chain.db.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(tmp_path / "site" / "ledger.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match=r"locked\); nothing was sent"):
        reserve(ledger, QUERIES[0])
    other.execute("ROLLBACK")
    reserve(ledger, QUERIES[0])
    assert kinds(ledger) == ["study", "release"]


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    fill(ledger)
    ledger._chain.db.execute("UPDATE entry SET body = 'no JSON' WHERE seq = 2")
    with pytest.raises(StorageError, match=r"cannot be read .*; restore the file") as caught:
        ledger.entries()
    assert "\n" not in str(caught.value)
    ledger.close()
    (tmp_path / "site" / "ledger.sqlite").write_bytes(b"not a database" * 500)
    with pytest.raises(StorageError, match="cannot be opened or written"):
        opened(tmp_path)


# --- threads and processes ----------------------------------------------------------------------------------------


def test_two_threads_write_without_a_gap(tmp_path: Path) -> None:
    ledger = opened(tmp_path, durable=False)

    def work(name: str) -> None:
        for number in range(5):
            fill(ledger, f"{name} {number}")

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.entries()) == 10 * 8
    assert ledger.broken_entry() is None
    assert spent(ledger.account("main"), "train", with_reserved=True) == pytest.approx(10 * price(*QUERIES[:2]))


def _begin_many(path: Path, name: str, attempts: int, barrier: Any, admitted: Any) -> None:
    ledger = Ledger(path, durable=False)
    barrier.wait()
    count = 0
    for number in range(attempts):
        try:
            begin(ledger, QUERIES, f"{name} {number}", CAPS)
        except RefusedError:
            continue
        count += 1
        answer(ledger, QUERIES[0], request(0, f"{name} {number}"))
    admitted.put(count)


def test_two_processes_at_once_never_overspend_a_cap(tmp_path: Path) -> None:
    alone = opened(tmp_path / "alone", durable=False)
    fitting = 0
    while True:
        try:
            begin(alone, QUERIES, f"run {fitting}", CAPS)
        except RefusedError:
            break
        fitting += 1
    assert fitting > 20
    attempts = fitting * 3 // 4  # more than the cap allows, and fewer than one process needs to get there by itself
    fork = multiprocessing.get_context("fork")
    path, barrier, admitted = tmp_path / "site" / "ledger.sqlite", fork.Barrier(2), fork.Queue()
    opened(tmp_path, durable=False).close()
    processes = [
        fork.Process(target=_begin_many, args=(path, name, attempts, barrier, admitted)) for name in ("one", "two")
    ]
    for process in processes:
        process.start()
    counts = [admitted.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert sum(counts) == fitting
    ledger = opened(tmp_path, durable=False)
    assert ledger.broken_entry() is None
    ledger.check_caps("main", CAPS)
    with pytest.raises(RefusedError, match=r"releases on t\w+ do not fit under caps.epsilon=3"):
        begin(ledger, QUERIES, "one more", CAPS)
    assert spent(ledger.account("main"), "train", with_reserved=True) == pytest.approx(fitting * price(*QUERIES[:2]))


# --- kill -9 ------------------------------------------------------------------------------------------------------


class Mortal:
    """A connection whose process gets SIGKILL at its `last` step: one before each statement, one after each COMMIT."""

    def __init__(self, connection: sqlite3.Connection, last: int) -> None:
        self._connection, self._left = connection, last

    def _step(self) -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        self._step()
        cursor = self._connection.execute(statement, *values)
        if statement == "COMMIT":
            self._step()
        return cursor

    def executemany(self, statement: str, rows: Any) -> sqlite3.Cursor:
        self._step()
        return self._connection.executemany(statement, rows)

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def close(self) -> None:
        self._connection.close()


PATIENTS = [("p1", "train"), ("p2", "train"), ("p3", "test")]
LIFE = [vector_query(0), table(1)]


def a_sites_life(path: Path, sent: Path, mark: str) -> None:
    """What an agent does in a run; every reply that leaves is a line of `sent`."""
    ledger = Ledger(path, durable=False)  # a process that is killed loses nothing that it wrote, synced or not
    for query in LIFE:
        asked = request(query.index or 0, head=f"head {query.index}")
        reply = ledger.recall(asked, query.digest)
        if reply is None:
            begin(ledger, LIFE, caps=CAPS)
            ledger.pin_data(STUDY, "run", "fingerprint")
            ledger.register("main", PATIENTS, "fingerprint")
            ledger.check_caps("main", CAPS)
            charge = ledger.reserve(asked, query, "main")
            reply = f"{query.index} with the noise of {mark}".encode()
            ledger.seal(charge, reply)
        with sent.open("ab") as file:
            file.write(reply + b"\n")
    ledger.end_run(request(2, head="last"), done=True)
    ledger.close()


def steps_of_a_life(folder: Path) -> int:
    """How many steps there are to be killed at."""
    connections = []

    def connect(*values: Any, **options: Any) -> Mortal:
        connections.append(Mortal(sqlite3.connect(*values, **options), 10**6))
        return connections[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain, "sqlite3", Patched(connect))
        a_sites_life(folder / "ledger.sqlite", folder / "sent", "nobody")
    return 10**6 - connections[0]._left


class Patched:
    """The module sqlite3 with another `connect`."""

    Error = sqlite3.Error

    def __init__(self, connect: Callable[..., Any]) -> None:
        self.connect = connect


def _live_and_die(path: Path, sent: Path, last: int) -> None:
    chain.sqlite3 = Patched(lambda *v, **o: Mortal(sqlite3.connect(*v, **o), last))  # type: ignore[assignment]
    a_sites_life(path, sent, f"life {last}")


def refused_to_live_again(path: Path, sent: Path) -> str | None:
    """Why the run cannot go on from its beginning, or None where it went on to its end."""
    try:
        a_sites_life(path, sent, "the second life")
    except RefusedError as error:
        return str(error)
    return None


def test_a_process_killed_at_any_write_never_counts_too_little_and_never_sends_two_answers(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    steps = steps_of_a_life(whole)
    assert steps > 60
    for last in range(steps):
        folder = tmp_path / str(last)
        folder.mkdir()
        path, sent = folder / "ledger.sqlite", folder / "sent"
        process = multiprocessing.get_context("fork").Process(target=_live_and_die, args=(path, sent, last))
        process.start()
        process.join(30)
        assert process.exitcode == -signal.SIGKILL, f"step {last}"
        left = [int(line[:1]) for line in sent.read_bytes().splitlines()] if sent.exists() else []
        ledger = Ledger(path)
        assert ledger.broken_entry() is None, f"step {last}"
        charged = [entry.body["index"] for entry in ledger.entries() if entry.kind == "release"]
        sealed = [entry.body["number"] for entry in ledger.entries() if entry.kind == "seal"]
        assert set(left) <= set(sealed) <= set(charged), f"step {last}: what left the door was not charged"
        account = ledger.account("main")
        for split, mine in (("train", LIFE[:1]), ("test", LIFE[1:])):
            gone = [query for query in mine if query.index in left]
            assert spent(account, split) >= price(*gone) * (1 - 1e-12), f"step {last}"
            if gone:  # and the rest of the plan stays reserved until the run is over
                whole_split = spent(account, split, with_reserved=True)
                ended = any(entry.kind == "close" for entry in ledger.entries())
                assert ended or whole_split == pytest.approx(price(*mine)), f"step {last}"
        ledger.close()
        # The run goes on from where the coordinator was: it asks again for what it did not get.
        before = sent.read_bytes().splitlines() if sent.exists() else []
        refusal = refused_to_live_again(path, sent)
        if refusal is not None:
            # Only what had been answered is refused: its reply was let go when the run went on, or the run is over.
            assert left
            assert "was let go" in refusal or "has ended" in refusal, f"step {last}: {refusal}"
            continue
        after = sent.read_bytes().splitlines()
        for reply in before:
            again = [line for line in after if line[:1] == reply[:1]]
            assert set(again) == {reply}, f"step {last}: two answers to one request"
        ledger = Ledger(path)
        assert spent(ledger.account("main"), "train", with_reserved=True) == pytest.approx(price(LIFE[0]))
        assert spent(ledger.account("main"), "test", with_reserved=True) == pytest.approx(price(LIFE[1]))
        assert kinds(ledger).count("release") == 2
        assert ledger.broken_entry() is None
        ledger.close()


def test_the_rows_that_reserve_are_those_of_the_plan(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    begin(ledger, QUERIES)
    again = opened(tmp_path)
    for split, plans in by_split(QUERIES).items():
        expected = rdp_curve([plan.event for plan in plans], ORDERS)
        assert again.account("main").spent(split).honest == pytest.approx(expected)
