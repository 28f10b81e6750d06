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
from torch.func import functional_call, grad, vmap

from equipoise.common.cells import BiasLoss, Form, bias_weights
from equipoise.common.layout import Layout
from equipoise.common.losses import row_losses
from equipoise.common.mask import Granularity

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
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    chosen = {name: state[name] for name in layout.shapes}

    def logit(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        output: Tensor = functional_call(model, {**state, **parameters}, (row.unsqueeze(0),))
        return output.squeeze()

    gradients = vmap(grad(logit), in_dims=(None, 0))
    bias: list[Tensor] = []
    task: list[Tensor] = []
    for part in _patient_chunks(patient, _rows_at_once(layout)):
        x = rows(part)
        owner = patient[part] - patient[part][0]
        owners = int(owner[-1]) + 1
        share = (1.0 / torch.bincount(owner, minlength=owners).to(x.dtype))[owner]
        with torch.no_grad():
            p = torch.sigmoid(model(x))
        mine = patient[part]
        scale_bias = share * bias_weight.to(x.dtype)[cell[mine]] * p * (1 - p)
        scale_task = share * task_weight.to(x.dtype)[cell[mine]] * (p - label[mine].to(x.dtype))
        dz = gradients(chosen, x)
        energies = [(_energies(dz, layout, s, owner, owners, granularity)) for s in (scale_bias, scale_task)]
        bias.append(energies[0])
        task.append(energies[1])
    zero = torch.zeros(0, dtype=torch.float64)
    total_bias = torch.stack(bias).sum(dim=0) if bias else zero
    total_task = torch.stack(task).sum(dim=0) if task else zero
    return total_bias.numpy(), total_task.numpy()


def _energies(
    dz: dict[str, Tensor], layout: Layout, scale: Tensor, owner: Tensor, owners: int, granularity: Granularity
) -> Tensor:
    """Pooled squares of each patient's gradient (its rows summed with `scale`), summed over the chunk; float64."""
    parts = []
    for name in layout.shapes:
        rows = dz[name] * scale.reshape((-1,) + (1,) * (dz[name].ndim - 1))
        if owners < len(rows):
            rows = torch.zeros((owners, *rows.shape[1:]), dtype=rows.dtype).index_add_(0, owner, rows)
        parts.append(pooled(rows.square().sum(dim=0), granularity))
    return torch.cat(parts).to(torch.float64)


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
        weights = batch_weights(logits.detach(), cell, groups, loss, form)
        for which, beta in ((0, 0.0), (1, 1.0)):
            batch_loss = row_losses(logits, label, cell, *weights, beta).mean()
            gradient = torch.autograd.grad(batch_loss, parameters, retain_graph=which == 0)
            squares = torch.cat([pooled(g.square(), granularity) for g in gradient]).to(torch.float64)
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
    return max(1, min(64, CHUNK_BYTES // max(1, 4 * layout.size)))


def _patient_chunks(patient: Tensor, rows: int) -> Iterator[slice]:
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
