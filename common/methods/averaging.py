"""Two kinds of rounds that trained methods share: federated averaging, and full-gradient steps of all weights."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from equipoise.common import catalogue
from equipoise.common.cells import Cells, Form
from equipoise.common.classifier import Classifier
from equipoise.common.config import Strict
from equipoise.common.errors import DataError, QuorumError, StudyError
from equipoise.common.layout import Layout
from equipoise.common.mask import SoftMask
from equipoise.common.query import Arrays, Query, Sum
from equipoise.common.study import Study

Step = Literal["fedavg", "full_gradient", "whitened"]


def step_of(study: Study, chosen: Step | None) -> Step:
    """The kind of rounds: as chosen; by default whitened under privacy, which keeps its effect there, else averages."""
    return chosen or ("whitened" if study.privacy.private else "fedavg")


def refuse_without_effect(study: Study, chosen: Strict, where: str, remedies: Mapping[str, str]) -> None:
    """Refuse parameters that were chosen and would do nothing, since a report would say that they were taken.

    Args:
        chosen: the method's parameters.
        where: in which rounds they do nothing.
        remedies: parameter, a dot leading into a part -> what to write in its place; "" where there is nothing.

    Raises:
        StudyError: a parameter differs from its default.
    """
    step = getattr(chosen, "step", None)
    why = f"{f'method.step={step}, ' if step else ''}privacy.mode={study.privacy.mode}"
    for key, remedy in remedies.items():
        part, *inner = key.split(".")
        value, default = (
            reduce(getattr, inner, whole) for whole in (getattr(chosen, part), type(chosen).model_fields[part].default)
        )
        if value != default:
            raise StudyError(
                f"method.{key}={value}: has no effect in {where} ({why}); "
                f"{f'write {remedy}' if remedy else f'leave it out, or write {key}: {default}'}"
            )


def refuse_other_rounds(
    study: Study,
    chosen: Strict,
    whitened: Mapping[str, str],
    private: Mapping[str, str] = MappingProxyType({}),
    read: Collection[str] = (),
) -> None:
    """Under a declared step, refuse chosen parameters of the other kinds of rounds.

    Where the step is left out, one file serves with and without noise, and has the parameters of both.

    Args:
        whitened: what whitened rounds do not have, as in `refuse_without_effect`, beside `OF_LOCAL_STEPS`.
        private: what averages of DP-SGD do not have.
        read: keys of `OF_BATCHES` that the method reads under full gradients, too.

    Raises:
        StudyError: a parameter differs from its default.
    """
    step, noise = getattr(chosen, "step", None), study.privacy.private
    if step == "whitened":
        refuse_without_effect(
            study, chosen, "whitened rounds", {**OF_LOCAL_STEPS, **whitened, **_inside(chosen, "dp_sgd")}
        )
    elif step == "full_gradient":
        without = {key: "" for key in OF_BATCHES if key not in read}
        others = _inside(chosen, "whitened", "whitened_head", "dp_sgd")
        refuse_without_effect(study, chosen, "full-gradient rounds", {**without, **others})
    elif step == "fedavg" and noise:
        others = _inside(chosen, "whitened", "whitened_head")
        refuse_without_effect(study, chosen, "averages of DP-SGD", {**private, **others})
    elif step == "fedavg":
        refuse_without_effect(study, chosen, "averages", _inside(chosen, "whitened", "whitened_head", "dp_sgd"))


def _inside(chosen: Strict, *parts: str) -> dict[str, str]:
    """Every key of the parts that the parameters have, without a remedy."""
    there = [part for part in parts if part in type(chosen).model_fields]
    return {f"{part}.{key}": "" for part in there for key in type(getattr(chosen, part)).model_fields}


def rounds_unless_whitened(step: Step | None, rounds: int) -> dict[str, int]:
    """The `rounds` of a control under the method's `step`; whitened rounds have a number of their own."""
    return {} if step == "whitened" else {"rounds": rounds}


