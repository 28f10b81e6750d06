"""Gradients of single rows' logits by a layer's parameters, from the layer's input and the gradient at its output.

The gradient of a row's logit by a mix B of filters A is the sum over positions of dY[o] (A x)[r], with dY the gradient
at the layer's output. It needs no gradient of a weight, so one forward pass and one backward pass by the activations
serve all rows of a batch, and no array of the size (rows, weights) exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Call = tuple[str, nn.Module, Tensor, Tensor]  # the layer's name, the layer, its input, its output


def summed_gradients(model: nn.Module, names: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """Autograd's gradients of the summed logits of `x` by the named parameters, frozen ones included."""
    parameters = [model.get_parameter(name) for name in names]
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        with torch.enable_grad():
            total = model(x).sum()
        whole = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
    finally:
        for parameter, needed in zip(parameters, before, strict=True):
            parameter.requires_grad_(needed)
    return dict(zip(names, whole, strict=True))


def is_last_axis_norm(layer: nn.Module) -> bool:
    """Whether a layer is a LayerNorm over the last axis alone, as in a transformer."""
    return type(layer) is nn.LayerNorm and len(layer.normalized_shape) == 1


def layer_normed(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """What the gain of a LayerNorm multiplies."""
    return functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)


def traced(model: nn.Module, paths: list[str], x: Tensor) -> tuple[Tensor, list[Call]]:
    """Logits, and the calls of the layers at `paths`, with a graph that begins at the first of them."""
    calls: list[Call] = []

    def note(path: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            # Nothing before the first layer that moves needs a graph, so it starts here and not at the input.
            torch.set_grad_enabled(True)
            if not output.requires_grad:
                output.requires_grad_()
            calls.append((path, layer, inputs[0].detach(), output))

        return hook

    handles = [model.get_submodule(path).register_forward_hook(note(path)) for path in dict.fromkeys(paths)]
    try:
        with torch.no_grad():  # restores the caller's mode, whatever the hooks set
            logits: Tensor = model(x)
    finally:
        for handle in handles:
            handle.remove()
    return logits, calls


def row_gradients(
    layer: nn.Module, weight: bool, filters: NDArray[np.float64] | None, x: Tensor, by_y: Tensor
) -> Tensor:
    """The rows' gradients (m, coordinates), from the layer's input x and those at its output.

    By the entries of the layer's weight (else of its bias), or by the mix of `filters` that moves the weight.
    """
    if isinstance(layer, nn.GroupNorm):
        if weight:
            by_y = by_y * functional.group_norm(x, layer.num_groups, eps=layer.eps)
        return by_y.flatten(2).sum(dim=2)
    if isinstance(layer, nn.LayerNorm):
        if weight:
            by_y = by_y * layer_normed(layer, x)
        return by_y.reshape(len(by_y), -1, by_y.shape[-1]).sum(dim=1)
    if isinstance(layer, nn.Linear):
        x, by_y = x.reshape(len(x), -1, x.shape[-1]), by_y.reshape(len(by_y), -1, by_y.shape[-1])
        if not weight:
            return by_y.sum(dim=1)
        mixed = x if filters is None else functional.linear(x, torch.as_tensor(filters).to(x))
        return torch.einsum("mlo,mlr->mor", by_y, mixed).flatten(1)
    if isinstance(layer, nn.Conv2d) and filters is not None:
        # The stubs do not know that these are pairs of integers here.
        geometry: Any = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        fixed = torch.as_tensor(filters).to(x).repeat(layer.groups, 1, 1, 1)
        seen = functional.conv2d(x, fixed, None, groups=layer.groups, **geometry)
        by_y = by_y.reshape(len(x), layer.groups, layer.out_channels // layer.groups, -1)
        return torch.matmul(by_y, seen.reshape(len(x), layer.groups, -1, by_y.shape[-1]).mT).flatten(1)
    return by_y.flatten(2).sum(dim=2)
