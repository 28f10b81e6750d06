"""A whole small run, and its report from the folder alone: same folder, same bytes; another sum, no report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.common.errors import StudyError, TranscriptError
from equipoise.common.evaluation import BASE, splits_needed
from equipoise.common.fairness.rates import gap
from equipoise.common.fairness.tables import counts_before
from equipoise.server.engine import Engine
from equipoise.server.report.auc_noise import FILE, NAME, add_auc_noise
from equipoise.server.report.build import SCHEMA, build_report, report_json
from equipoise.server.rounds import RoundLog
from equipoise.server.run import measure, run_arm
from equipoise.server.rundir import Arm, RunFolder, Task
from tests.tiny import Memory, Post, declare, draw_people, make_agent, make_study, weights_file

SITES = ("east", "north", "west")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run: SWiFT and its control `plain` over three sites."""
    root = tmp_path_factory.mktemp("runs")
    method = {"name": "swift", "rounds": {"extractor": 1, "head": 1}, "controls": ["plain"]}
    study = declare(make_study(method), dict.fromkeys(SITES, 60))
    plain = study.with_method("fine_tune", loss="plain", rounds=2)
    people = draw_people(180, 1)
    parts = {site: people.split(range(60 * i, 60 * (i + 1))) for i, site in enumerate(SITES)}
    agents = {
        site: make_agent(site, Memory.everywhere(part), root / "sites", [study, plain]) for site, part in parts.items()
    }
    task = Task(study, (Arm("swift", study), Arm("plain", plain)), SITES, ("swift", "plain"), {"synthetic": True})
    run = RunFolder(root / "tiny")
    run.path.mkdir()
    (run.path / "base.safetensors").write_bytes(weights_file())
    run.write_task(task)
    engine = Engine(study, run.plan(), Post(agents), [RoundLog(run.path / "rounds.jsonl")])  # type: ignore[arg-type]
    for arm in task.arms:
        run.write_outcome(arm.name, run_arm(engine, run, arm))
    measure(engine, run, task)
    return run.path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunFolder:
    """A copy to change; its name stays, since the transcript is anchored in it."""
    return RunFolder(Path(shutil.copytree(finished, tmp_path / finished.name)))


def test_the_same_folder_gives_the_same_bytes(run: RunFolder) -> None:
    page = build_report(run)
    first = page.read_bytes(), (run.path / "report.json").read_bytes()
    again = build_report(run)
    assert (again.read_bytes(), (run.path / "report.json").read_bytes()) == first
    assert json.loads(first[1]) == json.loads(json.dumps(report_json(run)))


def test_what_a_report_holds(run: RunFolder) -> None:
    report = report_json(run)
    assert report["schema"] == SCHEMA
    assert report["study"]["hash"] == run.task().study.hash
    assert report["study"]["evaluation"]["gates"]["worst_group_auc_loss"] == 0.01
    assert list(report["models"]) == [BASE, "swift", "plain"]
    assert report["roles"] == {BASE: "base", "swift": "method", "plain": "control"}
    assert report["sites"]["connected"] == list(SITES)
    assert {arm["arm"]: arm["incomplete"] for arm in report["sites"]["arms"]} == {
        "swift": [],
        "plain": [],
        "evaluation": [],
    }
    assert [row["n"] for row in report["attributes"]] == [180, 180]
    assert [row["phase"] for row in report["training"]["bias_loss"]] == ["before", "extractor", "head"]
    assert report["training"]["mask"]["mean"] == json.loads((run.path / "notes.json").read_text())["mask_mean"]
    assert {row["site"] for row in report["run_time"]["sites"]} == set(SITES)
    assert report["privacy"]["mode"] == "none"
    assert "not private" in report["privacy"]["text"]


def test_all_but_run_time_follows_from_the_released_sums(run: RunFolder) -> None:
    before = report_json(run)
    (run.path / "rounds.jsonl").unlink()
    after = report_json(run)
    assert {key for key in before if before[key] != after[key]} == {"run_time"}
    assert build_report(run).exists()


def test_a_changed_sum_gives_no_report(run: RunFolder) -> None:
    file = sorted((run.path / "evaluation" / "sums").iterdir())[-1]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(TranscriptError, match="changed since release"):
        build_report(run)
    assert not (run.path / "report.json").exists()


