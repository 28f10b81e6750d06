"""The engine: the plan is an upper bound, a replay asks nobody, and what was asked is asked once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.client.agent import SiteAgent
from equipoise.common import catalogue
from equipoise.common.errors import QuorumError, TranscriptError
from equipoise.common.methods import resolve
from equipoise.common.query import Query, Sum
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from equipoise.common.wire import unpack
from equipoise.server.engine import Engine, Finished
from equipoise.server.rundir import model_bytes
from equipoise.server.transcript import Transcript
from tests.tiny import (
    Memory,
    Post,
    any_plan,
    classifier_of,
    declare,
    draw_people,
    make_agent,
    make_study,
    weights_file,
)

FILE = weights_file()
SITES = ("a", "b", "c")
PEOPLE = draw_people(60, seed=1)


def study_of(minimum: int = 3, share: float = 1.0, **method: Any) -> Study:
    study = make_study(
        {"name": "swift", "lr": 0.1, "rounds": {"extractor": 2, "head": 1}, **method},
        file=FILE,
        sites={"minimum": minimum, "quorum": share, "deadline_s": 60},
    )
    return declare(study, dict.fromkeys(SITES, 20))


def agents_of(study: Study, folder: Path, **options: Any) -> dict[str, SiteAgent]:
    return {
        site: make_agent(site, Memory.everywhere(PEOPLE.split(range(20 * k, 20 * k + 20))), folder, [study], **options)
        for k, site in enumerate(SITES)
    }


def open_agents(study: Study, folder: Path) -> dict[str, SiteAgent]:
    """Sites that take any plan, for queries that no study asks."""
    return agents_of(study, folder, check_plan=any_plan)


ARM = "swift"


def transcript_in(folder: Path, study: Study) -> Transcript:
    return Transcript(folder / "transcript", study.hash, f"run/{ARM}")


def plan_of(*queries: Query) -> StudyPlan:
    return StudyPlan.single(ARM, queries)


def drive(study: Study, post: Any, folder: Path, watchers: Any = ()) -> bytes:
    method, model = resolve(study), classifier_of(study, FILE)
    engine = Engine(study, StudyPlan.of(study), post, watchers)
    return model_bytes(engine.drive(method.run(study, model), ARM, transcript_in(folder, study)).classifier)


class Notes:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.began_with: list[tuple[int, int]] = []
        self.answers: list[str] = []
        self.releases: list[Finished] = []

    def began(self, run: str, query: Query, number: int, planned: int, sites: Any) -> None:
        self.began_with.append((number, planned))

    def answered(self, site: str) -> None:
        self.answers.append(site)

    def finished(self, run: str, release: Finished) -> None:
        self.releases.append(release)


def ask_counts(study: Study, name: str = "cell_statistics") -> Query:
    return getattr(catalogue, name)(study).with_inputs(**classifier_of(study, FILE).inputs())


@pytest.mark.parametrize("planned", [0, 1])
def test_a_query_outside_the_plan_is_refused_before_anyone_is_asked(tmp_path: Path, planned: int) -> None:
    study = study_of()
    post = Post(dict(open_agents(study, tmp_path)))

    def greedy() -> Generator[Query, Sum, None]:
        for _ in range(planned + 1):
            yield ask_counts(study)

    with pytest.raises(TranscriptError, match=r"query 'cell_statistics' \(phase counts\) is not in what is left"):
        Engine(study, plan_of(*[ask_counts(study)] * planned), post).drive(
            greedy(), ARM, transcript_in(tmp_path, study)
        )
    assert len(post.asked()) == 3 * planned


@pytest.mark.parametrize(
    "change",
    [
        {"split": "test"},
        {"parameters": {"attribute": "age"}},
        {"name": "gradient_sum"},
        {"phase": "mask"},
        {"version": 2},
        {"blocks": {}},
    ],
)
def test_a_query_that_differs_from_the_plan_in_anything_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    study = study_of()
    asked = ask_counts(study)
    other = Query(**{**{name: getattr(asked, name) for name in Query.__dataclass_fields__}, **change})

    def one() -> Generator[Query, Sum, None]:
        yield other

    with pytest.raises(TranscriptError, match="is not in what is left of the plan"):
        Engine(study, plan_of(asked), Post({})).drive(one(), ARM, transcript_in(tmp_path, study))
    with pytest.raises(TranscriptError, match="is not in what is left of the plan"):
        # The right query, which stands in another arm of the plan.
        Engine(study, StudyPlan.single("plain", [other]), Post({})).drive(one(), ARM, transcript_in(tmp_path, study))


def test_queries_may_be_left_out_but_not_turned_around(tmp_path: Path) -> None:
    study = study_of(minimum=1, share=0.1)
    first = ask_counts(study)
    layout = classifier_of(study, FILE).layout()
    second = catalogue.sensitivities(study, layout, "tensor")
    post = Post(dict(open_agents(study, tmp_path)))

    def only_second() -> Generator[Query, Sum, str]:
        weights = {"task": np.ones((3, 2)), "bias": np.ones((3, 2))}
        yield second.with_inputs(**classifier_of(study, FILE).inputs(), weights=weights)
        return "done"

    assert Engine(study, plan_of(first, second), post).drive(only_second(), ARM, transcript_in(tmp_path, study)) == (
        "done"
    )

    def turned() -> Generator[Query, Sum, None]:
        yield from only_second()
        yield first

    with pytest.raises(TranscriptError, match="in order"):
        Engine(study, plan_of(first, second), post).drive(turned(), ARM, transcript_in(tmp_path / "two", study))


def test_a_replay_asks_nobody_and_gives_the_same_bytes(tmp_path: Path) -> None:
    study = study_of()
    post = Post(dict(agents_of(study, tmp_path)))
    model = drive(study, post, tmp_path)
    names = ["cell_statistics", "sensitivities", *["local_training"] * 3]
    assert Counter(post.asked()) == {name: 3 * names.count(name) for name in names}

    silent = Post(dict.fromkeys(SITES))
    notes = Notes()
    method, start = resolve(study), classifier_of(study, FILE)
    engine = Engine(study, StudyPlan.of(study), None, [notes])
    outcome = engine.drive(method.run(study, start), ARM, transcript_in(tmp_path, study))
    assert model_bytes(outcome.classifier) == model
    assert all(release.replayed and release.seconds == 0 for release in notes.releases)
    assert notes.began_with == []
    assert drive(study, silent, tmp_path) == model
    assert silent.asked() == []  # only the last head was told once more


@pytest.mark.parametrize("kept", range(5))
def test_a_resumed_run_asks_for_the_rest_alone_and_ends_the_same(tmp_path: Path, kept: int) -> None:
    study = study_of()
    agents = agents_of(study, tmp_path)
    model = drive(study, Post(dict(agents)), tmp_path)
    sums = [file.read_bytes() for file in sorted((tmp_path / "transcript" / "sums").iterdir())]
    chain = tmp_path / "transcript" / "chain.jsonl"
    rows = chain.read_bytes().splitlines(keepends=True)
    # As a crash leaves it: the file of the next sum may be there without its row.
    chain.write_bytes(b"".join(rows[:kept]))
    fresh = agents_of(study, tmp_path / "fresh")
    post = Post(dict(fresh))
    assert drive(study, post, tmp_path) == model
    assert len(post.asked()) == 3 * (5 - kept)
    assert [file.read_bytes() for file in sorted((tmp_path / "transcript" / "sums").iterdir())] == sums
    assert chain.read_bytes() == b"".join(rows)


def test_sites_are_told_the_head_of_every_release_and_the_last(tmp_path: Path) -> None:
    study = study_of()
    agents = agents_of(study, tmp_path)
    drive(study, Post(dict(agents)), tmp_path)
    heads = transcript_in(tmp_path, study).heads()
    for agent in agents.values():
        told = [entry for entry in agent.ledger.entries() if "head" in entry.body]
        assert [entry.body["head"] for entry in told] == heads
        assert [entry.kind for entry in told] == ["release"] * 5 + ["close"]
        assert not told[-1].body["done"]  # an arm ended; the run goes on until `finish`


def test_a_finished_run_frees_what_it_reserved_and_asks_no_more(tmp_path: Path) -> None:
    study = study_of()
    agents = agents_of(study, tmp_path)
    drive(study, Post(dict(agents)), tmp_path)
    engine = Engine(study, plan_of(ask_counts(study)), Post(dict(agents)))
    engine.finish(transcript_in(tmp_path, study))
    for agent in agents.values():
        last = agent.ledger.entries()[-1]
        assert (last.kind, last.body["done"], last.body["number"]) == ("close", True, 5)
        assert last.body["head"] == transcript_in(tmp_path, study).head

    def more() -> Generator[Query, Sum, None]:
        yield ask_counts(study)

    with pytest.raises(QuorumError, match="a: refused, b: refused, c: refused"):
        engine.drive(more(), ARM, transcript_in(tmp_path / "more", study))


def test_a_transcript_with_more_than_the_run_asks_is_refused(tmp_path: Path) -> None:
    study = study_of()
    drive(study, Post(dict(agents_of(study, tmp_path))), tmp_path)

    def short() -> Generator[Query, Sum, None]:
        yield ask_counts(study)

    transcript = transcript_in(tmp_path, study)
    with pytest.raises(TranscriptError, match="holds 5 releases, the run asks for 1"):
        Engine(study, plan_of(ask_counts(study)), None).drive(short(), ARM, transcript)


def test_a_replay_without_sites_stops_where_the_transcript_does(tmp_path: Path) -> None:
    study = study_of()
    drive(study, Post(dict(agents_of(study, tmp_path))), tmp_path)
    chain = tmp_path / "transcript" / "chain.jsonl"
    chain.write_bytes(b"".join(chain.read_bytes().splitlines(keepends=True)[:4]))
    with pytest.raises(TranscriptError, match=r"release 4 \(local_training\) is missing; the transcript is truncated"):
        drive(study, None, tmp_path)


def test_a_missing_quorum_stops_the_run_which_then_goes_on(tmp_path: Path) -> None:
    study = study_of()
    agents = agents_of(study, tmp_path)
    whole = drive(study, Post(dict(agents_of(study, tmp_path / "whole"))), tmp_path / "whole")

    class Dying:
        """Answers twice, then no more."""

        def __init__(self, agent: SiteAgent) -> None:
            self.agent, self.left = agent, 2

        def answer(self, request: bytes) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise ConnectionError
            return self.agent.answer(request)

    class Line(Post):
        def ask(self, requests: Any, deadline_s: float) -> Any:
            for site in requests:
                try:
                    yield from super().ask({site: requests[site]}, deadline_s)
                except ConnectionError:
                    self.agents[site] = None
                    yield from super().ask({site: requests[site]}, deadline_s)

    line = Line({**agents, "b": Dying(agents["b"])})
    with pytest.raises(
        QuorumError, match=r"release 2 \(local_training\): 2 of 3 sites answered, 3 are needed \(b: timeout"
    ):
        drive(study, line, tmp_path)
    assert len(transcript_in(tmp_path, study).rows) == 2
    # Sites a and c have answered release 2 already: they answer again, with the same bytes.
    post = Post(dict(agents))
    assert drive(study, post, tmp_path) == whole
    assert len(post.asked()) == 3 * 3


def test_dropouts_within_the_quorum_are_in_the_transcript(tmp_path: Path) -> None:
    study = study_of(minimum=2, share=0.6)
    agents: dict[str, Any] = dict(agents_of(study, tmp_path))
    agents["c"] = None
    drive(study, Post(agents), tmp_path)
    transcript = transcript_in(tmp_path, study)
    assert {row.cohort for row in transcript.rows} == {("a", "b")}
    replayed = transcript.replay(0, ask_counts(study).placed(0))
    assert replayed is not None
    assert replayed.count("patients").sum() == 40


def test_another_query_under_a_used_number_is_refused_by_the_sites(tmp_path: Path) -> None:
    study = study_of()
    agents = open_agents(study, tmp_path)
    drive(study, Post(dict(agents)), tmp_path)
    other = transcript_in(tmp_path / "other", study)  # the same run once more, from the start, otherwise

    def steps() -> Generator[Query, Sum, None]:
        yield catalogue.score_histogram(study, "test", "base").with_inputs(
            **classifier_of(study, FILE).inputs(), edges={"edges": np.linspace(-1, 1, 63)}
        )

    plan = plan_of(catalogue.score_histogram(study, "test", "base"))
    with pytest.raises(QuorumError, match="a: refused, b: refused, c: refused"):
        Engine(study, plan, Post(dict(agents))).drive(steps(), ARM, other)


def test_watchers_see_every_release_and_change_nothing(tmp_path: Path) -> None:
    study = study_of()
    notes = Notes()
    post = Post(dict(agents_of(study, tmp_path / "1")))
    model = drive(study, post, tmp_path / "1", [notes])
    assert model == drive(study, Post(dict(agents_of(study, tmp_path / "2"))), tmp_path / "2")
    assert notes.began_with == [(number, 5) for number in range(5)]
    assert Counter(notes.answers) == dict.fromkeys(SITES, 5)
    sent = [request for _, request in post.sent if not unpack(request)[0].get("close")]
    assert sum(sum(r.bytes_down.values()) for r in notes.releases) == sum(map(len, sent))
    assert all(set(r.bytes_up) == set(SITES) and min(r.bytes_up.values()) > 0 for r in notes.releases)


def test_a_site_whose_numbers_run_away_is_left_out(tmp_path: Path) -> None:
    study = study_of(minimum=2, share=0.6)
    agents = agents_of(study, tmp_path)
    broken = PEOPLE.split(range(20, 40))
    broken.inputs[3, 0] = float("nan")
    agents["b"] = make_agent("b", Memory.everywhere(broken), tmp_path / "nan", [study])
    drive(study, Post(dict(agents)), tmp_path)
    rows = transcript_in(tmp_path, study).rows
    assert {row.cohort for row in rows} == {("a", "c")}
    log = (tmp_path / "nan" / "b" / "agent.log.jsonl").read_text()
    assert "NaN or infinity" in log
