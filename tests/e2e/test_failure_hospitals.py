"""Rows of the failure table (docs/audit.md) that only hospitals with a policy, a budget and a mind of their own show.

The command runs as in a simulation, but behind each door stands an agent as in a deployment: it answers approved
studies alone, under caps, from a ledger that outlives the run. The coordinator sees codes, the hospital its own log.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from equipoise.client.agent import SiteAgent
from equipoise.client.computations import COMPUTATIONS
from equipoise.client.contribution import Contribution, Fills
from equipoise.client.workplace import Workplace
from equipoise.common.sitefile import load_site
from equipoise.server.rundir import RunFolder
from equipoise.simulations import runner
from tests.e2e.icu import HOSPITALS
from tests.e2e.studies import Desk
from tests.e2e.terminal import Run

PRIVATE = ("--set", "privacy.mode=local", "--set", "privacy.epsilon=3")
EDGES = "[0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]"


class Hospitals:
    """Three hospitals' own agents, behind the doors of any run.

    Attributes:
        approved: hashes of the approved studies; the first study that is asked for is approved.
        declines: hospitals that approve nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.approved: set[str] = set()
        self.declines: set[str] = set()

    def open(self, site: str, folder: str) -> SiteAgent:
        """As `equipoise.simulations.doors.open_site`."""
        run = RunFolder(Path(folder))
        files = json.loads((run.path / "hospitals.json").read_text())[site]
        self.approved = self.approved or {run.task().study.hash}
        state = self.folder / site
        state.mkdir(parents=True, exist_ok=True)
        return SiteAgent(load_site(Path(files[0])), state, approved=set() if site in self.declines else self.approved)

    def reason(self, site: str) -> str:
        """The last line of the site's own log."""
        return str(json.loads((self.folder / site / "agent.log.jsonl").read_text().splitlines()[-1])["reason"])


@pytest.fixture
def hospitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospitals:
    found = Hospitals(tmp_path / "own")
    monkeypatch.setattr(runner, "open_site", found.open)
    return found


def cap(study: Path, epsilon: float, delta: float = 1e-5) -> None:
    """Give every hospital's file a budget."""
    for site in HOSPITALS:
        file = study.parent / "icu" / site / "site.yaml"
        value = {**yaml.safe_load(file.read_text()), "caps": {"epsilon": epsilon, "delta": delta}}
        file.write_text(yaml.safe_dump(value))


# --- E121: the study is not the one that was approved ---------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        "evaluation.threshold.rule=given:0.3",
        "evaluation.bins=512",
        f"inputs.edges={EDGES}",
        "label={column: died, positive: 0, negative: 1}",
        "inputs.scale=logit",
    ],
)
def test_e121_each_hospital_refuses_what_it_has_not_approved(
    change: str, icu: Path, equipoise: Run, hospitals: Hospitals
) -> None:
    assert equipoise("evaluate", icu, "--out", icu.parent / "first").code == 0
    error = equipoise("evaluate", icu, "--out", icu.parent / "second", "--set", change).error
    assert "0 of 3 sites answered" in error
    assert "(E150)" in error
    assert all(f"{site}: refused" in error for site in HOSPITALS)
    for site in HOSPITALS:
        assert f"is not approved at {site} (E121)" in hospitals.reason(site)
        assert site not in error.replace(f"{site}: refused", "")
    assert not (icu.parent / "second" / "report.json").exists()


def test_e121_other_weights_are_another_study(desk: Desk, equipoise: Run, hospitals: Hospitals) -> None:
    for site in HOSPITALS:
        desk.change_site(site, data={"manifest": "manifest.csv", "splits": {"column": "split"}, "synthetic": True},
                         caps={"cohort_minimum": 10, "split_minimum": 1})  # fmt: skip
    del desk.value["method"]
    desk.write_study()
    assert equipoise("evaluate", desk.study, "--out", desk.run).code == 0
    desk.write_weights(lambda tensors: tensors["head.bias"].add_(0.5))
    error = equipoise("evaluate", desk.study, "--out", desk.folder / "second").error
    assert "ash: refused" in error
    assert "(E121)" in hospitals.reason("ash")


# --- E150, W320: a hospital does not answer -------------------------------------------------------------------------


def spent(hospitals: Hospitals, equipoise: Run, site: str) -> list[str]:
    """What the hospital's officer sees: a line for each release, then one for each account."""
    ended = equipoise("ledger", "show", hospitals.folder / site / "ledger.sqlite")
    assert ended.code == 0, ended.err
    return ended.out.splitlines()


