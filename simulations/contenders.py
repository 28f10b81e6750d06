"""What is compared: methods on one study, each as a variant of it, and whether all of them can run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from equipoise.common.errors import StudyError
from equipoise.common.methods import METHODS, control_of, resolve
from equipoise.common.study import ScoreInputs, Study
from equipoise.common.study_plan import StudyPlan, needs_pool
from equipoise.common.study_simulation import FolderHospitals
from equipoise.server.report.side_by_side import PLAIN
from equipoise.simulations.tuning import settings

FINE_TUNE = "fine_tune"
THRESHOLDS = "group_thresholds"
NO_METHOD = "audit"  # trains nothing


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        study: checked, with a `simulation` part; its own method keeps its parameters.
        methods: names of the registry, each once.
        seeds: one replicate each.
        allow_group_thresholds: whether `group_thresholds` may decide by group.
        tune: whether each method takes the best of a few settings (`equipoise.simulations.tuning`).
    """

    study: Study
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    allow_group_thresholds: bool = False
    tune: bool = False

    def variants(self) -> dict[str, Study]:
        """Name -> the study under it: plain fine-tuning first, then the methods."""
        found = {PLAIN: _fine_tuned(self.study, PLAIN), **{name: variant(self.study, name) for name in self.methods}}
        if self.allow_group_thresholds and THRESHOLDS in found:
            parameters = {**found[THRESHOLDS].method.parameters, "allow_group_thresholds": True}
            found[THRESHOLDS] = found[THRESHOLDS].with_method(THRESHOLDS, **parameters)
        return found

    def check(self) -> None:
        """Whether every method can run on the study; reads no patient.

        Raises:
            StudyError: what cannot be compared, and why.
        """
        if self.study.simulation is None:
            raise StudyError(
                f"study {self.study.study}: `simulation` is missing; methods are compared in a simulation, which owns "
                "all patients"
            )
        if isinstance(self.study.inputs, ScoreInputs):
            raise StudyError("inputs.kind=score: nothing is trained on scores; compare methods on a model")
        if self.tune and self.study.privacy.private:
            raise StudyError(
                "--tune: every setting that is tried costs epsilon, which this comparison would not count; tune "
                "without privacy and give the settings in the study"
            )
        variants = self.variants()
        for name, study in variants.items():
            for setting in settings(study) if self.tune else [study]:
                resolve(setting)
                try:
                    StudyPlan.of(setting)
                except StudyError as error:
                    raise StudyError(f"--methods {name}: {error}") from None
        needing = [name for name, study in variants.items() if needs_pool(study) and not study.privacy.public_pool]
        if needing and isinstance(self.study.simulation.hospitals, FolderHospitals):
            raise StudyError(
                f"--methods {needing[0]}: it needs privacy.public_pool, and hospitals in folders come without one; "
                "name unlabelled rows"
            )


def methods_for(study: Study, names: Sequence[str], allow_group_thresholds: bool) -> tuple[list[str], dict[str, str]]:
    """The methods that `names` means, and of `all` those that cannot run on the study, with the reason.

    Raises:
        StudyError: an unknown name, or none.
    """
    known = [name for name in METHODS if name != NO_METHOD]
    for name in names:
        if name not in (*known, "all"):
            raise StudyError(f"--methods: no method {name!r} to compare; there are: all, {', '.join(known)}")
    wanted = list(dict.fromkeys(name for name in names if name != "all"))
    left_out = {}
    if "all" in names:
        for name in known:
            if name in wanted:
                continue
            try:
                Comparison(study, (name,), (), allow_group_thresholds).check()
            except StudyError as error:
                left_out[name] = str(error)
            else:
                wanted.append(name)
    if not wanted:
        raise StudyError("--methods: name at least one method, as in --methods swift,dfr")
    return wanted, left_out


def variant(study: Study, name: str) -> Study:
    """The study under a method, without controls.

    The study's own method keeps its parameters. Another takes over the study's learning rate and local steps where they
    mean the same in both (`Method.shared`), and its own defaults otherwise; `fine_tune` is the control `balanced` of
    the study's method, which trains as much.
    """
    own = study.method
    if name == own.name:
        return study.with_method(name, **own.parameters)
    if name == FINE_TUNE:
        return _fine_tuned(study, "balanced")
    method = METHODS[name]
    shared = method.shared & METHODS[own.name].shared & set(own.parameters)
    return study.with_method(
        name, **{key: own.parameters[key] for key in sorted(shared) if key in method.parameters.model_fields}
    )


def _fine_tuned(study: Study, control: str) -> Study:
    found = control_of(study, control)
    loss = "plain" if control == PLAIN else "cells"
    return study.with_method(FINE_TUNE, loss=loss) if found is None else found
