"""`equipoise submit`: what a coordinator checks and writes before a run can start."""

from __future__ import annotations

from pathlib import Path

from equipoise.common.errors import StudyError
from equipoise.common.methods import SIMULATION_CONTROLS, resolve
from equipoise.common.probe import check_network
from equipoise.common.study import Study
from equipoise.common.study_file import load_study
from equipoise.common.study_plan import arms_of, needs_pool
from equipoise.server.coordinator import Coordinator
from equipoise.server.rundir import Arm, RunFolder, Task


def prepare_run(coordinator: Coordinator, study_file: Path, assignments: list[str], name: str | None) -> RunFolder:
    """Write the folder of a new run.

    Raises:
        StudyError: the study is wrong, asks for what only a simulation can do, names a site that is not enrolled, or
            a run of this name is there.
        ModelError: the weights are missing or differ from their digest, or the network does not fit the study.
    """
    study = load_study(study_file, assignments)
    resolve(study)
    _check(study, study_file, coordinator)
    check_network(study.model_copy(update={"model": study.model.model_copy(update={"device": "cpu"})}))  # the sites'
    folder = RunFolder(coordinator.runs / (name or study.study))
    if folder.task_file.exists():
        raise StudyError(
            f"{folder.path}: holds a run already; go on with `equipoise resume {folder.path.name}`, or give another "
            "--name"
        )
    # What concerns simulations is no part of what is proposed; nor is it needed again.
    study = _with_secure_sum(study.model_copy(update={"simulation": None}), coordinator)
    arms = tuple(Arm(arm, variant) for arm, variant in arms_of(study).items())
    folder.keep_inputs(study)
    facts = {"source": "hospitals' own data", "note": "", "synthetic": False}
    sites = tuple(sorted(study.sites.declared_patients))
    folder.write_task(Task(study, arms, sites, tuple(arm.name for arm in arms), facts))
    return folder


def _with_secure_sum(study: Study, coordinator: Coordinator) -> Study:
    """The study through the secure sum unless it says otherwise, with the identity keys of its sites."""
    if study.privacy.secure_sum is None:
        study = study.model_copy(update={"privacy": study.privacy.model_copy(update={"secure_sum": True})})
    if study.privacy.secure_sum and not study.sites.keys:
        enrolled = coordinator.enrolled()
        keys = {site: str(enrolled[site]["identity"]) for site in sorted(study.sites.declared_patients)}
        study = study.model_copy(update={"sites": study.sites.model_copy(update={"keys": keys})})
    return study


def _check(study: Study, file: Path, coordinator: Coordinator) -> None:
    alone = [control for control in study.method.controls if control in SIMULATION_CONTROLS]
    if alone:
        raise StudyError(
            f"{file}: method.controls: {', '.join(alone)} need every hospital's data in one place; a deployment cannot "
            "run them; take them out (--set 'method.controls=[...]')"
        )
    if study.privacy.public_pool is None and needs_pool(study):
        raise StudyError(
            f"{file}: privacy.public_pool is missing: bases, units and bins of a private study come from unlabelled "
            "public images or rows; name a .zip, .csv or .parquet file"
        )
    declared = study.sites.declared_patients
    if not declared or not sum(declared.values()):
        raise StudyError(
            f"{file}: sites.declared_patients is missing; name every site with the number of training patients that it "
            "has declared in public"
        )
    enrolled = coordinator.enrolled()
    strangers = sorted(set(declared) - set(enrolled))
    if strangers:
        raise StudyError(
            f"{file}: sites.declared_patients: {', '.join(strangers)} not enrolled; enrolled are: "
            f"{', '.join(enrolled) or 'none'}"
        )
