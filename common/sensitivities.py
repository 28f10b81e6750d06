"""How much each part of a model serves the bias and the task.

From one pass: the gradient of each patient's logit gives the gradient of the score, sigma'(z) dz, and of the
cross-entropy, (p - y) dz. Weighted by cell, squared, and summed over patients, these are the per-patient (Fisher)
sensitivities of the bias and of the task. They add up over hospitals exactly, whoever lacks a group. The published
definition, the mean over mini-batches of the squared gradient of the batch loss (docs/methods.md, SWiFT 1.4, step 3),
depends on the batches; it is here for comparison with the papers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equipoise.common.cells import BiasLoss, Form, bias_weights
from equipoise.common.layout import Layout
from equipoise.common.losses import row_losses
from equipoise.common.mask import Granularity
from equipoise.common.row_gradients import RowGradients

CHUNK_BYTES = 256 * 2**20  # per-row gradients held at once
Prepared = Callable[[slice], Tensor]  # rows -> the model's float input


def pooled(squares: Tensor, granularity: Granularity) -> Tensor:
    """Sum of a tensor's squares over the entries of each unit: flat (units,)."""
    if granularity == "parameter":
        return squares.reshape(-1)
    if granularity == "channel" and squares.ndim > 0:
        return squares.reshape(squares.shape[0], -1).sum(dim=1)
    return squares.sum().reshape(1)


def patient_sensitivities(
    model: nn.Module,
    layout: Layout,
    rows: Prepared,
    patient: Tensor,
    label: Tensor,
    cell: Tensor,
    task_weight: Tensor,
    bias_weight: Tensor,
    granularity: Granularity,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums over patients of the squared weighted gradients of the score and of the cross-entropy.

    Args:
        model: gives one logit a row; in eval mode.
        layout: the parameters that get a sensitivity.
        rows: gives the float inputs of a slice of the rows.
        patient: (m,) int64, non-decreasing; label, cell: (n,) int64 by patient.
        task_weight, bias_weight: (2 * (G + 1),) by cell.

    Returns:
        (bias, task), each float64, flat in the order of `equipoise.common.mask.units`.
    """
    gradients = RowGradients(model, list(layout.shapes))
    totals = {name: torch.zeros(2, 0, dtype=torch.float64) for name in layout.shapes}
    for part in patient_slices(patient, _rows_at_once(layout)):
        x = rows(part)
        mine = patient[part]
        owner = mine - mine[0]
        owners = int(owner[-1]) + 1
        logits, gradients_of_rows = gradients(x)
        p = torch.sigmoid(logits)
        share = (1.0 / torch.bincount(owner, minlength=owners).to(x.dtype))[owner]
        scale_bias = share * bias_weight.to(x.dtype)[cell[mine]] * p * (1 - p)
        scale_task = share * task_weight.to(x.dtype)[cell[mine]] * (p - label[mine].to(x.dtype))
        scales = torch.stack([scale_bias, scale_task])
        for name, dz in gradients_of_rows:
            energies = _energies(dz, scales, owner, owners, granularity)
            totals[name] = totals[name] + energies if totals[name].numel() else energies
    together = torch.cat([totals[name] for name in layout.shapes], dim=1)
    return together[0].numpy(), together[1].numpy()


def _energies(dz: Tensor, scales: Tensor, owner: Tensor, owners: int, granularity: Granularity) -> Tensor:
    """Pooled squares of each patient's gradients, summed over the patients: float64, one row a scale.

    Args:
        dz: (m, *shape), gradients of the rows' logits.
        scales: (k, m), factors of each row's gradient.
        owner: (m,), the patient of each row, in 0..owners-1.
    """
    if owners == len(dz):
        # One row a patient: the factor can leave the square, which is then taken once for all scales.
        if granularity == "tensor":
            squares = dz.square().sum(dim=tuple(range(1, dz.ndim))).unsqueeze(1)
        elif granularity == "channel" and dz.ndim > 2:
            squares = dz.square().flatten(2).sum(dim=2)
        else:
            squares = dz.square().flatten(1)
        found: Tensor = scales.square() @ squares
        return found.to(torch.float64)
    energies = []
    for scale in scales:
        rows = dz * scale.reshape((-1,) + (1,) * (dz.ndim - 1))
        summed = torch.zeros((owners, *dz.shape[1:]), dtype=dz.dtype, device=dz.device).index_add_(0, owner, rows)
        energies.append(pooled(summed.square().sum(dim=0), granularity))
    return torch.stack(energies).to(torch.float64)


def batch_sensitivities(
    model: nn.Module,
    layout: Layout,
    batches: Iterator[tuple[Tensor, Tensor, Tensor]],
    groups: int,
    loss: BiasLoss,
    form: Form,
    granularity: Granularity,
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """The published definition: sums over mini-batches of the squared gradients of the batch's own losses.

    Args:
        batches: (inputs, label, cell) of each mini-batch, one row a patient.
        groups: number of groups with `unknown`.

    Returns:
        (bias, task, batches): flat sums in float64 and the number of batches, by which to divide.
    """
    parameters = [model.get_parameter(name) for name in layout.shapes]
    totals = [torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)]
    count = 0
    for x, label, cell in batches:
        logits = model(x)
        weights = batch_weights(logits.detach().cpu(), cell, groups, loss, form)
        for which, beta in ((0, 0.0), (1, 1.0)):
            batch_loss = row_losses(logits, label, cell, *weights, beta).mean()
            gradient = torch.autograd.grad(batch_loss, parameters, retain_graph=which == 0)
            squares = torch.cat([pooled(g.square(), granularity) for g in gradient]).to("cpu", torch.float64)
            totals[which] = totals[which] + squares if count else squares
        count += 1
    return totals[0].numpy(), totals[1].numpy(), count


def batch_weights(logits: Tensor, cell: Tensor, groups: int, loss: BiasLoss, form: Form) -> tuple[Tensor, Tensor]:
    """Task and bias weights from one batch's own cells: class-balanced entropy and hard signs (SWiFT's public code)."""
    counts = torch.bincount(cell, minlength=2 * groups).to(torch.float64).numpy().reshape(groups, 2)
    scores = torch.sigmoid(logits).to(torch.float64)
    sums = torch.zeros(2 * groups, dtype=torch.float64).index_add_(0, cell, scores).numpy().reshape(groups, 2)
    of_label = counts.sum(axis=0)
    # Unlike the federated weights these are not brought to mean 1: the published loss is not either.
    classes = np.broadcast_to(np.array([of_label[1], of_label[0]]) / max(of_label.sum(), 1.0), counts.shape)
    bias = bias_weights(counts, sums, loss, form, smoothing=0.0)
    return torch.from_numpy(classes.copy()).reshape(-1), torch.from_numpy(bias).reshape(-1)


def _rows_at_once(layout: Layout) -> int:
    return max(1, min(32, CHUNK_BYTES // max(1, 4 * layout.size)))


def patient_slices(patient: Tensor, rows: int) -> Iterator[slice]:
    """Slices of at most `rows` rows that never divide a patient (a patient with more rows is one slice)."""
    if len(patient) == 0:
        return
    starts = [0, *(torch.nonzero(torch.diff(patient)).flatten() + 1).tolist(), len(patient)]
    begin = 0
    for last, end in pairwise(starts):
        if end - begin > rows and last > begin:
            yield slice(begin, last)
            begin = last
    yield slice(begin, len(patient))
