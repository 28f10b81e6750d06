"""The site agent: bytes in, bytes out, and nothing about a patient in what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from equipoise.client import computations
from equipoise.client.agent import SiteAgent
from equipoise.client.bundles import BundleStore
from equipoise.client.cohort import Cohort
from equipoise.client.cohort_store import CohortStore
from equipoise.client.scores import ScoreCache
from equipoise.client.workbench import View
from equipoise.common import catalogue
from equipoise.common.canonical import digest_arrays
from equipoise.common.errors import DataError, ModelError
from equipoise.common.fairness.tables import hybrid_edges
from equipoise.common.privacy.plan import ReleasePlan
from equipoise.common.query import SPLITS, Query
from equipoise.common.sitefile import load_site
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from equipoise.common.wire import PROTOCOL, pack, pack_bundles, split_bundles, unpack
from equipoise.server.release import Delivered, PlainRelease, close_request, study_bundle
from tests.tiny import (
    FEATURES,
    Memory,
    People,
    any_plan,
    classifier_of,
    declare,
    draw_people,
    make_agent,
    make_study,
    network,
    private_study,
    request_for,
    site_file,
    table_inputs,
    weights_file,
    write_hospital,
)

FILE = weights_file()
SECRETS = ("patient-4711", "/srv/hospital/secret", "Traceback", "ValueError", "cohort.csv")
PEOPLE = draw_people(30, seed=1)


class Counted(Memory):
    """A cohort that counts how often it is read."""

    def __init__(self) -> None:
        super().__init__(Memory.everywhere(PEOPLE.split(range(30))).splits)
        self.reads = 0

    def split(self, name: str) -> Any:
        self.reads += 1
        return super().split(name)


def study_of(**changes: Any) -> Study:
    return declare(make_study(file=FILE, **changes), {"a": 30})


def cells(study: Study) -> Query:
    """Statistics by cell, the first query of the plan."""
    return catalogue.cell_statistics(study).with_inputs(**classifier_of(study, FILE).inputs())


def bins(study: Study, name: str = "base") -> Query:
    """A histogram, the second query of PLAN."""
    edges = {"edges": hybrid_edges(None, study.score_bins)}
    query = catalogue.score_histogram(study, "test", name)
    return query.with_inputs(**classifier_of(study, FILE).inputs(), edges=edges)


def both(study: Study) -> StudyPlan:
    """The plan of the two queries above."""
    return StudyPlan.single(
        "swift", [catalogue.cell_statistics(study), catalogue.score_histogram(study, "test", "base")]
    )


def lone(query: Query) -> StudyPlan:
    """A plan of one query."""
    return StudyPlan.single("swift", [query])


def request(study: Study, query: Query, number: int = 0, plan: StudyPlan | None = None, **how: Any) -> bytes:
    """The request for one query of a plan: of the plan of both where it stands there, else of one of its own."""
    if plan is None:
        plan = both(study) if query.template in [entry.query.template for entry in both(study).entries] else lone(query)
    return request_for(study, plan, query, number=number, **how)


def open_agent(cohort: Any, folder: Path, studies: Sequence[Study], *rest: Any, **options: Any) -> SiteAgent:
    """Site a, which takes plans of any queries."""
    return make_agent("a", cohort, folder, studies, *rest, check_plan=any_plan, **options)


def kinds(agent: SiteAgent) -> list[str]:
    """What stands in the site's ledger, in order."""
    return [entry.kind for entry in agent.ledger.entries()]


def code_of(reply: bytes) -> str:
    header, arrays = unpack(reply)
    if header["code"] != "ok":
        assert arrays == {}
        assert set(header) == {"protocol", "code", "site"}
    return str(header["code"])


def changed(data: bytes, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> bytes:
    """A request with its header or arrays edited."""
    header, arrays = unpack(data)
    change(header, arrays)
    return pack(header, arrays)


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "a" / "agent.log.jsonl").read_text().splitlines()]


# --- once, and byte for byte --------------------------------------------------------------------------------------


def test_a_request_that_comes_again_gets_the_sealed_bytes_and_reads_nobody(tmp_path: Path) -> None:
    study, cohort = study_of(), Counted()
    agent = open_agent(cohort, tmp_path, [study])
    first = agent.answer(request(study, cells(study)))
    assert code_of(first) == "ok"
    reads = cohort.reads
    assert agent.answer(request(study, cells(study))) == first
    agent.ledger.close()
    restarted = open_agent(cohort, tmp_path, [study])
    assert restarted.answer(request(study, cells(study))) == first
    assert cohort.reads == reads
    assert kinds(restarted) == ["study", "release", "seal"]


