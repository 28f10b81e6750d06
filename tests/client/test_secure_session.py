"""What a site holds between the stages of a secure release: repeated byte for byte, once, and deleted in time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from equipoise.client.secure_session import Asked, Contribution, Peers, SecureSessions
from equipoise.client.secure_store import FolderStore, SessionStore
from equipoise.common.canonical import canonical_json
from equipoise.common.errors import EquipoiseError, RefusedError, SecureSumError, StorageError
from equipoise.common.secure_sum.coordinator import Coordinator
from equipoise.common.secure_sum.keys import Identity
from equipoise.common.secure_sum.terms import Part, Terms
from equipoise.common.wire import unpack
from tests.memory_store import MemoryStore
from tests.secure import IDENTITIES, draw_points, identities, make_terms, plain_sum

Arrays = Mapping[str, NDArray[Any]]
SITE = "site-00"


class Site:
    """One site's sessions, with a count of its contributions."""

    def __init__(self, name: str, terms: Terms, store: SessionStore | None = None, **peers: Any) -> None:
        self.name = name
        self.store = store if store is not None else MemoryStore()
        self.points = draw_points(terms)[name]
        self.contributed = 0
        self.peers = Peers(**{"keys": {site: one.public for site, one in identities(24).items()}, **peers})
        self.restart()

    def restart(self) -> None:
        self.sessions = SecureSessions(self.name, identities(24)[self.name], self.peers, self.store)

    def contribute(self) -> Contribution:
        self.contributed += 1
        return Contribution(self.points)

    def ask(
        self,
        terms: Terms,
        stage: int,
        sites: list[str],
        arrays: Arrays,
        contribute: Callable[[], Contribution] | None = None,
    ) -> bytes:
        asked = Asked(terms.study, terms.run, terms.number, terms.query, terms.parts, terms.honest)
        message = {"terms": json.loads(canonical_json(terms.to_json())), "stage": stage, "sites": sites}
        return self.sessions.answer(asked, message, arrays, contribute or self.contribute)


class Case:
    """A cohort of sessions and the server's requests to `SITE`, stage by stage."""

    def __init__(self, count: int = 3, store: SessionStore | None = None, **changes: Any) -> None:
        self.terms = make_terms(count, **changes)
        self.sites = {site: Site(site, self.terms) for site in self.terms.sites}
        self.sites[SITE] = Site(SITE, self.terms, store)
        self.coordinator = Coordinator(self.terms)
        self.requests: list[tuple[list[str], Arrays]] = []
        self.replies: list[bytes] = []

    @property
    def site(self) -> Site:
        return self.sites[SITE]

    def request(self) -> tuple[list[str], Arrays]:
        sites, arrays = self.coordinator.request(SITE)
        return list(sites), arrays

    def until(self, end: int) -> Case:
        """Answer all stages before `end`, at every site."""
        while len(self.replies) < end:
            self.requests.append(self.request())
            for site in self.coordinator.asked:
                sites, arrays = self.coordinator.request(site)
                reply = self.sites[site].ask(self.terms, len(self.replies), list(sites), arrays)
                if site == SITE:
                    mine = reply
                self.coordinator.receive(site, reply)
            self.replies.append(mine)
            self.coordinator.advance()
        return self

    def ask(self, stage: int, terms: Terms | None = None) -> bytes:
        """Ask `SITE` for `stage` as the server does."""
        sites, arrays = self.requests[stage] if stage < len(self.requests) else self.request()
        return self.site.ask(terms or self.terms, stage, sites, arrays)

    def total(self) -> dict[str, list[int]]:
        return {name: list(map(int, array)) for name, array in self.coordinator.total().items()}


def code_of(error: pytest.ExceptionInfo[EquipoiseError]) -> str:
    assert "\n" not in str(error.value)
    return error.value.code


def test_sessions_give_the_exact_sum() -> None:
    case = Case(4).until(5)
    points = {site: one.points for site, one in case.sites.items()}
    assert case.total() == plain_sum(points, case.terms.sites)
    assert all(site.contributed == 1 for site in case.sites.values())


@pytest.mark.parametrize("stage", range(5))
def test_a_stage_that_comes_again_is_answered_with_the_same_bytes(stage: int, tmp_path: Path) -> None:
    """At once, after later stages, after the end, and by an agent that was killed and started in between."""
    case = Case(store=FolderStore(tmp_path)).until(stage + 1)
    assert case.ask(stage) == case.replies[stage]
    case.site.restart()
    assert case.ask(stage) == case.replies[stage]
    case.until(5)
    assert case.ask(stage) == case.replies[stage]
    assert case.site.contributed == 1


