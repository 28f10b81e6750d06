"""Federated averaging under noise: rounds in which every site takes steps of DP-SGD on its own patients.

The rounds of `swift` and `fine_tune` under `step: fedavg` where noise protects the patients (McMahan et al. 2018,
arXiv:1710.06963, has the round; Abadi et al. 2016, arXiv:1607.00133, the steps). Noise falls on every weight in every
step, unlike in whitened rounds, where a few public directions take it. A patient's scores ride along with the gradient,
so that one release pays for the step, the weights of the bias loss and the collapse guard.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import Field
from scipy.special import expit

from equipoise.common import catalogue
from equipoise.common.block_energies import BlockEnergies
from equipoise.common.cells import Balance, BiasLoss, Cells
from equipoise.common.classifier import Classifier
from equipoise.common.config import Strict
from equipoise.common.errors import DataError
from equipoise.common.mask import SoftMask
from equipoise.common.methods.averaging import LocalSteps, attendance
from equipoise.common.pool import Pool, network_of
from equipoise.common.private_step import SCORE_BOUND, CollapseGuard, Scores, acting, round_weights
from equipoise.common.query import MOVED, Query, Sum
from equipoise.common.study import Study
from equipoise.common.whitening import CLIP_PERCENTILE

Part = Literal["extractor", "head", "whole"]


class DpSgd(Strict):
    """Parameters of the rounds beside those of every local training."""

    clip_percentile: float = Field(default=CLIP_PERCENTILE, gt=0, le=100)  # of gradient norms over the public pool
    smoothing: float = Field(default=0.08, gt=0)
    memory: float = Field(default=0.5, gt=0, le=1)  # weight of a round's own score sums against those before
    collapse_share: float = Field(default=0.5, gt=0, lt=1)  # of the separation at the start; below it the rounds end


@dataclass(frozen=True)
class Rounds:
    """What rounds are about.

    Attributes:
        part: what moves.
        rounds: how many.
        beta: share of the task loss.
        steps: of a site between two averages.
        private: what noise asks for.
        loss, balance: the bias loss, and the cells' weights in the task loss.
    """

    part: Part
    rounds: int
    beta: float
    steps: LocalSteps
    private: DpSgd
    loss: BiasLoss = "equalized_odds"
    balance: Balance = "cells"

    def query(self, study: Study, model: Classifier, round_: int) -> Query:
        """One round, planned."""
        steps = self.steps
        return catalogue.private_training(
            study,
            model.layout(self.part),
            self.part,
            {
                "beta": self.beta,
                "lr": steps.lr,
                "momentum": steps.momentum,
                "weight_decay": steps.weight_decay,
                "flips": steps.flips,
                "round": round_,
            },
            steps.batch,
            steps.local_epochs,
        )


@dataclass
class Averages:
    """Rounds on their way.

    Attributes:
        model: where they stand; after a collapse the last model that was well.
        collapsed: the guard ended them.
        notes: what the report shows, by part.
    """

    study: Study
    model: Classifier
    counts: Cells
    collapsed: bool = False
    notes: dict[str, Any] = field(default_factory=dict)

    def advance(self, p: Rounds, mask: SoftMask | None = None) -> Generator[Query, Sum, None]:
        """Take the rounds of one part, unless an earlier part collapsed."""
        if self.collapsed or not p.rounds:
            return
        models = [self.model]
        scores: Scores | None = None  # for the guard
        gaps: Scores | None = None  # for the bias weights: of rounds that all sites answered
        guard = CollapseGuard(share=p.private.collapse_share)
        clips, separations = list[float](), list[float]()
        for round_ in range(p.rounds):
            query = p.query(self.study, models[-1], round_)
            total, clip = yield from self._round(p, query, models[-1], gaps, mask)
            present = attendance(self.study, total.cohort)
            released = scores_of(total, present, self.counts)
            scores = released.blended(scores, p.private.memory)
            if present == 1.0:  # of whom somebody is missing the gap is of other patients, and may have another sign
                gaps = released.blended(gaps, p.private.memory)
            guard = guard.watched(round_, scores)
            clips.append(clip)
            separations.append(scores.separation)
            if guard.collapsed:
                break
            weights = total.query.inputs["weights"]
            if acting(p.beta, weights["task"], weights["bias"]):
                layout = models[-1].layout(p.part).only(total.query.parameters["tensors"])
                models.append(models[-1].moved(layout, total.value(MOVED) / present))
            else:
                models.append(models[-1])
        self.model, self.collapsed = models[guard.good if guard.collapsed else -1], guard.collapsed
        plan = p.query(self.study, self.model, 0).plan
        self.notes[p.part] = {
            "steps_by_round": plan.releases,
            "sampling_rate": plan.rate,
            "clip_bound_by_round": clips,
            "separation_by_round": separations,
            "collapsed": guard.collapsed,
            "guard_blind": guard.blind,
        }

    def _round(
        self, p: Rounds, query: Query, model: Classifier, gaps: Scores | None, mask: SoftMask | None
    ) -> Generator[Query, Sum, tuple[Sum, float]]:
        sums = None if gaps is None else gaps.sums
        task, bias = round_weights(self.counts, sums, p.loss, smoothing=p.private.smoothing, balance=p.balance)
        inputs: dict[str, Any] = {**model.inputs(), "weights": {"task": task, "bias": bias}}
        names = list(model.layout(p.part).shapes)
        if mask is not None:
            inputs["mask"] = {name: mask.values[name].astype(np.float32) for name in names}
            names = [name for name in names if inputs["mask"][name].any()]
        clip = clip_bound(self.study, model, names, p.private.clip_percentile)
        total = yield query.with_inputs(**inputs, clip={"clip": np.array([clip])})
        return total, clip


def clip_bound(study: Study, model: Classifier, names: list[str], percentile: float) -> float:
    """C: a percentile over the public pool of max(p, 1 - p) |dz|, the larger of a row's two possible gradients.

    Raises:
        DataError: no row of the pool has a gradient by the tensors.
    """
    pool, energies = Pool.of(study), BlockEnergies(network_of(study, model), names)
    rows = [energies.rows(x) for x in pool.batches()]
    p = expit(np.concatenate([logits for logits, _ in rows]))
    lengths = np.maximum(p, 1 - p) * np.sqrt(np.concatenate([found for _, found in rows]).sum(axis=1))
    clip = float(np.percentile(lengths, percentile)) if len(lengths) else 0.0
    if not 0 < clip < np.inf:
        raise DataError(
            f"public pool: the {percentile:g}th percentile of its gradient norms is {clip:g}, which bounds nothing; "
            "give other rows"
        )
    return clip


def scores_of(total: Sum, present: float, counts: Cells) -> Scores:
    """The scores by cell during a round, from sums over its steps, each of which took a patient with the same chance.

    Args:
        total: a release of `private_training`.
        present: declared share of the patients at the sites that answered.
        counts: released patients by cell, of all sites.
    """
    plan = total.query.plan
    unit = 2 * SCORE_BOUND * plan.releases * plan.rate * present
    return Scores(counts, total.value("scores") / unit, total.noise_variance**0.5 / unit)
