"""A whole study on one machine: hospitals, the vendor's model, the method, its controls, the evaluation, the report.

The runner owns every hospital's data, so it can also do what no coordinator may: train on all of them pooled, on each
alone, on the vendor's data, and add noise to the scores themselves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save

from equipoise.client.app import app as client_app
from equipoise.client.door import forget_doors, register_doors
from equipoise.common.errors import EquipoiseError, QuorumError, StorageError, StudyError
from equipoise.common.files import write_whole
from equipoise.common.methods import resolve
from equipoise.common.models import given_scores
from equipoise.common.query import SPLITS, SplitName
from equipoise.common.study import ScoreInputs, Study, Weights
from equipoise.common.study_file import pin_pool, pin_weights
from equipoise.common.study_plan import alone_controls, arms_of, needs_pool
from equipoise.common.study_privacy import PublicPool
from equipoise.common.threads import one_thread
from equipoise.server.app import app as server_app
from equipoise.server.engine import Watcher
from equipoise.server.report.build import build_report
from equipoise.server.run import watching
from equipoise.server.rundir import Arm, RunFolder, Task
from equipoise.server.verify import SEAL
from equipoise.simulations.auc_noise import write_auc_noise
from equipoise.simulations.doors import open_hospital, open_site, site_identity, write_hospitals_file
from equipoise.simulations.flower import run_in_flower
from equipoise.simulations.grid import run_in_process
from equipoise.simulations.hospitals import Hospitals, build_hospitals
from equipoise.simulations.outfolder import BEFORE_THE_TASK, check_free
from equipoise.simulations.preflight import Census, check_census, check_study
from equipoise.simulations.pretrain import pretrain

ENGINES = ("in-process", "flower")


@one_thread()  # `simulation.workers` is what uses more cores; small work in two threads costs more than in one
def simulate(
    study: Study,
    folder: Path,
    *,
    engine: str = "in-process",
    resume: bool = False,
    hospitals: Path | None = None,
    measured: bool = True,
    watchers: Sequence[Watcher] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Run a study and write its folder; returns the path of the report.

    Args:
        study: checked, with a `simulation` part.
        folder: the run's folder, usually `runs/<study>`.
        engine: `in-process`, or `flower` for Flower's simulation with Ray.
        resume: go on with a run that lies in `folder`.
        hospitals: where the hospitals lie, or are written; `folder/hospitals` by default.
        measured: whether the hospitals measure the result; without it there is a model and no report, and the path
            returned is that of the run.
        watchers: lookers-on.
        say: told the steps that are no releases.

    Raises:
        StudyError: there is a run in `folder` already, it is of another study, or the folder holds something else.
        EquipoiseError: see `equipoise.common.errors`.
    """
    if engine not in ENGINES:
        raise StudyError(f"engine={engine}: no such engine; there are: {', '.join(ENGINES)}")
    check_study(study)
    run = RunFolder(folder)
    if run.task_file.exists() and not resume:
        raise StudyError(f"{folder}: holds a run already; go on with --resume, or give another folder with --out")
    check_free(folder, run.task_file.name, BEFORE_THE_TASK)
    say("writing the hospitals")
    built = build_hospitals(study, hospitals or folder / "hospitals")
    say("reading the hospitals")
    census = _census(study, built)
    check_census(study, census)
    say("preparing the vendor's model")
    study = _prepared(study, built, census, run)
    task = _main_task(study, built)
    if not measured:
        task = replace(task, evaluate=())
    begin_run(run, task, {site: [file] for site, file in built.sites.items()})
    with watching(watchers):
        _run_alone(study, run, built, engine)
        start_run(study, run, task, engine)
    if not measured:
        return run.path
    say("measuring")
    if "auc_noise" in study.method.controls:
        write_auc_noise(run, {site: open_hospital(study, [file]) for site, file in built.sites.items()})
    return build_report(run)


def _census(study: Study, hospitals: Hospitals) -> Census:
    """Patients by hospital, split and label.

    Everything is decoded: an unreadable image is an error here, not a site that drops out later.
    """
    census = {}
    for site, file in hospitals.sites.items():
        cohort = open_hospital(study, [file])
        positives = {name: int(cohort.split(name).label.sum()) for name in SPLITS}
        census[site] = {name: (cohort.split_patients(name) - positives[name], positives[name]) for name in SPLITS}
    return census


def _prepared(study: Study, hospitals: Hospitals, census: Census, run: RunFolder) -> Study:
    """The study with the vendor's weights and the declared numbers of patients filled in."""
    if study.model.weights is None:
        file = run.path / "vendor.safetensors"
        # A file that an earlier attempt left is of the same study only where the run has begun.
        if isinstance(study.inputs, ScoreInputs):
            write_whole(file, save(given_scores().state_dict()))
        elif not (file.exists() and run.task_file.exists()):
            recipe = study.simulation.pretrain if study.simulation else None
            if recipe is None:
                raise StudyError("simulation.pretrain is missing")
            state = pretrain(study.model, study.inputs, hospitals.vendor_split(study), recipe, study.seed)
            write_whole(file, save(state))
        model = study.model.model_copy(update={"weights": Weights(path=file.name)})
        study = study.model_copy(update={"model": model})
    study = pin_weights(study, run.path)
    if study.privacy.public_pool is None and needs_pool(study):
        study = _with_pool(study, hospitals, run)
    if not study.sites.declared_patients:
        counted: SplitName = "train" if resolve(study).trains else "test"
        declared = {site: sum(counts[counted]) for site, counts in census.items()}
        study = study.model_copy(update={"sites": study.sites.model_copy(update={"declared_patients": declared})})
    if set(study.sites.declared_patients) != set(hospitals.sites):
        strangers = sorted(set(study.sites.declared_patients) ^ set(hospitals.sites))
        raise StudyError(f"sites.declared_patients and the hospitals differ in: {', '.join(strangers)}")
    study = with_keys(study, hospitals.sites, run)
    if sum(study.sites.declared_patients.values()) == 0:
        raise StudyError("sites.declared_patients: every number is 0; declare the hospitals' training patients")
    return study