def test_the_unmasking_does_not_depend_on_who_consents() -> None:
    """A server that was restarted may hold other signatures under the same list; the answer is the same bytes."""
    case = Case(4).until(5)
    sites, arrays = case.requests[4]
    fewer = {"signatures": arrays["signatures"][:3]}
    assert case.site.ask(case.terms, 4, sites[:3], fewer) == case.replies[4]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_another_request_in_the_place_of_one_that_was_answered_is_refused(stage: int) -> None:
    case = Case(4).until(stage + 1)
    sites, arrays = case.requests[stage]
    rows = {name: array[:3] if name != "sealed" or stage == 1 else array[:2] for name, array in arrays.items()}
    with pytest.raises(SecureSumError) as caught:
        case.site.ask(case.terms, stage, sites[:3], rows)
    assert code_of(caught) == "changed"
    assert case.until(5).site.contributed == 1


def test_an_agent_killed_between_any_two_stages_goes_on(tmp_path: Path) -> None:
    case = Case(store=FolderStore(tmp_path))
    for stage in range(5):
        case.until(stage + 1)
        case.site.restart()
    assert case.total() == plain_sum({site: one.points for site, one in case.sites.items()}, case.terms.sites)
    assert case.site.contributed == 1


def test_a_contribution_that_was_charged_and_not_sealed_is_lost_and_never_asked_again() -> None:
    """A kill between the charge and the reply; the three others, who are enough, go on without the site."""
    case = Case(4).until(2)

    class Killed(BaseException):
        pass

    def killed() -> Contribution:
        case.site.contributed += 1
        raise Killed

    with pytest.raises(Killed):
        case.site.ask(case.terms, 2, *case.request(), killed)
    case.site.restart()
    for _ in range(2):
        with pytest.raises(SecureSumError) as caught:
            case.ask(2)
        assert code_of(caught) == "lost"
    assert case.site.contributed == 1
    for stage in range(2, 5):
        for site in case.coordinator.asked:
            if site != SITE:
                sites, arrays = case.coordinator.request(site)
                case.coordinator.receive(site, case.sites[site].ask(case.terms, stage, list(sites), arrays))
        case.coordinator.advance()
    others = [site for site in case.terms.sites if site != SITE]
    assert case.total() == plain_sum({site: one.points for site, one in case.sites.items()}, others)


@pytest.mark.parametrize("error", [RefusedError("cap"), StorageError("disk"), ValueError("NaN at patient 7")])
def test_what_the_contribution_raises_is_passed_on_and_not_tried_again(error: Exception) -> None:
    case = Case().until(2)

    def refuse() -> Contribution:
        raise error

    with pytest.raises(type(error)) as caught:
        case.site.ask(case.terms, 2, *case.request(), refuse)
    assert caught.value is error
    with pytest.raises(SecureSumError, match="is lost"):
        case.ask(2)
    assert case.site.contributed == 0


def test_an_integer_beyond_the_reach_is_refused_without_a_code_of_its_own() -> None:
    """Which bound a contribution breaks is about patients: to the server it is the one refusal."""
    case = Case().until(2)
    case.site.points = {**case.site.points, "table": np.full(6, case.terms.parts["table"].reach + 1)}
    with pytest.raises(RefusedError, match=r"an integer beyond 1000000.*nothing was sent") as caught:
        case.ask(2)
    assert caught.value.code == "refused"


def test_the_others_shares_are_checked_before_anything_is_charged() -> None:
    case = Case().until(2)
    sites, arrays = case.request()
    changed = {**arrays, "sealed": arrays["sealed"] ^ np.uint8(1)}
    with pytest.raises(SecureSumError) as caught:
        case.site.ask(case.terms, 2, sites, changed)
    assert code_of(caught) == "bad_share"
    assert case.site.contributed == 0
    case.until(5)  # the right request may still come
    assert case.site.contributed == 1


def test_a_stage_out_of_turn_is_refused_and_changes_nothing() -> None:
    case = Case(4).until(5)
    later = Case(4, number=1).until(1)
    for stage in (2, 3, 4):
        sites, arrays = case.requests[stage]
        with pytest.raises(SecureSumError) as caught:
            later.site.ask(later.terms, stage, sites, arrays)
        assert code_of(caught) == "out_of_order"
    assert later.site.contributed == 0
    later.until(5)


def test_a_release_that_was_never_begun_has_no_later_stage() -> None:
    case = Case(4).until(2)
    fresh = Site(SITE, case.terms)
    with pytest.raises(SecureSumError) as caught:
        fresh.ask(case.terms, 2, *case.request())
    assert code_of(caught) == "out_of_order"
    assert fresh.contributed == 0


