"""Methods side by side on one study: the same base model, splits, seeds and privacy for all, several seeds, one table.

    OUT/compared.json            the study, the methods and the seeds, by which a comparison is known
    OUT/seed-0/hospitals/        the hospitals of a seed, and vendor.safetensors, its base model
    OUT/seed-0/swift/            the run of a method, as `equipoise simulate` leaves it
    OUT/seed-0/figures.json      what was measured of all models of the seed
    OUT/comparison.{json,csv,html}

A run that is there is not run again. All models of a seed are measured together, exactly: a comparison asks what
training did, and the noise of a private evaluation would hide it. So it takes a simulation, which owns all patients.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save

import equipoise
from equipoise.client.cohort_store import Patients
from equipoise.common.canonical import canonical_json, sha256
from equipoise.common.classifier import Classifier
from equipoise.common.errors import DataError, StudyError
from equipoise.common.evaluation import BASE
from equipoise.common.files import write_whole
from equipoise.common.methods import METHODS
from equipoise.common.query import SplitName
from equipoise.common.study import Study, Weights
from equipoise.common.study_file import pin_weights
from equipoise.common.study_simulation import FolderHospitals, PublicHospitals
from equipoise.server.engine import Watcher
from equipoise.server.report.side_by_side import findings, seed_figures, summarise, to_csv
from equipoise.server.report.side_by_side_page import render
from equipoise.server.rounds import read_rounds
from equipoise.server.rundir import RunFolder
from equipoise.server.verify import write_seal
from equipoise.simulations import tuning
from equipoise.simulations.contenders import Comparison
from equipoise.simulations.doors import open_hospital
from equipoise.simulations.exact import measure_exactly
from equipoise.simulations.hospitals import Hospitals, build_hospitals
from equipoise.simulations.outfolder import check_free
from equipoise.simulations.preflight import check_study
from equipoise.simulations.pretrain import pretrain
from equipoise.simulations.runner import simulate

Json = dict[str, Any]
SCHEMA = 1


def compare(
    wanted: Comparison,
    folder: Path,
    *,
    resume: bool = False,
    watchers: Sequence[Watcher] = (),
    say: Callable[[str], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> Path:
    """Run what is not there yet, and write the table, anew after each seed; returns the path of the page.

    Args:
        wanted: checked here.
        folder: of the comparison.
        resume: go on with a comparison that lies in `folder`; methods and seeds may be added to it.
        watchers, say: see `simulate`.
        note: told of every run before it begins.

    Raises:
        ModelError: the network or its weights do not fit the study.
        StudyError: a method cannot run, there is a comparison in `folder` already, it is of another study, or something
            else lies there.
        EquipoiseError: see `equipoise.common.errors`.
    """
    wanted.check()
    check_study(wanted.study)  # before anything is written or pretrained
    wanted = _begin(wanted, folder, resume)
    variants, tried = wanted.variants(), list[Json]()
    if wanted.tune:
        variants, tried = _tuned(wanted.study, variants, folder / "tuning", watchers, say, note)
    per_seed: Json = {}
    skipped: list[Json] = []
    done, runs = 0, len(wanted.seeds) * len(variants)
    for seed in wanted.seeds:
        place = folder / f"seed-{seed}"
        started, hospitals = _prepared(wanted.study.model_copy(update={"seed": seed}), place, say)
        trained = {}
        for name, study in variants.items():
            done += 1
            run = RunFolder(place / name)
            alone = study.model_copy(update={"seed": seed, "model": started.model})
            if not (run.path / "seal.json").exists():
                note(f"run {done} of {runs}: seed {seed}, {name}")
            try:
                _run(alone, run, place / "hospitals", watchers, say)
            except DataError as error:
                skipped.append({"seed": seed, "name": name, "reason": str(error)})
                continue
            trained[name] = run
        say(f"measuring seed {seed}")
        per_seed[str(seed)] = _measured(hospitals, trained, place / "figures.json")
        resplit = resplit_of(wanted.study, hospitals)
        value = _value(wanted, variants, per_seed, skipped, folder, resplit) | {"tuning": tried}
        write_whole(folder / "comparison.json", json.dumps(value, indent=1).encode())
        write_whole(folder / "comparison.csv", to_csv(value).encode())
        write_whole(folder / "comparison.html", render(value).encode())
    return folder / "comparison.html"


def _begin(wanted: Comparison, folder: Path, resume: bool) -> Comparison:
    """Note what is compared, or find that the comparison there is of the same study; what it had stays in it."""
    file = folder / "compared.json"
    check_free(folder, file.name)
    study = wanted.study.model_dump(mode="json", by_alias=True)
    if study["simulation"] is not None:
        study["simulation"].pop("workers")  # which change no result
    if file.exists():
        if not resume:
            raise StudyError(
                f"{folder}: holds a comparison already; go on with --resume, or give another folder with --out"
            )
        before = json.loads(file.read_text())
        parts = sorted(key for key in study if study[key] != before["study"].get(key))
        parts += ["--tune"] * (before.get("tune", False) != wanted.tune)
        if parts:
            raise StudyError(
                f"{folder}: the comparison there is of another study ({' and '.join(parts)} differs); go on with the "
                "study that it began with, or start a new one with --out"
            )
        methods = tuple(dict.fromkeys((*before["methods"], *wanted.methods)))
        seeds = tuple(sorted({*before["seeds"], *wanted.seeds}))
        wanted = replace(wanted, methods=methods, seeds=seeds)
        wanted.check()
    value = {"study": study, "methods": list(wanted.methods), "seeds": list(wanted.seeds), "tune": wanted.tune}
    write_whole(file, json.dumps(value, indent=1).encode())
    return wanted


def _prepared(study: Study, place: Path, say: Callable[[str], None]) -> tuple[Study, Hospitals]:
    """The seed's study with its base model, and its hospitals; every method of the seed starts from both."""
    say(f"preparing seed {study.seed}")
    hospitals = build_hospitals(study, place / "hospitals")
    if study.model.weights is not None:
        return study, hospitals
    file = place / "vendor.safetensors"
    if not file.exists():
        if study.simulation is None:
            raise StudyError("simulation is missing")
        recipe = study.simulation.pretrain
        split = hospitals.vendor_split(study)
        write_whole(file, save(pretrain(study.model, study.inputs, split, recipe, study.seed)))
    model = study.model.model_copy(update={"weights": Weights(path=file.name)})
    return pin_weights(study.model_copy(update={"model": model}), place), hospitals