def test_the_sealed_reply_is_what_leaves_even_if_the_computation_would_now_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of()
    agent = open_agent(Counted(), tmp_path, [study])
    first = agent.answer(request(study, cells(study)))
    monkeypatch.setitem(computations.COMPUTATIONS, "cell_statistics", lambda place: {})
    assert agent.answer(request(study, cells(study))) == first


def test_another_query_under_a_used_number_is_refused(tmp_path: Path) -> None:
    study = study_of()
    agent = open_agent(Counted(), tmp_path, [study])
    assert code_of(agent.answer(request(study, cells(study)))) == "ok"
    assert code_of(agent.answer(request(study, bins(study)))) == "refused"
    assert code_of(agent.answer(request(study, bins(study), number=1))) == "ok"
    assert code_of(agent.answer(request(study, bins(study), run="other"))) == "ok"
    assert "a number is used once" in log_of(tmp_path)[0]["reason"]


def test_a_release_stands_in_the_ledger_before_a_patient_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of()
    agent = open_agent(Counted(), tmp_path, [study])
    seen = []

    def look(place: Any) -> Any:
        seen.append(kinds(agent))
        raise MemoryError

    monkeypatch.setitem(computations.COMPUTATIONS, "cell_statistics", look)
    assert code_of(agent.answer(request(study, cells(study)))) == "internal"
    assert seen == [["study", "release"]]
    monkeypatch.undo()
    assert code_of(agent.answer(request(study, cells(study)))) == "ok"
    assert kinds(agent) == ["study", "release", "seal"]


def test_the_close_of_a_run_is_remembered_where_it_began_and_is_approved(tmp_path: Path) -> None:
    study = study_of()
    agent = open_agent(Counted(), tmp_path, [study])
    assert code_of(agent.answer(close_request(study, "run/swift", 5, "last head", done=True))) == "ok"
    assert kinds(agent) == []
    assert code_of(agent.answer(request(study, cells(study)))) == "ok"
    assert code_of(agent.answer(close_request(study, "run/swift", 5, "last head", done=False))) == "ok"
    last = list(agent.ledger.entries())[-1]
    assert (last.kind, last.body["head"], last.body["done"]) == ("close", "last head", False)
    before = kinds(agent)
    stranger = study.model_copy(update={"seed": 1})
    assert code_of(agent.answer(close_request(stranger, "run/swift", 6, "x", done=True))) == "refused"
    for run, head in (("r" * 201, "head"), ("run/swift", "h" * 201)):
        assert code_of(agent.answer(close_request(study, run, 6, head, done=True))) == "refused"
    assert kinds(agent) == before


def test_a_run_that_ended_asks_nothing_more(tmp_path: Path) -> None:
    study = study_of()
    agent = open_agent(Counted(), tmp_path, [study])
    assert code_of(agent.answer(request(study, cells(study)))) == "ok"
    assert code_of(agent.answer(close_request(study, "run/swift", 1, "head", done=False))) == "ok"
    assert code_of(agent.answer(request(study, bins(study), number=1))) == "ok"  # only an arm had ended
    assert code_of(agent.answer(close_request(study, "run/swift", 2, "head", done=True))) == "ok"
    before = kinds(agent)
    for plan in (None, lone(cells(study))):
        assert code_of(agent.answer(request(study, cells(study), number=3, plan=plan))) == "refused"
        assert "has ended" in log_of(tmp_path)[-1]["reason"]
    assert kinds(agent) == before
    assert code_of(agent.answer(request(study, cells(study), run="another"))) == "ok"


def test_a_query_of_the_plan_is_asked_once_under_whatever_number(tmp_path: Path) -> None:
    study = study_of()
    agent = open_agent(Counted(), tmp_path, [study])
    assert code_of(agent.answer(request(study, cells(study)))) == "ok"
    for number in (1, 2):
        assert code_of(agent.answer(request(study, cells(study), number=number))) == "refused"
        assert "query 0 of the plan was asked already" in log_of(tmp_path)[-1]["reason"]
    assert kinds(agent) == ["study", "release", "seal"]


def test_a_run_keeps_the_plan_that_it_began_with(tmp_path: Path) -> None:
    study = study_of()
    agent = open_agent(Counted(), tmp_path, [study])
    assert code_of(agent.answer(request(study, cells(study)))) == "ok"
    other = StudyPlan.single("swift", [bins(study), cells(study)])
    assert code_of(agent.answer(request(study, bins(study), number=1, plan=other))) == "refused"
    assert "began with another plan" in log_of(tmp_path)[-1]["reason"]
    assert code_of(agent.answer(request(study, bins(study), run="new", plan=other))) == "ok"


