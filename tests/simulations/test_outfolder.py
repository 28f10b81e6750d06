"""`--out` writes over nothing that a user has."""

from __future__ import annotations

from pathlib import Path

import pytest

from equipoise.common.errors import StorageError, StudyError
from equipoise.common.study_file import load_study
from equipoise.server.rundir import RunFolder
from equipoise.simulations import runner
from equipoise.simulations.comparison import compare
from equipoise.simulations.contenders import Comparison
from equipoise.simulations.outfolder import BEFORE_THE_TASK, check_free
from tests.tiny import draw_people, write_hospital, write_study

METHOD = {"name": "fine_tune", "rounds": 1}


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    people = draw_people(60, 1)
    for place, name in enumerate("abc"):
        write_hospital(tmp_path / "hospitals", name, people, range(place, 60, 3))
    return write_study(tmp_path / "study", tmp_path / "hospitals", METHOD)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_folder_of_the_users_is_left_as_it_is(tmp_path: Path, study_file: Path) -> None:
    """Its `report.html` and `model.safetensors` would be ours afterwards."""
    own = tmp_path / "own"
    own.mkdir()
    for name in ("report.html", "model.safetensors", "base.safetensors"):
        (own / name).write_text("years of work")
    before, study = contents(own), load_study(study_file)
    for resume in (False, True):
        with pytest.raises(StudyError, match=r"holds model\.safetensors and 1 more, and no task\.json") as caught:
            runner.simulate(study, own, resume=resume)
        assert "\n" not in str(caught.value)
        with pytest.raises(StudyError, match=r"and no compared\.json"):
            compare(Comparison(study, ("fine_tune",), (0,)), own, resume=resume)
    assert contents(own) == before
    with pytest.raises(StudyError, match="is a file; name a folder"):
        runner.simulate(study, own / "report.html")


def test_what_a_run_leaves_before_its_task_is_no_obstacle(
    tmp_path: Path, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, study = tmp_path / "run", load_study(study_file)
    with monkeypatch.context() as broken:
        broken.setattr(RunFolder, "write_task", _full_disk)
        with pytest.raises(StorageError, match="full"):
            runner.simulate(study, folder)
    (folder / ".DS_Store").write_text("")
    (folder / "task.json.0123abcd.part").write_text("")
    assert {file.name for file in folder.iterdir() if file.suffix not in ("", ".part")} <= BEFORE_THE_TASK
    assert runner.simulate(study, folder).exists()
    with pytest.raises(StudyError, match="holds a run already"):
        runner.simulate(study, folder)


def test_an_empty_folder_and_none_are_free(tmp_path: Path) -> None:
    check_free(tmp_path, "task.json")
    check_free(tmp_path / "none", "task.json")


def _full_disk(*_: object) -> None:
    raise StorageError("the disk is full")