def test_one_cohort_for_a_release_number() -> None:
    """No K and then K - 1, with or without a new attempt, whether the release is open or done."""
    for stages in (1, 3, 5):
        case = Case(5).until(stages)
        smaller = {site: key for site, key in case.terms.cohort.items() if site != "site-04"}
        for attempt in (0, 1):
            with pytest.raises(SecureSumError) as caught:
                case.ask(0, make_terms(4, cohort=smaller, attempt=attempt))
            assert code_of(caught) == "other_cohort"
        assert case.site.contributed == (stages > 2)
        case.until(5)


@pytest.mark.parametrize("change", [{"quorum": 5}, {"colluding": 0}, {"honest": 2}, {"query": "0" * 64}], ids=str)
def test_one_set_of_terms_for_a_release_number(change: dict[str, Any]) -> None:
    case = Case(5)
    case.sites[SITE] = Site(SITE, case.terms, colluding=0)
    case.until(3)
    with pytest.raises(SecureSumError) as caught:
        case.ask(0, replace(case.terms, attempt=1, **change))
    assert code_of(caught) == "other_cohort"


def test_a_new_attempt_has_fresh_keys_and_a_fresh_contribution() -> None:
    first = Case(4).until(4)
    site = first.site
    again = Case(4, attempt=1)
    again.sites[SITE] = site
    again.until(5)
    assert site.contributed == 2
    ones, others = (pieces(case.replies[0]) | pieces(case.replies[1]) for case in (first, again))
    assert len(ones) == 2 + 2 * 4 + 1 + 7
    assert not ones & others
    with pytest.raises(SecureSumError) as caught:  # the first attempt's list, signed by all, comes too late
        first.ask(4)
    assert code_of(caught) == "past"


def pieces(reply: bytes) -> set[bytes]:
    """All keys, digests and sealed shares of a reply: its arrays, cut in 32 bytes."""
    arrays = [array.tobytes() for array in unpack(reply)[1].values()]
    return {array[start : start + 32] for array in arrays for start in range(0, len(array) - 31, 32)}


def test_what_was_unmasked_has_no_further_attempt() -> None:
    case = Case(4).until(5)
    with pytest.raises(SecureSumError) as caught:
        case.ask(0, replace(case.terms, attempt=1))
    assert code_of(caught) == "finished"
    assert case.ask(4) == case.replies[4]


def test_an_earlier_number_is_over_once_a_later_one_has_begun() -> None:
    case = Case(4).until(4)
    following = Case(4, number=1)
    following.sites[SITE] = case.site
    following.until(2)
    for stage in range(5):
        with pytest.raises(SecureSumError) as caught:
            case.ask(stage)
        assert code_of(caught) == "past"
    following.until(5)
    other_run = Case(4, run="another", number=0)
    other_run.sites[SITE] = case.site
    other_run.until(5)


def held_secrets(terms: Terms, store: SessionStore) -> list[bytes]:
    """What the record of a run holds that nobody may ever read, as bytes and as the text that the record writes."""
    record = json.loads(store.read(terms.study_run) or b"{}")
    if record.get("side") is None:
        return []
    found = [*record["side"]["secrets"], *record["side"]["shares"].values()]
    return [text.encode() for text in found] + [bytes.fromhex(text) for text in found]


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize("end", ["unmasked", "next release", "next attempt", "end of the run"])
def test_secrets_are_deleted_with_the_release(end: str, tmp_path: Path) -> None:
    case = Case(4, store=FolderStore(tmp_path)).until(4)
    secrets = held_secrets(case.terms, case.site.store)
    assert len(secrets) == 2 * (3 + 4)
    assert any(secret in on_disk(tmp_path) for secret in secrets)  # the search finds them while they are there
    if end == "unmasked":
        case.until(5)
    elif end == "end of the run":
        case.site.sessions.end(case.terms.study, case.terms.run)
    else:
        following = Case(4, **({"number": 1} if end == "next release" else {"attempt": 1}))
        following.sites[SITE] = case.site
        following.until(1)
    assert not any(secret in on_disk(tmp_path) for secret in secrets)
    assert all(path.stat().st_mode & 0o077 == 0 for path in [tmp_path, *tmp_path.iterdir()])


def test_runs_of_two_studies_under_one_name_know_nothing_of_each_other(tmp_path: Path) -> None:
    """A study that was changed and submitted again under its name, or two coordinators of one mind."""
    store = FolderStore(tmp_path)
    first = Case(4, store, number=5).until(3)
    other = Case(4, store, study="7" * 64).until(2)
    other.site.sessions.end(other.terms.study, other.terms.run)
    first.until(5)
    assert first.site.contributed == 1