@pytest.mark.parametrize("index", [-1, 2, 7, None, "0", 0.0, [0]])
def test_an_index_outside_the_plan_is_refused(tmp_path: Path, index: Any) -> None:
    study, cohort = study_of(), Counted()
    agent = open_agent(cohort, tmp_path, [study])

    def edit(header: dict[str, Any], arrays: dict[str, Any]) -> None:
        header["index"] = index

    assert code_of(agent.answer(changed(request(study, cells(study)), edit))) == "refused"
    assert "is not one of the 2 of the plan" in log_of(tmp_path)[-1]["reason"]
    assert kinds(agent) == []
    assert cohort.reads == 0


@pytest.mark.parametrize("run", ["run", "run/plain", "run/evaluation", "/swift/", "run/swift/swift", "swift"])
def test_a_query_is_asked_by_the_run_of_its_own_arm(tmp_path: Path, run: str) -> None:
    study = study_of()
    agent = open_agent(Counted(), tmp_path, [study])

    def edit(header: dict[str, Any], arrays: dict[str, Any]) -> None:
        header["run"] = run

    assert code_of(agent.answer(changed(request(study, cells(study)), edit))) == "refused"
    assert "belongs to swift, not to run" in log_of(tmp_path)[-1]["reason"]
    assert kinds(agent) == []


def test_the_plan_is_checked_once_and_before_anything_is_read(tmp_path: Path) -> None:
    study, cohort, seen = study_of(), Counted(), []

    def check(site: Any, received: Study, plan: StudyPlan, scratch: bool) -> None:
        seen.append((site.site, received.hash, plan.digest, scratch, cohort.reads, agent.ledger.head))

    agent = make_agent("a", cohort, tmp_path, [study], check_plan=check)
    for number, query in enumerate((cells(study), bins(study))):
        assert code_of(agent.answer(request(study, query, number=number))) == "ok"
    plan = both(study)
    assert seen == [("a", study.hash, plan.digest, True, 0, "")]


def test_by_default_an_agent_takes_the_studys_own_plan_and_no_other(tmp_path: Path) -> None:
    study, cohort = study_of(), Counted()
    agent = make_agent("a", cohort, tmp_path, [study])
    assert code_of(agent.answer(request(study, cells(study)))) == "refused"
    assert "a plan of 2 queries" in log_of(tmp_path)[-1]["reason"]
    assert kinds(agent) == []
    assert cohort.reads == 0
    own = StudyPlan.of(study)
    assert code_of(agent.answer(request(study, own.entries[0].query.with_inputs(**cells(study).inputs), plan=own))) == (
        "ok"
    )


# --- inputs -------------------------------------------------------------------------------------------------------


def test_inputs_that_are_not_there_are_asked_for(tmp_path: Path) -> None:
    study, delivered = study_of(), Delivered()
    agent = open_agent(Counted(), tmp_path, [study])
    plan = both(study)
    placed = plan.entries[0].query.with_inputs(**cells(study).inputs)
    release = PlainRelease(study, plan, placed, "run/swift", 0, "head", ["a"], delivered)
    release.receive("a", agent.answer(release.requests()["a"]), None)
    assert release.advance()
    slim = request(study, bins(study), number=1, delivered=delivered)
    restarted = open_agent(Counted(), tmp_path / "new", [study])
    assert code_of(restarted.answer(slim)) == "need_inputs"
    assert code_of(restarted.answer(request(study, bins(study), number=1))) == "ok"
    assert code_of(agent.answer(slim)) == "ok"
    assert not (tmp_path / "new" / "a" / "agent.log.jsonl").exists()  # nothing went wrong


def test_a_store_smaller_than_the_inputs_of_one_request_still_answers(tmp_path: Path) -> None:
    study = study_of()
    agent = open_agent(Counted(), tmp_path, [study], bundles=BundleStore(size_bytes=1))
    assert code_of(agent.answer(request(study, cells(study)))) == "ok"
    moved = classifier_of(study, FILE).moved(classifier_of(study, FILE).layout(), np.full(149, 0.1))
    query = catalogue.cell_statistics(study).with_inputs(**moved.inputs())
    assert code_of(agent.answer(request(study, query, run="next"))) == "ok"


def test_a_store_forgets_the_oldest_first() -> None:
    bundles = [{"x": np.full(100, number, dtype=np.uint8)} for number in range(4)]
    digests = [digest_arrays(bundle) for bundle in bundles]
    store = BundleStore(size_bytes=250)
    for bundle, digest in zip(bundles[:3], digests[:3], strict=True):
        store.add({digest: bundle}, [digest])
    assert [store.get(digest) is not None for digest in digests] == [False, True, True, False]
    store.get(digests[1])  # used again, so now the third is the oldest
    store.add({digests[3]: bundles[3]}, [digests[3]])
    assert [store.get(digest) is not None for digest in digests] == [False, True, False, True]


