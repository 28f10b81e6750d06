"""The engines are ways to run, not ways to compute: same sums and models, byte for byte."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.e2e.studies import IMAGES, TABLE, Desk, files_of
from tests.e2e.terminal import Run, interrupt_after, start

STUDIES = {"table": TABLE, "images": IMAGES}


def outcome(run: Path) -> dict[str, bytes]:
    """Every sum and every model of a run."""
    patterns = ("**/sums/*.safetensors", "**/model.safetensors")
    return {str(file.relative_to(run)): file.read_bytes() for pattern in patterns for file in files_of(run, pattern)}


def simulated(kind: str, folder: Path, equipoise: Run, *options: str) -> dict[str, bytes]:
    """The outcome of the study in a folder of its own; the run is called `run`, which its chains remember."""
    desk = Desk(folder, STUDIES[kind])
    if kind == "table":
        desk.write_study(method={**TABLE["method"], "controls": ["permuted", "pooled"]})
    ended = equipoise("simulate", desk.study, "--out", desk.run, *options)
    assert ended.code == 0, ended.err
    assert equipoise("verify", desk.run).code == 0
    found = outcome(desk.run)
    assert len(found) >= 5
    return found


@pytest.mark.parametrize("kind", STUDIES)
def test_the_number_of_workers_changes_no_bit(kind: str, tmp_path: Path, equipoise: Run) -> None:
    one = simulated(kind, tmp_path / "one", equipoise, "--set", "simulation.workers=1")
    two = simulated(kind, tmp_path / "two", equipoise, "--set", "simulation.workers=2")
    assert one == two


SECURE = ("--set", "privacy.secure_sum=true")


def kept_by_sessions(folder: Path) -> list[Path]:
    """What sites have written down of secure sums."""
    return list(folder.rglob("secure/*/record.json"))


def test_the_secure_sum_changes_no_bit_of_sums_and_models(tmp_path: Path, equipoise: Run) -> None:
    """As on real SuperNodes, where tests/e2e/test_deploy.py compares the same way."""
    plain = simulated("table", tmp_path / "plain", equipoise)
    assert simulated("table", tmp_path / "secure", equipoise, *SECURE) == plain
    assert kept_by_sessions(tmp_path / "secure")
    assert not kept_by_sessions(tmp_path / "plain"), "one of the two was to go without"


def test_a_seed_changes_the_sums(tmp_path: Path, equipoise: Run) -> None:
    # Without this, a comparison that reads nothing would pass.
    one = simulated("table", tmp_path / "one", equipoise)
    other = simulated("table", tmp_path / "other", equipoise, "--set", "seed=4")
    assert one.keys() == other.keys()
    assert one["transcript/sums/0002.safetensors"] != other["transcript/sums/0002.safetensors"]
    assert one["model.safetensors"] != other["model.safetensors"]


RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (equipoise[simulation])")


@pytest.mark.slow
@RAY
@pytest.mark.parametrize("kind", STUDIES)
def test_flowers_simulation_gives_the_bits_of_the_in_process_grid(kind: str, tmp_path: Path, equipoise: Run) -> None:
    here = simulated(kind, tmp_path / "here", equipoise, "--engine", "in-process")
    for workers in (1, 2):
        options = ("--engine", "flower", "--set", f"simulation.workers={workers}")
        assert simulated(kind, tmp_path / f"flower-{workers}", equipoise, *options) == here


@pytest.mark.slow
@RAY
def test_flowers_simulation_gives_the_same_sums_through_the_secure_sum(tmp_path: Path, equipoise: Run) -> None:
    plain = simulated("table", tmp_path / "plain", equipoise, "--engine", "in-process")
    assert simulated("table", tmp_path / "flower", equipoise, "--engine", "flower", *SECURE) == plain


@pytest.mark.slow
@RAY
def test_ctrl_c_ends_flowers_simulation_and_any_engine_goes_on(tmp_path: Path, equipoise: Run) -> None:
    desk = Desk(tmp_path / "desk", TABLE)
    desk.write_study(method={**TABLE["method"], "rounds": {"extractor": 30, "head": 1}})
    stopped = desk.folder / "stopped" / "run"
    process = start("simulate", desk.study, "--out", stopped, "--engine", "flower")
    ended = interrupt_after(process, stopped / "transcript" / "chain.jsonl", releases=4)
    assert ended.code == 130
    assert ended.out == ""
    assert ended.err.endswith("stopped; go on with --resume\n")
    assert equipoise("simulate", desk.study, "--out", stopped, "--resume").code == 0
    assert equipoise("simulate", desk.study, "--out", desk.run).code == 0
    assert outcome(stopped) == outcome(desk.run)
