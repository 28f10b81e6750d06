"""`equipoise ledger`, by the very lines of docs/commands.md: what was released, what it cost, what was changed."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sqlite3
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from equipoise.client.ledger import Ledger
from equipoise.client.request import Request
from equipoise.common.canonical import digest_json
from tests.client.books import STUDY, answer, begin, table, vector
from tests.e2e.studies import Desk
from tests.e2e.terminal import Run

ROOT = Path(__file__).parents[2]
LEDGER = Path("sites/st-marys/ledger.sqlite")


@pytest.fixture
def run(desk: Desk, equipoise: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private audit's run; the current folder has the ledger of one of its sites where the page has it."""
    rng = np.random.default_rng(0)
    with (desk.folder / "pool.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["x0", "x1", "x2"])
        writer.writeheader()
        writer.writerows({f"x{i}": round(rng.uniform(-3, 3), 2) for i in range(3)} for _ in range(100))
    del desk.value["method"]
    privacy = {"mode": "local", "epsilon": 12, "public_pool": {"path": "pool.csv"}}
    desk.write_study(privacy=privacy, attributes=desk.value["attributes"][:1])
    ended = equipoise("evaluate", desk.study, "--out", desk.run)
    assert ended.code == 0, ended.err
    (tmp_path / LEDGER.parent).mkdir(parents=True)
    source, copy = sqlite3.connect(desk.run / "sites" / "ash" / "ledger.sqlite"), sqlite3.connect(tmp_path / LEDGER)
    with closing(source), closing(copy):
        source.backup(copy)
    monkeypatch.chdir(tmp_path)
    return desk.run


def line(name: str) -> list[str]:
    """The arguments of the page's line `equipoise ledger NAME ...`."""
    (found,) = re.findall(rf"^equipoise (ledger {name} .*)$", (ROOT / "docs" / "commands.md").read_text(), re.M)
    return shlex.split(found)


def test_show_lists_every_release_with_its_epsilon_and_what_the_account_has_spent(run: Path, equipoise: Run) -> None:
    ended = equipoise(*line("show"))
    assert ended.code == 0, ended.err
    *releases, account = ended.out.splitlines()
    rounds = [json.loads(row) for row in (run / "rounds.jsonl").read_text().splitlines()]
    assert [row.split()[3] for row in releases] == [row["query"] for row in rounds]
    assert all(" test " in row and " sealed " in row and float(row.split()[-1]) > 0 for row in releases)
    assert re.fullmatch(r"account main: epsilon 1[12]\.\d{3} at delta 1e-05", account), account
    found = json.loads(equipoise(*line("show"), "--json").out)
    assert found["accounts"][0]["epsilon"] == pytest.approx(float(account.split()[3]), abs=6e-4)
    assert [one["query"] for one in found["releases"]] == [row["query"] for row in rounds]


def test_verify_checks_the_chain_and_the_coordinators_witness(run: Path, equipoise: Run) -> None:
    witnessed = (*line("verify"), "--witness", run, "--site", "ash")
    assert re.match(r"\d+ entries, each follows from the one before", equipoise(*line("verify")).out)
    assert re.search(r"all [1-9]\d* entries that the transcripts name are there", equipoise(*witnessed).out)
    with closing(sqlite3.connect(LEDGER)) as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(entry)")]
        kept = db.execute("SELECT * FROM entry ORDER BY seq").fetchall()
        changed = {**json.loads(kept[-2][columns.index("body")]), "account": "other"}
        db.execute("UPDATE entry SET body = ? WHERE seq = ?", (json.dumps(changed), kept[-2][columns.index("seq")]))
        db.commit()
    ended = equipoise(*line("verify"))
    assert ended.code == 7
    assert "was changed, or one before it was removed; restore the file" in ended.err


def test_export_writes_every_entry_with_hashes_that_anybody_can_check(run: Path, equipoise: Run) -> None:
    ended = equipoise(*line("export"))
    rows = [json.loads(row) for row in ended.out.splitlines()]
    assert len(rows) >= 2 * 3
    for before, row in pairwise(rows):
        assert row["previous"] == before["hash"]
    assert {row["body"]["kind"] for row in rows} >= {"study", "release", "seal", "close"}
    assert all(row["hash"] == digest_json([row["seq"], row["body"], row["previous"]]) for row in rows)


def test_an_account_has_spent_what_its_dearest_split_has(
    tmp_path: Path, equipoise: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of splits that are dearest at different Renyi orders, not the dearest order of each."""
    monkeypatch.chdir(tmp_path)
    ledger = Ledger(LEDGER)
    queries = [vector(0, noise=1.0), *(table(i, noise=2.0) for i in range(1, 4))]
    begin(ledger, queries)
    for query in queries:
        answer(ledger, query)
    ledger.close()
    found = json.loads(equipoise(*line("show"), "--json").out)["accounts"][0]
    assert len(set(found["splits"].values())) == 2
    assert found["epsilon"] == max(found["splits"].values())
    assert found["reserved_epsilon"] == found["epsilon"]


def test_an_attempt_that_broke_off_is_not_shown_as_sealed(
    tmp_path: Path, equipoise: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ledger, query = Ledger(LEDGER), vector(0)
    begin(ledger, [query])
    first = Request(STUDY, "run/swift", 0, "head")
    ledger.reserve(first, query, "main")
    answer(ledger, query, replace(first, attempt=1))
    ledger.close()
    broken_off, sealed, _ = equipoise(*line("show")).out.splitlines()
    assert " charged " in broken_off
    assert "attempt" not in broken_off
    assert " sealed " in sealed
    assert sealed.endswith("  attempt 1")
    releases = json.loads(equipoise(*line("show"), "--json").out)["releases"]
    assert [(one["attempt"], one["state"]) for one in releases] == [(0, "charged"), (1, "sealed")]


def test_end_takes_the_beginning_of_a_hash_and_says_when_no_such_run_is_in_progress(
    tmp_path: Path, equipoise: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = Ledger(LEDGER)
    begin(ledger, [vector(0), vector(1)])
    answer(ledger, vector(0))
    ledger.close()
    before = equipoise(*line("export")).out
    for study, run in (("0123456789ab", "run"), (STUDY[:12], "no-such-run")):
        ended = equipoise("ledger", "end", LEDGER, study, run)
        assert ended.code == 2
        assert f"no run in progress, or several; in progress: run of {STUDY[:12]}; nothing was changed" in ended.err
    assert equipoise(*line("export")).out == before
    assert "has ended" in equipoise("ledger", "end", LEDGER, STUDY[:12], "run").out
    account = json.loads(equipoise(*line("show"), "--json").out)["accounts"][0]
    assert account["reserved_epsilon"] == account["epsilon"]
    assert "in progress: none" in equipoise("ledger", "end", LEDGER, STUDY[:12], "run").err


def test_a_file_that_is_no_ledger_is_one_line(equipoise: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("show", "verify", "export"):
        ended = equipoise(*line(name))
        assert ended.code == 2
        assert "no ledger there; give the ledger.sqlite" in ended.err
