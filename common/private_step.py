"""One private full-gradient round: what a patient contributes, what the server makes of the sum, and when it stops.

The loss is a sum over patients of functions of one score each (`equipoise.common.cells`), so its gradient by a row's
logit is a number c, and the patient's gradient is c times the gradient of the logit:

    c = beta * task[cell] * (p - y) + (1 - beta) * bias[cell] * p (1 - p)

In whitened directions it is g = c V^T dz. One sum over all patients of all sites, with noise, moves u; the weights of
the next round come from the sums of scores by cell that ride in the same vector.

>>> descent = Descent.start(directions, rounds=10, lr=0.2)
>>> total = contributions(...).sum(axis=0) + noise               # at the sites, or in the secure sum
>>> gradient, scores = split_total(total, directions, clip, counts, noise_sd)
>>> descent = descent.stepped(gradient, patients)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.common.cells import Balance, BiasLoss, Cells, bias_weights, task_weights
from equipoise.common.privacy.rounding import ROUNDING

Vector = NDArray[np.float64]

SCORE_BOUND = 0.2  # of C: bound of the score that rides along
CAP = 4.0
TAIL = 0.25


def joint_bound(clip: float) -> float:
    """L2 bound of one patient's vector, gradient and score together: C sqrt(1 + 0.04)."""
    return float(clip * (1 + SCORE_BOUND**2) ** 0.5)


def round_weights(
    counts: Cells,
    score_sums: Cells | None,
    loss: BiasLoss = "equalized_odds",
    *,
    smoothing: float = 0.08,
    balance: Balance = "cells",
) -> tuple[Cells, Cells]:
    """Task and bias weights by cell, (G + 1, 2) each, from released counts and sums of scores.

    Cells weigh in the task loss as `balance` says, at most 4 times the mean. The bias weights are those of twice the
    bias loss (for two groups: of the sum over labels of the gaps of mean scores), under the same cap.

    Args:
        counts: noisy patients by cell.
        score_sums: sums of p by cell; None before the first release, where no gap is known and the bias weighs 0.
        smoothing: gap at which its sign counts in full; a smaller one counts in proportion.
        balance: see `equipoise.common.cells.task_weights`.
    """
    free, task = task_weights(counts, balance), task_weights(counts, balance, CAP)
    if score_sums is None:
        return task, np.zeros_like(task)
    held = np.divide(task, free, out=np.zeros_like(task), where=free > 0)
    return task, 2 * held * bias_weights(counts, score_sums, loss, "absolute", smoothing)


def acting(beta: float, task: Cells, bias: Cells) -> bool:
    """Whether a round of these weights has a gradient at all: the sum of one that has none is noise, and no step."""
    return bool((beta > 0 and task.any()) or (beta < 1 and bias.any()))


