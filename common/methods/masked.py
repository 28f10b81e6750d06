"""SWiFT in whitened rounds: a soft mask by tensor shapes the space in which the whole model moves.

Its form under privacy. One sum of clipped, equalised squared gradient norms says how much each tensor serves the bias
and the task (`equipoise.common.block_energies`); their ratio is the mask; the mask scales the directions of the space
before they are whitened, so that what serves the bias and not the task moves most (docs/methods.md).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.common import catalogue
from equipoise.common.block_energies import BlockEnergies, Equalisation
from equipoise.common.cells import Balance, BiasLoss, Cells, task_weights
from equipoise.common.classifier import Classifier
from equipoise.common.mask import SoftMask
from equipoise.common.methods.averaging import check_labels
from equipoise.common.methods.method import Outcome
from equipoise.common.methods.whitened import Course, Whitened, plan_rounds, run_rounds
from equipoise.common.pool import Pool, network_of
from equipoise.common.query import Query, Sum
from equipoise.common.streams import numpy_stream
from equipoise.common.study import Study

Vector = NDArray[np.float64]
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
    mask = [] if p.mask == "ones" else [catalogue.block_sensitivities(study, model.layout("whole"))]
    return [catalogue.cell_counts(study), *mask, *plan_rounds(study, model, p.steps, p.course)]


def run_masked(study: Study, model: Classifier, p: MaskedRounds) -> Generator[Query, Sum, Outcome]:
    """Cell counts, the mask, the rounds."""
    cells = yield catalogue.cell_counts(study)
    counts = cells.value("patients")
    check_labels(study, counts)
    mask = None
    if p.mask != "ones":
        mask = yield from _soft_mask(study, model, p, counts)
    model, notes = yield from run_rounds(study, model, p.steps, p.course, counts, mask)
    if mask is not None:
        notes |= {"mask": mask.summary(), "mask_mean": mask.mean}
    return Outcome(model, notes)


def _soft_mask(study: Study, model: Classifier, p: MaskedRounds, counts: Cells) -> Generator[Query, Sum, SoftMask]:
    layout = model.layout("whole")
    bias, task = yield from tensor_sensitivities(study, model, counts)
    mask = SoftMask.from_sensitivities(layout, bias, task, "tensor", "mean", p.floor)
    if p.mask == "constant":
        return mask.constant()
    if p.mask == "permuted":
        return mask.permuted_tensors(numpy_stream(study.seed, "permuted mask"))
    return mask


def tensor_sensitivities(
    study: Study, model: Classifier, counts: Cells
) -> Generator[Query, Sum, tuple[Vector, Vector]]:
    """Sensitivities of the bias and of the task by tensor, (tensors,) each: one sum of clipped, equalised vectors."""
    layout = model.layout("whole")
    pool, network = Pool.of(study), network_of(study, model)
    energies = BlockEnergies(network, list(layout.shapes))
    rows = [energies.rows(x) for x in pool.batches()]
    units = Equalisation.from_pool(np.concatenate([z for z, _ in rows]), np.concatenate([e for _, e in rows]))
    query = catalogue.block_sensitivities(study, layout)
    total = yield query.with_inputs(**model.inputs(), units=units.arrays)
    return sensitivities_of(total, units, counts)


def sensitivities_of(total: Sum, units: Equalisation, counts: Cells) -> tuple[Vector, Vector]:
    """Sensitivities of the bias and of the task by tensor, (tensors,) each, from the noised sum.

    The bias is a contrast of cell means, so a cell weighs with the inverse square of its patients; the sign of a gap
    does not matter, being squared. Noise can push a sum of squares below 0, where it says nothing.
    """
    weight = task_weights(counts, "cells", cap=np.inf) ** 2
    bias = (total.value("bias") * weight[:, :, None]).sum(axis=(0, 1)) * units.bias_unit * units.bias_clip
    task = total.value("task") * units.task_unit * units.task_clip
    return np.maximum(bias, 0.0), np.maximum(task, 0.0)
