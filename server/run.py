"""What the ServerApp does: the arms of a run one after the other, then the evaluation of all their models.

Every step is a generator of queries that the engine drives against the run's transcript, so a run that was stopped
anywhere goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from flwr.app import UserConfigValue
from flwr.serverapp import Grid

from equipoise.common import evaluation
from equipoise.common.classifier import Classifier
from equipoise.common.evaluation import BASE, Measured
from equipoise.common.methods import resolve
from equipoise.common.methods.method import Outcome
from equipoise.common.study_plan import EVALUATION
from equipoise.common.threads import one_thread
from equipoise.server.engine import Engine, Watcher
from equipoise.server.rounds import RoundLog
from equipoise.server.rundir import Arm, RunFolder, Task
from equipoise.server.transport import Transport

_watchers: list[Watcher] = []


@contextmanager
def watching(watchers: Sequence[Watcher]) -> Iterator[None]:
    """Let `watchers` look on at the runs of this process (Flower hands a ServerApp nothing but configuration)."""
    _watchers.extend(watchers)
    try:
        yield
    finally:
        for watcher in watchers:
            _watchers.remove(watcher)


def main(grid: Grid, run_config: Mapping[str, UserConfigValue]) -> None:
    """Carry out the task in the run folder that `run_config["folder"]` names."""
    folder = RunFolder(Path(str(run_config["folder"])))
    task = folder.task()
    folder.mend()
    transport = Transport(grid)
    transport.connect(task.sites, task.study.sites.deadline_s)
    run_task(folder, transport, _watchers)


def run_task(folder: RunFolder, transport: Transport, watchers: Sequence[Watcher]) -> None:
    """Every arm of the run's task and its evaluation, or what is left of them; then the sites learn that it is over.

    Args:
        folder: the run's, mended.
        transport: the line to the connected sites.
        watchers: lookers-on beside `rounds.jsonl`.

    Raises:
        EquipoiseError: see `Engine.drive`; the run can be resumed.
    """
    task = folder.task()
    engine = Engine(task.study, folder.plan(), transport, [RoundLog(folder.path / "rounds.jsonl"), *watchers])
    for arm in task.arms:
        folder.write_outcome(arm.name, run_arm(engine, folder, arm))
    last = task.arms[-1].name if task.arms else EVALUATION
    if task.evaluate:
        measure(engine, folder, task)
        last = EVALUATION
    engine.finish(folder.transcript(task.study_of(last), last))


def run_arm(engine: Engine, folder: RunFolder, arm: Arm) -> Outcome:
    """Train one arm, or replay it."""
    base = folder.base(arm.study)
    study = folder.placed(arm.study)
    with one_thread():
        return engine.drive(resolve(study).run(study, base), arm.name, folder.transcript(arm.study, arm.name))


def measure(engine: Engine, folder: RunFolder, task: Task) -> Measured:
    """Measure the base and every model of the task, or replay that."""
    base = folder.base(task.study)
    models: dict[str, Classifier] = {BASE: base}
    models.update({name: folder.result(name, base) for name in task.evaluate})
    method = task.arms[0].name if task.arms else None
    steps = evaluation.evaluate(folder.placed(task.study), models, method)
    with one_thread():
        return engine.drive(steps, EVALUATION, folder.transcript(task.study, EVALUATION))