def _tuned(
    study: Study,
    variants: Mapping[str, Study],
    place: Path,
    watchers: Sequence[Watcher],
    say: Callable[[str], None],
    note: Callable[[str], None],
) -> tuple[dict[str, Study], list[Json]]:
    """Every variant with the best of its settings, and what was tried."""
    seed = (study.seed + tuning.SEED) % 2**31
    started, hospitals = _prepared(study.model_copy(update={"seed": seed}), place, say)
    patients = {site: open_hospital(started, [path]) for site, path in hospitals.sites.items()}
    found, rows = {}, []
    for name, variant_ in variants.items():
        tried = tuning.settings(variant_)
        judged = list[tuple[float | None, float]]()
        for number, setting in enumerate(tried if len(tried) > 1 else []):
            run = RunFolder(place / f"{name}-{number}")
            if not (run.path / "seal.json").exists():
                note(f"tuning {name}: setting {number + 1} of {len(tried)}")
            alone = setting.model_copy(update={"seed": seed, "model": started.model})
            try:
                _run(alone, run, place / "hospitals", watchers, say, measured=False)
            except DataError:  # as in a seed of the table: this setting has no result
                judged.append((None, 0.0))
                continue
            task = run.task()
            model = run.result(task.arms[0].name, run.base(task.study))
            judged.append(tuning.validation_auc(task.study, patients, model))
        chosen = tuning.best(judged) if judged else 0
        found[name] = tried[chosen]
        rows.append(
            {
                "name": name,
                "tried": [tuning.tuned_values(setting) for setting in tried],
                "validation": [{"worst_group_auc": worst, "auc": auc} for worst, auc in judged],
                "chosen": chosen,
            }
        )
    return found, rows


def _run(
    study: Study,
    run: RunFolder,
    hospitals: Path,
    watchers: Sequence[Watcher],
    say: Callable[[str], None],
    *,
    measured: bool = True,
) -> None:
    """The run, unless it has ended already: its seal is written last.

    Under privacy the hospitals do not measure it: nobody reads their noisy figures here, and few patients may be too
    few for any, where training went well.
    """
    if (run.path / "seal.json").exists():
        return
    resume, measured = run.task_file.exists(), measured and not study.privacy.private
    simulate(study, run.path, resume=resume, hospitals=hospitals, measured=measured, watchers=watchers, say=say)
    write_seal(run)


