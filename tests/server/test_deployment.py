"""A deployed run on an in-process grid: proposal, approval, run, report; killed anywhere, it asks nothing twice."""

import fcntl
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from typer.testing import CliRunner

from equipoise import __version__
from equipoise.cli import app
from equipoise.client import door
from equipoise.client.agent import SiteAgent
from equipoise.client.app import app as stub
from equipoise.client.approvals import Approvals
from equipoise.client.resident import PAUSED, Resident
from equipoise.common.audit import check_rows, read_rows
from equipoise.common.errors import EquipoiseError, QuorumError, StorageError, TranscriptError
from equipoise.common.sitefile import load_site
from equipoise.common.study_file import load_study
from equipoise.common.study_plan import arms_of
from equipoise.envelope import put_hello
from equipoise.server import attempts, deployment, proposal
from equipoise.server.attempts import describe_run, status_lines
from equipoise.server.coordinator_init import init_coordinator
from equipoise.server.deployment import _locked, carry_out, in_progress
from equipoise.server.rundir import Arm, RunFolder, Task
from equipoise.server.verify import verify
from equipoise.simulations.grid import InProcessGrid, node_id, task_identity
from equipoise.simulations.loopback import free_port
from tests.e2e.deployed import sums
from tests.e2e.studies import SITES, TABLE, Desk

NODES = {site: node_id(site) for site in SITES}


class Hospital:
    """A site's folder and the agent in it; `crash` says at which answers the coordinator dies."""

    crash: set[int] = set()
    answers = 0

    def __init__(self, desk: Desk, site: str, state: Path) -> None:
        self.approvals = Approvals(state)
        file = desk.site(site) / "site.yaml"
        agent = SiteAgent(load_site(file), state, self.approvals)
        self.agent, self.state = agent, state
        self.resident = Resident(agent, site, state, file, self.approvals)

    def answer(self, request: bytes) -> bytes:
        Hospital.answers += 1
        return self.resident.answer(request)


class Crash(BaseException):
    """Stands for `kill -9` of the ServerApp: nothing catches it."""


