"""What stands before the agent: the pause, an edited site file, proposals, and a line for everything that leaves."""

import errno
from pathlib import Path

import numpy as np
import pytest

from equipoise.client.approvals import Approvals
from equipoise.client.resident import PAUSED, Resident
from equipoise.common import files
from equipoise.common.audit import check_rows, read_rows
from equipoise.common.canonical import digest_arrays, sha256
from equipoise.common.wire import PROTOCOL, pack, pack_bundles, unpack
from equipoise.server.release import study_bundle
from tests.tiny import make_study

SECRET = "/data/patient42.png"
REQUEST = pack({"protocol": PROTOCOL, "run": "r/swift", "release": 3, "index": 4, "study": "s"}, {})


class Agent:
    """Answers with what it is told to."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.reply = pack({"protocol": PROTOCOL, "code": "ok", "ledger": "h"}, {"x": np.arange(3)})
        self.error: Exception | None = None

    def answer(self, request: bytes) -> bytes:
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        return self.reply


class Site:
    """A site with its folder, restarted at will."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "site.yaml"
        self.file.write_text("site: ash\n")
        self.state = folder / "agent"
        self.agent = Agent()
        self.approvals = Approvals(self.state)
        self.start()

    def start(self) -> None:
        self.resident = Resident(self.agent, "ash", self.state, self.file, self.approvals)

    def code(self, request: bytes = REQUEST) -> str:
        return str(unpack(self.resident.answer(request))[0]["code"])

    def rows(self) -> list[dict[str, object]]:
        return read_rows(self.state / "audit.jsonl")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_what_is_let_through_passes_byte_for_byte_and_has_a_line(site: Site) -> None:
    assert site.resident.answer(REQUEST) == site.agent.reply
    assert site.agent.asked == [REQUEST]
    row = site.rows()[-1]
    facts = {"event": "request", "run": "r/swift", "release": 3, "index": 4, "code": "ok", "ledger": "h"}
    assert facts.items() <= row.items()
    assert (row["bytes"], row["reply"]) == (len(site.agent.reply), sha256(site.agent.reply))
    assert check_rows(site.state / "audit.jsonl") == 2


def test_a_reply_in_the_secure_sum_names_the_ledger_s_entry_too(site: Site) -> None:
    site.agent.reply = pack({"protocol": PROTOCOL, "code": "ok", "fields": {"ledger": "signed"}}, {})
    assert site.code() == "ok"
    assert site.rows()[-1]["ledger"] == "signed"


def test_a_paused_site_answers_nothing_until_the_pause_ends(site: Site) -> None:
    (site.state / PAUSED).touch()
    assert site.code() == "paused"
    assert site.agent.asked == []
    (site.state / PAUSED).unlink()
    assert site.code() == "ok"


def test_a_site_file_that_was_edited_lets_nothing_out_until_the_agent_is_started_again(site: Site) -> None:
    site.file.write_text("site: ash\napprove: manual\n")
    assert site.code() == "refused"
    assert site.agent.asked == []
    assert "edited since the agent was started" in str(site.rows()[-1]["reason"])
    site.start()
    assert site.code() == "ok"


def test_a_failure_is_a_code_and_its_reason_stays(site: Site) -> None:
    site.agent.error = OSError(2, "No such file", SECRET)
    reply = site.resident.answer(REQUEST)
    assert unpack(reply)[0]["code"] == "internal"
    assert b"patient42" not in reply
    assert "patient42" in str(site.rows()[-1]["reason"])


@pytest.mark.parametrize("request_bytes", [b"", b"\xff" * 50, pack({"protocol": PROTOCOL}, {})], ids=len)
def test_what_is_no_request_goes_to_the_agent_which_refuses_it(request_bytes: bytes, site: Site) -> None:
    site.agent.reply = pack({"protocol": PROTOCOL, "code": "refused"}, {})
    assert site.code(request_bytes) == "refused"


def test_without_a_line_nothing_leaves(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files.os, "fsync", full)
    assert site.code() == "storage"


def proposal(seed: int = 7) -> bytes:
    document = study_bundle(make_study(seed=seed))
    digest = digest_arrays(document)
    return pack_bundles({"protocol": PROTOCOL, "propose": True, "run": "r", "study": digest}, {digest: document})


def test_a_proposal_waits_and_its_state_is_told(site: Site) -> None:
    def state() -> object:
        return unpack(site.resident.answer(proposal()))[0]["state"]

    assert state() == "pending"
    assert site.agent.asked == []
    site.approvals.decide(make_study().hash, "approved", "ann")
    assert state() == "approved"
    site.approvals.decide(make_study().hash, "refused", "ann")
    assert state() == "refused"
    assert len(site.approvals.all()) == 1


@pytest.mark.parametrize("bundle", [{}, {"json": np.frombuffer(b"{", dtype=np.uint8)}, {"json": np.zeros(3)}])
def test_a_proposal_without_a_study_is_a_code(bundle: dict[str, np.ndarray], site: Site) -> None:
    request = pack_bundles({"protocol": PROTOCOL, "propose": True, "study": "s"}, {"s": bundle})
    assert site.code(request) == "study"
    assert site.approvals.all() == []
