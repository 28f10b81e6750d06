"""A fault of torch's group normalisation, and the way round it.

Where the weight of a GroupNorm is trained and what comes into it depends on nothing that is, as behind a frozen
convolution, torch 2.13 writes a gradient of the input that nobody asked for, if the images lie in channels-last order:
the process ends by a segmentation fault. A mask that trains norms alone is such a case. Copied into the usual order the
input takes another path, which is right.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def guard(model: nn.Module) -> None:
    """Keep all group norms of a network off the faulty path; nothing changes where their input has a gradient."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(_usual_order)


def _usual_order(norm: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    x, weight = inputs[0], norm.weight
    trained = torch.is_grad_enabled() and isinstance(weight, Tensor) and weight.requires_grad
    return (x.contiguous(),) if trained and not x.requires_grad else None