def test_a_bundle_under_a_wrong_digest_is_refused(tmp_path: Path) -> None:
    study = study_of()
    agent = open_agent(Counted(), tmp_path, [study])

    def edit(header: dict[str, Any], arrays: dict[str, Any]) -> None:
        key = next(key for key in arrays if key.endswith("/file"))
        arrays[key] = arrays[key].copy()
        arrays[key][-1] ^= 1

    assert code_of(agent.answer(changed(request(study, cells(study)), edit))) == "refused"
    assert "differs from its digest" in log_of(tmp_path)[0]["reason"]


def test_other_weights_than_the_approved_ones_are_refused(tmp_path: Path) -> None:
    study = study_of()
    agent = open_agent(Counted(), tmp_path, [study])
    other = weights_file(seed=9)
    query = catalogue.cell_statistics(study).with_inputs(**classifier_of(study, other).inputs())
    assert code_of(agent.answer(request(study, query))) == "refused"
    assert "the weights are not those of the approved study" in log_of(tmp_path)[0]["reason"]
    assert kinds(agent) == []
    models = {**classifier_of(study, FILE).inputs("before"), **classifier_of(study, other).inputs("after")}
    table = catalogue.decision_table(study, "base", "swift", 1)
    table = table.with_inputs(**models, thresholds={"thresholds": np.zeros((1, 2))})
    assert code_of(agent.answer(request(study, table))) == "refused"


# --- policy -------------------------------------------------------------------------------------------------------


def test_a_study_that_nobody_approved_is_refused(tmp_path: Path) -> None:
    study = study_of()
    agent = open_agent(Counted(), tmp_path, [study.model_copy(update={"seed": 1})])
    assert code_of(agent.answer(request(study, cells(study)))) == "refused"
    assert kinds(agent) == []


