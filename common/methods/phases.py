"""A phase of training on a mix of task and bias loss, for methods that have several.

The bias loss's weights follow the gaps: each round's release brings the patients and sums of scores by cell of the
sites that answered, and from these two come the signs of the next round (docs/methods.md, SWiFT 1.3).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from equipoise.common.cells import BiasLoss, Cells, Form, bias_value, bias_weights
from equipoise.common.classifier import Classifier
from equipoise.common.layout import Layout
from equipoise.common.mask import SoftMask
from equipoise.common.methods.averaging import (
    ExactRounds,
    LocalSteps,
    Step,
    Weighting,
)
from equipoise.common.query import Query, Sum
from equipoise.common.study import Study


@dataclass(frozen=True)
class Phase:
    """What a phase trains and how.

    Attributes:
        name: as the progress display and the plan call it.
        part: `whole`, `extractor` or `head`.
        beta: share of the task loss.
        rounds: how many.
        step: `fedavg` or `full_gradient`.
        steps: learning rate and the like.
        losses: whether a site follows the global gaps, or every batch weighs its own cells, as published.
    """

    name: str
    part: str
    beta: float
    rounds: int
    step: Step
    steps: LocalSteps
    losses: Literal["global", "batch"] = "global"


@dataclass
class Gaps:
    """A bias loss and what is known of its gaps.

    Attributes:
        counts: patients by cell of the groups that are compared, (G + 1, 2); other cells are 0.
        patients, scores: patients by cell and their sums of scores, of the sites that answered last.
        trace: the loss's value at every release.
    """

    loss: BiasLoss
    form: Form
    smoothing: float
    counts: Cells
    patients: Cells
    scores: Cells
    trace: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.see(self.patients, self.scores)

    def see(self, patients: Cells, scores: Cells) -> None:
        """Take in a release."""
        self.patients, self.scores = np.where(self.counts > 0, patients, 0.0), scores
        self.trace.append(bias_value(self.patients, self.scores, self.loss, self.form))

    def close(self) -> None:
        """Take in a head of zeros, under which every score is 1/2: no release has to say so."""
        self.scores = 0.5 * self.patients

    @property
    def weights(self) -> Cells:
        """Bias weights by cell."""
        return bias_weights(self.patients, self.scores, self.loss, self.form, self.smoothing)


def phase_queries(study: Study, model: Classifier, phase: Phase, gaps: tuple[BiasLoss, Form, float]) -> list[Query]:
    """The queries of a phase, planned; `gaps` are loss, form and smoothing."""
    rounds = _rounds(study, model.layout(phase.part), phase, gaps)
    return [rounds.query(round_) for round_ in range(phase.rounds)]


def train_phase(
    study: Study, model: Classifier, phase: Phase, task: Cells, gaps: Gaps, mask: SoftMask | None = None
) -> Generator[Query, Sum, Classifier]:
    """The classifier after the phase; `gaps` takes in what each round releases."""
    rounds = _rounds(study, model.layout(phase.part), phase, (gaps.loss, gaps.form, gaps.smoothing), mask)
    for round_ in range(phase.rounds):
        # A batch's own weights need to know who is compared; a global gap, whose the scores are.
        patients = gaps.counts if phase.losses == "batch" else gaps.patients
        known = {"patients": patients, "scores": gaps.scores}
        model, *seen = yield from rounds.advance(model, round_, Weighting(task, gaps.weights), known)
        gaps.see(*seen)
    return model


def _rounds(
    study: Study, layout: Layout, phase: Phase, gaps: tuple[BiasLoss, Form, float], mask: SoftMask | None = None
) -> ExactRounds:
    loss, form, smoothing = gaps
    bias = {"losses": phase.losses, "bias_loss": loss, "form": form, "smoothing": smoothing}
    return ExactRounds(study, layout, phase.step, phase.steps, phase.name, phase.beta, mask, bias)
