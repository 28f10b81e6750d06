"""SWiFT in whitened rounds: a soft mask by tensor shapes the space in which the whole model moves.

Its form under privacy. One sum of clipped, equalised squared gradient norms says how much each tensor serves the bias
and the task (`equipoise.common.block_energies`); their ratio is the mask; the mask scales the directions of the space
before they are whitened, so that what serves the bias and not the task moves most (docs/methods.md).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from equipoise.common import catalogue
from equipoise.common.block_energies import BlockEnergies
from equipoise.common.cells import Balance, BiasLoss, Cells, task_weights
from equipoise.common.classifier import Classifier
from equipoise.common.equalisation import Equalisation, energy_weights
from equipoise.common.layout import Layout
from equipoise.common.mask import SoftMask
from equipoise.common.methods.averaging import check_labels
from equipoise.common.methods.method import Outcome
from equipoise.common.methods.whitened import Course, Whitened, plan_rounds, run_rounds
from equipoise.common.pool import Pool, network_of
from equipoise.common.private_mask import PrivateSensitivities, weighted_patients
from equipoise.common.private_step import CAP
from equipoise.common.query import Query, Sum
from equipoise.common.streams import numpy_stream
from equipoise.common.study import Study

PHASE = "whole"


@dataclass(frozen=True)
class MaskedRounds:
    """What the rounds are told.

    Attributes:
        mask: `soft`, or a control in its place.
        loss, balance: the bias loss, and the cells' weights in the task loss.
        floor: added to the denominator of the mask's ratio.
        steps: parameters of the rounds.
    """

    mask: Literal["soft", "ones", "constant", "permuted"]
    loss: BiasLoss
    balance: Balance
    floor: float
    steps: Whitened

    @property
    def course(self) -> Course:
        """The rounds' own part."""
        return Course("whole", PHASE, self.loss, self.balance)


def plan_masked(study: Study, model: Classifier, p: MaskedRounds) -> list[Query]:
    """Every query of a run, in order."""
    return [
        catalogue.cell_counts(study),
        *mask_queries(study, model, p.mask),
        *plan_rounds(study, model, p.steps, p.course),
    ]


def run_masked(study: Study, model: Classifier, p: MaskedRounds) -> Generator[Query, Sum, Outcome]:
    """Cell counts, the mask, the rounds."""
    cells = yield catalogue.cell_counts(study)
    counts = cells.value("patients")
    check_labels(study, counts)
    mask, seen = yield from private_mask(study, model, counts, p)
    model, notes = yield from run_rounds(study, model, p.steps, p.course, counts, mask)
    return Outcome(model, {**notes, **seen})


def mask_queries(study: Study, model: Classifier, mask: str) -> list[Query]:
    """What a mask of this kind asks: one sum, or nothing."""
    return [] if mask == "ones" else [catalogue.block_sensitivities(study, model.layout("whole"))]


def private_mask(
    study: Study, model: Classifier, counts: Cells, p: MaskedRounds
) -> Generator[Query, Sum, tuple[SoftMask | None, dict[str, Any]]]:
    """The mask by tensor (None for 1 throughout), and what the report shows of it."""
    if p.mask == "ones":
        return None, {}
    found = yield from tensor_sensitivities(study, model, counts, p.balance, p.loss)
    mask = _soft_mask(p, found, model.layout("whole"), study.seed)
    return mask, {"mask": mask.summary(), "mask_mean": mask.mean, "sensitivities": found.summary()}


def tensor_sensitivities(
    study: Study, model: Classifier, counts: Cells, balance: Balance, loss: BiasLoss
) -> Generator[Query, Sum, PrivateSensitivities]:
    """Sensitivities of bias and task by tensor: one sum of clipped, equalised vectors, read with its noise."""
    layout = model.layout("whole")
    pool, network = Pool.of(study), network_of(study, model)
    energies = BlockEnergies(network, list(layout.shapes))
    rows = [energies.rows(x) for x in pool.batches()]
    public = Equalisation.from_pool(np.concatenate([z for z, _ in rows]), np.concatenate([e for _, e in rows]))
    bias, task = energy_weights(counts, task_weights(counts, balance, CAP), loss)
    query = catalogue.block_sensitivities(study, layout)
    units = {"unit": public.unit, "kept": public.kept}
    total = yield query.with_inputs(**model.inputs(), weights={"bias": bias, "task": task}, units=units)
    values = np.concatenate([total.value("bias"), total.value("task")])
    return PrivateSensitivities.from_total(
        values, public, total.noise_variance**0.5, weighted_patients(counts, bias, task)
    )


def _soft_mask(p: MaskedRounds, found: PrivateSensitivities, layout: Layout, seed: int) -> SoftMask:
    mask = found.mask(layout, p.floor)
    if p.mask == "constant":
        return mask.constant()
    if p.mask == "permuted":
        return mask.permuted_tensors(numpy_stream(seed, "permuted mask"))
    return mask
