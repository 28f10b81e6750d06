"""A release: what a site may answer, and what becomes of an answer that is not what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.client.agent import SiteAgent
from equipoise.common import catalogue
from equipoise.common.errors import QuorumError
from equipoise.common.query import Query
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from equipoise.common.wire import PROTOCOL, pack, split_bundles, unpack
from equipoise.server.release import Delivered, PlainRelease, quorum
from tests.tiny import Memory, any_plan, classifier_of, declare, draw_people, make_agent, make_study, weights_file

FILE = weights_file()
SITES = ("a", "b", "c")


def study_of(minimum: int = 3, share: float = 1.0) -> Study:
    study = make_study(file=FILE, sites={"minimum": minimum, "quorum": share, "deadline_s": 60})
    return declare(study, dict.fromkeys(SITES, 20))


def plan_of(study: Study) -> StudyPlan:
    """The same question twice."""
    return StudyPlan.single("swift", [catalogue.cell_statistics(study)] * 2)


def ask(
    study: Study, delivered: Delivered | None = None, number: int = 0, sites: Sequence[str] = SITES
) -> PlainRelease:
    query = plan_of(study).entries[number].query.with_inputs(**classifier_of(study, FILE).inputs())
    known = Delivered() if delivered is None else delivered
    return PlainRelease(study, plan_of(study), query, "run/swift", number, "head", sites, known)


def agents_of(study: Study, folder: Path) -> dict[str, SiteAgent]:
    people = draw_people(60, seed=1)
    parts = {site: people.split(range(20 * k, 20 * k + 20)) for k, site in enumerate(SITES)}
    return {
        site: make_agent(site, Memory.everywhere(part), folder, [study], check_plan=any_plan)
        for site, part in parts.items()
    }


def honest(asked: PlainRelease, name: str, /, **changes: Any) -> bytes:
    """A made-up answer of site `name` to `asked`, with some of its parts changed."""
    query = asked.query
    points = {key: np.ones(block.shape, dtype=np.int64) for key, block in query.blocks.items()}
    header = {"protocol": PROTOCOL, "code": "ok", "site": name, "release": 0, "query": query.digest}
    points.update(changes.pop("points", {}))
    if changes.get("query") == "of release 1":
        changes = {**changes, "query": ask(study_of(), number=1).query.digest}
    return pack({**header, **changes}, points)


def shape_of(query: Query) -> tuple[int, ...]:
    return query.blocks["patients"].shape


WRONG: dict[str, Any] = {
    "nothing": b"",
    "noise": b"\x10\x00\x00\x00\x00\x00\x00\x00 not a container",
    "another site": {"site": "b"},
    "another release": {"release": 1},
    "another query": {"query": "0" * 64},
    "the same query at another place": {"query": "of release 1"},
    "no code": {"code": None},
    "another protocol": {"protocol": PROTOCOL + 1},
    "a block too many": {"points": {"more": np.zeros(1, dtype=np.int64)}},
    "wrong shape": {"points": {"patients": np.ones((2, 3), dtype=np.int64)}},
    "one dimension less": {"points": {"patients": np.ones(6, dtype=np.int64)}},
    "floats": {"points": {"patients": np.ones((3, 2))}},
    "NaN": {"points": {"scores": np.full((3, 2), np.nan)}},
    "int32": {"points": {"patients": np.ones((3, 2), dtype=np.int32)}},
    "huge counts": {"points": {"patients": np.full((3, 2), 2**41)}},
    "huge negative": {"points": {"scores": np.full((3, 2), -(2**62) - 1)}},
    "least int64": {"points": {"scores": np.full((3, 2), -(2**63))}},
    "largest int64": {"points": {"scores": np.full((3, 2), 2**63 - 1)}},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_reply_counts_as_no_reply(what: str) -> None:
    release = ask(study_of())
    wrong = WRONG[what] if isinstance(WRONG[what], bytes) else honest(release, "a", **WRONG[what])
    release.receive("a", wrong, None)
    release.receive("b", honest(release, "b"), None)
    release.receive("c", honest(release, "c"), None)
    with pytest.raises(QuorumError, match=r"release 0 \(cell_statistics\): 2 of 3 sites answered, 3 are needed \(a: "):
        release.advance()
    # Nothing of the wrong reply has entered the sum.
    assert (release.total().points["patients"] == 2).all()
    assert (release.total().points["scores"] == 2).all()


def test_within_the_quorum_a_wrong_reply_is_left_out() -> None:
    release = ask(study_of(minimum=2, share=0.6))
    release.receive("a", honest(release, "a", **WRONG["floats"]), None)
    release.receive("b", honest(release, "b"), None)
    release.receive("c", honest(release, "c"), None)
    assert release.advance()
    assert release.total().cohort == ("b", "c")


def test_the_quorum_is_of_the_studys_sites_and_not_of_those_that_connected() -> None:
    # Half of three sites are two: where two connected, half of them would be one.
    release = ask(study_of(minimum=1, share=0.5), sites=("a", "b"))
    release.receive("a", honest(release, "a"), None)
    release.receive("b", None, "timeout")
    with pytest.raises(QuorumError, match=r"1 of 2 sites answered, 2 are needed \(b: timeout\)"):
        release.advance()


def test_a_study_that_declares_no_sites_takes_its_quorum_of_those_that_are_asked() -> None:
    bare = study_of(minimum=1, share=0.5)
    release = ask(bare.model_copy(update={"sites": bare.sites.model_copy(update={"declared_patients": {}})}))
    for site in ("a", "b"):
        release.receive(site, honest(release, site), None)
    release.receive("c", None, "timeout")
    assert release.advance()


def test_largest_allowed_values_of_several_sites_never_wrap_around() -> None:
    release = ask(study_of(minimum=1, share=0.1))
    block = release.query.blocks["scores"]
    largest = np.full(block.shape, int(block.site_bound / block.step), dtype=np.int64)
    for site in SITES:
        release.receive(site, honest(release, site, points={"scores": largest}), None)
    assert release.advance()
    total = release.total()
    assert total.cohort  # those that fit; never a sum that wrapped around
    assert (total.points["scores"] == len(total.cohort) * largest.astype(object)).all()


def test_each_site_is_asked_once_and_what_it_holds_is_not_sent_again(tmp_path: Path) -> None:
    study, delivered = study_of(), Delivered()
    agents = agents_of(study, tmp_path)
    first = ask(study, delivered)
    sizes = {}
    for site, request in first.requests().items():
        first.receive(site, agents[site].answer(request), None)
        sizes[site] = len(request)
    assert first.advance()
    second = ask(study, delivered, number=1)
    for site, request in second.requests().items():
        assert len(request) < sizes[site] / 4
        second.receive(site, agents[site].answer(request), None)
    assert second.advance()
    assert (second.total().points["patients"] == first.total().points["patients"]).all()


def test_a_restarted_agent_asks_for_its_inputs_once(tmp_path: Path) -> None:
    study, delivered = study_of(), Delivered()
    agents = agents_of(study, tmp_path)
    first = ask(study, delivered)
    for site, request in first.requests().items():
        first.receive(site, agents[site].answer(request), None)
    assert first.advance()
    agents["b"] = agents_of(study, tmp_path / "again")["b"]
    second, asked = ask(study, delivered, number=1), []
    while True:
        for site, request in second.requests().items():
            asked.append(site)
            second.receive(site, agents[site].answer(request), None)
        if second.advance():
            break
    assert asked == ["a", "b", "c", "b"]
    assert second.total().cohort == SITES


def test_a_site_that_always_lacks_inputs_is_given_up() -> None:
    release = ask(study_of(minimum=2, share=0.6))
    lacking = pack({"protocol": PROTOCOL, "code": "need_inputs", "site": "a"}, {})
    release.receive("b", honest(release, "b"), None)
    release.receive("c", honest(release, "c"), None)
    release.receive("a", lacking, None)
    assert not release.advance()
    assert list(release.requests()) == ["a"]
    release.receive("a", lacking, None)
    assert release.advance()
    assert release.total().cohort == ("b", "c")


def test_the_quorum_message_names_each_site_and_its_code() -> None:
    release = ask(study_of())
    release.receive("a", None, "timeout")
    release.receive("b", pack({"protocol": PROTOCOL, "code": "refused", "site": "b"}, {}), None)
    release.receive("c", honest(release, "c"), None)
    with pytest.raises(QuorumError) as caught:
        release.advance()
    text = str(caught.value)
    assert "1 of 3 sites answered, 3 are needed (a: timeout, b: refused)" in text
    assert "\n" not in text


def test_a_request_names_its_query_by_the_plan_and_an_index() -> None:
    study = study_of()
    for number in (0, 1):
        header, arrays = unpack(ask(study, number=number).requests()["a"])
        assert header["index"] == number
        assert "query" not in header
        plan = StudyPlan.from_bundle(split_bundles(arrays)[header["plan"]])
        assert plan == plan_of(study)
        assert plan.digest == header["plan"] == plan_of(study).digest
        assert plan.entries[number].query.digest != ask(study, number=number).query.digest  # which has its inputs
    assert ask(study, number=0).query.digest != ask(study, number=1).query.digest


def test_a_requests_bytes_hold_no_path_of_the_coordinator() -> None:
    study = study_of()
    weights = study.model.weights
    assert weights is not None
    secret = "/coordinator/private/vendor.safetensors"
    model = study.model.model_copy(update={"weights": weights.model_copy(update={"path": secret})})
    release = ask(study.model_copy(update={"model": model}))
    for request in release.requests().values():
        assert secret.encode() not in request
        assert unpack(request)[0]["run"] == "run/swift"


@pytest.mark.parametrize(
    ("minimum", "share", "sites", "needed"),
    [(3, 0.8, 6, 5), (3, 0.8, 5, 4), (3, 0.8, 10, 8), (3, 0.1, 10, 3), (1, 1.0, 7, 7)],
)
def test_the_quorum(minimum: int, share: float, sites: int, needed: int) -> None:
    assert quorum(study_of(minimum, share), sites) == needed