class Place:
    """A coordinator's run folder and its hospitals."""

    def __init__(self, folder: Path) -> None:
        self.desk = Desk(folder / "desk", TABLE)
        self.desk.write_study(
            sites={"declared_patients": dict.fromkeys(SITES, 24), "minimum": 2, "quorum": 0.6, "deadline_s": 30}
        )
        for site in SITES:
            value = json.loads(json.dumps({"data": {"manifest": "manifest.csv", "splits": {"column": "split"}}}))
            value["data"]["synthetic"] = True
            self.desk.change_site(site, **value, caps={"cohort_minimum": 1})
        self.run = RunFolder(folder / "runs" / "small")
        study = load_study(self.desk.study).model_copy(update={"simulation": None})
        self.hash = study.hash
        self.run.path.mkdir(parents=True)
        (self.run.path / "base.safetensors").write_bytes((self.desk.folder / "vendor.safetensors").read_bytes())
        arms = tuple(Arm(name, variant) for name, variant in arms_of(study).items())
        facts = {"source": "hospitals' own data", "note": "", "synthetic": False}
        self.run.write_task(Task(study, arms, SITES, tuple(arm.name for arm in arms), facts))
        self.hospitals = {site: Hospital(self.desk, site, folder / "state" / site) for site in SITES}

    def decide(self, decision: Any, *sites: str) -> None:
        study = self.run.task().study
        for site in sites or SITES:
            self.hospitals[site].approvals.propose(study, "small")
            self.hospitals[site].approvals.decide(self.hash, decision, "ann")

    def go(
        self,
        wait_s: float = 0.0,
        trackers: Sequence[str] = (),
        app: ClientApp = stub,
        outside: str = "",
        attempt: str = "",
    ) -> None:
        door.register_doors(self.hospitals.__getitem__)
        nodes = [outside, *SITES] if outside else SITES
        try:
            with task_identity(1), InProcessGrid(app, nodes) as grid:
                carry_out(grid, self.run, NODES, wait_s, trackers, attempt)
        finally:
            door.forget_doors()

    def releases(self, site: str) -> list[tuple[str, int]]:
        entries = self.hospitals[site].agent.ledger.entries()
        return [(e.body["run"], e.body["number"]) for e in entries if e.kind == "release"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(proposal, "_FIRST_PAUSE_S", 0.01)
    return Place(tmp_path)


def test_an_approved_study_runs_to_its_report(place: Place) -> None:
    place.decide("approved")
    place.go()
    found = describe_run(place.run)
    assert (found["state"], found["report"]) == ("finished", str(place.run.path / "report.html"))
    assert found["sites"] == dict.fromkeys(SITES, "approved")
    assert found["releases"] == found["planned"] == len(place.releases("ash"))
    verify(place.run)
    check_rows(place.run.path / "deployment" / "audit.jsonl")
    events = [row["event"] for row in read_rows(place.run.path / "deployment" / "audit.jsonl")]
    assert events.count("asked") == events.count("released") == found["releases"]


def test_nobody_is_asked_for_a_release_before_enough_approved(place: Place) -> None:
    with pytest.raises(QuorumError, match=r"0 of 3 sites approved it, 2 are needed \(ash: pending, birch: pending"):
        place.go()
    assert describe_run(place.run)["state"] == "failed"
    assert [place.releases(site) for site in SITES] == [[], [], []]
    place.decide("approved")
    place.go()
    assert describe_run(place.run)["state"] == "finished"


def test_a_site_that_refused_is_left_out(place: Place) -> None:
    place.decide("approved", "ash", "birch")
    place.decide("refused", "cedar")
    place.go()
    assert place.releases("cedar") == []
    row = next(r for r in read_rows(place.run.path / "deployment" / "audit.jsonl") if r["event"] == "released")
    assert row["sites"] == ["ash", "birch"]


def test_a_paused_site_is_left_out_and_too_few_end_the_run(place: Place) -> None:
    place.decide("approved")
    for site in ("birch", "cedar"):
        (place.hospitals[site].state / PAUSED).touch()
    with pytest.raises(QuorumError, match="birch: paused, cedar: paused"):
        place.go()


@pytest.mark.parametrize("at", [4, 8, 9, 10, 20])
def test_a_coordinator_that_dies_anywhere_goes_on_and_nothing_is_asked_or_spent_twice(
    at: int, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Place(tmp_path / "whole")
    whole.decide("approved")
    whole.go()
    place.decide("approved")
    inner, count = Hospital.answer, 0

    def dying(self: Hospital, request: bytes) -> bytes:
        nonlocal count
        count += 1
        reply = inner(self, request)
        if count == at:
            raise Crash
        return reply

    monkeypatch.setattr(Hospital, "answer", dying)
    with pytest.raises(Crash):
        place.go()
    monkeypatch.setattr(Hospital, "answer", inner)
    assert not in_progress(place.run.path)
    assert describe_run(place.run)["state"] == "interrupted"
    assert "equipoise resume small" in "\n".join(status_lines(describe_run(place.run)))
    place.go()
    assert sums(place.run.path) == sums(whole.run.path)
    for site in SITES:
        assert place.releases(site) == whole.releases(site)
        assert len(set(place.releases(site))) == len(place.releases(site))


@pytest.mark.parametrize(("name", "version"), [("zzz", "9.9"), ("ash", __version__), ("ash", "9.9")])
def test_a_node_outside_the_study_changes_nothing_whatever_it_says(name: str, version: str, place: Place) -> None:
    app = ClientApp()
    app.query("release")(stub._registered_funcs["query.release"])

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        site = str(context.node_config["site"])
        return Message(put_hello(*((name, version) if site == "zzz" else (site, __version__))), reply_to=message)

    place.decide("approved")
    place.go(app=app, outside="zzz")
    assert describe_run(place.run)["sites"] == dict.fromkeys(SITES, "approved")


def test_a_run_asks_the_nodes_that_its_coordinator_let_in(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place.desk.folder / "coordinator"
    (folder / "sites").mkdir(parents=True)
    (folder / "coordinator.yaml").write_text("port: 8443\n")
    (folder / "sites" / "ash.json").write_text(json.dumps({"site": "ash", "node_id": "12345678901234567890"}))
    given: list[Any] = []
    monkeypatch.setattr(deployment, "end_without_superlink", lambda: None)
    monkeypatch.setattr(deployment, "carry_out", lambda *arguments: given.extend(arguments))
    config = {"folder": str(place.run.path), "coordinator": str(folder), "approval-wait-s": 60.0, "track": ""}
    with task_identity(1), InProcessGrid(stub, SITES) as grid:
        deployment.app(grid, Context(1, SUPERLINK_NODE_ID, {}, RecordDict(), config))
    assert given[2:] == [{"ash": 12345678901234567890}, 60.0, [], "1"]


def test_one_process_at_a_time_works_on_a_run(place: Place) -> None:
    place.decide("approved")
    with _locked(place.run):
        assert in_progress(place.run.path)
        with pytest.raises(StorageError, match="another process works on this run"):
            place.go()
    place.go()


class SuperLink(attempts.Coordinator):
    """Stands for a SuperLink: numbers the attempts that it is asked for from 7 on, and carries none out."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.stopped: list[str] = []

    def start(self, *_: object) -> str:
        self.started.append(str(7 + len(self.started)))
        time.sleep(0.05)  # as long as others have to come in between
        return self.started[-1]

    def flower(self, *arguments: str) -> dict[str, Any]:
        assert arguments[0] == "stop"
        self.stopped.append(arguments[1])
        return {}


def test_what_an_earlier_attempt_said_is_not_how_a_run_stands(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QuorumError):
        place.go()
    assert describe_run(place.run)["state"] == "failed"
    coordinator = SuperLink()
    with monkeypatch.context() as early:
        began = time.monotonic()
        attempts.start_attempt(coordinator, place.run, 0.0, [])
        assert describe_run(place.run)["state"] == "starting"
        early.setattr(attempts.time, "monotonic", lambda: began + 1000)
        assert describe_run(place.run)["state"] == "interrupted", "Flower never started it"
        said: list[str] = []
        assert attempts.wait_for_end(place.run, said.append) == 1
        assert said[-1].startswith("run small: attempt 7 ended without a word; `equipoise logs small --flower`")
    place.decide("approved")
    place.go(attempt="7")
    assert attempts.wait_for_end(place.run, said.append) == 0


def test_a_clock_that_is_set_back_changes_nothing_of_how_a_run_stands(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts.start_attempt(SuperLink(), place.run, 0.0, [])
    now = time.time()
    monkeypatch.setattr(attempts.time, "time", lambda: now - 3600)
    assert describe_run(place.run)["state"] == "starting"
    with pytest.raises(QuorumError):
        place.go(attempt="7")
    assert describe_run(place.run)["state"] == "failed"
    place.decide("approved")
    place.go(attempt="7")
    assert describe_run(place.run)["state"] == "finished"


def test_of_two_attempts_at_once_one_is_started_and_a_stop_stops_it(place: Place) -> None:
    coordinator = SuperLink()
    refused: list[str] = []

    def begin() -> None:
        try:
            attempts.start_attempt(coordinator, place.run, 0.0, [])
        except StorageError as error:
            refused.append(str(error))

    both = [threading.Thread(target=begin) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert coordinator.started == ["7"]
    assert refused == [f"{place.run.path}: the run is in progress; stop it first (equipoise stop small)"]
    attempts.stop_attempt(coordinator, place.run)
    assert coordinator.stopped == ["7"]
    assert describe_run(place.run)["state"] == "interrupted"
    attempts.start_attempt(coordinator, place.run, 0.0, [])
    assert describe_run(place.run)["attempts"] == 2


def test_a_line_that_a_crash_cut_short_is_no_attempt(place: Place) -> None:
    coordinator = SuperLink()
    attempts.start_attempt(coordinator, place.run, 0.0, [])
    attempts.stop_attempt(coordinator, place.run)
    file = place.run.path / "deployment" / "flower.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"began":12')
    assert [made.number for made in attempts.attempts(place.run)] == ["7"]
    assert describe_run(place.run)["state"] == "interrupted"
    attempts.start_attempt(coordinator, place.run, 0.0, [])
    assert [made.number for made in attempts.attempts(place.run)] == ["7", "8"]
    assert file.read_bytes().startswith(whole)


def test_a_run_that_has_ended_stays_as_it_is(place: Place) -> None:
    place.decide("approved")
    place.go()
    rounds = place.run.path / "rounds.jsonl"
    rounds.write_bytes(rounds.read_bytes().replace(b'"seconds":', b'"seconds":1'))
    before = {file: file.read_bytes() for file in place.run.path.rglob("*") if file.is_file()}
    place.decide("refused")
    place.go(attempt="8")
    assert {file: file.read_bytes() for file in place.run.path.rglob("*") if file.is_file()} == before
    assert describe_run(place.run)["state"] == "finished"
    with pytest.raises(TranscriptError, match=r"rounds\.jsonl: changed since the run ended"):
        verify(place.run)


def test_resume_of_a_run_that_has_ended_asks_no_superlink(place: Place, tmp_path: Path) -> None:
    place.decide("approved")
    place.go()
    init_coordinator(tmp_path / "c", "test", "127.0.0.1", free_port(), "", ["127.0.0.1"])
    ended = CliRunner().invoke(app, ["resume", str(place.run.path), "--coordinator", str(tmp_path / "c"), "--wait"])
    assert ended.output == "run small has ended; nothing is left to do, and nothing was changed\n"
    assert ended.exit_code == 0
    assert attempts.attempts(place.run) == []


def test_on_a_full_disk_the_last_word_takes_the_place_of_the_one_before(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.decide("approved")
    line = "chain.jsonl: cannot be written (No space left on device); nothing was lost: free some space"

    def full(*_: object, **__: object) -> None:
        raise StorageError(line)

    def fill(*_: object, **__: object) -> None:
        monkeypatch.setattr(deployment, "write_whole", full)
        monkeypatch.setattr(deployment.AuditLog, "append", full)
        full()

    with monkeypatch.context() as first:
        first.setattr("equipoise.server.transcript.Transcript.append", fill)
        with pytest.raises(StorageError, match="No space left"):
            place.go()
    found = describe_run(place.run)
    assert (found["state"], found["detail"], found["exit_code"]) == ("failed", line, StorageError.exit_code)
    monkeypatch.undo()
    place.go()
    assert describe_run(place.run)["state"] == "finished"


def test_a_look_at_a_run_is_not_in_its_way(place: Place) -> None:
    # `in_progress` takes the lock for a moment; a run that begins in that moment waits for it.
    folder = place.run.path / "deployment"
    folder.mkdir()
    with (folder / "lock").open("w") as look:
        fcntl.flock(look, fcntl.LOCK_EX)
        timer = threading.Timer(0.1, fcntl.flock, (look, fcntl.LOCK_UN))
        timer.start()
        with _locked(place.run):
            timer.join()


def test_what_went_wrong_is_one_line_of_the_status(place: Place) -> None:
    place.decide("approved")
    (place.run.path / "base.safetensors").write_bytes(b"")
    with pytest.raises(EquipoiseError):
        place.go()
    line = next(status_lines(describe_run(place.run)))
    assert "missing or changed since the run began; restore the file" in line
    assert "\n" not in line