def contributions(
    logits: Tensor,
    gradients: Tensor,
    patient: Tensor,
    label: Tensor,
    cell: Tensor,
    task: Cells,
    bias: Cells,
    *,
    beta: float,
    clip: float,
) -> Vector:
    """Every patient's vector of one round: the clipped gradient and, in the patient's cell, the score.

    Args:
        logits: (m,) of the rows (images).
        gradients: (m, k), V^T dz of each row.
        patient: (m,) int64 in 0..n-1, the patient of each row.
        label, cell: (n,) int64 by patient; cell = 2 * group + label.
        task, bias: (G + 1, 2) public weights.
        beta: share of the task loss, in [0, 1].
        clip: C, public.

    Returns:
        (n, k + 2 (G + 1)) float64: the mean over the patient's rows of c V^T dz, each row clipped to C, and
        0.4 C (p - 1/2), the mean over the rows, at the patient's cell, 0 at the other cells.

    Formal guarantee:
        For all arguments, each row of the result has L2 norm at most `joint_bound(clip)` = C sqrt(1.04), the first k
        entries at most C and the others 0.2 C, and depends on that patient's rows, label and cell and on public
        arguments alone. The sum over patients therefore changes by at most that when one patient is added or removed
        (unit: patient, all images; relation: add/remove one). Nothing here adds noise.

    Edge cases:
        A row whose logit or gradient is NaN or infinite contributes 0, in gradient and score, and still counts as one
        of the patient's rows; so does a row of weights that are not finite. A patient without rows contributes 0. No
        patients: shape (0, k + cells).

    Raises:
        ValueError: the clip bound is not positive, beta is outside [0, 1], or sizes do not agree. These depend on
            public values or shapes, never on what a patient's row holds.
    """
    cells = task.size
    if not 0 < clip < np.inf or not 0 <= beta <= 1 or bias.shape != task.shape:
        raise ValueError(f"clip={clip}, beta={beta}, weights {task.shape} and {bias.shape}: expected 0 < clip, 0..1")
    if len(logits) != len(gradients) or len(patient) != len(logits) or len(label) != len(cell):
        raise ValueError(
            f"{len(logits)} logits, {len(gradients)} gradients, {len(patient)} rows; "
            f"{len(label)} labels, {len(cell)} cells: rows and patients must agree"
        )
    patients, k = len(label), gradients.shape[1]
    z, dz = logits.double().cpu(), gradients.double().cpu()
    p, row_cell = torch.sigmoid(z), cell[patient]
    factor = beta * torch.from_numpy(task).reshape(-1)[row_cell] * (p - label[patient].double())
    if beta < 1:
        factor = factor + (1 - beta) * torch.from_numpy(bias).reshape(-1)[row_cell] * p * (1 - p)
    g = factor[:, None] * dz
    norm = g.norm(dim=1)
    score = 2 * SCORE_BOUND * clip * (p - 0.5)
    sound = z.isfinite() & dz.isfinite().all(dim=1) & norm.isfinite()
    g = torch.where(sound[:, None], g * (ROUNDING * clip / norm.clamp_min(clip))[:, None], 0.0)
    score = torch.where(sound, ROUNDING * score, 0.0)
    share = 1.0 / torch.bincount(patient, minlength=patients).clamp_min(1).double()
    result = torch.zeros(patients, k + cells, dtype=torch.float64)
    result[:, :k].index_add_(0, patient, g * share[patient][:, None])
    result[:, k:].index_put_((patient, row_cell), score * share[patient], accumulate=True)
    vectors: Vector = result.numpy()
    return vectors


@dataclass(frozen=True)
class Scores:
    """What the released sums say about the scores of each cell.

    Attributes:
        counts: noisy patients by cell, (G + 1, 2), known from an earlier release.
        offsets: sums of (p - 1/2) by cell; sums about the middle need half the range, hence half the noise.
        noise_sd: standard deviation of the noise on each offset.
    """

    counts: Cells
    offsets: Cells
    noise_sd: float

    @property
    def sums(self) -> Cells:
        """Sums of p by cell, with means held in [0, 1]."""
        n = np.maximum(self.counts, 0.0)
        sums: Cells = np.clip(self.offsets + n / 2, 0.0, n)
        return sums

    @property
    def separation(self) -> float:
        """Mean score of the positives minus that of the negatives, of the patients whose group is known."""
        means = self.offsets[:-1].sum(axis=0) / self._of_label
        return float(means[1] - means[0])

    @property
    def separation_sd(self) -> float:
        """Standard deviation of the noise on `separation`; that of the counts is left out, being small beside it."""
        return float(self.noise_sd * np.sqrt(((len(self.counts) - 1) / self._of_label**2).sum()))

    @property
    def _of_label(self) -> Vector:
        patients: Vector = np.maximum(np.maximum(self.counts[:-1], 0.0).sum(axis=0), 1.0)
        return patients

    def blended(self, before: Scores | None, weight: float) -> Scores:
        """weight * this + (1 - weight) * `before`: scores move slowly and noise is new each round."""
        if before is None:
            return self
        offsets = weight * self.offsets + (1 - weight) * before.offsets
        return replace(
            self, offsets=offsets, noise_sd=float(np.hypot(weight * self.noise_sd, (1 - weight) * before.noise_sd))
        )


