"""`equipoise compare` as its user has it: one table for several methods and seeds, kept runs, mistakes of one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.e2e.studies import Desk
from tests.e2e.terminal import Run

STUDY = 2
METHODS = "swift,zhang_zhou"


@pytest.fixture
def larger(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Hospitals with enough test patients for gaps to be estimable."""
    monkeypatch.setattr("tests.e2e.studies.PATIENTS", 240)
    return Desk(desk.folder.parent / "larger", desk.value)


def compare(equipoise: Run, desk: Desk, *more: object, methods: str = METHODS, seeds: int = 2) -> object:
    return equipoise("compare", desk.study, "--methods", methods, "--seeds", seeds, "--out", desk.run, *more)


def test_one_table_of_kept_runs_that_verify(larger: Desk, equipoise: Run) -> None:
    ended = compare(equipoise, larger, "--format", "json")
    assert ended.code == 0, ended.err
    value = json.loads(ended.out)
    assert value["seeds"] == [3, 4]
    assert list(value["table"]) == ["base", "plain", "swift", "zhang_zhou"]
    # All of a seed start from one base model and the runs are whole runs.
    for seed in value["seeds"]:
        runs = [larger.run / f"seed-{seed}" / name for name in ("plain", "swift", "zhang_zhou")]
        assert len({(run / "base.safetensors").read_bytes() for run in runs}) == 1
        assert all((run / "seal.json").exists() for run in runs)
    swift = larger.run / "seed-4" / "swift"
    assert equipoise("verify", swift).code == 0
    # Folders hold the same patients in the same split in every seed.
    assert (value["study"]["same_split"], value["study"]["resplit"]) == (True, None)
    # Without noise a run's own report has the figures of the table.
    report = json.loads((swift / "report.json").read_text())["models"]["swift"]
    assert value["per_seed"]["4"]["swift"]["figures"]["auc"] == report["auc"]["value"]
    sex = report["attributes"]["sex"]
    assert value["per_seed"]["4"]["swift"]["figures"]["worst_group_auc"] == sex["worst_group_auc"]["value"]
    # What a method cost is what its own releases did, those of the evaluation apart.
    (row,) = [row for row in value["methods"] if row["name"] == "swift"]
    logs = [
        [json.loads(line) for line in (larger.run / f"seed-{seed}" / "swift" / "rounds.jsonl").read_text().splitlines()]
        for seed in value["seeds"]
    ]
    own = [[one for one in log if one["run"] == "swift/swift"] for log in logs]
    assert row["releases"] == len(own[0]) < len(logs[0])
    sent = [sum(sum(one["bytes_up"].values()) for one in log) / len(log[0]["bytes_up"]) for log in own]
    assert row["megabytes_up"] == pytest.approx(sum(sent) / len(sent) / 1e6)
    assert all(one["releases"] > 0 for one in value["methods"][1:])
    with (larger.run / "comparison.csv").open() as file:
        assert {row["model"] for row in csv.DictReader(file)} == set(value["table"])
    page = (larger.run / "comparison.html").read_text()
    assert "<svg" in page
    assert "a seed changes shuffles alone: patients and splits stay." in page


def test_it_goes_on_where_it_stopped_and_takes_more_methods(larger: Desk, equipoise: Run) -> None:
    assert compare(equipoise, larger, methods="reweighing", seeds=1).code == 0
    model = larger.run / "seed-3" / "reweighing" / "model.safetensors"
    before = model.stat().st_mtime_ns
    refused = compare(equipoise, larger, methods="reweighing", seeds=1)
    assert (refused.code, "--resume" in refused.error) == (STUDY, True)
    ended = compare(equipoise, larger, "--resume", methods="q_ffl", seeds=2)
    assert ended.code == 0, ended.err
    assert model.stat().st_mtime_ns == before
    asked = [line for line in ended.err.splitlines() if line.startswith("run ")]
    assert [line.split(": ")[1] for line in asked] == [
        "seed 3, q_ffl",
        "seed 4, plain",
        "seed 4, reweighing",
        "seed 4, q_ffl",
    ]
    assert "too few for an interval" in ended.out
    larger.write_study(evaluation={"bins": 64, "threshold": {"rule": "fixed:0.4"}})
    other = compare(equipoise, larger, "--resume", methods="reweighing", seeds=1)
    assert (other.code, "evaluation differs" in other.error) == (STUDY, True)


