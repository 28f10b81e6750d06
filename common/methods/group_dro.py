"""GroupDRO, federated: the model minimises, a distribution over groups maximises (Sagawa et al., ICLR 2020).

Groups are the cells of attribute and label. In each round the coordinator learns the mean loss l_g of every cell from
one sum over all patients, moves q towards the cells of large loss, and the hospitals train on

    sum_g q_g l_g  =  (1/N) sum_i  q_{g(i)} N / n_{g(i)}  CE_i.

`update: exponentiated` is q_g <- q_g exp(eta l_g) / Z, the published one; `projected` is q <- Pi(q + eta l) onto the
simplex (FedMinMax, Papadaki et al., FAccT 2022). Losses come from global sums: a group that a hospital or a batch lacks
has no loss of 0 there, which in the public code lets its q fall; a cell that is empty everywhere takes no part.
Under noise the losses are cut at `loss_cap` and noised, and importance weights are cut before patients are clipped. A
maximum follows noise upwards, so two things keep q from it: a cell whose noisy count could be of nobody has no part in
q and weighs what its label does on average, and a mean loss goes towards that of all patients by what its noise leaves.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from equipoise.common import catalogue
from equipoise.common.cells import Cells
from equipoise.common.classifier import Classifier
from equipoise.common.config import validate
from equipoise.common.fairness.noise import needed
from equipoise.common.methods.averaging import check_labels
from equipoise.common.methods.method import Method, Outcome, Steps, plain_and_balanced
from equipoise.common.methods.reweighted import (
    Reweighted,
    plan_reweighted,
    run_reweighted,
    same_rounds,
    weights_by_round,
    with_unknown,
)
from equipoise.common.query import Query
from equipoise.common.study import Study

Vector = NDArray[np.float64]

SPREAD = 1.0  # of the cells' mean losses about the mean of all, in nats: what noise has to beat to be heard


class GroupDro(Reweighted):
    """Parameters of GroupDRO."""

    eta: float = Field(default=0.5, gt=0)
    update: Literal["exponentiated", "projected"] = "exponentiated"
    adjustment: float = Field(default=0.0, ge=0)  # C of the generalisation term C / sqrt(n_g)
    weight_cap: float = Field(default=10.0, gt=0)
    loss_cap: float = Field(default=4.0, gt=0)


class Minimax:
    """The distribution over cells.

    Args:
        counts: patients by cell, (G + 1, 2).
        noise: variance of the noise in each count.

    Attributes:
        q: (G, 2) over the cells of the declared groups; sums to 1, 0 for cells that take no part.
    """

    def __init__(self, counts: Cells, p: GroupDro, noise: float = 0.0) -> None:
        self._counts, self._p = np.maximum(counts, 0.0), p
        n = self._counts[:-1]
        told = n >= needed(1, noise)
        self._held = np.where(told.any(axis=0), told, n > 0)  # training needs both labels, however few are ill
        self.q: Cells = self._held / self._held.sum()
        self.trace: list[Cells] = []

    @property
    def weights(self) -> Cells:
        """q_g N / n_g by cell; where q has no part, what the label weighs on average."""
        n, total = self._counts[:-1], self._counts.sum()
        own = np.divide(self.q * total, n, out=np.zeros_like(n), where=self._held)
        weights = with_unknown(own, np.vstack([n * self._held, self._counts[-1:]]))
        return np.where(np.vstack([self._held, [[True, True]]]), weights, weights[-1])

    def see(self, losses: Cells) -> None:
        """Move q."""
        n, held = self._counts[:-1], self._held
        loss = losses[:-1][held] + self._p.adjustment / np.sqrt(n[held])
        q = self.q[held]
        if self._p.update == "exponentiated":
            q = q * np.exp(self._p.eta * (loss - loss.max()))  # the largest exponent is 0: nothing overflows
            q = q / q.sum()
        else:
            q = onto_simplex(q + self._p.eta * loss)
        self.q = np.zeros_like(n)
        self.q[held] = q
        self.trace.append(self.q)


def onto_simplex(point: Vector) -> Vector:
    """The nearest point with entries of at least 0 that sum to 1 (Duchi et al., ICML 2008).

    >>> onto_simplex(np.array([0.8, 0.6, -1.0])).round(6).tolist()
    [0.6, 0.4, 0.0]
    """
    falling = np.sort(point)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(point) + 1)
    kept = np.flatnonzero(falling > excess)[-1]
    nearest: Vector = np.maximum(point - excess[kept], 0.0)
    return nearest


def plan(study: Study, model: Classifier) -> list[Query]:
    """Every query of a run, in order."""
    p = _parameters(study)
    return [catalogue.cell_counts(study), *plan_reweighted(study, model, p, p.loss_cap)]


def run(study: Study, model: Classifier) -> Steps:
    """Cell counts; then in each round losses, q, training."""
    p = _parameters(study)
    cells = yield catalogue.cell_counts(study)
    counts = cells.value("patients")
    check_labels(study, counts)
    minimax = Minimax(counts, p, cells.noise_variance)
    model, notes = yield from run_reweighted(study, model, p, minimax, counts, p.loss_cap, SPREAD)
    return Outcome(model, {**notes, "facts": [weights_by_round(study, "Weight q of each cell", minimax.trace)]})


def _parameters(study: Study) -> GroupDro:
    return validate(GroupDro, study.method.parameters, "method")


METHOD = Method(
    name="group_dro",
    title="the cells with the largest loss weigh more in every round: a minimax over groups",
    paper="Sagawa et al., ICLR 2020, arXiv:1911.08731; federated as FedMinMax, Papadaki et al., FAccT 2022",
    travels="cell counts; in each round the losses by cell, and a change of the model or (step whitened) a sum of "
    "clipped vectors",
    costs="10 rounds of the whole model, and one more pass over the patients in each for the losses",
    private="whitened rounds, and noisy losses by cell in each",
    parameters=GroupDro,
    plan=plan,
    run=run,
    controls=plain_and_balanced(lambda study, loss: same_rounds(_parameters(study), study, loss)),
)
