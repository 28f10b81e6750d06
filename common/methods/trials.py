"""A candidate's training: rounds from the vendor's model in which only the tensors that its mask switches on move.

Federated averages without privacy, whitened rounds (`equipoise.common.methods.whitened`) where noise protects the
patients. A trial can stop after any round and go on; its state lies at the coordinator, sites keep none.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from equipoise.common import catalogue
from equipoise.common.cells import Balance, Cells, task_weights
from equipoise.common.classifier import Classifier
from equipoise.common.layout import Layout
from equipoise.common.mask import SoftMask
from equipoise.common.methods.averaging import averaged_round
from equipoise.common.methods.whitened import Course, Prospect, Walk, Whitened, plan_rounds
from equipoise.common.query import Query, Sum
from equipoise.common.study import Study


class Trial(Protocol):
    """One candidate on its way."""

    @property
    def model(self) -> Classifier:
        """The classifier where the trial stands."""

    @property
    def notes(self) -> Mapping[str, Any]:
        """What the report shows of the rounds."""

    def advance(self, rounds: int) -> Generator[Query, Sum, None]:
        """Train `rounds` more rounds."""


class Trainer(Protocol):
    """Starts trials, and plans their rounds without data."""

    def plan(self, phase: str, first: int, last: int) -> list[Query]:
        """Rounds `first` to `last` - 1 of a trial, whatever its mask and learning rate."""

    def start(self, phase: str, tensors: Collection[str], lr: float, counts: Cells) -> Trial:
        """A trial that moves `tensors` and the head."""


@dataclass(frozen=True)
class Averaging:
    """Trials by federated averaging.

    A plan is made before any learning rate is known, so it names the largest one, and the mask carries the rest: a
    tensor's factor is lr / largest where it is switched on and 0 where not. The mask multiplies the whole step, so
    this is the step with learning rate lr.

    Attributes:
        layout: every tensor that a candidate may move, and the head's.
        largest: the largest learning rate of any candidate.
        local: momentum, weight_decay, epochs, batch and flips of a site's steps.
        balance, weight_cap: weights of the cells in the task loss, the same in every trial and in the final run.
    """

    study: Study
    model: Classifier
    layout: Layout
    largest: float
    local: Mapping[str, Any]
    balance: Balance
    weight_cap: float

    def plan(self, phase: str, first: int, last: int) -> list[Query]:
        """See `Trainer`."""
        return [self._query(phase, number) for number in range(first, last)]

    def start(self, phase: str, tensors: Collection[str], lr: float, counts: Cells) -> Trial:
        """See `Trainer`."""
        head, share = self.model.head, lr / self.largest
        on = {name: name in tensors or name.startswith(head) for name in self.layout.shapes}
        mask = SoftMask({name: np.asarray(share if moves else 0.0) for name, moves in on.items()})
        return AveragedTrial(self, phase, mask, task_weights(counts, self.balance, self.weight_cap), self.model)

    def _query(self, phase: str, number: int) -> Query:
        parameters = {"beta": 1.0, "lr": self.largest, **self.local, "round": number, "stream": f"{phase} {number}"}
        sizes = [int(np.prod(shape)) for shape in self.layout.shapes.values()]
        return catalogue.local_training(self.study, self.layout, phase, {**parameters, "sizes": sizes})

    def round(
        self, phase: str, number: int, model: Classifier, mask: SoftMask, task: Cells
    ) -> Generator[Query, Sum, Classifier]:
        """One round of a trial."""
        query = self._query(phase, number)
        model, _, _ = yield from averaged_round(self.study, model, query, self.layout, mask, {"task": task})
        return model


@dataclass
class AveragedTrial:
    """A trial of `Averaging`."""

    _trainer: Averaging
    _phase: str
    _mask: SoftMask
    _task: Cells
    model: Classifier
    notes: Mapping[str, Any] = field(default_factory=dict)
    _done: int = 0

    def advance(self, rounds: int) -> Generator[Query, Sum, None]:
        """See `Trial`."""
        for _ in range(rounds):
            self.model = yield from self._trainer.round(self._phase, self._done, self.model, self._mask, self._task)
            self._done += 1


@dataclass(frozen=True)
class Whitening:
    """Trials by whitened rounds, in the directions of the space `whole` that the mask leaves.

    Attributes:
        steps: parameters of the rounds; each trial puts its own learning rate.
        balance: as in `Averaging`.
    """

    study: Study
    model: Classifier
    steps: Whitened
    balance: Balance
    _seen: list[Prospect] = field(default_factory=list)  # the pool's gradients, computed when they are first needed

    def plan(self, phase: str, first: int, last: int) -> list[Query]:
        """See `Trainer`."""
        return plan_rounds(self.study, self.model, self.steps, self._course(phase))[first:last]

    def start(self, phase: str, tensors: Collection[str], lr: float, counts: Cells) -> Trial:
        """See `Trainer`."""
        course = self._course(phase)
        if not self._seen:
            self._seen.append(Prospect.of(self.study, self.model, self.steps, course))
        on = {name: name in tensors or name.startswith(self.model.head) for name in self.model.parameters}
        mask = SoftMask({name: np.asarray(float(moves)) for name, moves in on.items()})
        steps = self.steps.model_copy(update={"lr": lr})
        return WhitenedTrial(self._seen[0].walk(self.study, self.model, steps, course, counts, mask))

    def _course(self, phase: str) -> Course:
        return Course("whole", phase, balance=self.balance)


@dataclass
class WhitenedTrial:
    """A trial of `Whitening`."""

    _walk: Walk

    @property
    def model(self) -> Classifier:
        """See `Trial`."""
        return self._walk.result

    @property
    def notes(self) -> Mapping[str, Any]:
        """See `Trial`."""
        return self._walk.notes

    def advance(self, rounds: int) -> Generator[Query, Sum, None]:
        """See `Trial`; fewer rounds where the model collapses."""
        yield from self._walk.advance(rounds)