def test_the_study_that_the_site_reads_has_the_hash_that_it_approved(tmp_path: Path) -> None:
    study = study_of()
    received = Study.model_validate(json.loads(study_bundle(study)["json"].tobytes()))
    assert received.hash == study.hash

    def edit(header: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Send another study under a digest that fits it."""
        value = json.loads(study_bundle(study)["json"].tobytes())
        value["attributes"][0]["column"] = "name"
        bundle = {"json": np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)}
        for key in [key for key in arrays if key.startswith(header["study"])]:
            del arrays[key]
        header["study"] = digest_arrays(bundle)
        arrays[f"{header['study']}/json"] = bundle["json"]

    agent = open_agent(Counted(), tmp_path, [study])
    assert code_of(agent.answer(changed(request(study, cells(study)), edit))) == "refused"
    assert code_of(agent.answer(request(study, cells(study)))) == "ok"


def test_a_factory_outside_the_list_is_never_called(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    model = {"factory": "os:system", "arguments": {"command": f"touch {touched}"}}
    study = study_of(model={**make_study(file=FILE).model.model_dump(), **model})
    agent = open_agent(Counted(), tmp_path, [study])
    query = catalogue.cell_statistics(study).with_inputs(**classifier_of(make_study(file=FILE), FILE).inputs())
    assert code_of(agent.answer(request(study, query))) == "refused"
    assert not touched.exists()


@pytest.mark.parametrize(
    ("scratch", "synthetic", "code"), [(True, False, "ok"), (False, True, "ok"), (False, False, "refused")]
)
def test_mode_none_on_real_data(tmp_path: Path, scratch: bool, synthetic: bool, code: str) -> None:
    study = study_of()
    data = {"manifest": "cohort.csv", "splits": {"column": "split"}, "synthetic": synthetic}
    agent = open_agent(Counted(), tmp_path, [study], site_file("a", data=data), scratch=scratch)
    assert code_of(agent.answer(request(study, cells(study)))) == code


@pytest.mark.parametrize(("patients", "code"), [(90, "ok"), (91, "refused")])
def test_a_cohort_below_the_minimum_is_refused_outside_simulations(tmp_path: Path, patients: int, code: str) -> None:
    study = study_of()
    site = site_file("a", caps={"cohort_minimum": patients, "models": ["tests.tiny:*"]})
    agent = open_agent(Counted(), tmp_path, [study], site, scratch=False)  # 30 patients in each of three splits
    assert code_of(agent.answer(request(study, cells(study)))) == code


def test_data_that_are_exchanged_in_the_middle_of_a_run_are_refused(tmp_path: Path) -> None:
    study = study_of()
    agent = open_agent(Memory.everywhere(PEOPLE.split(range(30))), tmp_path, [study], scratch=False)
    begun = agent._open_cohort
    assert code_of(agent.answer(request(study, cells(study)))) == "ok"
    # The same patients, of whom one has another label.
    label = PEOPLE.label.copy()
    label[0] = 1 - label[0]
    edited = Memory.everywhere(People(PEOPLE.rows, label, PEOPLE.sex, PEOPLE.age).split(range(30)))
    agent._open_cohort = lambda study, site: edited
    before = kinds(agent)
    assert code_of(agent.answer(request(study, bins(study), number=1))) == "refused"
    assert "run run: the data changed since the run began" in log_of(tmp_path)[-1]["reason"]
    assert kinds(agent) == before
    agent._open_cohort = begun
    assert code_of(agent.answer(request(study, bins(study), number=1))) == "ok"


def test_accounts_that_join_above_the_cap_are_refused_before_anything_is_released(tmp_path: Path) -> None:
    study = declare(private_study(file=FILE), {"a": 30})
    plan = StudyPlan.of(study).calibrated(study)
    asked = request_for(study, plan, plan.entries[0].query)
    for cap, code in ((4, "refused"), (7, "ok")):  # the study's epsilon is 3, and another account has reserved as much
        site = site_file("a", caps={"cohort_minimum": 1, "models": ["tests.tiny:*"], "epsilon": cap})
        cohort, folder = Memory.everywhere(PEOPLE.split(range(30))), tmp_path / str(cap)
        agent = open_agent(cohort, folder, [study], site, scratch=False)
        plans = {split: plan.plans(split) for split in SPLITS}
        agent.ledger.begin_study("0" * 64, "earlier", "other", "plan", plans, None)
        agent.ledger.register("other", cohort.members(), "registered under another account")
        assert code_of(agent.answer(asked)) == code
        assert ("join" in kinds(agent), "release" in kinds(agent)) == (True, code == "ok")
    assert "do not fit under caps.epsilon=4" in log_of(tmp_path / "4")[-1]["reason"]


def test_scores_are_filed_under_the_weights_that_they_come_from(tmp_path: Path) -> None:
    """A server names another model's bundle in a role that nothing reads, and asks for that model afterwards."""
    study, query = study_of(), catalogue.score_histogram(study_of(), "test", "swift")
    edges = {"edges": hybrid_edges(None, study.score_bins)}
    base = classifier_of(study, FILE)
    moved = base.moved(base.layout("head"), np.full(base.layout("head").size, 0.9))
    plan = StudyPlan.single("swift", [catalogue.score_histogram(study, "test", "base"), query])
    found = []
    for aside in ({}, {".head": moved.inputs()["model.head"]}):
        agent = open_agent(Counted(), tmp_path / str(len(aside)), [study])
        first = catalogue.score_histogram(study, "test", "base").with_inputs(**base.inputs(), edges=edges, **aside)
        assert code_of(agent.answer(request_for(study, plan, first))) == "ok"
        second = query.with_inputs(**moved.inputs(), edges=edges)
        found.append(unpack(agent.answer(request_for(study, plan, second, number=1)))[1])
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


def test_exact_scores_and_those_under_noise_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    study, cache, split = study_of(), ScoreCache(), PEOPLE.split(range(9))
    exact = bins(study)
    private = replace(exact, plan=ReleasePlan.vector(1.0, 3, noise=3.0))
    unfilled: list[View] = []
    logits = View.logits

    def noted(view: View) -> torch.Tensor:
        unfilled.append(view)
        return logits(view)

    monkeypatch.setattr(View, "logits", noted)
    guarded = cache.scores(study, private, "model", split)
    assert not unfilled  # batches of one size where noise protects the patients
    plain = cache.scores(study, exact, "model", split)
    assert len(unfilled) == 1
    np.testing.assert_allclose(guarded, plain, atol=1e-5)
    assert cache.scores(study, private, "model", split) is guarded
    assert cache.scores(study, exact, "model", split) is plain


# --- nothing about a patient --------------------------------------------------------------------------------------

FAILURES: dict[str, Any] = {
    "data": DataError("/srv/hospital/secret/cohort.csv: data row 3: patient-4711 has no label"),
    "model": ModelError("/srv/hospital/secret: weights of patient-4711"),
    "internal": ValueError("patient-4711 at /srv/hospital/secret"),
}


@pytest.mark.parametrize("code", FAILURES)
@pytest.mark.parametrize("where", ["cohort", "split", "computation"])
def test_errors_leave_a_code_and_the_log_keeps_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, where: str
) -> None:
    study, cohort = study_of(), Counted()

    def fail(*_: Any) -> Any:
        raise FAILURES[code]

    agent = open_agent(cohort, tmp_path, [study])
    if where == "cohort":
        agent._open_cohort = fail
    elif where == "split":
        monkeypatch.setattr(cohort, "split", fail)
    else:
        monkeypatch.setitem(computations.COMPUTATIONS, "cell_statistics", fail)
    reply = agent.answer(request(study, cells(study)))
    # What was wrong with data or model is told to nobody: only an internal failure looks different from a refusal.
    assert code_of(reply) == ("internal" if code == "internal" else "refused")
    for secret in SECRETS:
        assert secret.encode() not in reply
    assert len(reply) < 200
    (row,) = log_of(tmp_path)
    assert row["code"] == code
    assert str(FAILURES[code]) in row["reason"]


