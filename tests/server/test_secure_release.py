"""A secure release gives what a plain one gives, over the same protocol of stages, and says why where it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.client.app import app as client_app
from equipoise.client.door import forget_doors, register_doors
from equipoise.client.secure_store import FolderStore
from equipoise.common import catalogue
from equipoise.common.errors import QuorumError, StudyError
from equipoise.common.privacy.plan import ReleasePlan
from equipoise.common.query import Query, Sum
from equipoise.common.secure_sum.messages import Stage
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from equipoise.common.wire import PROTOCOL, pack, unpack
from equipoise.server.release import Delivered, PlainRelease, Release
from equipoise.server.secure_release import SecureCohort, SecureRelease, terms_of
from equipoise.server.transport import Transport
from equipoise.simulations.grid import InProcessGrid, task_identity
from tests.secure import IDENTITIES, SecureDoor
from tests.tiny import classifier_of, declare, make_study, weights_file

FILE = weights_file()


def names_of(count: int) -> tuple[str, ...]:
    return tuple("abcdefghij"[:count])


def study_of(count: int, share: float = 0.5, patients: int = 20) -> Study:
    study = make_study(file=FILE, sites={"minimum": 3, "quorum": share, "deadline_s": 60})
    return declare(study, dict.fromkeys(names_of(count), patients))


def plan_of(study: Study) -> StudyPlan:
    return StudyPlan.single("swift", [catalogue.cell_statistics(study)])


def query_of(study: Study) -> Query:
    return plan_of(study).entries[0].query.with_inputs(**classifier_of(study, FILE).inputs())


def keys_of(count: int) -> dict[str, bytes]:
    return {site: identity.public for site, identity in zip(names_of(count), IDENTITIES, strict=False)}


def draw(study: Study, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return {
        site: {
            "patients": rng.integers(0, 50, (3, 2)),
            "scores": rng.integers(-(2**55), 2**55, query_of(study).blocks["scores"].shape),
        }
        for site in study.sites.declared_patients
    }


class Case:
    """A study, its doors, and a release through them."""

    def __init__(self, count: int, share: float = 0.5, **changes: Any) -> None:
        self.study = study_of(count, share)
        self.names, self.keys = names_of(count), keys_of(count)
        self.points = draw(self.study)
        self.delivered = Delivered()
        self.doors = {site: self.door(site, **changes) for site in self.names}

    def door(self, site: str, **changes: Any) -> SecureDoor:
        return SecureDoor(site, self.keys, self.points[site], 20 * len(self.names), **changes)

    def secure(self, number: int = 0, attempt: int = 0) -> SecureRelease:
        plan, query, cohort = plan_of(self.study), query_of(self.study), SecureCohort(self.keys)
        return SecureRelease(
            self.study, plan, query, "run", number, "head", self.names, self.delivered, cohort, attempt
        )

    def plain(self) -> PlainRelease:
        plan, query = plan_of(self.study), query_of(self.study)
        return PlainRelease(self.study, plan, query, "run", 0, "head", self.names, Delivered())

    def finish(self, release: SecureRelease, gone: Mapping[str, Stage] | None = None) -> Sum:
        """Drive `release` to its end; `gone` gives the stage from which on a site is silent."""
        while True:
            for site, request in release.requests().items():
                stage = release.stage
                assert stage is not None
                if gone and site in gone and stage >= gone[site]:
                    release.receive(site, None, "timeout")
                else:
                    release.receive(site, self.doors[site].answer(request), None)
            if release.advance():
                return release.total()


def plain_sum(case: Case, cohort: Sequence[str]) -> Sum:
    release = case.plain()
    for site in cohort:
        header = {"protocol": PROTOCOL, "code": "ok", "site": site, "release": 0, "query": release.query.digest}
        release.receive(site, pack(header, case.points[site]), None)
    return release.total()


def assert_same(one: Sum, other: Sum) -> None:
    assert one.cohort == other.cohort
    assert one.query.digest == other.query.digest
    assert set(one.points) == set(other.points)
    for name, array in one.points.items():
        assert array.dtype == other.points[name].dtype == np.int64
        assert array.shape == other.points[name].shape
        assert (array == other.points[name]).all()


@pytest.mark.parametrize("count", [3, 4, 10])
def test_the_sum_is_that_of_a_plain_release(count: int) -> None:
    case = Case(count)
    release: Release = case.secure()  # it is one
    assert isinstance(release, SecureRelease)
    assert_same(case.finish(release), plain_sum(case, case.names))
    assert release.witness["a"] == {"ledger": "head of a"}
    assert all(door.contributed == 1 for door in case.doors.values())


@pytest.mark.parametrize("stage", Stage)
def test_a_site_may_drop_out_at_any_stage(stage: Stage) -> None:
    case = Case(5)
    total = case.finish(case.secure(), gone={"c": stage})
    assert_same(total, plain_sum(case, [site for site in case.names if stage > Stage.INPUT or site != "c"]))


def test_tables_are_32_bits_wide_and_vectors_64() -> None:
    """Both blocks lie on their own lattice; what a site sends is at most 1.1 of its bare integers, header included."""
    case = Case(4)
    terms = case.secure().terms
    assert (terms.parts["patients"].bits, terms.parts["scores"].bits) == (32, 64)
    assert terms.parts["patients"].reach == 16 * 80  # of the declared patients, for the one that a patient adds
    assert terms.parts["scores"].reach < 2**61
    without = terms_of(study_of(4, patients=0), query_of(case.study), "run", 0, case.names, SecureCohort(case.keys))
    assert without.parts["patients"].bits == 64  # nothing is declared: only the widest is safe


def test_refusals_name_stage_sites_and_codes() -> None:
    case = Case(4)
    release = case.secure()
    with pytest.raises(QuorumError) as caught:
        case.finish(release, gone={"b": Stage.INPUT, "d": Stage.ADVERTISE})
    text = str(caught.value)
    assert text.startswith("release 0 (cell_statistics), secure sum, stage INPUT: 2 of 3 sites answered, 3 are needed ")
    assert "(b: timeout); 4 sites: 1 of them may drop out" in text
    assert text.endswith("see the sites' own logs, then resume the run (E150)")
    assert "\n" not in text
    with pytest.raises(QuorumError):
        release.total()


def test_three_sites_need_all_three_and_are_told_so() -> None:
    case = Case(3)
    with pytest.raises(QuorumError, match=r"3 are needed \(b: timeout\); 3 sites: no site may drop out"):
        case.finish(case.secure(), gone={"b": Stage.UNMASK})


def test_the_studys_quorum_counts_where_it_is_higher() -> None:
    case = Case(10, share=0.9)
    assert case.secure().terms.quorum == 9
    with pytest.raises(QuorumError, match="8 of 10 sites answered, 9 are needed"):
        case.finish(case.secure(), gone={"a": Stage.ADVERTISE, "b": Stage.ADVERTISE})


def test_a_restarted_agent_asks_for_its_inputs_once_at_any_stage(tmp_path: Path) -> None:
    for stage in Stage:
        case = Case(3)
        case.doors = {site: case.door(site, store=FolderStore(tmp_path / stage.name / site)) for site in case.names}
        release, asked = case.secure(), []
        while True:
            if release.stage is stage:
                case.doors["b"] = case.door("b", store=FolderStore(tmp_path / stage.name / "b"))  # kill -9, start
            while requests := release.requests():
                for site, request in requests.items():
                    asked.append((release.stage, site))
                    release.receive(site, case.doors[site].answer(request), None)
            if release.advance():
                break
        assert asked.count((stage, "b")) == (2 if stage is not Stage.ADVERTISE else 1)
        assert len(asked) == 15 + (stage is not Stage.ADVERTISE)
        assert_same(release.total(), plain_sum(case, case.names))


def test_inputs_travel_once_and_equal_requests_are_one_object() -> None:
    case = Case(4)
    release = case.secure()
    header = unpack(next(iter(release.requests().values())))[0]
    first = {header["study"], header["plan"], *header["inputs"].values()}
    while True:
        stage = release.stage
        assert stage is not None
        requests = release.requests()
        carried = {name.partition("/")[0] for request in requests.values() for name in unpack(request)[1]}
        assert carried - {"secure"} == (first if stage is Stage.ADVERTISE else set())
        if stage not in (Stage.INPUT, Stage.ADVERTISE):
            assert len({id(request) for request in requests.values()}) == 1
        for site, request in requests.items():
            release.receive(site, case.doors[site].answer(request), None)
        if release.advance():
            break


def test_a_server_that_was_restarted_gets_the_same_sum() -> None:
    """It begins at the first stage again; sites answer byte for byte and contribute nothing anew."""
    for stage in [*Stage, None]:
        case = Case(5)
        first = case.secure()
        while first.stage is not stage:
            for site, request in first.requests().items():
                first.receive(site, case.doors[site].answer(request), None)
            first.advance()
        assert_same(case.finish(case.secure()), plain_sum(case, case.names))
        assert all(door.contributed == 1 for door in case.doors.values())


def test_a_failed_release_is_tried_again_as_a_new_attempt() -> None:
    """Fresh keys, another charge; what the first attempt left is not unmasked any more."""
    case = Case(4)
    first = case.secure()
    with pytest.raises(QuorumError):
        case.finish(first, gone={"a": Stage.CONSISTENCY, "b": Stage.CONSISTENCY})
    assert_same(case.finish(case.secure(attempt=1)), plain_sum(case, case.names))
    assert all(door.contributed == 2 for door in case.doors.values())
    with pytest.raises(QuorumError, match="past"):
        case.finish(case.secure())


def test_replies_that_were_not_asked_for_change_nothing() -> None:
    case = Case(3)
    release = case.secure()
    requests = release.requests()
    replies = {site: case.doors[site].answer(request) for site, request in requests.items()}
    release.receive("a", replies["a"], None)
    release.receive("a", replies["b"], None)
    release.receive("z", replies["b"], None)
    release.receive("b", replies["b"], None)
    assert list(release.requests()) == ["c"]
    release.receive("c", replies["c"], None)
    assert not release.advance()
    assert_same(case.finish(release), plain_sum(case, case.names))


def test_what_no_secure_release_can_protect_is_a_study_error() -> None:
    case = Case(4)
    query = query_of(case.study)
    with pytest.raises(StudyError, match="site d has no identity key"):
        terms_of(case.study, query, "r", 0, case.names, SecureCohort(keys_of(3)))
    with pytest.raises(StudyError, match="2 sites"):
        terms_of(case.study, query, "r", 0, names_of(2), SecureCohort(keys_of(2)))
    shares = ReleasePlan.vector(clip=1.0, dimensions=8, noise=9.0, honest=2)
    update = Query("u", "site_update", "train", "p", {}, query.blocks)
    with pytest.raises(StudyError, match="noise shares in a site_update"):
        terms_of(case.study, update.under(shares), "r", 0, case.names, SecureCohort(case.keys))
    many = ReleasePlan.vector(clip=1.0, dimensions=8, noise=9.0, honest=3)
    with pytest.raises(StudyError, match="honest=3 noise shares: 4 sites"):
        terms_of(case.study, query.under(many), "r", 0, case.names, SecureCohort(case.keys))


def test_over_the_grid_with_the_real_client_app_and_transport() -> None:
    """The engine's own loop: five exchanges of Flower messages give the sum, on threads."""
    case = Case(4)
    register_doors(lambda site: case.doors[site])
    try:
        with InProcessGrid(client_app, case.names, workers=2) as grid, task_identity(1):
            transport = Transport(grid)
            transport.connect(case.names, 60.0)
            release: Release = case.secure()
            while True:
                for reply in transport.ask(release.requests(), 60.0):
                    release.receive(reply.site, reply.payload, reply.code)
                if release.advance():
                    break
    finally:
        forget_doors()
    assert_same(release.total(), plain_sum(case, case.names))


def test_a_request_says_nothing_of_another_site() -> None:
    """The shares sealed for one site are in nobody else's request."""
    case = Case(3)
    release = case.secure()
    while release.stage is not Stage.INPUT:
        for site, request in release.requests().items():
            release.receive(site, case.doors[site].answer(request), None)
        release.advance()
    sealed = {site: unpack(request)[1]["secure/sealed"].tobytes() for site, request in release.requests().items()}
    assert len(set(sealed.values())) == 3
    for site, request in release.requests().items():
        assert not any(other in request for name, other in sealed.items() if name != site)
