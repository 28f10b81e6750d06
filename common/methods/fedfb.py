"""FedFB: weights of the cells follow a surrogate of demographic parity (Zeng, Chen & Lee, arXiv:2110.15545).

With n_a patients of group a, n_ya of label y among them, L_ya the sum of their losses at the present model, group 0 the
first declared one that has patients and p_a = n_a / n:

    f_a = (L_0a - L_1a) / n_a - (L_00 - L_10) / n_0 + n_00 / n_0 - n_0a / n_a         about P(yhat=1|a) - P(yhat=1|0)
    lambda_0a += alpha / sqrt(t) f_a  for a > 0,       lambda_00 -= alpha / sqrt(t) sum_a f_a
    lambda_1a = 2 p_a - lambda_0a,   each held in [0, 2 p_a],   all p_a at the start

and the hospitals minimise sum_i lambda_{y_i, a_i} / n_{a_i} CE_i. Everything comes from sums over the patients of all
hospitals; no hospital's own figure is needed. It aims at equal selection rates, not at equalised odds.

After the public code (yzeng58/Improving-Fairness-via-Federated-Learning); no code of it is here. Not copied: there the
constant n_00 / n_0 - n_0a / n_a is added once a hospital, 2 p_0 bounds every group, and the average of the hospitals'
models leaves the first hospital's weight out.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from equipoise.common import catalogue
from equipoise.common.cells import Cells
from equipoise.common.classifier import Classifier
from equipoise.common.config import validate
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


class FedFb(Reweighted):
    """Parameters of FedFB."""

    alpha: float = Field(default=0.1, gt=0)
    loss_cap: float = Field(default=4.0, gt=0)


class FairBatch:
    """The multipliers.

    Attributes:
        multipliers: lambda[a, y], (G, 2).
    """

    def __init__(self, counts: Cells, alpha: float) -> None:
        self._counts, self._alpha = np.maximum(counts, 0.0), alpha
        of_group = self._counts[:-1].sum(axis=1)
        self._share = of_group / of_group.sum()
        self.multipliers: Cells = np.stack([self._share, self._share], axis=1)
        self.trace: list[Cells] = []

    @property
    def weights(self) -> Cells:
        """lambda_ya N / n_a by cell: 1 on average at the start."""
        of_group = self._counts[:-1].sum(axis=1, keepdims=True)
        scaled = self.multipliers * of_group.sum()
        return with_unknown(np.divide(scaled, of_group, out=np.zeros_like(scaled), where=of_group > 0), self._counts)

    def see(self, losses: Cells) -> None:
        """Move the multipliers, except at the vendor's model, which no round has trained."""
        self.trace.append(self.multipliers)
        if len(self.trace) == 1:
            return
        parity = parity_surrogate(losses[:-1] * self._counts[:-1], self._counts[:-1])
        step = self._alpha / np.sqrt(len(self.trace) - 1) * parity
        first = _first_held(self._counts[:-1])
        step[first] = -np.delete(step, first).sum()
        negative = np.clip(self.multipliers[:, 0] + step, 0.0, 2 * self._share)
        self.multipliers = np.stack([negative, 2 * self._share - negative], axis=1)


def parity_surrogate(losses: Cells, counts: Cells) -> Cells:
    """f_a for every group, (G,); 0 for the first that has patients, and for a group of nobody.

    Args:
        losses: sums of the patients' losses by group and label, (G, 2).
        counts: patients, (G, 2).
    """
    of_group = counts.sum(axis=1)
    held = np.maximum(of_group, 1e-12)
    selected: Cells = (losses[:, 0] - losses[:, 1] - counts[:, 0]) / held
    return np.where(of_group > 0, selected - selected[_first_held(counts)], 0.0)


def _first_held(counts: Cells) -> int:
    return int(np.argmax(counts.sum(axis=1) > 0))


def plan(study: Study, model: Classifier) -> list[Query]:
    """Every query of a run, in order."""
    p = _parameters(study)
    return [catalogue.cell_counts(study), *plan_reweighted(study, model, p, p.loss_cap)]


def run(study: Study, model: Classifier) -> Steps:
    """Cell counts; then in each round losses, multipliers, training."""
    p = _parameters(study)
    cells = yield catalogue.cell_counts(study)
    counts = cells.value("patients")
    check_labels(study, counts)
    batch = FairBatch(counts, p.alpha)
    model, notes = yield from run_reweighted(study, model, p, batch, counts, p.loss_cap)
    return Outcome(model, {**notes, "facts": [weights_by_round(study, "Multiplier of each cell", batch.trace)]})


def _parameters(study: Study) -> FedFb:
    return validate(FedFb, study.method.parameters, "method")


METHOD = Method(
    name="fedfb",
    title="weights of the cells follow a surrogate of demographic parity (equal selection rates, not equalised odds)",
    paper="FedFB: Zeng, Chen & Lee, arXiv:2110.15545",
    travels="cell counts; in each round the losses by cell, and a change of the model or (step whitened) a sum of "
    "clipped vectors",
    costs="10 rounds of the whole model, and one more pass over the patients in each for the losses",
    private="whitened rounds, and noisy losses by cell in each",
    parameters=FedFb,
    plan=plan,
    run=run,
    controls=plain_and_balanced(lambda study, loss: same_rounds(_parameters(study), study, loss)),
)
