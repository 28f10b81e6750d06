"""The wait for the sites' decisions: who has not decided is waited for, whatever the reason, and asked less often."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from equipoise.common.errors import QuorumError
from equipoise.common.study import Study
from equipoise.common.wire import PROTOCOL, pack
from equipoise.server import proposal
from equipoise.server.proposal import propose
from equipoise.server.transport import Reply
from tests.tiny import make_study

SITES = ("ash", "birch", "cedar")
DAY_S = 86400.0


class Script:
    """A line to sites that say, look by look, what stands here; the last look is repeated."""

    def __init__(self, *looks: Sequence[str]) -> None:
        self.nodes = {site: number for number, site in enumerate(SITES)}
        self.looks = list(looks)
        self.asked = 0

    def ask(self, requests: Mapping[str, bytes], deadline_s: float) -> Iterator[Reply]:
        look = self.looks[min(self.asked, len(self.looks) - 1)]
        self.asked += 1
        for site, word in zip(requests, look, strict=True):
            lost = word in ("timeout", "unreachable")
            payload = None if lost else answer(site, word)
            yield Reply(site, payload, word if lost else None, 0, 0, 0.0)


def answer(site: str, word: str) -> bytes:
    if word == "noise":
        return b"no container"
    states = ("approved", "pending", "refused")
    said = {"code": "ok", "state": word} if word in states else {"code": word}
    return pack({"protocol": PROTOCOL, "site": site, **said}, {})


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made; each lets the clock go on by itself."""
    made: list[float] = []
    monkeypatch.setattr(proposal, "time", SimpleNamespace(sleep=made.append, monotonic=lambda: sum(made)))
    return made


def study_of(share: float = 1.0) -> Study:
    return make_study(sites={"minimum": 2, "quorum": share, "deadline_s": 60})


def wait(script: Any, share: float = 1.0, wait_s: float = DAY_S) -> tuple[set[str], list[dict[str, str]]]:
    """Sites that approved, and what was said of all of them."""
    said: list[dict[str, str]] = []
    approved = propose(script, study_of(share), "run", len(SITES), wait_s, lambda states: said.append(dict(states)))
    return set(approved), said


@pytest.mark.parametrize("what", ["timeout", "unreachable", "storage", "internal", "noise"])
def test_a_site_that_cannot_say_what_it_decided_is_waited_for(what: str) -> None:
    script = Script(("approved", "approved", "pending"), ("approved", "approved", what), ("approved",) * 3)
    approved, said = wait(script)
    assert approved == set(SITES)
    assert script.asked == 3
    assert said[1]["cedar"] == ("malformed" if what == "noise" else what)


@pytest.mark.parametrize("state", ["Approved", ["approved"], {"approved": 1}, None, 7])
def test_a_state_that_a_site_made_up_is_none(state: object) -> None:
    odd = Reply("cedar", pack({"protocol": PROTOCOL, "code": "ok", "state": state}, {}), None, 0, 0, 0.0)
    assert proposal._state(odd, "pending") == "malformed"
    assert proposal._state(odd, "approved") == "approved"


@pytest.mark.parametrize("what", ["refused", "paused"])
def test_who_has_said_no_ends_the_wait(what: str, pauses: list[float]) -> None:
    look = ("approved", "approved", what)
    assert wait(Script(look), share=0.6)[0] == {"ash", "birch"}
    with pytest.raises(QuorumError, match=rf"2 of 3 sites approved it, 3 are needed \(cedar: {what}\)"):
        wait(Script(look))
    assert pauses == []


def test_a_decision_holds_while_its_site_is_away_and_until_it_is_changed() -> None:
    away = Script(("approved", "refused", "pending"), ("timeout", "unreachable", "approved"))
    assert wait(away, share=0.6)[0] == {"ash", "cedar"}
    assert away.asked == 2
    changed = Script(("approved", "approved", "pending"), ("pending", "refused", "approved"), ("approved",) * 3)
    assert wait(changed)[0] == set(SITES)
    assert changed.asked == 3


def test_the_wait_ends_with_its_time_and_names_who_did_not_decide(pauses: list[float]) -> None:
    with pytest.raises(
        QuorumError, match=r"1 of 3 sites approved it, 3 are needed \(birch: unreachable, cedar: pending"
    ):
        wait(Script(("approved", "unreachable", "pending")), wait_s=200.0)
    assert sum(pauses) == 200.0


def test_the_pauses_grow_to_a_minute(pauses: list[float]) -> None:
    script = Script(("approved", "approved", "pending"))
    with pytest.raises(QuorumError):
        wait(script)
    assert pauses[:4] == [5.0, 7.5, 11.25, 16.875]
    assert set(pauses[7:-1]) == {60.0}
    assert script.asked < 24 * 60 + 10


def test_what_has_not_changed_is_not_said_again() -> None:
    nobody, two = ("pending",) * 3, ("approved", "approved", "pending")
    looks = [nobody] * 28 + [two] * 5 + [("approved", "approved", "timeout"), two, ("approved",) * 3]
    script = Script(*looks)
    _, said = wait(script)
    assert script.asked == len(looks)
    assert [tuple(states.values()) for states in said] == [nobody, two, looks[-3], two, ("approved",) * 3]
