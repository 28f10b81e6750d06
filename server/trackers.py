"""TensorBoard and MLflow as lookers-on of a run. Neither is imported unless a run asks for it by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from equipoise.common.errors import StudyError
from equipoise.common.query import Query
from equipoise.quiet import quiet_flower
from equipoise.server.engine import Finished, Watcher
from equipoise.server.rundir import RunFolder

Scalar = Callable[[str, float, int], None]
"""Takes the name of a figure, its value, and the number of the release."""


class Tracker:
    """Passes seconds, bytes and sites of every release on; nothing else of a run is theirs to know."""

    def __init__(self, write: Scalar) -> None:
        self._write = write
        self._count = 0

    def began(self, run: str, query: Query, number: int, planned: int, sites: Sequence[str]) -> None:
        """Nothing is known yet."""

    def answered(self, site: str) -> None:
        """A release is one point, not one per site."""

    def finished(self, run: str, release: Finished) -> None:
        """Write the figures of a release; a replayed one only moves the count on."""
        self._count += 1
        if release.replayed:
            return
        arm = run.partition("/")[2] or run
        self._write(f"{arm}/seconds", release.seconds, self._count)
        self._write(f"{arm}/sites", float(len(release.cohort)), self._count)
        self._write(f"{arm}/bytes_up", float(sum(release.bytes_up.values())), self._count)
        self._write(f"{arm}/bytes_down", float(sum(release.bytes_down.values())), self._count)


def open_trackers(names: Sequence[str], folder: RunFolder) -> list[Watcher]:
    """The trackers called `names`; their files lie in `deployment/` of the run.

    Raises:
        StudyError: there is no such tracker, or its package is not installed.
    """
    makers = {"tensorboard": _tensorboard, "mlflow": _mlflow}
    opened: list[Watcher] = []
    for name in names:
        if name not in makers:
            raise StudyError(f"--track {name}: no such tracker; there are: {', '.join(makers)}")
        try:
            opened.append(Tracker(makers[name](folder.path / "deployment" / name, folder.name)))
        except ImportError:
            raise StudyError(f"--track {name}: not installed; install equipoise[{name}], or leave it out") from None
    return opened


def _tensorboard(folder: Path, run: str) -> Scalar:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def write(name: str, value: float, step: int) -> None:
        writer.add_scalar(name, value, step)
        writer.flush()

    return write


def _mlflow(folder: Path, run: str) -> Scalar:
    # MLflow sends what is used of it from its import on, and a start script may be older than the switch against that.
    quiet_flower()
    import mlflow

    folder.mkdir(parents=True, exist_ok=True)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("equipoise")
    number = client.create_experiment("equipoise") if experiment is None else experiment.experiment_id
    identity = client.create_run(number, run_name=run).info.run_id

    def write(name: str, value: float, step: int) -> None:
        client.log_metric(identity, name.replace("/", "."), value, step=step)

    return write