def test_a_run_without_evaluation_has_nothing_to_report(run: RunFolder) -> None:
    task = run.task()
    run.write_task(Task(task.study, task.arms, task.sites, (), task.facts))
    with pytest.raises(StudyError, match="nothing was evaluated"):
        report_json(run)


def noise_tables(run: RunFolder) -> dict[str, Any]:
    """The control's tables where it is the base model itself."""
    task = run.task()
    measured = measure(Engine(task.study, run.plan(), None), run, task)
    own = measured.joints[BASE, "swift"]
    same = {
        name: table.sum(axis=-1)[..., None] * np.eye(table.shape[-1], dtype=np.int64) for name, table in own.items()
    }
    primary = task.study.primary
    decisions = counts_before(measured.pairs[BASE, "swift"][primary.name][0])
    gap_ = gap(task.study.evaluation.primary, decisions, primary.groups).value or 0.0
    return {
        "noise_sd_logit": 0.0,
        "draws": 3,
        "gap_by_draw": [gap_ - 0.1, gap_ + 0.2, gap_],
        "histograms": {
            split: {name: table.tolist() for name, table in measured.histograms[BASE, split].items()}
            for split in splits_needed(task.study)
        },
        "noise": {"histograms": 0.0, "joints": 0.0},
        "joints": {
            "base": {name: table.tolist() for name, table in same.items()},
            "method": {name: table.tolist() for name, table in own.items()},
        },
    }


def write_noise(run: RunFolder, value: dict[str, Any]) -> None:
    file = run.path / "controls" / NAME / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def swap_decisions(value: dict[str, Any], side: str, axis: int) -> None:
    for name, table in value["joints"][side].items():
        value["joints"][side][name] = np.flip(np.array(table), axis=axis).tolist()


def move_patient(value: dict[str, Any]) -> None:
    table = value["histograms"]["test"]["sex"]
    place = next(i for i, n in enumerate(table[0][1]) if n)
    table[0][1][place] -= 1
    table[0][0][place] += 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (move_patient, "the test histogram of sex does not hold the base model's patients"),
        (lambda value: swap_decisions(value, "base", -2), "the base model's decisions by sex disagree"),
        (lambda value: swap_decisions(value, "method", -1), "the decisions of swift by sex disagree"),
        (
            lambda value: swap_decisions(value, "base", -1),
            "the control's own decisions in its two tables by sex disagree",
        ),
        (lambda value: value.update(gap_by_draw=[0.9, 0.95, 1.0]), "is not the median of gap_by_draw"),
        (lambda value: value["joints"]["method"].pop("sex"), "sex has no decision tables"),
    ],
)
def test_noise_tables_that_contradict_the_sums_are_named(
    run: RunFolder, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    value = noise_tables(run)
    change(value)
    write_noise(run, value)
    with pytest.raises(TranscriptError, match=words) as caught:
        report_json(run)
    assert str(run.path / "controls" / NAME / FILE) in str(caught.value)


def test_noise_tables_join_the_others_and_a_broken_file_is_named(run: RunFolder) -> None:
    task = run.task()
    measured = measure(Engine(task.study, run.plan(), None), run, task)
    assert add_auc_noise(run, measured, "swift") is None
    value = noise_tables(run)
    write_noise(run, value)
    report = report_json(run)
    # The study says nothing of small cells, so these are hidden, and with them the gaps of decisions nobody looked at.
    assert report["small_cells"]["minimum"] == 11
    assert report["auc_noise"] == {**{key: value[key] for key in ("noise_sd_logit", "draws")}, "gap_by_draw": []}
    assert any("kept by the simulation; it does not follow from released sums" in line for line in report["limits"])
    assert list(report["models"]) == [BASE, "swift", "plain", NAME]
    assert report["models"][NAME]["auc"] == report["models"][BASE]["auc"]
    assert "beats_auc_noise" in {gate["name"] for gate in report["verdict"]["comparisons"]}
    build_report(run)
    del value["joints"]
    write_noise(run, value)
    with pytest.raises(TranscriptError, match="not the tables of the control auc_noise"):
        report_json(run)
