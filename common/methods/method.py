"""What a method is."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from equipoise.common.classifier import Classifier
from equipoise.common.config import Strict
from equipoise.common.errors import StudyError
from equipoise.common.query import Query, Sum
from equipoise.common.study import Study

Steps = Generator[Query, Sum, "Outcome"]
RATE_FACTORS = (1 / 3, 3.0)
LOCAL_STEPS = frozenset({"lr", "momentum", "weight_decay", "local_epochs", "batch", "flips"})


@dataclass(frozen=True)
class Outcome:
    """What a method ends with: the classifier and what the report shows of how it came about.

    Attributes:
        classifier: the result.
        notes: JSON values, such as the mask by tensor; functions of released sums only.
    """

    classifier: Classifier
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A method's entry in the registry.

    Attributes:
        name: as in a study file.
        title: one line for `equipoise methods`.
        paper: where it comes from.
        travels: what a hospital sends, in words.
        costs: passes over the patients and what it moves, in words.
        private: its form where noise protects the patients, in words; "none" where it has none.
        parameters: the class that checks the study's method keys.
        plan: every query the method may ask, in order; what it asks must be a subsequence of this.
        run: the generator.
        trains: whether it needs training patients.
        controls: control name -> the study in which that control takes the method's place.
        tuned: parameters that `equipoise compare --tune` multiplies, and the factors of each setting beside the first.
        shared: keys that mean the same as in others; in a comparison they go from the study's own method to each that
            shares them too.
    """

    name: str
    title: str
    paper: str
    travels: str
    parameters: type[Strict]
    plan: Callable[[Study, Classifier], list[Query]]
    run: Callable[[Study, Classifier], Steps]
    costs: str = ""
    private: str = ""
    controls: Mapping[str, Callable[[Study], Study]] = field(default_factory=dict)
    tuned: Mapping[str, Sequence[float]] = field(default_factory=lambda: {"lr": RATE_FACTORS})
    shared: frozenset[str] = LOCAL_STEPS
    trains: bool = True


def plain_and_balanced(build: Callable[[Study, str], Study]) -> dict[str, Callable[[Study], Study]]:
    """Two controls that train on the task alone; `build` gives the study of `fine_tune` under the loss it is told."""
    return {"plain": lambda study: build(study, "plain"), "balanced": lambda study: build(study, "cells")}


def changed(**parameters: Any) -> Callable[[Study], Study]:
    """A control: the study's own method with other `parameters`."""
    return lambda study: study.with_method(study.method.name, **{**study.method.parameters, **parameters})


def refuse_privacy(study: Study, reason: str) -> None:
    """Refuse a private study where a method has no form for it; `reason` says why, and what to choose.

    Raises:
        StudyError: the study is private.
    """
    if study.privacy.private:
        raise StudyError(f"method.name={study.method.name}: it has no private form: {reason}")
