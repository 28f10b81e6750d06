"""Bytes to the target by hand, and that a support's arm sends no more than its support."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from equipoise.common.models import resnet_small
from equipoise.common.parts import bits_of, parts_of
from equipoise.simulations.benchmarks import bytes_to_gap
from equipoise.simulations.benchmarks.bytes_to_gap import ARMS, DENSE, HOSPITALS, ROUNDS, bytes_of, half_of_parts

OTHER = ARMS[1].name


def row(arm: str, rounds: int, seed: int, moved: int, fall: float, accuracy: float = 0.8) -> dict[str, Any]:
    return {
        "arm": arm,
        "rounds": rounds,
        "seed": seed,
        "bytes_down": moved // 2,
        "bytes_up": moved - moved // 2,
        "base": {"balanced_accuracy": 0.75},
        "after": {"balanced_accuracy": accuracy},
        "equalized_odds_mean_fall": fall,
    }


def test_bytes_to_the_target_are_those_of_the_cheapest_run_that_reaches_it_and_decides_no_worse() -> None:
    found = [
        row(DENSE, 1, 0, 100, 0.4),
        row(DENSE, 2, 0, 200, 0.6),
        row(DENSE, 4, 0, 400, 0.9),
        row(DENSE, 1, 1, 100, 0.5),
        row(OTHER, 1, 0, 20, 0.9, accuracy=0.7),  # decides worse than the vendor's model
        row(OTHER, 2, 0, 50, 0.5),
        row(OTHER, 1, 1, 20, 0.1),
    ]
    dense, other = bytes_to_gap.summary(found)[:2]
    assert dense["bytes"] == [100, 150, 200]
    assert (dense["reached"], dense["seeds"], dense["of_dense"]) == (2, 2, [1, 1, 1])
    assert other["bytes"] == [50, 50, 50]
    assert (other["reached"], other["of_dense"]) == (1, [0.25, 0.25, 0.25])
    assert (dense["bytes_up_a_round"], other["bytes_up_a_round"]) == ((200 - 100) / 2, 15)
    assert [point["fall"] for point in dense["curve"]] == pytest.approx([0.45, 0.6, 0.9])
    assert bytes_to_gap.summary(found)[2]["bytes"] is None
    # The first run of OTHER closed the gap by deciding worse: it is no fall.
    assert [(point["fall"], point["held"], point["runs"]) for point in other["curve"]] == [(0.1, 1, 2), (0.5, 1, 1)]


def test_a_run_that_lost_the_accuracy_is_counted_and_not_averaged() -> None:
    found = [row(arm.name, rounds, seed, 100, 0.6) for arm in ARMS for rounds in ROUNDS for seed in (0, 1)]
    for one in found:
        if (one["arm"], one["rounds"]) == (OTHER, 1):
            one |= {"equalized_odds_mean_fall": 1.0, "after": {"balanced_accuracy": 0.5 + 0.3 * one["seed"]}}
        if (one["arm"], one["rounds"]) == (OTHER, 2):
            one["after"] = {"balanced_accuracy": 0.5}
    value = {"rows": found, "summary": bytes_to_gap.summary(found), "command": "c", "commit": "0", "machine": "m"}
    line = next(line for line in bytes_to_gap.section(value).splitlines() if line.startswith(f"| {OTHER}"))
    assert "| 100 % [100, 100], 1 lost | 2 lost | 60 % [60, 60] |" in line


def test_bytes_are_a_hospitals_mean_over_all_releases(tmp_path: Path) -> None:
    releases = [
        {"bytes_down": {"a": 600, "b": 0}, "bytes_up": {"a": 6, "b": 12}},
        {"bytes_down": {"a": 0, "b": 60}, "bytes_up": {"a": 0, "b": 0}},
    ]
    (tmp_path / "rounds.jsonl").write_text("\n".join(map(json.dumps, releases)))
    assert bytes_of(SimpleNamespace(path=tmp_path)) == {  # type: ignore[arg-type]
        "bytes_down": 660 // HOSPITALS,
        "bytes_up": 18 // HOSPITALS,
    }


def test_a_support_is_half_of_the_parts_and_another_for_each_seed() -> None:
    names = {bit.name for bit in bits_of(parts_of(resnet_small(), "head."), "parts", outside=True)}
    drawn = [half_of_parts(seed) for seed in range(5)]
    assert all(set(one) < names and len(one) == len(names) // 2 for one in drawn)
    assert len({tuple(one) for one in drawn}) > 1
    assert half_of_parts(0) == drawn[0]


def test_the_kept_runs_send_what_their_arms_say() -> None:
    """A round of whole-model averages sends 8 bytes a parameter; a support, a head and directions send less."""
    result = json.loads(bytes_to_gap.FILE.read_text())
    each = {row["arm"]: row["bytes_up_a_round"] for row in result["summary"]}
    parameters = sum(p.numel() for p in resnet_small().parameters())
    assert each[DENSE] == pytest.approx(8 * parameters, rel=0.01)
    assert 0.01 * each[DENSE] < each[OTHER] < 0.95 * each[DENSE]
    assert all(each[arm] < 0.01 * each[DENSE] for arm in each if "head" in arm or "whitened" in arm)
    assert {(row["arm"], row["rounds"], row["seed"]) for row in result["rows"]} == {
        (arm.name, rounds, seed) for arm in ARMS for rounds in ROUNDS for seed in range(result["summary"][0]["seeds"])
    }