def test_planted_identifiers_of_a_real_cohort_never_leave(tmp_path: Path) -> None:
    study = study_of()
    people = draw_people(30, seed=1)
    file = write_hospital(tmp_path / "hospital-of-secrets", "a", people, range(30), tag="patient-4711-")
    site = load_site(file)

    def opened(state: str) -> SiteAgent:
        return SiteAgent(
            site,
            tmp_path / state,
            frozenset([study.hash]),
            open_cohort=CohortStore(Cohort),
            scratch=True,
            check_plan=any_plan,
        )

    agent = opened("state")
    replies = [agent.answer(request(study, cells(study))), agent.answer(request(study, bins(study), number=1))]
    assert [code_of(reply) for reply in replies] == ["ok", "ok"]
    manifest = file.parent / "manifest.csv"
    for number, (old, new) in enumerate((("female", "patient-4711 is ill"), (",0,train", ",,train")), start=2):
        text = manifest.read_text()
        manifest.write_text(text.replace(old, new, 1))
        broken = opened("s")
        replies.append(broken.answer(request(study, cells(study), number=number)))
        assert code_of(replies[-1]) == "refused"
        broken.ledger.close()
        manifest.write_text(text)
    for reply in replies:
        for secret in (*SECRETS, "patient-4711", "hospital-of-secrets", str(tmp_path), "manifest"):
            assert secret.encode() not in reply
    log = (tmp_path / "s" / "agent.log.jsonl").read_text()
    assert "patient-4711 is ill" in log
    assert "the label is empty" in log


def test_an_answer_holds_counts_and_sums_and_no_row(tmp_path: Path) -> None:
    study = study_of()
    agent = open_agent(Counted(), tmp_path, [study])
    header, arrays = unpack(agent.answer(request(study, cells(study))))
    assert set(header) == {"protocol", "code", "site", "release", "query", "ledger"}
    reserved = [entry for entry in agent.ledger.entries() if entry.kind == "release"]
    assert header["ledger"] == reserved[0].hash  # as the ledger stood when this was charged, not later
    assert {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} == {
        "patients": ((3, 2), "int64"),
        "scores": ((3, 2), "int64"),
    }
    assert arrays["patients"].sum() == 30


# --- hostile bytes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> SiteAgent:
    return open_agent(Counted(), tmp_path_factory.mktemp("door"), [study_of()])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_any_bytes_get_a_code(door: SiteAgent, data: bytes) -> None:
    assert code_of(door.answer(data)) == "refused"


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_request_gets_a_code_or_the_right_answer(door: SiteAgent, place: float, bit: int, cut: bool) -> None:
    data = bytearray(request(study_of(), cells(study_of())))
    index = int(place * (len(data) - 1))
    data[index] ^= 1 << bit
    reply = door.answer(bytes(data[:index] if cut else data))
    assert code_of(reply) in ("ok", "refused", "internal", "need_inputs")


MISSING = ["run", "release", "head", "study", "plan", "index", "inputs"]