def test_e150_too_few_give_no_result_and_those_that_answered_have_paid(
    icu: Path, equipoise: Run, hospitals: Hospitals
) -> None:
    cap(icu, 4)
    hospitals.declines.add("ash")
    out = icu.parent / "run"
    error = equipoise("evaluate", icu, "--out", out, *PRIVATE, "--set", f"inputs.edges={EDGES}").error
    assert "2 of 3 sites answered, 3 are needed (ash: refused)" in error
    assert "(E150)" in error
    assert not (out / "report.json").exists()
    assert spent(hospitals, equipoise, "ash") == []
    for site in ("birch", "cedar"):
        assert float(spent(hospitals, equipoise, site)[-1].split()[3]) > 0


def test_w320_an_absent_hospital_is_named_on_the_page(icu: Path, equipoise: Run, hospitals: Hospitals) -> None:
    hospitals.declines.add("ash")
    out = icu.parent / "run"
    ended = equipoise("evaluate", icu, "--out", out, "--set", "sites.minimum=2", "--set", "sites.quorum=0.6")
    assert ended.code == 0, ended.err
    words = "evaluation: 2 of 3 hospitals answered every release; ash did not. Not comparable with a report of all"
    assert f"W320 {words}" in ended.out
    assert words in (out / "report.html").read_text()


# --- E160: a hospital whose tables contradict each other ------------------------------------------------------------


@pytest.mark.parametrize("query", ["score_histogram", "decision_table", "site_table"])
@pytest.mark.parametrize("secure", [False, True])
def test_e160_a_hospital_that_counts_a_patient_in_one_table_only_gives_no_report(
    query: str, secure: bool, icu: Path, equipoise: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = COMPUTATIONS[query]

    def forget_a_patient(place: Workplace) -> Contribution:
        found = honest(place)
        if place.site == "birch":
            assert isinstance(found, Fills)
            found.cells["age"][7] = -1
        return found

    monkeypatch.setitem(COMPUTATIONS, query, forget_a_patient)
    icu.write_text(icu.read_text().replace("evaluation: {", "evaluation: {by_site: true, "))
    out = icu.parent / "run"
    error = equipoise("evaluate", icu, "--out", out, "--set", f"privacy.secure_sum={secure}").error
    assert "tables of the same test patients disagree: " in error
    assert f" negatives in {query} by age" in error
    assert "one of ash, birch, cedar counts wrongly" in error
    assert "(E160)" in error
    assert not (out / "report.json").exists()


# --- E170, E171: the budget -----------------------------------------------------------------------------------------


def test_e170_a_hospital_whose_budget_is_used_up_refuses_and_shows_what_was_spent(
    icu: Path, equipoise: Run, hospitals: Hospitals
) -> None:
    cap(icu, 4)
    private = (*PRIVATE, "--set", f"inputs.edges={EDGES}")
    ended = equipoise("evaluate", icu, "--out", icu.parent / "first", *private)
    assert ended.code in (0, 2), ended.err
    before = spent(hospitals, equipoise, "ash")
    hospitals.approved.clear()
    error = equipoise("evaluate", icu, "--out", icu.parent / "second", *private, "--set", "study=again").error
    assert "0 of 3 sites answered" in error
    assert "epsilon" not in error
    assert "ash: refused" in error
    reason = hospitals.reason("ash")
    assert "do not fit under caps.epsilon=4" in reason
    assert "(E170)" in reason
    assert spent(hospitals, equipoise, "ash") == before
    assert 2.5 < float(before[-1].split()[3]) <= 3.0
    assert not (icu.parent / "second" / "report.json").exists()


def test_e171_what_was_not_asked_under_noise_is_no_number_anywhere(icu: Path, equipoise: Run) -> None:
    out = icu.parent / "run"
    ended = equipoise("evaluate", icu, "--out", out, *PRIVATE, "--set", f"inputs.edges={EDGES}")
    assert ended.code in (0, 2), ended.err
    assert "E171 AUC by some attributes was not released" in ended.out
    report = json.loads((out / "report.json").read_text())
    areas = report["models"]["base"]["attributes"]["age"]
    for figure in (*areas["auc_by_group"], areas["worst_group_auc"], areas["auc_gap"]):
        assert (figure["value"], figure["n"], figure["status"]) == (None, None, "not_released")
    page = (out / "report.html").read_text()
    _, *rows = page.partition("<caption><span>AUC by age")[2].partition("</table>")[0].split("<tr>")[1:]
    assert len(rows) >= len(areas["auc_by_group"]) - 1 + 2
    assert all("<td>–</td><td>not released</td>" in row for row in rows)
    with (out / "report.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "not_released"]
    assert {"auc", "worst_group_auc", "auc_gap"} <= {row["metric"] for row in rows}
    assert all(row["value"] == row["n"] == "NA" for row in rows if row["metric"] == "auc_gap")
