"""The hospital that is left out is nowhere in the training, and its figures are paired and summed up by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from equipoise.simulations.benchmarks import left_out
from equipoise.simulations.benchmarks.left_out import DESIGNS, PLAIN, TEST
from equipoise.simulations.synthetic import hospital_set, hospitals_of, stream

NAMES = [f"hospital-{number}" for number in range(1, 7)]


def row(design: str, seed: int, without: float, with_it: float) -> dict[str, Any]:
    def figures(gap: float) -> dict[str, float]:
        return {"equalized_odds_mean": gap, "auc": 0.9 - gap, "worst_group_auc": 0.8 - gap}

    return {"design": design, "seed": seed, "base": figures(0.4), "without": figures(without), "with": figures(with_it)}


@pytest.mark.parametrize("seed", [0, 5, 7])
def test_the_seeds_hospital_is_left_out_of_one_training_and_of_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    trained: list[list[str]] = []
    scored: list[tuple[str, int]] = []
    hospitals = SimpleNamespace(sites={name: tmp_path / name for name in NAMES})
    monkeypatch.setattr(left_out, "prepared", lambda design, seed, cache: (None, hospitals))

    def run_study(study: Any, files: dict[str, list[Path]], patients: int, folder: Path) -> Any:
        assert all(found == [tmp_path / name] for name, found in files.items())
        trained.append(list(files))
        return SimpleNamespace(path=folder)

    def figures_on(file: Path, test: Any) -> dict[str, float]:
        scored.append((file.name, len(test.label)))
        return {}

    monkeypatch.setattr(left_out, "run_study", run_study)
    monkeypatch.setattr(left_out, "figures_on", figures_on)
    found = left_out.row_of(PLAIN, seed, tmp_path)
    out = NAMES[seed % 6]
    assert found["left_out"] == out
    assert trained == [[name for name in NAMES if name != out], NAMES]
    assert scored == [("base.safetensors", TEST), ("model.safetensors", TEST)] * 2


def test_its_patients_are_new_ones_of_its_own_device() -> None:
    test = left_out.left_out_test(3, 2)
    cells = np.bincount(2 * test.label + test.group)
    assert cells.tolist() == [TEST // 4] * 4
    own = hospital_set(hospitals_of(6)[2], 300, stream(3, "hospital", 2, "train"))
    mine, other = (left_out.left_out_test(3, index).images.mean(axis=(0, 1, 2)) for index in (2, 3))
    theirs = own.images.mean(axis=(0, 1, 2))
    assert np.abs(mine - theirs).max() < np.abs(other - theirs).max()
    assert not {image.tobytes() for image in test.images} & {image.tobytes() for image in own.images}
    assert (left_out.left_out_test(3, 2).images == test.images).all()
    assert (left_out.left_out_test(4, 2).images != test.images).any()


def test_differences_are_paired_by_seed_and_only_whole_seeds_count() -> None:
    gaps = {0: (0.20, 0.10), 1: (0.30, 0.15), 2: (0.10, 0.10)}
    found = [
        row(design.name, seed, without - 0.02 * number, with_it)
        for number, design in enumerate(DESIGNS)
        for seed, (without, with_it) in gaps.items()
    ]
    found.append(row(PLAIN.name, 3, 0.9, 0.9))  # no other method has this seed
    first, second, *_ = left_out.summary(found)
    assert first["seeds"] == [0, 1, 2]
    assert first["without"]["mean"] == pytest.approx(0.2)
    assert first["with"]["mean"] == pytest.approx(0.35 / 3, abs=1e-4)
    assert first["fall"]["mean"] == pytest.approx(0.5)
    differences = np.array([0.10, 0.15, 0.0])
    half = 4.30265 * differences.std(ddof=1) / 3**0.5  # the quantile of t with two degrees of freedom
    assert first["without_less_with"]["low"] == pytest.approx(differences.mean() - half, abs=1e-4)
    assert second["less_plain"] == pytest.approx({"mean": -0.02, "low": -0.02, "high": -0.02})
    assert second["worst_change"]["mean"] == pytest.approx(0.4 - 0.18)


def test_the_page_says_which_carry_over() -> None:
    found = [
        row(design.name, seed, 0.2 - 0.02 * number + 0.001 * seed, 0.1)
        for number, design in enumerate(DESIGNS)
        for seed in range(9)
    ]
    for one in found:  # only on the first seeds better than plain
        if one["design"] == "private_head" and one["seed"] > 5:
            one["without"]["equalized_odds_mean"] = 0.199 + 0.002 * one["seed"]
    value = {"command": "c", "commit": "0", "machine": "m", "rows": found, "summary": left_out.summary(found)}
    text = " ".join(left_out.section(value).split())
    assert "plain fine-tuning for: balanced cells, swift, group_dro, private_head; of these" in text
    assert "on seeds 6 to 11 alone for: balanced cells, swift, group_dro." in text
    assert left_out.section(value).count("\n| ") == len(DESIGNS) + 2
    assert "Means over 9 seeds" in text


def test_what_is_smaller_is_not_decided_by_a_rounded_end() -> None:
    apart = np.array([-0.0900008, 0.0, -0.045]) + 0.045  # its interval is as wide as below 0 as above it
    shift = -4.30265 * apart.std(ddof=1) / 3**0.5  # now it ends at 0, but for a hundred thousandth
    found = [
        row(design.name, seed, 0.3 + (apart[seed] + shift - 1e-5 if number else 0.0), 0.3)
        for number, design in enumerate(DESIGNS)
        for seed in range(3)
    ]
    ends = left_out.summary(found)[1]["less_plain"]
    assert -1e-4 < ends["high"] < 0


def test_the_kept_results_are_whole() -> None:
    value = json.loads(left_out.FILE.read_text())
    assert left_out.summary(value["rows"]) == value["summary"]
    assert len(value["summary"][0]["seeds"]) % 6 == 0
    assert {row["left_out"] for row in value["rows"]} == set(NAMES)
