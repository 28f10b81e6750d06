"""Energies of benchmark patients at every level: by tensor, by channel, by parameter, and through random signs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.common.block_energies import BlockEnergies
from equipoise.common.row_gradients import RowGradients
from equipoise.common.sensitivities import pooled
from equipoise.simulations.benchmarks.mask_designs import CELLS, CellSums, Rows, Vector

AT_ONCE = 100  # rows
SKETCHES = 8  # a tensor
PARAMETER_PERCENTILE = 50.0


def tensor_rows(model: nn.Module, inputs: Tensor) -> Rows:
    """By tensor."""
    energies = BlockEnergies(model, [name for name, _ in model.named_parameters()])
    logits, found = zip(*(energies.rows(x) for x in torch.split(inputs, AT_ONCE)), strict=True)
    return Rows(np.concatenate(logits), np.concatenate(found))


def _gradients(model: nn.Module, inputs: Tensor) -> Iterator[tuple[slice, Tensor, dict[str, Tensor]]]:
    """Rows, their logits and all row gradients by name, in the model's order."""
    names = [name for name, _ in model.named_parameters()]
    gradients = RowGradients(model, names)
    for begin in range(0, len(inputs), AT_ONCE):
        part = slice(begin, begin + AT_ONCE)
        logits, found = gradients(inputs[part])
        by_name = {name: value.detach() for name, value in found}
        yield part, logits.detach(), {name: by_name[name] for name in names}


def channel_rows(model: nn.Module, inputs: Tensor) -> Rows:
    """By output channel (the entries of a vector; a head's weight is one unit)."""
    logits, energies = [], []
    for _, z, found in _gradients(model, inputs):
        logits.append(z.double().numpy())
        units = [torch.stack([pooled(row.square(), "channel") for row in value]) for value in found.values()]
        energies.append(torch.cat(units, dim=1).double().numpy())
    return Rows(np.concatenate(logits), np.concatenate(energies))


def cohort_sketches(model: nn.Module, inputs: Tensor, rng: np.random.Generator) -> Vector:
    """(n, T, 8): each tensor's row gradient times public random signs."""
    signs = {
        name: torch.from_numpy(rng.choice(np.array([-1.0, 1.0]), (value.numel(), SKETCHES)).astype(np.float32))
        for name, value in model.named_parameters()
    }
    parts = [
        torch.stack([value.flatten(1) @ signs[name] for name, value in found.items()], dim=1)
        for _, _, found in _gradients(model, inputs)
    ]
    sketches: Vector = torch.cat(parts).double().numpy()
    return sketches


def by_parameter(model: nn.Module, pool: Tensor, inputs: Tensor, cell: Tensor) -> tuple[CellSums, Vector]:
    """Sums by cell of energies in the root of the pool's mean, and the pool's mean bias energies, by parameter."""

    def energies(images: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for part, z, found in _gradients(model, images):
            p = torch.sigmoid(z)
            flat = torch.cat([value.flatten(1) for value in found.values()], dim=1)
            yield part, (flat * (p * (1 - p))[:, None]).square()

    total = torch.zeros(sum(parameter.numel() for parameter in model.parameters()), dtype=torch.float64)
    for _, rows in energies(pool):
        total += rows.double().sum(dim=0)
    public = (total / len(pool)).clamp_min(float(total[total > 0].min()) / len(pool))
    unit = public.sqrt().float()
    norms = torch.cat([(rows / unit).norm(dim=1) for _, rows in energies(pool)])
    clip = float(np.percentile(norms.numpy(), PARAMETER_PERCENTILE))
    sums = torch.zeros(CELLS, len(total), dtype=torch.float64)
    for part, rows in energies(inputs):
        scaled = rows / unit / clip
        sums.index_add_(0, cell[part], (scaled / scaled.norm(dim=1, keepdim=True).clamp_min(1.0)).double())
    return CellSums(sums.numpy(), unit.double().numpy() * clip), public.numpy()