def _measured(hospitals: Hospitals, trained: Mapping[str, RunFolder], file: Path) -> Json:
    """The figures of all models of a seed, from `file` where it is of these very models."""
    models: dict[str, Classifier] = {}
    study = None
    for name, run in trained.items():
        task = run.task()
        base = run.base(task.study)
        models.setdefault(BASE, base)
        models[name] = run.result(task.arms[0].name, base)
        study = task.study  # with the patients that the hospitals declare; all runs of a seed have the same
    key = sha256(canonical_json({name: _digest(run) for name, run in trained.items()}))
    if file.exists():
        kept: Json = json.loads(file.read_text())
        if kept["models"] == key:
            return dict(kept["figures"])
    if study is None:
        return {}
    patients = {site: open_hospital(study, [path]) for site, path in hospitals.sites.items()}
    figures = seed_figures(study, measure_exactly(study, patients, models))
    write_whole(file, json.dumps({"models": key, "figures": figures}, indent=1).encode())
    return figures


def _digest(run: RunFolder) -> str:
    """Of a result: its weights and, where it has one, its operating point by group."""
    files = [run.path / name for name in ("base.safetensors", "model.safetensors", "alignment.json")]
    return sha256(b"".join(file.read_bytes() for file in files if file.exists()))


def resplit_of(study: Study, hospitals: Hospitals) -> dict[str, int] | None:
    """Training and test patients that every seed splits anew; None where it draws its own, or splits none anew."""
    if study.simulation is None or not isinstance(study.simulation.hospitals, PublicHospitals):
        return None
    cohorts = [open_hospital(study, [path]) for path in hospitals.sites.values()]
    return patients_in(cohorts)


def patients_in(cohorts: Sequence[Patients]) -> dict[str, int]:
    """How many train and how many test, all hospitals together."""
    splits: tuple[SplitName, ...] = ("train", "test")
    return {split: sum(cohort.split_patients(split) for cohort in cohorts) for split in splits}


def _value(
    wanted: Comparison,
    variants: Mapping[str, Study],
    per_seed: Json,
    skipped: list[Json],
    folder: Path,
    resplit: Mapping[str, int] | None,
) -> Json:
    """The content of comparison.json, of the seeds that are there."""
    study, seeds = wanted.study, [int(seed) for seed in per_seed]
    rendered = study.model_dump(mode="json", by_alias=True)
    value: Json = {
        "schema": SCHEMA,
        "software": {"equipoise": equipoise.__version__},
        "study": {
            "name": study.study,
            "primary": study.primary.name,
            "privacy": rendered["privacy"],
            "evaluation": rendered["evaluation"],
            "own_base_model": study.model.weights is None,
            "resplit": resplit,
            # The split of a folder is its site file's own, and no seed enters it.
            "same_split": study.simulation is not None and isinstance(study.simulation.hospitals, FolderHospitals),
            "simulation": rendered["simulation"],
        },
        "seeds": seeds,
        "methods": list(_methods(seeds, variants, folder)),
        "skipped": skipped,
        "per_seed": per_seed,
        "table": summarise(per_seed, [BASE, *variants]),
    }
    value["findings"] = findings(value)
    return value


def _methods(seeds: Sequence[int], variants: Mapping[str, Study], folder: Path) -> Iterator[Json]:
    """What each model is, and what it cost: releases of its training and what a hospital sent, means over seeds."""
    yield {"name": BASE, "method": None, "title": "the model as delivered", "parameters": {}}
    for name, study in variants.items():
        entry = METHODS[study.method.name]
        runs = [read_rounds(folder / f"seed-{seed}" / name / "rounds.jsonl") for seed in seeds]
        # A row names its run and, within it, the arm: the method's own, named like it, or the evaluation.
        training = [[row for row in rows if row["run"] == f"{name}/{study.method.name}"] for rows in runs]
        releases = [len(rows) for rows in training if rows]
        sent = [_bytes_a_hospital(rows) for rows in training if rows]
        yield {
            "name": name,
            "method": study.method.name,
            "title": entry.title,
            "paper": entry.paper,
            "parameters": entry.parameters.model_validate(study.method.parameters).model_dump(mode="json"),
            "releases": sum(releases) / len(releases) if releases else None,
            "megabytes_up": sum(sent) / len(sent) / 1e6 if sent else None,
        }


def _bytes_a_hospital(rows: Sequence[Json]) -> float:
    """What a hospital sent in a run, on average over the hospitals."""
    sites = {site for row in rows for site in row["sites"]}
    return sum(sum(row["bytes_up"].values()) for row in rows) / len(sites)
