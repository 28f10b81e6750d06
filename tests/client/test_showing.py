"""What `equipoise site show` says of a study's price, beside what was spent already."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from equipoise.client.approvals import Proposal
from equipoise.client.showing import describe, show_lines
from equipoise.common.sitefile import Caps, Site
from equipoise.common.study_plan import SPLITS, StudyPlan
from tests.client.books import begin, vector
from tests.client.books import opened as opened_below
from tests.tiny import private_study, site_file

STUDY = private_study()
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
