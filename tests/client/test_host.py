"""The site agent as a process: how it ends, and that a folder has one agent."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from equipoise.client.agent import SiteAgent
from equipoise.client.approvals import Approvals
from equipoise.client.resident import Resident
from equipoise.client.socket_door import SocketDoor
from equipoise.common.audit import check_rows, read_rows
from equipoise.common.errors import EquipoiseError
from equipoise.common.sitefile import load_site
from equipoise.common.study_plan import StudyPlan
from equipoise.common.wire import PROTOCOL, pack, unpack
from tests.tiny import declare, draw_people, private_study, request_for, write_hospital

PROGRAM = """
import sys, time
from pathlib import Path
from equipoise.client import host
from equipoise.client.agent import SiteAgent
from equipoise.common.errors import StorageError

def answer(self, request):
    Path(sys.argv[2], "begun").touch()
    while not Path(sys.argv[2], "go on").exists():
        time.sleep(0.05)
    return self._code("ok")

SiteAgent.answer = answer
host._GRACE_S = 0.1
try:
    host.run_agent(Path(sys.argv[1]), Path(sys.argv[2]), lambda line: print(line, flush=True))
except StorageError as error:
    print(error, flush=True)
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "cohort.csv").write_text("patient\n1\n")
    file = tmp_path / "site.yaml"
    file.write_text("site: ash\ndata: {manifest: cohort.csv, splits: {column: split}}\nsocket: {path: a.sock}\n")
    return file


@pytest.fixture
def agents(site: Path) -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for agent in started:
        agent.kill()
        agent.communicate()


def start(site: Path, agents: list[subprocess.Popen[str]]) -> str:
    """Start an agent; what it says first."""
    command = [sys.executable, "-c", PROGRAM, str(site), str(site.parent / "state")]
    agents.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    assert agents[-1].stdout is not None
    return agents[-1].stdout.readline()


def ask(site: Path) -> None:
    """Send a request that is answered slowly, and wait until the answer has begun."""
    request = pack({"protocol": PROTOCOL, "run": "r/x", "release": 1, "head": "h"}, {})

    def send() -> None:
        with suppress(EquipoiseError):
            SocketDoor(str(site.parent / "a.sock")).answer(request)

    threading.Thread(target=send, daemon=True).start()
    while not (site.parent / "state" / "begun").exists():
        time.sleep(0.05)


def test_until_the_last_answer_has_ended_the_folder_is_one_agents(
    site: Path, agents: list[subprocess.Popen[str]]
) -> None:
    assert "listens at" in start(site, agents)
    ask(site)
    agents[0].send_signal(signal.SIGTERM)
    time.sleep(0.5)  # more than the grace that calls are given
    assert agents[0].poll() is None
    assert "another site agent works on this folder" in start(site, agents)
    (site.parent / "state" / "go on").touch()
    assert agents[0].wait(60) == 0
    assert "listens at" in start(site, agents)
    log = site.parent / "state" / "audit.jsonl"
    check_rows(log)
    assert [row["event"] for row in read_rows(log)] == ["started", "request", "started"]


def test_a_second_signal_ends_it_at_once(site: Path, agents: list[subprocess.Popen[str]]) -> None:
    assert "listens at" in start(site, agents)
    ask(site)
    for _ in range(2):
        assert agents[0].poll() is None
        agents[0].send_signal(signal.SIGTERM)
        time.sleep(0.3)
    assert agents[0].wait(60) == 1


class Released:
    """A hospital whose agent has made a release, as its folder is left."""

    def __init__(self, folder: Path) -> None:
        self.study = declare(private_study(), {"a": 60})
        self.plan = StudyPlan.of(self.study).calibrated(self.study)
        self.file = write_hospital(folder, "a", draw_people(60, seed=3), range(60))
        self.state = self.file.parent / "state"
        self.ledger = self.state / "ledger.sqlite"
        value = yaml.safe_load(self.file.read_text())
        value["caps"] |= {"epsilon": 20, "split_minimum": 1}
        self.file.write_text(yaml.safe_dump({**value, "socket": {"path": "a.sock"}}))
        self.release("first")

    def release(self, run: str) -> None:
        agent = SiteAgent(load_site(self.file), self.state, approved=frozenset([self.study.hash]))
        resident = Resident(agent, "a", self.state, self.file, Approvals(self.state))
        reply = resident.answer(request_for(self.study, self.plan, self.plan.entries[0].query, run=run))
        agent.ledger.close()
        assert unpack(reply)[0]["code"] == "ok"


def test_a_ledger_that_was_deleted_is_no_fresh_account(tmp_path: Path, agents: list[subprocess.Popen[str]]) -> None:
    site = Released(tmp_path)
    for file in site.state.glob("ledger.sqlite*"):
        file.unlink()
    said = start(site.file, agents)
    assert f"{site.ledger}: is missing, and so is entry " in said
    assert "A ledger that is lost" in said
    assert not site.ledger.exists(), "where the backup belongs nothing is made"
    (site.state / "audit.jsonl").rename(site.state / "audit-lost.jsonl")  # knowingly, as the page says
    assert "listens at" in start(site.file, agents)


def test_an_older_copy_of_the_ledger_is_told_from_the_last_one(
    tmp_path: Path, agents: list[subprocess.Popen[str]]
) -> None:
    site = Released(tmp_path)
    shutil.copy(site.ledger, tmp_path / "older")
    site.release("second")
    shutil.copy(site.ledger, tmp_path / "last")
    shutil.copy(tmp_path / "older", site.ledger)
    last = read_rows(site.state / "audit.jsonl")[-1]
    with (site.state / "audit.jsonl").open("ab") as log:
        log.write(b'{"cut')  # as a power cut leaves it
    assert f"{site.ledger}: lacks entry {str(last['ledger'])[:12]}, which " in start(site.file, agents)
    shutil.copy(tmp_path / "last", site.ledger)
    assert "listens at" in start(site.file, agents)
