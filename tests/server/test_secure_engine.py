"""Studies through the secure sum, by the engine and real agents: the same sums, dropouts, attempts and their price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.client.agent import SiteAgent
from equipoise.client.secure_session import Peers, SecureSessions
from equipoise.client.secure_store import FolderStore
from equipoise.common.errors import QuorumError
from equipoise.common.methods import resolve
from equipoise.common.privacy.mechanisms import DiscreteLaplace
from equipoise.common.query import Query, Sum
from equipoise.common.secure_sum.messages import Stage
from equipoise.common.secure_sum.terms import Terms
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from equipoise.common.wire import unpack
from equipoise.server import secure_release
from equipoise.server.engine import Engine
from equipoise.server.rundir import model_bytes
from equipoise.server.transcript import Transcript
from tests.secure import identities, site_names
from tests.tiny import Memory, People, Post, classifier_of, declare, draw_people, make_agent, make_study, weights_file

FILE = weights_file()
PEOPLE = draw_people(100, seed=8)
SITES = site_names(5)  # threshold 4, quorum 4: one may drop out


def study_of(secure: bool = True, mode: Mapping[str, Any] | None = None, **method: Any) -> Study:
    privacy = {"secure_sum": secure, **(mode or {"mode": "none"})}
    chosen = {"name": "fine_tune", "rounds": 2, "lr": 0.1, **method}
    sites = {"minimum": 3, "quorum": 0.8, "deadline_s": 60}
    study = declare(make_study(chosen, file=FILE, privacy=privacy, sites=sites), dict.fromkeys(SITES, 20))
    keys = {site: identity.text for site, identity in identities(5).items()}
    return study.model_copy(update={"sites": study.sites.model_copy(update={"keys": keys})})


def agents_of(study: Study, folder: Path, **options: Any) -> dict[str, Any]:
    known = identities(5)
    peers = Peers({site: identity.public for site, identity in known.items()})
    agents = {}
    for k, site in enumerate(SITES):
        sessions = SecureSessions(site, known[site], peers, FolderStore(folder / site / "secure"))
        cohort = Memory.everywhere(PEOPLE.split(range(20 * k, 20 * k + 20)))
        agents[site] = make_agent(site, cohort, folder, [study], sessions=sessions, **options)
    return agents


class Falling(Post):
    """A line on which some sites fall silent in a stage of some release."""

    falls: Mapping[str, tuple[int, Stage]] = {}

    def ask(self, requests: Mapping[str, bytes], deadline_s: float) -> Any:
        heard = {}
        for site, request in requests.items():
            header, _ = unpack(request)
            at = self.falls.get(site)
            silent = (
                at is not None and "secure" in header and (header["release"], header["stage"]) >= (at[0], int(at[1]))
            )
            heard[site] = None if silent else self.agents[site]
        kept, self.agents = self.agents, {**self.agents, **heard}
        try:
            yield from super().ask(requests, deadline_s)
        finally:
            self.agents = kept


def drive(study: Study, post: Post, folder: Path) -> tuple[bytes, Transcript]:
    model = classifier_of(study, FILE)
    name = study.method.name
    transcript = Transcript(folder / "transcript", study.hash, f"run/{name}")
    plan = StudyPlan.of(study).calibrated(study)
    outcome = Engine(study, plan, post).drive(resolve(study).run(study, model), name, transcript)  # type: ignore[arg-type]
    return model_bytes(outcome.classifier), transcript


def sums_of(folder: Path) -> list[dict[str, np.ndarray[Any, Any]]]:
    return [unpack(file.read_bytes())[1] for file in sorted((folder / "transcript" / "sums").iterdir())]


def same(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


def charges(agent: SiteAgent) -> list[tuple[int, int]]:
    """(release, attempt) of everything that the site was charged for."""
    return [
        (entry.body["number"], entry.body["attempt"]) for entry in agent.ledger.entries() if entry.kind == "release"
    ]


def test_the_sums_and_the_model_are_those_of_the_plain_sum(tmp_path: Path) -> None:
    secure, plain = study_of(True), study_of(False)
    first, _ = drive(secure, Post(agents_of(secure, tmp_path / "s")), tmp_path / "s")
    second, _ = drive(plain, Post(agents_of(plain, tmp_path / "p")), tmp_path / "p")
    assert first == second
    assert same(sums_of(tmp_path / "s"), sums_of(tmp_path / "p"))


def test_a_site_that_drops_out_is_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    study, plain = study_of(), study_of(False)
    post = Falling(agents_of(study, tmp_path / "s"))
    post.falls = {SITES[4]: (1, Stage.INPUT)}
    _, transcript = drive(study, post, tmp_path / "s")
    assert [row.cohort for row in transcript.rows] == [SITES, SITES[:4], SITES[:4]]
    # Without the secure sum, the same sites absent from the same release: the same integers.
    others = Post({**agents_of(plain, tmp_path / "p")})

    class Leaving(Post):
        def ask(self, requests: Mapping[str, bytes], deadline_s: float) -> Any:
            header, _ = unpack(next(iter(requests.values())))
            gone = header["release"] >= 1
            self.agents = {**others.agents, SITES[4]: None if gone else others.agents[SITES[4]]}
            yield from super().ask(requests, deadline_s)

    drive(plain, Leaving(dict(others.agents)), tmp_path / "p")
    assert same(sums_of(tmp_path / "s"), sums_of(tmp_path / "p"))


def test_below_the_quorum_nothing_is_summed_and_another_attempt_is_made_anew_and_paid(tmp_path: Path) -> None:
    study = study_of(mode={"mode": "local", "epsilon": 12}, name="private_head", rounds=2, directions=5)
    study = with_pool(study, tmp_path)
    agents = agents_of(study, tmp_path / "s")
    post = Falling(agents)
    post.falls = {SITES[3]: (1, Stage.CONSISTENCY), SITES[4]: (1, Stage.CONSISTENCY)}
    with pytest.raises(QuorumError, match="stage CONSISTENCY: 3 of 5 sites answered, 4 are needed"):
        drive(study, post, tmp_path / "s")
    assert len(sums_of(tmp_path / "s")) == 1
    post.falls = {}
    _, transcript = drive(study, post, tmp_path / "s")
    assert [row.cohort for row in transcript.rows] == [SITES] * 3
    # Its inputs had left the doors, so the second attempt is charged as well; the first release was not asked again.
    assert all(charges(agent) == [(0, 0), (1, 0), (1, 1), (2, 0)] for agent in agents.values())
    spent = agents[SITES[0]].ledger.account("main").spent("train", with_reserved=False)
    alone = charged_once(study)
    assert spent.honest[20] > alone * 1.2


def charged_once(study: Study) -> float:
    from equipoise.client.accounts import Spend

    events = [plan.event for plan in StudyPlan.of(study).calibrated(study).plans("train")]
    return float(Spend.of(events, events).honest[20])


def with_pool(study: Study, folder: Path) -> Study:
    from tests.common.test_whitened_rounds import with_pool as make

    folder.mkdir(parents=True, exist_ok=True)
    return make(study, folder)


def test_a_failure_before_the_inputs_costs_nothing(tmp_path: Path) -> None:
    study = study_of()
    agents = agents_of(study, tmp_path / "s")
    post = Falling(agents)
    post.falls = {SITES[3]: (0, Stage.SHARE), SITES[4]: (0, Stage.SHARE)}
    with pytest.raises(QuorumError, match="stage SHARE"):
        drive(study, post, tmp_path / "s")
    assert all(charges(agent) == [] for agent in agents.values())
    post.falls = {}
    drive(study, post, tmp_path / "s")
    assert all(charges(agent) == [(0, 1), (1, 0), (2, 0)] for agent in agents.values())


def test_a_coordinator_that_was_killed_replays_the_release_and_pays_once(tmp_path: Path) -> None:
    study = study_of()
    agents = agents_of(study, tmp_path / "s")

    class KilledError(Exception):
        pass

    class Dying(Post):
        def ask(self, requests: Mapping[str, bytes], deadline_s: float) -> Any:
            header, _ = unpack(next(iter(requests.values())))
            if (header["release"], header.get("stage")) == (1, int(Stage.UNMASK)):
                raise KilledError
            yield from super().ask(requests, deadline_s)

    with pytest.raises(KilledError):
        drive(study, Dying(agents), tmp_path / "s")
    # The agents are started again too: what is secret lay in their files.
    for agent in agents.values():
        agent.ledger.close()
    again = agents_of(study, tmp_path / "s")
    model, _ = drive(study, Post(again), tmp_path / "s")
    assert all(charges(agent) == [(0, 0), (1, 0), (2, 0)] for agent in again.values())
    plain = study_of(False)
    assert model == drive(plain, Post(agents_of(plain, tmp_path / "p")), tmp_path / "p")[0]


def test_a_site_goes_the_way_that_was_approved_and_no_other(tmp_path: Path) -> None:
    secure, plain = study_of(True), study_of(False)
    without = {
        site: make_agent(site, Memory.everywhere(PEOPLE.split(range(20))), tmp_path / "w", [secure, plain])
        for site in SITES
    }
    with pytest.raises(QuorumError, match="refused"):
        drive(secure, Post(without), tmp_path / "w")  # no identity key: refused, not sent in the clear
    agents = agents_of(secure, tmp_path / "s")

    class Stripping(Post):
        """A server that leaves the secure sum out."""

        def ask(self, requests: Mapping[str, bytes], deadline_s: float) -> Any:
            from equipoise.common.wire import pack

            bare = {}
            for site, request in requests.items():
                header, arrays = unpack(request)
                header.pop("secure", None)
                bare[site] = pack(
                    {**header, "stage": 0}, {n: a for n, a in arrays.items() if not n.startswith("secure/")}
                )
            yield from super().ask(bare, deadline_s)

    with pytest.raises(QuorumError, match="refused"):
        drive(secure, Stripping(agents), tmp_path / "s")
    assert all(charges(agent) == [] for agent in agents.values())


@pytest.mark.parametrize("change", ["fewer sites", "lower quorum", "more colluding"])
def test_the_cohort_of_the_approved_study_and_no_part_of_it(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of five and one of four pinned sites would give the fifth's integers as their difference."""
    study = study_of()
    agents = agents_of(study, tmp_path / "s")
    honest = secure_release.terms_of

    def twisted(study: Study, query: Query, run: str, number: int, sites: Any, cohort: Any, attempt: int = 0) -> Terms:
        asked = list(sites)[:4] if change == "fewer sites" else sites
        terms = honest(study, query, run, number, asked, cohort, attempt)
        if change == "more colluding":
            return replace(terms, colluding=2)
        return replace(terms, quorum=4) if change == "lower quorum" else terms

    if change == "lower quorum":
        study = study.model_copy(update={"sites": study.sites.model_copy(update={"quorum": 1.0})})
        agents = agents_of(study, tmp_path / "q")
    monkeypatch.setattr(secure_release, "terms_of", twisted)
    with pytest.raises(QuorumError, match="other_cohort"):
        drive(study, Post(agents), tmp_path / "s")
    assert all(charges(agent) == [] for agent in agents.values())


