"""Federated averaging of local DP-SGD through the program: priced, run, charged and re-derived."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.e2e.studies import SITES, TABLE, Desk
from tests.e2e.terminal import Run

LOCAL: dict[str, Any] = {"mode": "local", "epsilon": 8, "public_pool": {"path": "pool.csv"}}
# Of 72 patients the counts need much: by the default share noise finds no positive one in a few runs of a hundred.
SHARES: dict[str, dict[str, float]] = {
    "fine_tune": {"counts": 0.4, "rounds": 0.6},
    "swift": {"counts": 0.4, "mask": 0.1, "rounds": 0.5},
}
METHODS: dict[str, dict[str, Any]] = {
    "fine_tune": {"name": "fine_tune", "step": "fedavg", "rounds": 2, "batch": 8},
    "swift": {"name": "swift", "step": "fedavg", "rounds": {"extractor": 2, "head": 1}, "batch": 8},
}


def desk_at(folder: Path, method: str, **privacy: Any) -> Desk:
    """Three hospitals, a pool of 200 rows that nobody has, and the method under noise."""
    desk = Desk(folder, TABLE)
    rng = np.random.default_rng(9)
    with (folder / "pool.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["x0", "x1", "x2"])
        writer.writerows(rng.uniform(-3, 3, (200, 3)).round(4).tolist())
    evaluation = {"threshold": {"rule": "fixed:0.5"}, "bins": 8}
    declared = dict.fromkeys(SITES, 24)
    desk.write_study(
        method=METHODS[method],
        privacy={**LOCAL, "split": {"train": SHARES[method]}, **privacy},
        evaluation=evaluation,
        sites={"declared_patients": declared},
    )
    return desk


@pytest.mark.parametrize("method", METHODS)
def test_a_study_is_priced_run_charged_and_re_derived(method: str, tmp_path: Path, equipoise: Run) -> None:
    desk = desk_at(tmp_path / "desk", method)
    priced = equipoise("plan", desk.study, "--format", "json")
    assert priced.code == 0, priced.err
    plan = json.loads(priced.out)
    asked = [row for row in plan["queries"] if row["query"] == "private_training"]
    assert sum(row["times"] for row in asked) == {"fine_tune": 2, "swift": 3}[method]
    assert all(0 < row["epsilon"] < 8 for row in asked)
    [train] = [row for row in plan["costs"] if row["split"] == "train"]
    assert 7.9 < train["epsilon"] <= 8
    assert train["epsilon_if_others_collude"] == train["epsilon"]

    ended = equipoise("simulate", desk.study, "--out", desk.run)
    assert ended.code == 0, ended.err
    assert equipoise("verify", desk.run).code == 0
    before, after = (load_file(desk.run / f"{name}.safetensors") for name in ("base", "model"))
    assert any((before[name] != after[name]).any() for name in before)
    assert "(counts here have noise in them)" in (desk.run / "report.html").read_text()
    notes = json.loads((desk.run / "notes.json").read_text())["dp_sgd"]
    assert {part["sampling_rate"] for part in notes.values()} == {8 / 24}
    assert {part["steps_by_round"] for part in notes.values()} == {3}


def test_the_secure_sum_carries_it(tmp_path: Path, equipoise: Run) -> None:
    desk = desk_at(tmp_path / "desk", "fine_tune", secure_sum=True)
    ended = equipoise("simulate", desk.study, "--out", desk.run)
    assert ended.code == 0, ended.err
    assert equipoise("verify", desk.run).code == 0


@pytest.mark.parametrize(
    ("method", "privacy", "line"),
    [
        ({}, {"mode": "distributed", "secure_sum": True}, "privacy.mode=distributed: federated averaging has noise"),
        ({"granularity": "channel"}, {}, "method.granularity=channel: has no effect in averages"),
        ({"importance": "mini_batch"}, {}, "method.importance=mini_batch: has no effect in averages"),
        ({"losses": "batch"}, {}, "method.losses=batch: has no effect in averages"),
    ],
)
def test_what_has_no_private_form_is_one_line(
    method: dict[str, Any], privacy: dict[str, Any], line: str, tmp_path: Path, equipoise: Run
) -> None:
    desk = desk_at(tmp_path / "desk", "swift", **privacy)
    desk.write_study(method={**METHODS["swift"], **method})
    for command in (("plan", desk.study), ("simulate", desk.study, "--out", desk.run)):
        ended = equipoise(*command)
        assert ended.code != 0
        assert line in " ".join(ended.err.split())
