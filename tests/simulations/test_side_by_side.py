"""docs/comparison.md says what the committed results say, and what the program does is what they were made with."""

import json

import pytest

from equipoise.common.methods import METHODS
from equipoise.server.report.side_by_side import FIGURES, findings, over_seeds, summarise
from equipoise.simulations.benchmarks import operating_points
from equipoise.simulations.benchmarks.side_by_side import CASES, PAGE, RESULTS, page
from tests.e2e.terminal import ROOT

THERE = [name for name in CASES if (RESULTS / f"compare-{name}.json").exists()]


def test_the_page_is_made_from_the_results() -> None:
    assert (ROOT / PAGE).read_text() == page()


@pytest.mark.parametrize("name", THERE)
def test_the_table_follows_from_the_seeds(name: str) -> None:
    value = json.loads((RESULTS / f"compare-{name}.json").read_text())
    case = CASES[name]
    assert value["study"]["privacy"]["epsilon"] == case.epsilon
    assert len(value["seeds"]) == case.seeds
    assert value["table"] == json.loads(json.dumps(summarise(value["per_seed"], list(value["table"]))))
    assert value["findings"] == findings(value)
    # Once more by hand, for one model.
    row = [seed["fine_tune"]["figures"]["auc"] for seed in value["per_seed"].values()]
    assert value["table"]["fine_tune"]["figures"]["auc"]["value"] == over_seeds(row)
    assert all(set(FIGURES) == set(model["figures"]) for seed in value["per_seed"].values() for model in seed.values())


@pytest.mark.parametrize("name", THERE)
def test_every_method_that_can_run_is_in_the_table(name: str) -> None:
    case = CASES[name]
    table = json.loads((RESULTS / f"compare-{name}.json").read_text())["table"]
    able = {m for m, method in METHODS.items() if m != "audit" and m not in case.left_out}
    if case.epsilon is not None:
        able = {m for m in able if not METHODS[m].private.startswith("none")}
    assert set(table) == {"base", "plain", *able}


@pytest.mark.skipif(not operating_points.RESULT.exists(), reason="results/operating-points.json is not there yet")
def test_the_operating_points_are_judged_by_the_declared_bounds() -> None:
    value = json.loads(operating_points.RESULT.read_text())
    assert value["bounds"] == {"average": 0.08, "every": 0.12, "loss": 0.03}
    assert value["judged"] == json.loads(json.dumps(operating_points.judged(value["seeds"])))
    assert value["judged"]["once"]["runs"] == value["judged"]["local"]["runs"] == 15
    once = [own for row in value["seeds"] for name, own in row["models"].items() if name.startswith("once")]
    assert value["judged"]["once"]["gap_largest"] == max(own["gap"]["value"] for own in once)
    # A threshold by group moves no score within a group, but noise is drawn anew.
    assert len({own["gap"]["value"] for own in once}) > len(value["seeds"])
