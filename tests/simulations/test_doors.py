"""The doors of many simulated sites in one process: few open files, and nothing lost by it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from equipoise.common.study_file import load_study
from equipoise.simulations import doors
from equipoise.simulations.runner import simulate
from tests.tiny import draw_people, write_hospital, write_study

SITES = 7
PEOPLE = draw_people(12 * SITES, seed=5)


def run(folder: Path, hospitals: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, int]:
    """The weights that a short study ends with, and the most ledgers that were open when a site had answered."""
    study = load_study(write_study(folder, hospitals, {"name": "fine_tune", "step": "fedavg", "rounds": 2}))
    most, asked = 0, doors.SimulatedSite.answer

    def answer(site: doors.SimulatedSite, request: bytes) -> bytes:
        nonlocal most
        reply = asked(site, request)
        most = max(most, open_ledgers(folder))
        return reply

    with monkeypatch.context() as patch:
        patch.setattr(doors.SimulatedSite, "answer", answer)
        simulate(study, folder / "run")
    return (folder / "run" / "model.safetensors").read_bytes(), most


def open_ledgers(folder: Path) -> int:
    """Ledgers below a folder that this process has open."""
    names = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            names.add(os.readlink(link))
    return sum(name.startswith(str(folder)) and name.endswith("ledger.sqlite") for name in names)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed in /proc")
def test_sites_that_were_not_asked_for_long_close_their_ledgers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospitals = tmp_path / "hospitals"
    for index in range(SITES):
        write_hospital(hospitals, f"h{index}", PEOPLE, range(12 * index, 12 * index + 12))
    ends = []
    for kept in (2, SITES):
        awake = doors.Awake(kept)
        monkeypatch.setattr(doors, "awake", lambda these=awake: these)
        weights, most = run(tmp_path / str(kept), hospitals, monkeypatch)
        assert most == kept
        heads = doors.remembered_heads(tmp_path / str(kept) / "run")
        assert len(heads) == SITES
        assert all(len(site) == len(heads["h0"]) > 4 for site in heads.values())
        ends.append(weights)
    assert ends[0] == ends[1]
