"""What `equipoise site show` says of a study's price beside what was spent, and `site audit` of each release's cost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from equipoise.client.approvals import Proposal
from equipoise.client.request import Request
from equipoise.client.showing import audit_rows, describe, show_lines
from equipoise.client.statement import statement
from equipoise.common.audit import AuditLog
from equipoise.common.privacy.accounting import epsilon_of
from equipoise.common.query import SPLITS, Query
from equipoise.common.sitefile import Caps, Site, load_site
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from tests.client.books import begin, open_count, vector
from tests.client.books import opened as opened_below
from tests.tiny import FEATURES, declare, draw_people, private_study, site_file, write_hospital

STUDY = private_study()
SEXES = {"levels": ["female", "male"], "primary": True}
NEEDS = {split: StudyPlan.of(STUDY).calibrated(STUDY).plans(split) for split in SPLITS}


def site_of(epsilon: float) -> Site:
    data = {"manifest": "cohort.csv", "splits": {"column": "split"}, "synthetic": True}
    delta = STUDY.privacy.delta
    return site_file("a", data=data, caps={"models": ["tests.tiny:*"], "epsilon": epsilon, "delta": delta})


def shown(epsilon: float, state: Path) -> str:
    found: Any = describe(Proposal(STUDY, "run", 0.0, "pending", ""), site_of(epsilon), state)
    *_, last = show_lines(found)
    return last


def test_a_study_above_the_lifetime_cap_is_said_to_be_refused_before_anybody_approves_it(tmp_path: Path) -> None:
    epsilon = STUDY.privacy.epsilon
    assert epsilon is not None
    assert shown(1.2 * epsilon, tmp_path) == "  site file   lets it"
    assert "would refuse it: the study's releases on" in shown(0.5 * epsilon, tmp_path)
    assert not list(tmp_path.iterdir()), "looking writes nothing"


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_was_spent_and_reserved_counts(split: Any, tmp_path: Path) -> None:
    cap = 1.2 * float(STUDY.privacy.epsilon or 0)
    assert NEEDS[split]
    ledger = opened_below(tmp_path)
    begin(ledger, [vector(split=split, noise=2.0)], run="earlier")
    assert f"would refuse it: the study's releases on {split}" in shown(cap, tmp_path / "site")
    assert "lets it" in shown(10 * cap, tmp_path / "site")


def test_a_study_that_has_begun_is_not_counted_twice(tmp_path: Path) -> None:
    cap = 1.2 * float(STUDY.privacy.epsilon or 0)
    ledger = opened_below(tmp_path)
    ledger.begin_study(STUDY.hash, "run", "main", "plan", NEEDS, None)
    assert shown(cap, tmp_path / "site") == "  site file   lets it"


DOCUMENT = "d" * 64  # what a request calls a study: another digest than the hash that is approved


def logged(log: AuditLog, ledger: Any, query: Query, asked: Request, *, study: str, broken_off: bool = False) -> None:
    """A release as the agent charges, seals and logs it, or one that broke off before it was sealed."""
    charge = ledger.reserve(asked, query, "main")
    if broken_off:
        return
    ledger.seal(charge, b"reply")
    log.append("request", run=asked.run, release=asked.number, study=study, code="ok", ledger=charge.head)


def test_attempts_at_a_release_are_told_apart_in_the_statement(tmp_path: Path) -> None:
    ledger, log = opened_below(tmp_path), AuditLog(tmp_path / "site" / "audit.jsonl")
    query = vector(noise=2.0)
    begin(ledger, [query])
    logged(log, ledger, query, Request("5" * 64, "run/swift", 0, "head"), study=DOCUMENT, broken_off=True)
    logged(log, ledger, query, Request("5" * 64, "run/swift", 0, "head", 1), study=DOCUMENT)
    found = statement(ledger, 1e-5)["releases"]
    assert [(one["attempt"], one["state"]) for one in found] == [(0, "charged"), (1, "sealed")]
    ledger.close()
    *_, row = audit_rows(tmp_path / "site")
    both = epsilon_of([query.plan.event] * 2, 1e-5)
    assert found[0]["epsilon"] < both
    assert row["cost"] == f"epsilon {both:.3f} (2 attempts)"


def test_a_release_costs_what_it_cost_in_its_own_study(tmp_path: Path) -> None:
    ledger, log = opened_below(tmp_path), AuditLog(tmp_path / "site" / "audit.jsonl")
    priced = {"5" * 64: vector(noise=2.0), "6" * 64: vector(noise=8.0), "7" * 64: open_count()}
    for study, query in priced.items():
        begin(ledger, [query], study=study)
        logged(log, ledger, query, Request(study, "run/swift", 0, "head"), study=f"document of {study}")
    # The stages of a secure sum before and after the one that pays name no entry.
    log.append("request", run="run/swift", release=0, study=f"document of {'6' * 64}", code="ok")
    log.append("request", run="run/swift", release=0, study="another document", code="ok")
    log.append("request", run="run/swift", release=0, study=f"document of {'5' * 64}", code="refused")
    ledger.close()
    dear, cheap = (f"epsilon {epsilon_of([priced[digit * 64].plan.event], 1e-5):.3f}" for digit in "56")
    costs = [row.get("cost") for row in audit_rows(tmp_path / "site")]
    assert costs == [dear, cheap, "no noise", cheap, None, None]


def test_a_log_that_names_no_entry_is_read_by_the_name_of_a_run_that_is_the_only_one(tmp_path: Path) -> None:
    ledger, log = opened_below(tmp_path), AuditLog(tmp_path / "site" / "audit.jsonl")
    begin(ledger, [vector(noise=2.0)])
    ledger.reserve(Request("5" * 64, "run/swift", 0, "head"), vector(noise=2.0), "main")
    ledger.close()
    log.append("request", run="run/swift", release=0, study=DOCUMENT, code="ok")
    (row,) = audit_rows(tmp_path / "site")
    assert row["cost"].startswith("epsilon ")


@pytest.mark.parametrize(
    ("factory", "arguments", "models"),
    [
        ("planted_module:X", {}, ["tests.tiny:*"]),
        ("equipoise.common.models:load_factory", {"factory": "planted_module:X"}, ["equipoise.common.models:*"]),
    ],
)
def test_a_model_that_the_site_file_does_not_let_in_is_shown_without_importing_it(
    factory: str, arguments: Any, models: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    model = {**STUDY.model.model_dump(), "factory": factory, "arguments": arguments}
    site = site_of(9).model_copy(update={"caps": Caps(models=models, epsilon=9, delta=STUDY.privacy.delta)})
    study = private_study(model=model)
    found = describe(Proposal(study, "run", 0.0, "pending", ""), site, tmp_path / "state")
    assert "planted_module" not in sys.modules
    lines = list(show_lines(found))
    assert lines[-1].startswith(f"  site file   would refuse it: model factory '{factory}' is ")
    assert f"  hash        {study.hash}" in lines
    assert "  privacy     mode local; without the model there is no plan, and so no price" in lines
    assert found["label"]


def lines_of(study: Study, site: Site, tmp_path: Path) -> list[str]:
    return list(show_lines(describe(Proposal(study, "run", 0.0, "pending", ""), site, tmp_path / "state")))


def hospital(tmp_path: Path) -> Site:
    """60 patients, 20 of them for training."""
    return load_site(write_hospital(tmp_path, "a", draw_people(60, seed=3), range(60)))


def test_what_a_study_reads_and_has_words_for_is_shown_whole(tmp_path: Path) -> None:
    attributes = [
        {"name": "sex", "levels": ["female", "male"], "primary": True},
        {"name": "decade", "column": "age", "levels": ["40", "70"]},
        {"name": "old", "kind": "cut", "column": "age", "cuts": [60, 80]},
        {"name": "both", "kind": "intersection", "of": ["sex", "old"]},
    ]
    label = {"column": "disease", "positive": [1], "negative": [0, "none, as far as known"]}
    study = declare(private_study(attributes=attributes, label=label), {"b": 70, "a": 21, "c": 80})
    site = hospital(tmp_path)
    lines = lines_of(study, site, tmp_path)
    for line in (
        "  reads       label disease: positive '1'; negative '0', 'none, as far as known'",
        "              attribute sex: column sex, levels 'female', 'male'",
        "              attribute decade: column age, levels '40', '70'",
        "              attribute old: column age, a number cut at 60, 80",
        "              attribute both: intersection of sex, old",
        f"              inputs: columns {', '.join(f'f{i}' for i in range(FEATURES))}",
        "  declared    this site 21; others: b 70, c 80 (training patients)",
        "  cohort      every value is one of the study's",
    ):
        assert line in lines
    assert not any("WARNING" in line for line in lines), "a tenth may have come since"
    found = describe(Proposal(study, "run", 0.0, "pending", ""), site, tmp_path / "state")
    assert found["label"] == {"column": "disease", "positive": ["1"], "negative": ["0", "none, as far as known"]}
    assert [one.get("levels") for one in found["attributes"][:3]] == [["female", "male"], ["40", "70"], None]
    assert (found["training_patients"], found["sites"]["a"]) == (20, 21)
    any_other = lines_of(private_study(), site, tmp_path)
    assert "  reads       label disease: positive '1'; negative any other value" in any_other
    assert "  declared    this site is not among them; others: none (training patients)" in any_other


@pytest.mark.parametrize("declared", [17, 23, 0])
def test_a_declared_number_that_is_not_this_cohort_s_is_warned_of(declared: int, tmp_path: Path) -> None:
    lines = lines_of(declare(STUDY, {"a": declared}), hospital(tmp_path), tmp_path)
    said = f"  WARNING     {declared} are declared for this site; its cohort has 20 training patients (shown here only)"
    assert said in lines


def test_a_value_that_a_study_has_no_word_for_is_shown_before_anybody_approves_it(tmp_path: Path) -> None:
    attributes = [{**SEXES, "name": "sex"}, {"name": "age", "levels": ["40", "71"]}]
    lines = lines_of(private_study(attributes=attributes), hospital(tmp_path), tmp_path)
    (said,) = (line for line in lines if line.startswith("  cohort      cannot be read as this study does: site a: "))
    assert "'70' is no level of attribute age (declared: 40, 71)" in said


def test_names_that_a_study_s_author_chose_make_no_line_of_their_own(tmp_path: Path) -> None:
    attributes = [{**SEXES, "name": "sex\n  site file   lets it\x1b[A", "column": "sex"}]
    study = private_study(attributes=attributes)
    assert not any("\n" in line or "\x1b" in line for line in lines_of(study, hospital(tmp_path), tmp_path))