def test_shares_of_noise_add_up_to_the_accounted_noise(tmp_path: Path) -> None:
    """Mode distributed: five shares of which any three make the noise; the variance is never below the claim."""
    mode = {"mode": "distributed", "epsilon": 12.0}
    study = study_of(mode=mode, name="private_head", rounds=1, directions=5)
    study = with_pool(study, tmp_path)
    plan = StudyPlan.of(study).calibrated(study)
    counts = plan.entries[0].query
    assert counts.plan.honest == study.honest_shares == 3
    cost = plan.cost("train", study.privacy.delta)
    assert cost.epsilon <= 12.0 < cost.epsilon_if_others_collude
    total = Sum(counts, SITES, {})
    accounted = float(DiscreteLaplace(counts.plan.noise).describe()["standard_deviation_steps"]) ** 2
    assert total.noise_variance == pytest.approx(accounted * 5 / 3)
    drive(study, Post(agents_of(study, tmp_path / "s")), tmp_path / "s")
    found = sums_of(tmp_path / "s")[0]["patients"]
    assert abs(int(found.sum()) - 100) < 12 * total.noise_variance**0.5


def test_a_site_far_larger_than_declared_is_cut_and_not_refused(tmp_path: Path) -> None:
    """Its refusal would come after its own noise and before any other site's, and tell of it."""
    study = study_of(mode={"mode": "local", "epsilon": 12}, name="private_head", rounds=1, directions=5)
    study = with_pool(study, tmp_path)
    agents = agents_of(study, tmp_path / "s")
    alike = draw_people(1, seed=1, most_rows=1)
    zeros = np.zeros(2500, dtype=np.int64)  # all in one cell; 1,600 and the noise's part have room
    large = People(alike.rows * 2500, zeros, zeros, zeros)
    session = SecureSessions(SITES[0], identities(5)[SITES[0]], peers_of(), FolderStore(tmp_path / "large"))
    everywhere = Memory.everywhere(large.split(range(2500)))
    agents[SITES[0]] = make_agent(SITES[0], everywhere, tmp_path / "l", [study], sessions=session)
    _, transcript = drive(study, Post(agents), tmp_path / "s")
    assert [row.cohort for row in transcript.rows] == [SITES, SITES]
    counted = sums_of(tmp_path / "s")[0]["patients"]
    assert 1600 - 200 < counted.max() < 1600 + 300


def peers_of() -> Peers:
    return Peers({site: identity.public for site, identity in identities(5).items()})