def test_the_contribution_is_never_on_disk(tmp_path: Path) -> None:
    case = Case(4, store=FolderStore(tmp_path)).until(5)
    held = on_disk(tmp_path)
    for points in case.site.points.values():
        assert points.tobytes() not in held
        assert points.astype(np.uint32).tobytes() not in held
        assert str(points.tolist()).replace(" ", "").encode() not in held


def test_after_the_end_of_a_run_nothing_is_left_but_its_numbers(tmp_path: Path) -> None:
    case = Case(4, store=FolderStore(tmp_path)).until(5)
    case.site.sessions.end(case.terms.study, case.terms.run)
    case.site.sessions.end(case.terms.study, "a run that never was")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["record.json"]
    for stage in range(5):
        with pytest.raises(SecureSumError) as caught:
            case.ask(stage)
        assert code_of(caught) == "past"


def test_a_full_disk_stops_the_answer_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(4, store=FolderStore(tmp_path)).until(1)

    def full(*_: object) -> None:
        raise StorageError("no space left")

    for method in ("write", "write_reply"):
        with monkeypatch.context() as patch:
            patch.setattr(FolderStore, method, full)
            with pytest.raises(StorageError):
                case.ask(1)
    case.until(5)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match="cannot be made"):
        FolderStore(blocked).write("run", b"")
    with pytest.raises(StorageError, match="cannot be read"):
        FolderStore(blocked).read("run")


def test_only_pinned_peers_count() -> None:
    terms = make_terms(4)
    pinned = {site: key for site, key in terms.cohort.items() if site != "site-02"}
    for keys in (pinned, {**pinned, "site-02": IDENTITIES[20].public}):
        site = Site(SITE, terms, keys=keys)
        with pytest.raises(SecureSumError, match=r"site-02 is not pinned") as caught:
            site.ask(terms, 0, [], {})
        assert code_of(caught) == "unknown_peer"
        assert site.store.read(terms.study_run) is None  # not even a key was made


def test_a_cohort_without_the_site_itself_is_refused() -> None:
    terms = make_terms(4)
    others = {site: key for site, key in terms.cohort.items() if site != SITE}
    with pytest.raises(SecureSumError, match="itself is not in the cohort"):
        Site(SITE, terms).ask(make_terms(3, cohort=others), 0, [], {})
    with pytest.raises(RefusedError, match=r"peers.keys: site-00 is not listed under its own"):
        SecureSessions(SITE, Identity.generate(), Peers(dict(terms.cohort)), MemoryStore())


def test_the_sites_own_minimum_and_colluding_hold() -> None:
    terms = make_terms(4)
    for peers in ({"minimum": 5}, {"colluding": 2}):
        with pytest.raises(SecureSumError) as caught:
            Site(SITE, terms, **peers).ask(terms, 0, [], {})
        assert code_of(caught) == "too_few"
    Site(SITE, terms, minimum=4).ask(terms, 0, [], {})


@pytest.mark.parametrize(
    "change",
    [
        {"study": "7" * 64},
        {"run": "other"},
        {"number": 3},
        {"query": "1" * 64},
        {"honest": 1},
        {"parts": {"table": Part(6, 32, 5), "vector": Part(5, 64, 2**50)}},
        {"parts": {"table": Part(6, 64, 10**6), "vector": Part(5, 64, 2**50)}},
    ],
    ids=str,
)
def test_terms_that_are_not_those_of_the_approved_study_are_refused(change: dict[str, Any]) -> None:
    """A reach of five, above all: a refusal at the door would tell whether a count is larger."""
    terms = make_terms(4)
    site = Site(SITE, terms)
    asked = Asked(terms.study, terms.run, terms.number, terms.query, terms.parts, terms.honest)
    message = {"terms": make_terms(4, **change).to_json(), "stage": 0, "sites": []}
    with pytest.raises(SecureSumError) as caught:
        site.sessions.answer(asked, message, {}, site.contribute)
    assert code_of(caught) == "mismatched"


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        {},
        {"terms": 1, "stage": 0},
        {"terms": 1, "stage": 0, "sites": [], "x": 1},
        {"terms": {}, "stage": 0, "sites": []},
    ],
    ids=str,
)
def test_a_request_without_terms_is_refused(message: Any) -> None:
    site = Site(SITE, make_terms(4))
    asked = Asked("5" * 64, "run", 0, "0" * 64, {})
    with pytest.raises(SecureSumError):
        site.sessions.answer(asked, message, {}, site.contribute)


@pytest.mark.parametrize("stage", [-1, 5, 0.0, True, "0", None])
def test_a_request_of_no_stage_is_refused(stage: Any) -> None:
    terms = make_terms(4)
    with pytest.raises(SecureSumError, match="no stage"):
        Site(SITE, terms).ask(terms, stage, [], {})