def test_a_seed_with_too_few_patients_is_named_and_the_others_count(desk: Desk, equipoise: Run) -> None:
    ended = compare(equipoise, desk, methods="fairprune,reweighing", seeds=1)
    assert ended.code == 0, ended.err
    value = json.loads((desk.run / "comparison.json").read_text())
    assert [(row["seed"], row["name"]) for row in value["skipped"]] == [(3, "fairprune")]
    assert "better_off" in value["skipped"][0]["reason"]
    assert value["table"]["fairprune"]["figures"]["auc"]["value"]["seeds"] == 0
    assert value["table"]["reweighing"]["figures"]["auc"]["value"]["seeds"] == 1


def test_every_method_is_tuned_as_much(desk: Desk, equipoise: Run) -> None:
    ended = compare(equipoise, desk, "--tune", methods="reweighing,fedprox", seeds=1)
    assert ended.code == 0, ended.err
    value = json.loads((desk.run / "comparison.json").read_text())
    assert [(row["name"], len(row["tried"])) for row in value["tuning"]] == [
        ("plain", 3),
        ("reweighing", 3),
        ("fedprox", 3),
    ]
    for row in value["tuning"]:
        own = next(method for method in value["methods"] if method["name"] == row["name"])
        taken = row["tried"][row["chosen"]]
        assert {key: own["parameters"][key] for key in taken} == taken
        assert row["validation"][row["chosen"]]["auc"] == max(x["auc"] for x in row["validation"])
    refused = compare(equipoise, desk, "--resume", methods="reweighing", seeds=1)
    assert "--tune differs" in refused.error


def test_all_means_those_that_can_run(desk: Desk, equipoise: Run) -> None:
    # Nothing is run: the folder holds a comparison already.
    desk.run.mkdir()
    (desk.run / "compared.json").write_text("{}")
    ended = compare(equipoise, desk, methods="all")
    assert ended.code == STUDY
    left_out = [line for line in ended.err.splitlines() if line.startswith("left out: ")]
    assert len(left_out) == 2  # private_head needs a pool, group_thresholds to be allowed
    assert "--allow-group-thresholds" in left_out[1]


@pytest.mark.parametrize(
    ("methods", "sets", "words"),
    [
        ("swift,nonsense", (), "no method 'nonsense' to compare; there are: all, swift, "),
        ("audit", (), "no method 'audit'"),
        (",", (), "name at least one method"),
        ("group_thresholds", (), "allow_group_thresholds: true"),
        ("private_head", (), "--methods private_head: it needs privacy.public_pool"),
        ("afl,q_ffl", ("privacy.mode=local", "privacy.epsilon=8"), "--methods afl: method.name=afl: it has no private"),
        ("swift", ("simulation=null", "model.weights.path=vendor.safetensors"), "`simulation` is missing"),
        ("swift", ("privacy.mode=local", "privacy.epsilon=8", "--tune"), "--tune: every setting that is tried costs"),
        ("swift", ("method.nonsense=1",), "unknown key 'nonsense'"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    desk: Desk, equipoise: Run, methods: str, sets: tuple[str, ...], words: str
) -> None:
    more = [part for a in sets for part in (("--set", a) if "=" in a else (a,))]
    ended = compare(equipoise, desk, *more, methods=methods)
    assert ended.code == STUDY
    assert words in ended.error
    assert not Path(desk.run).exists()
