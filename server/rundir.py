"""The folder of a run: what lies where.

runs/<study>/
  task.json              the study as run, its arms and its sites
  plan.json              every query that the task may ask, with its noise
  base.safetensors       the vendor's weights
  after.safetensors      the second model of an audit
  pool.*                 the public pool, where the study has one
  model.safetensors      the method's result
  alignment.json         each group's scores on one scale, where the operating point differs by group
  notes.json             what the method says of how it came about (the mask)
  transcript/            the method's released sums
  controls/<name>/       the same for every control
  evaluation/            the released tables of the evaluation
  rounds.jsonl           time and bytes of every release
  report.json, report.html, report.csv, model_card.md
  seal.json              digests of all these files
  sites/<name>/          simulation only: each site's own ledger and log
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from equipoise.common.alignment import Alignment
from equipoise.common.canonical import sha256
from equipoise.common.classifier import Classifier
from equipoise.common.errors import RefusedError, StudyError, TranscriptError
from equipoise.common.files import drop_parts, drop_unfinished_line, write_whole
from equipoise.common.methods.method import Outcome
from equipoise.common.models import build
from equipoise.common.study import Study, Weights
from equipoise.common.study_plan import EVALUATION, StudyPlan
from equipoise.common.study_privacy import PublicPool
from equipoise.server.transcript import WITNESS, Transcript

ALIGNMENT = "alignment.json"


@dataclass(frozen=True)
class Arm:
    """A method, or a control in its place, and the study that it runs under."""

    name: str
    study: Study


@dataclass(frozen=True)
class Task:
    """What a run is to do.

    Attributes:
        study: the study, checked, with its weights pinned.
        arms: the method first, then the controls that the sites run.
        sites: names of the sites, all of which are connected.
        evaluate: models to measure beside the base: arms and results that lie in `controls/` already.
        facts: what the simulation knows of its data, for the report.
    """

    study: Study
    arms: tuple[Arm, ...]
    sites: tuple[str, ...]
    evaluate: tuple[str, ...]
    facts: dict[str, Any]

    def study_of(self, name: str) -> Study:
        """The study in which an arm is the method; the task's own for the evaluation."""
        return next((arm.study for arm in self.arms if arm.name == name), self.study)