def with_keys(study: Study, sites: Iterable[str], run: RunFolder) -> Study:
    """The study with the sites' identity keys, made here, where a secure sum needs them and it names none."""
    if not study.privacy.secure_sum or study.sites.keys:
        return study
    keys = {site: site_identity(run.path, site).text for site in sites}
    return study.model_copy(update={"sites": study.sites.model_copy(update={"keys": keys})})


def _with_pool(study: Study, hospitals: Hospitals, run: RunFolder) -> Study:
    """The study with the hospitals' own public pool, written beside the vendor's model."""
    if hospitals.pool is None:
        raise StudyError("privacy.public_pool is missing, and these hospitals come without one; name unlabelled rows")
    file = run.path / "public-pool.safetensors"
    if not (file.exists() and run.task_file.exists()):
        write_whole(file, save({"rows": hospitals.pool()}))
    privacy = study.privacy.model_copy(update={"public_pool": PublicPool(path=file.name)})
    return pin_pool(study.model_copy(update={"privacy": privacy}), run.path)


def _main_task(study: Study, hospitals: Hospitals) -> Task:
    arms = tuple(Arm(name, variant) for name, variant in arms_of(study).items())
    evaluate = (*(arm.name for arm in arms), *alone_controls(study))
    return Task(study, arms, tuple(hospitals.sites), evaluate, hospitals.facts)


def _alone(study: Study, hospitals: Hospitals) -> list[tuple[str, str, list[Path]]]:
    """Controls with a single site: (name, site, site files)."""
    controls = study.method.controls
    result: list[tuple[str, str, list[Path]]] = []
    if "pooled" in controls:
        result.append(("pooled", "pooled", list(hospitals.sites.values())))
    if "local_only" in controls:
        result += [(f"local_only/{site}", site, [hospitals.sites[site]]) for site in study.sites.declared_patients]
    if "server_only" in controls:
        if hospitals.vendor is None:
            raise StudyError("method.controls: server_only needs the vendor's data, and these hospitals have none")
        result.append(("server_only", "vendor", [hospitals.vendor()]))
    return result


def _run_alone(study: Study, run: RunFolder, hospitals: Hospitals, engine: str) -> None:
    """Train the controls that have a single site, each in a run folder of its own."""
    for name, site, files in _alone(study, hospitals):
        patients = open_hospital(study, files).split_patients("train")
        sites = study.sites.model_copy(update={"minimum": 1, "declared_patients": {site: patients}, "keys": {}})
        bare = study.method.model_copy(update={"controls": []})
        # One site has nobody to hide among: it adds all of the noise itself.
        mode = "local" if study.privacy.private else "none"
        privacy = study.privacy.model_copy(update={"secure_sum": None, "mode": mode})
        alone = study.model_copy(update={"sites": sites, "method": bare, "privacy": privacy})
        own = RunFolder(run.path / "controls" / name)
        # Under the method's own name: the sites hold its queries against the plan of the study, where it has that name.
        task = Task(alone, (Arm(alone.method.name, alone),), (site,), (), {})
        begin_run(own, task, {site: files})
        start_run(alone, own, task, engine)


def begin_run(run: RunFolder, task: Task, files: dict[str, list[Path]]) -> None:
    """Write what a run needs, its task last; or find that the run there is of the same study.

    Raises:
        StudyError: it is of another study.
    """
    if run.task_file.exists():
        now, then = _compared(task.study), _compared(run.task().study)
        if now != then:
            parts = " and ".join(sorted(key for key in now if now[key] != then[key]))
            raise StudyError(
                f"{run.path}: the run there is of another study ({parts} differs); go on with the study that it began "
                "with, or start a new run with --out"
            )
        if not (run.path / SEAL).exists():
            # The hospitals may have been moved since, or the command be given from another folder.
            write_hospitals_file(run.path, files)
        return
    run.keep_inputs(task.study)
    write_hospitals_file(run.path, files)
    run.write_task(task)


def _compared(study: Study) -> dict[str, Any]:
    """A study without what changes no result: where its weights lie, and the number of workers."""
    value = study.model_dump(mode="json", by_alias=True)
    if value["model"]["weights"] is not None:
        value["model"]["weights"].pop("path")
    for named in (value["model"]["after"], value["privacy"]["public_pool"]):
        if named is not None:
            named.pop("path")
    if value["simulation"] is not None:
        value["simulation"].pop("workers")
    return value


def start_run(study: Study, run: RunFolder, task: Task, engine: str) -> None:
    """Run the real ServerApp against the real ClientApps."""
    workers = study.simulation.workers if study.simulation else 1
    run_config = {"folder": str(run.path.resolve())}
    started = time.time()
    try:
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
    except QuorumError as error:
        raise _with_reason(error, run, started) from error


def _with_reason(error: QuorumError, run: RunFolder, started: float) -> EquipoiseError:
    """The error with what a site's own log says, which a simulation may read and a coordinator may not."""
    # The log of a site whose disk is full has no line of it, so the code has to do.
    if ": storage" in str(error):
        return StorageError(f"{run.path}: a site's ledger cannot be written; free some space, then --resume ({error})")
    for log in sorted((run.path / "sites").glob("*/agent.log.jsonl")):
        row = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
        if row["time"] >= started:
            return QuorumError(f"{error}; {log}: {row['reason']}")
    return error