@pytest.mark.parametrize("key", MISSING)
@pytest.mark.parametrize("value", [None, 7, [], {"x": 1}, "text"])
def test_a_header_with_a_wrong_part_gets_a_code(tmp_path: Path, key: str, value: Any) -> None:
    study = study_of()
    agent = open_agent(Counted(), tmp_path, [study])

    def edit(header: dict[str, Any], arrays: dict[str, Any]) -> None:
        if value is None:
            del header[key]
        else:
            header[key] = value

    code = code_of(agent.answer(changed(request(study, cells(study)), edit)))
    assert code in ("internal", "need_inputs", "refused") or (key in ("run", "release", "head") and code == "ok")


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": {}},
        {"blocks": {"patients": {"shape": [3, 2], "patient_l2": 1.0, "site_bound": 1.0, "step": 1.0}}},
        {"split": "everyone"},
        {"name": "__class__"},
        {"parameters": {"tensors": ["nothing"]}},
        {"version": 2},
    ],
)
def test_a_query_that_does_not_fit_its_name_gets_no_sum(tmp_path: Path, change: dict[str, Any]) -> None:
    study = study_of()
    agent = open_agent(Counted(), tmp_path, [study])
    weights = {"task": np.ones((3, 2)), "bias": np.ones((3, 2))}
    model = classifier_of(study, FILE)
    query = catalogue.gradient_sum(study, model.layout(), "extractor", 0.5)
    query = query.with_inputs(**model.inputs(), weights=weights)

    def edit(header: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Send another plan under a digest that fits it."""
        rows = json.loads(arrays.pop(f"{header['plan']}/json").tobytes())
        rows[0][2].update(change)
        bundle = {"json": np.frombuffer(json.dumps(rows).encode(), dtype=np.uint8)}
        header["plan"] = digest_arrays(bundle)
        arrays[f"{header['plan']}/json"] = bundle["json"]

    assert code_of(agent.answer(changed(request(study, query), edit))) in ("internal", "refused")
    assert "seal" not in kinds(agent)
    assert code_of(agent.answer(request(study, query, run="other"))) == "ok"


PLANS: dict[str, Any] = {
    "no JSON": b"\xff\x00",
    "a number": b"7",
    "no rows": b"{}",
    "a row too short": b'[["swift", ""]]',
    "a query without parts": b'[["swift", "", {}]]',
    "null": b"null",
    "no bundle of a plan": None,
}


@pytest.mark.parametrize("what", PLANS)
def test_what_is_no_plan_is_refused(tmp_path: Path, what: str) -> None:
    study, cohort = study_of(), Counted()
    agent = open_agent(cohort, tmp_path, [study])

    def edit(header: dict[str, Any], arrays: dict[str, Any]) -> None:
        arrays.pop(f"{header['plan']}/json")
        text = PLANS[what]
        bundle = {"x": np.zeros(3)} if text is None else {"json": np.frombuffer(text, dtype=np.uint8)}
        header["plan"] = digest_arrays(bundle)
        arrays.update({f"{header['plan']}/{name}": array for name, array in bundle.items()})

    assert code_of(agent.answer(changed(request(study, cells(study)), edit))) == "refused"
    assert kinds(agent) == []
    assert cohort.reads == 0


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    data = b"cposix\nsystem\n(S'touch " + str(touched).encode() + b"'\ntR."
    study = study_of()
    agent = open_agent(Counted(), tmp_path, [study])
    bundle = {"file": np.frombuffer(data, dtype=np.uint8)}
    digest = digest_arrays(bundle)
    header = {"protocol": PROTOCOL, "run": "r/x", "release": 0, "head": "", "study": digest, "inputs": {}}
    header |= {"plan": digest, "index": 0}
    for payload in (data, pack_bundles(header, {digest: bundle})):
        assert code_of(agent.answer(payload)) != "ok"
    assert not touched.exists()


# --- what is kept between requests --------------------------------------------------------------------------------


def test_two_studies_with_the_same_weights_never_share_scores(tmp_path: Path) -> None:
    # The second study reads the same columns on another scale: the same patients, other inputs, other scores.
    first = study_of()
    wide = table_inputs()
    wide["features"] = [{**feature, "range": [-30, 30]} for feature in wide["features"]]
    second = declare(make_study(file=FILE, inputs=wide), {"a": 30})
    narrow = PEOPLE
    scaled = People(
        tuple(torch.cat([rows[:, :FEATURES] / 10, rows[:, FEATURES:]], dim=1) for rows in narrow.rows),
        narrow.label,
        narrow.sex,
        narrow.age,
    )
    cohorts = {s.hash: Memory.everywhere(p.split(range(30))) for s, p in ((first, narrow), (second, scaled))}
    agent = open_agent(Counted(), tmp_path, [first, second])
    agent._open_cohort = lambda study, site: cohorts[study.hash]
    replies = [agent.answer(request(s, bins(s), run=run)) for run, s in (("one", first), ("two", second))]
    alone = open_agent(cohorts[second.hash], tmp_path / "alone", [second])
    assert (
        unpack(replies[1])[1]["sex"].tolist() == unpack(alone.answer(request(second, bins(second))))[1]["sex"].tolist()
    )
    assert unpack(replies[0])[1]["sex"].tolist() != unpack(replies[1])[1]["sex"].tolist()


@pytest.mark.parametrize("what", ["scores", "head"])
def test_edited_data_are_looked_at_anew_by_the_next_run(tmp_path: Path, what: str) -> None:
    study = study_of()
    model = classifier_of(study, FILE)
    gradient = catalogue.gradient_sum(study, model.layout("head"), "head", 1.0)
    inputs = {**model.inputs(), "weights": {"task": np.ones((3, 2)), "bias": np.zeros((3, 2))}}
    query = bins(study) if what == "scores" else gradient.with_inputs(**inputs)
    edited = People(tuple(-rows for rows in PEOPLE.rows), PEOPLE.label, PEOPLE.sex, PEOPLE.age)
    agent = open_agent(Memory.everywhere(PEOPLE.split(range(30))), tmp_path, [study])
    before = unpack(agent.answer(request(study, query, run="one")))[1]
    cohort = Memory.everywhere(edited.split(range(30)))
    agent._open_cohort = lambda study, site: cohort
    after = unpack(agent.answer(request(study, query, run="two")))[1]
    alone = unpack(open_agent(cohort, tmp_path / "alone", [study]).answer(request(study, query)))[1]
    assert before.keys() == after.keys() == alone.keys()
    assert all((after[name] == alone[name]).all() for name in after)
    assert any((before[name] != after[name]).any() for name in after)


def test_a_training_that_breaks_off_leaves_the_network_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of()
    agent = open_agent(Counted(), tmp_path, [study])
    model = classifier_of(study, FILE)
    weights = {"task": np.ones((3, 2)), "bias": np.ones((3, 2))}
    parameters = {
        "beta": 1.0, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "epochs": 1, "batch": 8, "flips": False,
        "round": 0, "losses": "global",
    }  # fmt: skip
    training = catalogue.local_training(study, model.layout("head"), "head", parameters)
    training = training.with_inputs(**model.inputs(), weights=weights)
    gradient = catalogue.gradient_sum(study, model.layout(), "extractor", 0.5).with_inputs(
        **model.inputs(), weights=weights
    )
    before = unpack(agent.answer(request(study, gradient, run="before")))[1]

    def out_of_memory(*_: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("equipoise.client.training.row_losses", out_of_memory)
        assert code_of(agent.answer(request(study, training))) == "internal"
    after = unpack(agent.answer(request(study, gradient, run="after")))[1]
    assert all((before[name] == after[name]).all() for name in before)


def test_a_parameter_without_dimensions_crosses_the_wire(tmp_path: Path) -> None:
    file = weights_file("scaled")
    study = declare(make_study(file=file, factory="scaled"), {"a": 30})
    model = classifier_of(study, file)
    moved = model.moved(model.layout(), np.full(model.layout().size, 0.01))
    assert moved.state["temperature"].shape == ()
    weights = {"task": np.ones((3, 2)), "bias": np.ones((3, 2))}
    mask = {name: np.full(shape, 0.5, dtype=np.float32) for name, shape in model.layout("extractor").shapes.items()}
    parameters = {
        "beta": 1.0, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "epochs": 1, "batch": 8, "flips": False,
        "round": 0, "losses": "global",
    }  # fmt: skip
    training = catalogue.local_training(study, model.layout("extractor"), "extractor", parameters)
    agent = open_agent(Counted(), tmp_path, [study])
    reply = agent.answer(request(study, training.with_inputs(**moved.inputs(), weights=weights, mask=mask)))
    assert code_of(reply) == "ok", log_of(tmp_path)
    assert np.abs(unpack(reply)[1]["change"][-1]) > 0


def test_request_and_bundles_survive_the_wire() -> None:
    bundles = {"d1": {"x": np.arange(6.0).reshape(2, 3), "y/z": np.array(3, dtype=np.int64)}, "d2": {"x": np.zeros(0)}}
    header, arrays = unpack(pack_bundles({"protocol": PROTOCOL}, bundles))
    assert header == {"protocol": PROTOCOL}
    again = split_bundles(arrays)
    assert {d: {n: (v.shape, v.dtype) for n, v in b.items()} for d, b in again.items()} == {
        d: {n: (v.shape, v.dtype) for n, v in b.items()} for d, b in bundles.items()
    }


def test_a_network_with_frozen_tensors_trains_the_others_alone() -> None:
    model = network()
    model.extractor[0].weight.requires_grad_(False)
    from equipoise.common.classifier import Classifier

    parameters = Classifier.of(FILE, model, "head.").parameters
    assert "extractor.0.weight" not in parameters
    assert "extractor.0.bias" in parameters
