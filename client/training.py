"""Local training at a site: masked stochastic gradient descent on its own patients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.client.cohort import Split
from equipoise.client.descent import MaskedDescent, left, like
from equipoise.client.moving_bias import MovingBias
from equipoise.client.workbench import View, cells_of, of_compared
from equipoise.common.layout import Layout
from equipoise.common.losses import row_losses, row_shares
from equipoise.common.sensitivities import batch_weights
from equipoise.common.study import ImageInputs, Study


def train_locally(
    view: View,
    layout: Layout,
    parameters: Mapping[str, Any],
    weights: Mapping[str, NDArray[np.float64]],
    mask: Mapping[str, NDArray[np.floating]] | None,
    generator: torch.Generator,
    right: Mapping[str, NDArray[np.floating]] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The change of the trained tensors after local epochs of SGD with momentum.

    The mask multiplies the whole step, weight decay included: a masked weight does not decay either. Patients are
    drawn without replacement; a batch is of patients, and each patient's rows are averaged.

    Args:
        view: the network at the weights received, and the site's patients; left at the weights reached.
        layout: tensors that are trained; all others stay as they are.
        parameters: beta, lr, momentum, weight_decay, epochs, batch, flips; `proximal`, the factor mu of a pull towards
            the received weights, by default 0; where beta < 1 also bias_loss, form, smoothing and losses: `global`, by
            `weights` and the site's own drift from them (`MovingBias`), or `batch`, by the own cells of batches of the
            groups that are compared (the published code, for comparison).
        weights: `task`, (G + 1, 2) float64, by cell; where beta < 1 also the global `patients` of the groups that are
            compared (0 for others) and sums of `scores`.
        mask: factor of each trained tensor's update, or None for 1.
        generator: public stream of shuffles and flips.
        right: right factors B (r, n) of tensors that are products A B: A alone is trained, and in `layout` and in the
            result such a tensor has A's shape.

    Returns:
        (change, scores): flat float64 (layout.size,), and the sums of the patients' scores by cell (G + 1, 2) after the
        steps, as `MovingBias` followed them; without it, each patient's as it was met in the last epoch.
    """
    study, model, split = view.study, view.model, view.split
    names = list(layout.shapes)
    trained = [model.get_parameter(name) for name in names]
    bases = [
        None if right is None or name not in right else like(right[name], p)
        for name, p in zip(names, trained, strict=True)
    ]
    start = [left(parameter.detach(), basis).clone() for parameter, basis in zip(trained, bases, strict=True)]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in layout)
    factors = None if mask is None else [like(mask[name], p) for name, p in zip(names, trained, strict=True)]
    task = torch.from_numpy(weights["task"].reshape(-1))
    bias = torch.zeros_like(task)
    descent = MaskedDescent(
        trained,
        factors,
        bases,
        lr=parameters["lr"],
        momentum=parameters["momentum"],
        decay=parameters["weight_decay"],
        proximal=parameters.get("proximal", 0.0),
    )
    cell, share = cells_of(study, split), row_shares(split.patient, split.patients)
    rows_by_patient = _rows_by_patient(split)
    scores = torch.zeros(len(task), dtype=torch.float64)
    moving, chosen = None, torch.arange(split.patients)
    if parameters["beta"] < 1 and parameters["losses"] == "global":
        moving = _moving_bias(study, view.logits(), split, parameters, weights)
    elif parameters["beta"] < 1:
        chosen = chosen[of_compared(cell, weights["patients"])]

    for epoch in range(parameters["epochs"]):
        order = chosen[torch.randperm(len(chosen), generator=generator)]
        for patients in torch.split(order, parameters["batch"]) if len(order) else ():
            rows = patients if rows_by_patient is None else torch.cat([rows_by_patient[i] for i in patients])
            owner = split.patient[rows]
            x = view.rows(rows)
            if parameters["flips"] and isinstance(study.inputs, ImageInputs):
                x = flipped(x, generator)
            logits = model(x)
            # What is known of patients lies on the processor, whatever the network's device is.
            met = torch.sigmoid(logits.detach()).to("cpu", torch.float64) * share[rows]
            if moving is not None:
                bias = moving.observe(patients, _by_patient(met, owner, patients))
            elif parameters.get("losses") == "batch":  # whose task loss has weights of its own too, hence at beta = 1
                kind = parameters["bias_loss"], parameters["form"]
                task, bias = batch_weights(logits.detach().cpu(), cell[owner], len(scores) // 2, *kind)
            losses = row_losses(logits, split.label[owner], cell[owner], task, bias, parameters["beta"])
            loss = (losses * share[rows].to(losses)).sum() / len(patients)
            descent.step(torch.autograd.grad(loss, trained, allow_unused=True))
            if epoch == parameters["epochs"] - 1:
                scores.index_add_(0, cell[owner], met)

    # B has orthonormal rows, so that A = W B^T.
    reached = (left(parameter.detach(), basis) for parameter, basis in zip(trained, bases, strict=True))
    moved = (after.double() - before.double() for after, before in zip(reached, start, strict=True))
    change = layout.flatten(dict(zip(names, moved, strict=True)))
    model.requires_grad_(True)
    return change, moving.sums() if moving is not None else scores.numpy().reshape(-1, 2)


def _moving_bias(
    study: Study,
    logits: Tensor,
    split: Split,
    parameters: Mapping[str, Any],
    weights: Mapping[str, NDArray[np.float64]],
) -> MovingBias:
    start = torch.sigmoid(logits).to("cpu", torch.float64)
    return MovingBias(
        weights["patients"],
        weights["scores"],
        _by_patient(start * row_shares(split.patient, split.patients), split.patient, torch.arange(split.patients)),
        cells_of(study, split),
        parameters["bias_loss"],
        parameters["form"],
        parameters["smoothing"],
    )


def _by_patient(shares: Tensor, owner: Tensor, patients: Tensor) -> Tensor:
    """Sums of the rows' shares for each of `patients`, in their order; (len(patients),) float64."""
    total = torch.zeros(int(patients.max()) + 1 if len(patients) else 0, dtype=torch.float64)
    return total.index_add_(0, owner, shares)[patients]


def flipped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored left-right and top-bottom, each with probability 1/2; x is (m, C, H, W)."""
    coins = (torch.rand((2, len(x)), generator=generator) < 0.5).to(x.device)
    x = torch.where(coins[0].view(-1, 1, 1, 1), x.flip(-1), x)
    return torch.where(coins[1].view(-1, 1, 1, 1), x.flip(-2), x)


def _rows_by_patient(split: Split) -> list[Tensor] | None:
    """Rows of each patient; None where every patient has one row."""
    if len(split.patient) == split.patients:
        return None
    counts = torch.bincount(split.patient, minlength=split.patients)
    return list(torch.split(torch.arange(len(split.patient)), counts.tolist()))
