"""TensorBoard and MLflow get the figures of every release of a run, once; without them a run says what to install."""

from __future__ import annotations

import os
import sqlite3
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from equipoise.common.errors import StudyError
from equipoise.server.rounds import read_rounds
from equipoise.server.trackers import open_trackers
from equipoise.server.verify import SEAL
from tests.server.test_deployment import Place

FIGURES = ("seconds", "sites", "bytes_up", "bytes_down")


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Place:
    """A deployed run with the tracker that the test names, resumed once from right before its end."""
    place = Place(tmp_path)
    place.decide("approved")
    place.go(trackers=[request.param])
    (place.run.path / SEAL).unlink()
    place.go(trackers=[request.param])
    return place


def expected(place: Place) -> dict[tuple[str, int], float]:
    """(name of a figure, number of the release over all arms) -> its value, from rounds.jsonl."""
    found = {}
    for step, row in enumerate(read_rounds(place.run.path / "rounds.jsonl"), start=1):
        arm = row["run"].partition("/")[2]
        values = (row["seconds"], len(row["sites"]), sum(row["bytes_up"].values()), sum(row["bytes_down"].values()))
        found |= {(f"{arm}/{name}", step): float(value) for name, value in zip(FIGURES, values, strict=True)}
    assert len(found) >= 4 * 5
    return found


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="TensorBoard is not installed (equipoise[tensorboard])")
@pytest.mark.parametrize("finished", ["tensorboard"], indirect=True)
def test_tensorboard_has_every_release_once(finished: Place) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished.run.path / "deployment" / "tensorboard"))
    events.Reload()
    found = {(tag, row.step): row.value for tag in events.Tags()["scalars"] for row in events.Scalars(tag)}
    assert found == pytest.approx(expected(finished), rel=1e-3, abs=1e-3)
    assert sum(len(events.Scalars(tag)) for tag in events.Tags()["scalars"]) == len(found)


@pytest.mark.skipif(find_spec("mlflow") is None, reason="MLflow is not installed (equipoise[mlflow])")
@pytest.mark.parametrize("finished", ["mlflow"], indirect=True)
def test_mlflow_has_every_release_once(finished: Place) -> None:
    with sqlite3.connect(finished.run.path / "deployment" / "mlflow" / "mlflow.db") as db:
        rows = db.execute("SELECT key, step, value FROM metrics").fetchall()
    found = {(key.replace(".", "/"), step): value for key, step, value in rows}
    assert found == pytest.approx(expected(finished), rel=1e-3, abs=1e-3)
    assert len(rows) == len(found)


def test_a_tracker_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Place(tmp_path).run
    with pytest.raises(StudyError, match=r"--track wandb: no such tracker; there are: tensorboard, mlflow"):
        open_trackers(["wandb"], run)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(StudyError, match=r"--track mlflow: not installed; install equipoise\[mlflow\]"):
        open_trackers(["mlflow"], run)


def test_mlflow_is_told_to_send_nothing_before_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switches = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    at_import = {}

    class Importing(ModuleType):
        """Stands for the package: asked for its client, it notes how the switches are."""

        def __getattr__(self, name: str) -> object:
            at_import.update({switch: os.environ.get(switch) for switch in switches})
            raise ImportError(name)

    for switch in switches:
        monkeypatch.delenv(switch, raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", Importing("mlflow"))
    with pytest.raises(StudyError, match="not installed"):
        open_trackers(["mlflow"], Place(tmp_path).run)
    assert at_import == dict.fromkeys(switches, "true")
