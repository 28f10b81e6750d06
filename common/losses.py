"""Losses as sums over patients, with one weight per cell.

The loss of patient i in cell c is beta * task[c] * CE(z_i, y_i) + (1 - beta) * bias[c] * sigmoid(z_i), where the
weights are public numbers (`equipoise.common.cells`). Its sum over any partition of the patients is the global loss,
and it has a gradient per patient, which is what can be clipped. Several images of one patient count as one: their
losses are averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cell_index(groups: Tensor, label: Tensor) -> Tensor:
    """Index 2 * group + label of each patient's cell; groups and label are (n,) int64."""
    return 2 * groups + label


def row_losses(
    logits: Tensor, label: Tensor, cell: Tensor, task_weight: Tensor, bias_weight: Tensor, beta: float
) -> Tensor:
    """The loss of each row (image), before averaging a patient's rows.

    Args:
        logits: (m,) float.
        label, cell: (m,) int64, of each row's patient; on the processor, as all that is known of patients, or beside
            the logits.
        task_weight, bias_weight: (2 * (G + 1),) float, by cell; likewise.
        beta: share of the task loss, in [0, 1].

    Returns:
        (m,) float.
    """
    label, cell = label.to(logits.device), cell.to(logits.device)
    loss = torch.zeros_like(logits)
    if beta > 0:
        entropy = functional.binary_cross_entropy_with_logits(logits, label.to(logits.dtype), reduction="none")
        loss = loss + beta * task_weight.to(logits)[cell] * entropy
    if beta < 1:
        loss = loss + (1 - beta) * bias_weight.to(logits)[cell] * torch.sigmoid(logits)
    return loss


def row_shares(patient: Tensor, patients: int) -> Tensor:
    """1 / (number of the patient's rows) for each row; patient is (m,) int64 in 0..patients-1."""
    count = torch.bincount(patient, minlength=patients)
    return 1.0 / count[patient].to(torch.float64)