class RunFolder:
    """One run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def task_file(self) -> Path:
        """Where the task is written; a run that has one can be resumed."""
        return self.path / "task.json"

    @property
    def name(self) -> str:
        """The run's name towards the sites: that of its folder when it began, wherever the folder lies now."""
        return str(self._task_value()["run"])

    def write_task(self, task: Task) -> None:
        """Begin a run: its plan, then the task, by which a run is known to have begun."""
        write_whole(self.path / "plan.json", StudyPlan.of(task.study).calibrated(task.study).bundle["json"].tobytes())
        value = {
            "run": self.path.resolve().name,
            "study": task.study.model_dump(mode="json", by_alias=True),
            "arms": {arm.name: arm.study.model_dump(mode="json", by_alias=True) for arm in task.arms},
            "sites": list(task.sites),
            "evaluate": list(task.evaluate),
            "facts": task.facts,
        }
        write_whole(self.task_file, json.dumps(value, indent=1).encode())

    def task(self) -> Task:
        """The task of the run.

        Raises:
            StudyError: there is none here.
            TranscriptError: it is not what was written.
        """
        value = self._task_value()
        try:
            return Task(
                study=Study.model_validate(value["study"]),
                arms=tuple(Arm(name, Study.model_validate(study)) for name, study in value["arms"].items()),
                sites=tuple(value["sites"]),
                evaluate=tuple(value["evaluate"]),
                facts=value["facts"],
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise TranscriptError(f"{self.task_file}: changed since the run began; restore the file") from None

    def _task_value(self) -> dict[str, Any]:
        """The content of task.json."""
        try:
            value = json.loads(self.task_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StudyError(f"{self.path}: no run here (task.json is missing); give the folder of a run") from None
        except ValueError:
            value = None
        if not isinstance(value, dict) or "run" not in value:
            raise TranscriptError(f"{self.task_file}: changed since the run began; restore the file")
        return value

    def plan(self) -> StudyPlan:
        """What the task may ask, with the noise that was found when the run began.

        Raises:
            TranscriptError: the file is missing or is no plan.
        """
        file = self.path / "plan.json"
        try:
            return StudyPlan.from_bundle({"json": np.frombuffer(file.read_bytes(), dtype=np.uint8)})
        except (OSError, RefusedError):
            raise TranscriptError(f"{file}: missing or changed since the run began; restore the file") from None

    def keep_inputs(self, study: Study) -> None:
        """Copy the vendor's weights into the run, and an audit's second model and the public pool where there are any.

        Raises:
            StudyError: the study names no weights.
            StorageError: a copy cannot be written.
        """
        weights, after, pool = study.model.weights, study.model.after, study.privacy.public_pool
        if weights is None:
            raise StudyError(f"study {study.study}: model.weights is missing; name the vendor's safetensors file")
        write_whole(self.path / "base.safetensors", Path(weights.path).read_bytes())
        if after is not None:
            write_whole(self.path / "after.safetensors", Path(after.path).read_bytes())
        if pool is not None:
            write_whole(self.path / f"pool{Path(pool.path).suffix}", Path(pool.path).read_bytes())

    def placed(self, study: Study) -> Study:
        """The study with its public pool and its second model where the run keeps copies."""
        if study.model.after is not None:
            kept_after = Weights(path=str((self.path / "after.safetensors").resolve()), sha256=study.model.after.sha256)
            study = study.model_copy(update={"model": study.model.model_copy(update={"after": kept_after})})
        pool = study.privacy.public_pool
        if pool is None:
            return study
        kept = PublicPool(path=str((self.path / f"pool{Path(pool.path).suffix}").resolve()), sha256=pool.sha256)
        return study.model_copy(update={"privacy": study.privacy.model_copy(update={"public_pool": kept})})

    def mend(self) -> None:
        """Cut off the lines, and remove the files, that a crash left unfinished, so that the run can go on."""
        task = self.task()
        drop_parts(self.path)
        for place in (self.path / EVALUATION, *(self.arm_folder(arm.name) / "transcript" for arm in task.arms)):
            drop_unfinished_line(place / "chain.jsonl")
            drop_unfinished_line(place / WITNESS)
        drop_unfinished_line(self.path / "rounds.jsonl")

    def arm_folder(self, name: str) -> Path:
        """Folder of an arm: the run's own for the method, `controls/<name>` for a control."""
        task = self.task()
        return self.path if task.arms and name == task.arms[0].name else self.path / "controls" / name

    def transcript(self, study: Study, name: str) -> Transcript:
        """The transcript of an arm, or of the evaluation."""
        run = f"{self.name}/{name}"
        if name == EVALUATION:
            return Transcript(self.path / EVALUATION, study.hash, run)
        return Transcript(self.arm_folder(name) / "transcript", study.hash, run)

    def base(self, study: Study) -> Classifier:
        """The vendor's classifier, from the copy in the run.

        Raises:
            TranscriptError: the copy is not the file that the study names.
            ModelError: it does not fit the study's factory.
        """
        file = self.path / "base.safetensors"
        data = file.read_bytes() if file.exists() else b""
        weights = study.model.weights
        if weights is None or sha256(data) != weights.sha256:
            raise TranscriptError(f"{file}: missing or changed since the run began; restore the file")
        spec = study.model.model_copy(
            update={"weights": weights.model_copy(update={"path": str(file.resolve())}), "device": "cpu"}
        )
        return Classifier.of(data, build(spec), study.model.head)

    def write_outcome(self, name: str, outcome: Outcome) -> None:
        """Keep an arm's result."""
        folder = self.arm_folder(name)
        write_whole(folder / "notes.json", json.dumps(dict(outcome.notes), indent=1).encode())
        write_whole(folder / "model.safetensors", model_bytes(outcome.classifier))
        if outcome.classifier.alignment is not None:
            write_whole(folder / ALIGNMENT, json.dumps(outcome.classifier.alignment.to_json()).encode())

    def result(self, name: str, base: Classifier) -> Classifier:
        """An arm's classifier, from its file.

        Raises:
            TranscriptError: the file is missing or not a change of the base.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        file = self.arm_folder(name) / "model.safetensors"
        try:
            state = load(file.read_bytes())
        except (OSError, SafetensorError):
            raise TranscriptError(f"{file}: missing or changed; restore the file or resume the run") from None
        if {key: value.shape for key, value in state.items()} != {k: v.shape for k, v in base.base.items()}:
            raise TranscriptError(f"{file}: other tensors than the base model has; restore the file")
        return base.with_values({name: state[name] for name in base.parameters}).aligned(self.alignment(name))

    def alignment(self, name: str) -> Alignment | None:
        """An arm's operating point by group, where it has one.

        Raises:
            TranscriptError: the file there is no alignment.
        """
        file = self.arm_folder(name) / ALIGNMENT
        if not file.exists():
            return None
        try:
            return Alignment.from_json(json.loads(file.read_text()))
        except (ValueError, KeyError, TypeError):
            raise TranscriptError(f"{file}: changed since the run; restore the file or resume the run") from None


def model_bytes(classifier: Classifier) -> bytes:
    """The classifier as a safetensors file."""
    return bytes(save(dict(classifier.state)))