class LocalSteps(Strict):
    """How a site trains between two averages."""

    lr: float = Field(default=3e-3, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    local_epochs: int = Field(default=1, ge=1)
    batch: int = Field(default=64, ge=1)
    flips: bool = False


OF_BATCHES = ("weight_decay", "local_epochs", "batch", "flips")
"""Parameters of `LocalSteps` that a step on the gradient of all patients does not have."""

OF_LOCAL_STEPS = {**{key: f"whitened.{key}" for key in ("lr", "momentum")}, **dict.fromkeys(OF_BATCHES, "")}
"""Parameters of `LocalSteps` -> what whitened rounds have in their place; "" for nothing."""


@dataclass(frozen=True)
class Weighting:
    """Weights of a patient's losses by cell, (G + 1, 2) each."""

    task: Cells
    bias: Cells

    def arrays(self) -> Arrays:
        """As an input bundle."""
        return {"task": self.task, "bias": self.bias}


def training_query(
    study: Study, layout: Layout, phase: str, steps: LocalSteps, beta: float, round_: int, **bias: str | float
) -> Query:
    """One round of local epochs, planned; `bias` has the parameters of the bias loss, where beta leaves it a share."""
    return catalogue.local_training(
        study,
        layout,
        phase,
        {
            "beta": beta,
            "lr": steps.lr,
            "momentum": steps.momentum,
            "weight_decay": steps.weight_decay,
            "epochs": steps.local_epochs,
            "batch": steps.batch,
            "flips": steps.flips,
            "round": round_,
            **bias,
        },
    )


def averaged_round(
    study: Study,
    model: Classifier,
    query: Query,
    layout: Layout,
    mask: SoftMask | None,
    weights: Arrays,
    shares: Mapping[str, float] | None = None,
) -> Generator[Query, Sum, tuple[Classifier, Cells, Cells]]:
    """One federated-averaging round: the classifier moved by the sites' mean change, and who answered.

    Returns the classifier, and by cell the patients of the sites that answered and their sums of scores after it: means
    are taken of these two, never of the sums over some sites and the patients of all.

    `weights` has `task`, and for a bias loss the global `patients` and sums of `scores` by cell, from which each site
    follows the gaps through its own steps.

    Sites that dropped out are left out of the mean by their shares: `shares` by site, which sum to 1, or the declared
    ones.
    """
    inputs: dict[str, Arrays] = {**model.inputs(), "weights": weights}
    if mask is not None:
        inputs["mask"] = {name: mask.values[name].astype(np.float32) for name in layout.shapes}
    if shares is not None:
        inputs["shares"] = {"shares": np.array([shares[site] for site in catalogue.sites_of(study)])}
    total = yield query.with_inputs(**inputs)
    present = attendance(study, total.cohort) if shares is None else sum(shares[site] for site in total.cohort)
    if present == 0:  # whoever answered weighs nothing: the model stays
        return model, total.value("patients"), total.value("scores")
    moved = layout.only(total.query.parameters["tensors"])
    return model.moved(moved, total.value("change") / present), total.value("patients"), total.value("scores")


def gradient_round(
    model: Classifier, query: Query, weighting: Weighting
) -> Generator[Query, Sum, tuple[NDArray[np.float64], Cells, Cells]]:
    """The mean gradient of the global loss, (layout.size,), and by cell the patients and their sums of scores.

    The mean is over the patients whose cell has a weight, at the sites that answered.
    """
    total = yield query.with_inputs(**model.inputs(), weights=weighting.arrays())
    patients = total.value("patients")
    weighed = patients[(weighting.task != 0) | (weighting.bias != 0)].sum()
    return total.value("gradient") / max(weighed, 1.0), patients, total.value("scores")


class ExactRounds:
    """The rounds of one part of a model without noise: averages of local training, or steps of all patients' gradient.

    Args:
        study: whose sites answer.
        layout: what is trained.
        step: `fedavg` or `full_gradient`.
        steps: learning rate and the like.
        phase: as the progress display and the plan call it.
        beta: share of the task loss.
        mask: of the update; None where everything moves alike.
        bias: parameters of the bias loss; none for methods without one.
    """

    def __init__(
        self,
        study: Study,
        layout: Layout,
        step: Step,
        steps: LocalSteps,
        phase: str,
        beta: float = 1.0,
        mask: SoftMask | None = None,
        bias: Mapping[str, str | float] = MappingProxyType({}),
    ) -> None:
        self._study, self._layout, self._step, self._steps = study, layout, step, steps
        self._phase, self._beta, self._mask, self._bias = phase, beta, mask, bias

    @cached_property
    def _momentum(self) -> Momentum:
        return Momentum(self._steps.lr, self._steps.momentum, np.zeros(self._layout.size))

    @cached_property
    def _factors(self) -> NDArray[np.float64]:
        return np.ones(self._layout.size) if self._mask is None else self._layout.flatten(self._mask.values)

    def query(self, round_: int) -> Query:
        """One round, planned."""
        if self._step == "full_gradient":
            return catalogue.gradient_sum(self._study, self._layout, self._phase, self._beta)
        return training_query(self._study, self._layout, self._phase, self._steps, self._beta, round_, **self._bias)

    def advance(
        self, model: Classifier, round_: int, weighting: Weighting, gaps: Arrays = MappingProxyType({})
    ) -> Generator[Query, Sum, tuple[Classifier, Cells, Cells]]:
        """The classifier after a round, and by cell the patients of the sites that answered and their sums of scores.

        Args:
            model: at the round's start.
            round_: its number, from 0.
            weighting: of the losses; averages take the bias loss's weights from `gaps` instead.
            gaps: `patients` and sums of `scores` by cell, for averages with a bias loss.
        """
        query = self.query(round_)
        if self._step == "fedavg":
            weights = {"task": weighting.task, **gaps}
            return (yield from averaged_round(self._study, model, query, self._layout, self._mask, weights))
        gradient, patients, scores = yield from gradient_round(model, query, weighting)
        return model.moved(self._layout, self._momentum.step(gradient, self._factors)), patients, scores


def check_labels(study: Study, counts: Cells, *, by_group: bool = True) -> None:
    """Refuse to train where one of the labels has no patient anywhere, or none whose group is known.

    Args:
        counts: patients by cell, (G + 1, 2).
        by_group: the method looks at groups; without them it needs no patient to have a known one.

    Edge cases:
        Noisy counts: a label has patients of known groups where a single cell of it is above 0, since such a cell gets
        a weight. Noise can so hide that it has none; it refuses nothing for that which could have been trained.

    Raises:
        DataError: no positive or no negative training patient in the study, or none of a declared group.
    """
    of_label = counts.sum(axis=0)
    if of_label.min() <= 0:
        lacking = "positive" if of_label[1] <= 0 else "negative"
        if study.privacy.private:
            raise DataError(_hidden(f"{lacking} patient"))
        raise DataError(
            f"no {lacking} patient in the train split of any site (label column {study.label.column!r}, positive = "
            f"{study.label.positive}); check label.positive against the manifests"
        )
    of_known = np.maximum(counts[:-1], 0.0).sum(axis=0)
    if by_group and of_known.min() <= 0:
        lacking = "positive patient" if of_known[1] <= 0 else "negative patient"
        lacking, name = lacking if of_known.any() else "patient", study.primary.name
        if study.privacy.private:
            raise DataError(_hidden(f"{lacking} of known {name}"))
        raise DataError(
            f"no {lacking} of known {name} in the train split of any site, and method.name={study.method.name} looks "
            f"at groups; check {name} against the manifests, or take a method that looks at none"
        )


def _hidden(patient: str) -> str:
    return (
        f"the noisy counts find no {patient} in the train split; so few patients need a larger privacy.epsilon, or a "
        "larger share of it (privacy.split.train: counts). What was released is spent"
    )


def check_form(study: Study, counts: Cells, form: Form) -> None:
    """Refuse a signed bias loss where other than two groups are compared: it has one sign, and no mask without them.

    Args:
        counts: patients by cell of the groups that are compared, (G + 1, 2).

    Raises:
        DataError: `form` is signed, and one group has training patients, or more than two.
    """
    held = [name for name, n in zip(study.primary.groups, counts[:-1].sum(axis=1), strict=True) if n > 0]
    if form == "signed" and len(held) != 2:
        raise DataError(
            f"method.form=signed: it compares two groups of {study.primary.name}, and those with training patients are "
            f"{', '.join(held)}; write form: absolute"
        )


def attendance(study: Study, cohort: tuple[str, ...]) -> float:
    """Declared share of the patients at the sites that answered, in (0, 1].

    Raises:
        QuorumError: no site that answered has a declared patient, so there is nothing to take a mean of.
    """
    declared = study.sites.declared_patients
    share = sum(declared[site] for site in cohort) / catalogue.declared_total(study)
    if share == 0:
        raise QuorumError(
            f"no site that answered ({', '.join(cohort)}) has a patient in sites.declared_patients; wait for the "
            "others, then resume the run"
        )
    return share


@dataclass
class Momentum:
    """Heavy-ball descent on the server, with a mask on the update."""

    lr: float
    momentum: float
    velocity: NDArray[np.float64]

    def step(self, gradient: NDArray[np.float64], mask: NDArray[np.float64]) -> NDArray[np.float64]:
        """The change of the flat parameters; a masked coordinate gathers no velocity either."""
        self.velocity = self.momentum * self.velocity + gradient * mask
        return -self.lr * self.velocity
