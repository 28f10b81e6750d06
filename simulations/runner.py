"""A whole study on one machine: hospitals, the vendor's model, the method, its controls, the evaluation, the report.

The runner owns every hospital's data, so it can also do what no coordinator may: train on all of them pooled, on each
alone, on the vendor's data, and add noise to the scores themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from safetensors.torch import save

from equipoise.client.app import app as client_app
from equipoise.client.cohort import SPLITS
from equipoise.client.door import forget_doors, register_doors
from equipoise.common.errors import StudyError
from equipoise.common.files import write_whole
from equipoise.common.methods import METHOD_CONTROLS, control_of, resolve
from equipoise.common.study import Study, Weights, pin_weights
from equipoise.server.app import app as server_app
from equipoise.server.engine import Watcher
from equipoise.server.report.build import build_report
from equipoise.server.run import watching
from equipoise.server.rundir import Arm, RunFolder, Task
from equipoise.simulations.auc_noise import write_auc_noise
from equipoise.simulations.doors import open_hospital, open_site, write_hospitals_file
from equipoise.simulations.flower import run_in_flower
from equipoise.simulations.grid import run_in_process
from equipoise.simulations.hospitals import Hospitals, build_hospitals
from equipoise.simulations.pretrain import pretrain

ENGINES = ("in-process", "flower")


def simulate(
    study: Study,
    folder: Path,
    *,
    engine: str = "in-process",
    resume: bool = False,
    watchers: Sequence[Watcher] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Run a study and write its folder; returns the path of the report.

    Args:
        study: checked, with a `simulation` part.
        folder: the run's folder, usually `runs/<study>`.
        engine: `in-process`, or `flower` for Flower's simulation with Ray.
        resume: go on with a run that lies in `folder`.
        watchers: lookers-on.
        say: told the steps that are no releases.

    Raises:
        StudyError: there is a run in `folder` already, or it is of another study.
        EquipoiseError: see `equipoise.common.errors`.
    """
    resolve(study)
    run = RunFolder(folder)
    if run.task_file.exists() and not resume:
        raise StudyError(f"{folder}: holds a run already; go on with --resume, or give another folder with --out")
    say("writing the hospitals")
    hospitals = build_hospitals(study, folder / "hospitals")
    say("preparing the vendor's model")
    study = _prepared(study, hospitals, folder)
    if run.task_file.exists() and run.task().study != study:
        raise StudyError(f"{folder}: the run there is of another study; start a new run with --out")
    with watching(watchers):
        _run_alone(study, run, hospitals, engine)
        _start(study, run, hospitals, _main_task(study, hospitals), engine)
    say("measuring")
    if "auc_noise" in study.method.controls:
        write_auc_noise(run, {site: open_hospital(study, [file]) for site, file in hospitals.sites.items()})
    return build_report(run)


def _prepared(study: Study, hospitals: Hospitals, folder: Path) -> Study:
    """The study with the vendor's weights and the declared numbers of patients filled in."""
    if study.model.weights is None:
        file = folder / "vendor.safetensors"
        if not file.exists():
            recipe = study.simulation.pretrain if study.simulation else None
            if recipe is None:
                raise StudyError("simulation.pretrain is missing")
            state = pretrain(study.model, study.inputs, hospitals.vendor_split(study), recipe, study.seed)
            write_whole(file, save(state))
        model = study.model.model_copy(update={"weights": Weights(path=file.name)})
        study = study.model_copy(update={"model": model})
    study = pin_weights(study, folder)
    declared = {}
    for site, file in hospitals.sites.items():
        cohort = open_hospital(study, [file])
        for split in SPLITS:
            cohort.split(split)  # decoded now: an unreadable image is an error here, not a site that drops out later
        declared[site] = cohort.split_patients("train")
    if not study.sites.declared_patients:
        study = study.model_copy(update={"sites": study.sites.model_copy(update={"declared_patients": declared})})
    if set(study.sites.declared_patients) != set(hospitals.sites):
        strangers = sorted(set(study.sites.declared_patients) ^ set(hospitals.sites))
        raise StudyError(f"sites.declared_patients and the hospitals differ in: {', '.join(strangers)}")
    if sum(study.sites.declared_patients.values()) == 0:
        raise StudyError("sites.declared_patients: no hospital has a training patient; check the splits")
    return study


def _main_task(study: Study, hospitals: Hospitals) -> Task:
    method = Arm(study.method.name, study.model_copy(update={"method": study.method}))
    controls = []
    for name in study.method.controls:
        if name in METHOD_CONTROLS:
            variant = control_of(study, name)
            if variant is not None:
                controls.append(Arm(name, variant))
    alone = [name for name, _, _ in _alone(study, hospitals)]
    evaluate = (method.name, *(arm.name for arm in controls), *alone)
    return Task(study, (method, *controls), tuple(hospitals.sites), evaluate, hospitals.facts)


def _alone(study: Study, hospitals: Hospitals) -> list[tuple[str, str, list[Path]]]:
    """Controls with a single site: (name, site, site files)."""
    controls = study.method.controls
    result: list[tuple[str, str, list[Path]]] = []
    if "pooled" in controls:
        result.append(("pooled", "pooled", list(hospitals.sites.values())))
    if "local_only" in controls:
        result += [(f"local_only/{site}", site, [file]) for site, file in hospitals.sites.items()]
    if "server_only" in controls:
        if hospitals.vendor is None:
            raise StudyError("method.controls: server_only needs the vendor's data, and these hospitals have none")
        result.append(("server_only", "vendor", [hospitals.vendor()]))
    return result


def _run_alone(study: Study, run: RunFolder, hospitals: Hospitals, engine: str) -> None:
    """Train the controls that have a single site, each in a run folder of its own."""
    for name, site, files in _alone(study, hospitals):
        patients = open_hospital(study, files).split_patients("train")
        sites = study.sites.model_copy(update={"minimum": 1, "declared_patients": {site: patients}})
        alone = study.model_copy(update={"sites": sites})
        own = RunFolder(run.path / "controls" / name)
        only = Hospitals({site: files[0]}, None)
        task = Task(alone, (Arm(name, alone),), (site,), (), {})
        _start(alone, own, only, task, engine, files)


def _start(
    study: Study, run: RunFolder, hospitals: Hospitals, task: Task, engine: str, pooled: list[Path] | None = None
) -> None:
    """Write what the run needs, then run the real ServerApp against the real ClientApps."""
    weights = study.model.weights
    if not run.task_file.exists():
        if weights is None:
            raise StudyError("model.weights is missing")
        write_whole(run.path / "base.safetensors", Path(weights.path).read_bytes())
        files = {site: [file] if pooled is None else pooled for site, file in hospitals.sites.items()}
        write_hospitals_file(run.path, files)
        run.write_task(task)
    workers = study.simulation.workers if study.simulation else 1
    run_config = {"folder": str(run.path.resolve())}
    if engine == "flower":
        run_in_flower(
            server_app,
            client_app,
            list(task.sites),
            run_config,
            door_factory="equipoise.simulations.doors:open_site",
            door_arguments={"folder": str(run.path.resolve())},
            home=run.path.resolve() / "flower",
            workers=workers,
        )
        return
    register_doors(partial(open_site, folder=str(run.path)))
    try:
        run_in_process(server_app, client_app, list(task.sites), run_config, workers=min(workers, len(task.sites)))
    finally:
        forget_doors()