def split_total(total: Vector, directions: int, clip: float, counts: Cells, noise_sd: float) -> tuple[Vector, Scores]:
    """The two parts of a released sum: the gradient (k,) and the scores.

    Args:
        total: (k + cells,), the sum of `contributions` over all patients of all sites, with noise.
        counts: noisy patients by cell, (G + 1, 2).
        noise_sd: standard deviation of the noise on each entry of `total`; 0 without privacy.
    """
    unit = 2 * SCORE_BOUND * clip
    return total[:directions], Scores(counts, total[directions:].reshape(counts.shape) / unit, noise_sd / unit)


@dataclass(frozen=True)
class Descent:
    """Gradient descent with momentum (Polyak 1964) and a cosine learning rate (Loshchilov & Hutter 2017) to 0.

    Attributes:
        rounds: T.
        lr, momentum: m <- momentum * m + gradient / patients, then u <- u - lr_t * m.
        points: u_0 = 0, ..., u_t.
        velocity: m.
    """

    rounds: int
    lr: float
    momentum: float
    points: tuple[Vector, ...]
    velocity: Vector

    @classmethod
    def start(cls, directions: int, *, rounds: int, lr: float, momentum: float = 0.8) -> Descent:
        """At u = 0, the vendor's model."""
        if rounds < 1 or lr <= 0 or not 0 <= momentum < 1:
            raise ValueError(f"rounds={rounds}, lr={lr}, momentum={momentum}: expected >= 1, > 0, in [0, 1)")
        return cls(rounds, lr, momentum, (np.zeros(directions),), np.zeros(directions))

    @property
    def u(self) -> Vector:
        """The present point, (k,)."""
        return self.points[-1]

    def stepped(self, gradient: Vector, patients: float) -> Descent:
        """After one round.

        Args:
            gradient: (k,), the released sum over patients.
            patients: N, from the noisy counts.

        Raises:
            ValueError: all T rounds are done.
        """
        t = len(self.points) - 1
        if t >= self.rounds:
            raise ValueError(f"descent: all {self.rounds} rounds are done")
        velocity = self.momentum * self.velocity + gradient / max(patients, 1.0)
        rate = self.lr * 0.5 * (1 + np.cos(np.pi * t / self.rounds))
        return replace(self, points=(*self.points, self.u - rate * velocity), velocity=velocity)

    @cached_property
    def result(self) -> Vector:
        """Mean of the last quarter of the points, at least one and never the start: (k,), with less noise than one."""
        reached = self.points[1:] or self.points
        tail: Vector = np.mean(reached[-ceil(len(reached) * TAIL) :], axis=0)
        return tail


@dataclass(frozen=True)
class CollapseGuard:
    """Stops rounds that make the model forget the disease, a state in which every gap between groups is 0.

    It watches the separation, mean score of positives minus that of negatives, which is released in each round anyway.
    Below `share` of its value at the start, by more than the noise explains, the rounds end, and the model goes back to
    the last point whose separation was large enough. Separations belong to the points where the round's gradients were
    taken, so the last step of all, which the cosine makes the smallest, is not watched.

    Attributes:
        share: declared before the run, in (0, 1).
        deviations: how many standard deviations of the noise a shortfall must exceed.
        start: separation at the vendor's model and its noise; None before the first round.
        good: index of the last point that was large enough.
        collapsed: the rounds are over.
        blind: at the last point even a separation of 0 would not have stood out from the noise: nothing was guarded.
    """

    share: float = 0.5
    deviations: float = 2.0
    start: tuple[float, float] | None = None
    good: int = 0
    collapsed: bool = False
    blind: bool = False

    def watched(self, point: int, scores: Scores) -> CollapseGuard:
        """After the release at `point` (0 for the vendor's model).

        Args:
            point: index into `Descent.points` of the round's model.
            scores: of this round, best blended with the rounds before: one round's noise alone would stop good runs.
        """
        start = self.start or (scores.separation, scores.separation_sd)
        wanted = self.share * start[0]
        noise = self.deviations * float(np.hypot(scores.separation_sd, self.share * start[1]))
        return replace(
            self,
            start=start,
            good=point if self.start is None or scores.separation >= wanted else self.good,
            collapsed=self.start is not None and scores.separation + noise < wanted,
            blind=noise >= wanted,
        )

    def outcome(self, descent: Descent) -> Vector:
        """Where the rounds end: the descent's result, or after a collapse the last good point."""
        return descent.points[self.good] if self.collapsed else descent.result
