"""The trainable space of private full-gradient rounds: a few directions in which a model's weights may move.

Noise grows with the number of coordinates that are released, so private rounds do not move every weight. In the space
`head` the last layer moves. In the space `whole` every gain and bias of a normalisation moves, the last layer, and each
3x3 or 5x5 convolution W (or hidden linear layer) by a low-rank term: public random filters A that stay as they are,
mixed by a trained 1x1 convolution B, so that W x becomes W x + B (A x) and Delta W[o] = sum_r B[o, r] A[r]
(Zhang et al. 2023, arXiv:2308.03303, LoRA-FA, on filters). The change of the weights is linear in the coordinates
theta, so a sum of coordinates over patients is a step of the model.

>>> space = Space.of(model, "whole", head="head.", seed=study.seed)
>>> logits, gradients = space.logit_gradients(model, images)   # (m,), (m, space.size)
>>> model_change = space.weight_changes(theta)                 # parameter -> array
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equipoise.common.errors import ModelError
from equipoise.common.layer_gradients import is_last_axis_norm, row_gradients, summed_gradients, traced
from equipoise.common.streams import numpy_stream

Kind = Literal["head", "whole"]
Vector = NDArray[np.float64]

RANK = 4
MIXED_KERNELS = ((3, 3), (5, 5))  # a 1x1 convolution is a mix already, and a 7x7 stem sees edges and colours
LEAST_MASK = 0.01  # below it a direction costs noise and moves nothing


@dataclass(frozen=True)
class Part:
    """How theta moves one parameter.

    Attributes:
        name: the parameter, as in `named_parameters()`.
        shape: its shape.
        filters: the public filters A, (rank, *shape[1:]) float64; None where theta holds the entries themselves.
        scale: factor of every coordinate, in [0, 1]; those with 0 are left out of theta.
    """

    name: str
    shape: tuple[int, ...]
    filters: Vector | None
    scale: Vector

    @cached_property
    def kept(self) -> NDArray[np.int64]:
        """Which of the part's coordinates are in theta."""
        return np.flatnonzero(self.scale)

    def change(self, theta: Vector) -> Vector:
        """The parameter's change, from the part's coordinates."""
        full = np.zeros(len(self.scale))
        full[self.kept] = self.scale[self.kept] * theta
        if self.filters is None:
            return full.reshape(self.shape)
        mix = full.reshape(self.shape[0], len(self.filters))
        return (mix @ self.filters.reshape(len(self.filters), -1)).reshape(self.shape)

    def pull_back(self, gradient: Vector) -> Vector:
        """The gradient by the part's coordinates, from that by the parameter: the transpose of `change`."""
        full = gradient.reshape(-1)
        if self.filters is not None:
            full = (gradient.reshape(len(gradient), -1) @ self.filters.reshape(len(self.filters), -1).T).reshape(-1)
        return full[self.kept] * self.scale[self.kept]


@dataclass(frozen=True)
class Space:
    """A linear map from coordinates theta to changes of a model's weights.

    Attributes:
        parts: one per parameter that can move, in the model's order.
    """

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, model: nn.Module, kind: Kind, *, head: str = "head.", seed: int = 0, rank: int = RANK) -> Space:
        """The space of a model at its present weights, the base of the rounds.

        Args:
            model: any backbone for `head`; for `whole` its layers with parameters are Linear, Conv2d, GroupNorm and
                LayerNorm over the last axis.
            kind: `head` or `whole`.
            head: prefix of the names of the last layer, an `nn.Linear`.
            seed: the study's public seed; the filters come from its stream `private_rounds`, one for each layer.
            rank: filters a layer, at most as many as a filter has entries.

        Raises:
            ModelError: a layer that the space does not know, a parameter of two layers, or no head.
        """
        if rank < 1:
            raise ModelError(f"space: rank={rank}: at least 1 filter a layer is needed")
        named = list(model.named_parameters(remove_duplicate=False))
        if len(named) > len({id(parameter) for _, parameter in named}):
            raise ModelError("space: two layers of the model share a parameter, so its gradients cannot be told apart")
        parts: list[Part] = []
        for path, layer in model.named_modules():
            prefix = f"{path}." if path else ""
            own = dict(layer.named_parameters(recurse=False))
            in_head = prefix.startswith(head)
            if not own or (kind == "head" and not in_head):
                continue
            mixed = _is_mixed(prefix, layer, in_head)
            if mixed is None:
                continue
            for name, parameter in own.items():
                filters = None
                if mixed and name == "weight":
                    filters = _filters(parameter, numpy_stream(seed, "private_rounds", "filters", prefix + name), rank)
                count = parameter.numel() if filters is None else len(parameter) * len(filters)
                parts.append(Part(prefix + name, tuple(parameter.shape), filters, np.ones(count)))
        if not any(part.name.startswith(head) for part in parts):
            raise ModelError(f"space: no layer's name begins with model.head={head!r}; give the prefix of the last one")
        return cls(tuple(parts))

    def masked(self, mask: Mapping[str, NDArray[np.floating]], least: float = LEAST_MASK) -> Space:
        """The space with every direction multiplied by its mask value, without those that are (nearly) 0.

        Whitening comes after: a tensor with a small mask then contributes little to every direction that is released,
        and one with mask 0 neither travels nor takes noise. A convolution's directions belong to output filters, so
        a mask that differs within a filter acts by its mean there.

        Args:
            mask: parameter -> factors in [0, 1] of the parameter's shape (`SoftMask.values`), or one for all of it.
            least: smaller values count as 0.

        Raises:
            ModelError: the mask lacks a parameter of the space or has another shape, or nothing is left to move.
        """
        parts = []
        for part in self.parts:
            value = mask.get(part.name)
            if value is not None and value.ndim == 0:
                value = np.full(part.shape, value)
            if value is None or value.shape != part.shape:
                found = "none" if value is None else f"shape {value.shape}"
                raise ModelError(f"mask: {part.name!r} needs factors of shape {part.shape}, found {found}")
            factor = value.reshape(-1)
            if part.filters is not None:
                factor = np.repeat(value.reshape(len(value), -1).mean(axis=1), len(part.filters))
            shaped = replace(part, scale=part.scale * np.where(factor < least, 0.0, factor))
            if len(shaped.kept):
                parts.append(shaped)
        if not parts:
            raise ModelError(f"mask: every value is below {least}, so that nothing may move; check the sensitivities")
        return Space(tuple(parts))

    def with_filters(self, filters: Mapping[str, NDArray[np.floating]]) -> Space:
        """The space in which some tensors are mixed by filters of one's own instead of random ones.

        Args:
            filters: tensor -> (rank, *shape[1:]), public.

        Raises:
            ModelError: the space does not move such a tensor by filters, or they have another shape.
        """
        known = {part.name: part for part in self.parts if part.filters is not None}
        for name, own in filters.items():
            if name not in known or own.shape[1:] != known[name].shape[1:]:
                raise ModelError(
                    f"space: {name!r} takes no filters of shape {own.shape}; the space `whole` mixes hidden Linear "
                    "layers and 3x3 or 5x5 convolutions"
                )
        parts = []
        for part in self.parts:
            mine = filters.get(part.name)
            if mine is None:
                parts.append(part)
            else:
                scale = np.ones(part.shape[0] * len(mine))
                parts.append(replace(part, filters=mine.astype(np.float64), scale=scale))
        return Space(tuple(parts))

    def made_up(self, generator: torch.Generator) -> Space:
        """A space of the same shapes whose filters are random and whose directions weigh the same.

        Which instructions a computation meets hangs on shapes alone, and may be found out here, where no number is
        chosen by whoever chose this space's.
        """
        parts = []
        for part in self.parts:
            filters = part.filters
            if filters is not None:
                filters = torch.randn(filters.shape, dtype=torch.float64, generator=generator).numpy()
            parts.append(replace(part, filters=filters, scale=np.where(part.scale == 0, 0.0, 1.0)))
        return Space(tuple(parts))

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...], int], ...]:
        """Of each part its name, the filters' shape, and how many of its directions are kept."""
        return tuple(
            (part.name, () if part.filters is None else part.filters.shape, len(part.kept)) for part in self.parts
        )

    @cached_property
    def blocks(self) -> dict[str, slice]:
        """Which coordinates of theta move which parameter."""
        bounds = np.cumsum([0, *(len(part.kept) for part in self.parts)])
        return {part.name: slice(int(bounds[i]), int(bounds[i + 1])) for i, part in enumerate(self.parts)}

    @property
    def size(self) -> int:
        """D, the number of coordinates."""
        return sum(len(part.kept) for part in self.parts)

    def seen_masked(self, gradients: Vector, masked: Space) -> Vector:
        """Gradients (n, D') by the coordinates of `self.masked(...)`, from gradients (n, D) by those of this space."""
        columns = [gradients[:, self.blocks[part.name]][:, part.kept] * part.scale[part.kept] for part in masked.parts]
        return np.concatenate(columns, axis=1)

    def weight_changes(self, theta: Vector) -> dict[str, Vector]:
        """Parameter -> change, float64 of the parameter's shape, from theta (D,)."""
        return {part.name: part.change(theta[self.blocks[part.name]]) for part in self.parts}

    def pull_back(self, gradients: Mapping[str, Vector]) -> Vector:
        """The gradient by theta (D,) from gradients by the parameters: the transpose of `weight_changes`."""
        return np.concatenate([part.pull_back(gradients[part.name]) for part in self.parts])

    def logit_gradients(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Every row's logit and its gradient by theta at the model's present weights.

        Args:
            model: the one the space was made of, whatever its weights now; gives one logit a row, mixes no rows.
            x: (m, ...) normalised inputs on the model's device.

        Returns:
            (m,) logits and (m, D) gradients, both of the model's type. Rows, not patients: the caller averages.
        """
        if len(x) == 0:
            return x.new_zeros(0), x.new_zeros(0, self.size)
        logits, calls = traced(model, [name.rpartition(".")[0] for name in self.blocks], x)
        outputs, ones = [y for *_, y in calls], torch.ones_like(logits)
        by_output = torch.autograd.grad(logits, outputs, ones, allow_unused=True, materialize_grads=True)
        gradients = logits.new_zeros(len(x), self.size, requires_grad=False)
        parts = defaultdict(list)
        for part in self.parts:
            parts[part.name.rpartition(".")[0]].append(part)
        with torch.no_grad():
            for (path, layer, seen, _), by_y in zip(calls, by_output, strict=True):
                for part in parts[path]:
                    rows = row_gradients(layer, part.name.endswith("weight"), part.filters, seen, by_y)
                    if len(part.kept) < len(part.scale) or part.scale.min() < 1:
                        rows = rows[:, part.kept] * torch.as_tensor(part.scale[part.kept]).to(rows)
                    gradients[:, self.blocks[part.name]] += rows
        return logits.detach(), gradients

    def check(self, model: nn.Module, x: Tensor) -> None:
        """Compare with autograd on a few public rows: the sum over rows must be the gradient of the summed logits.

        A parameter that the model uses outside its layer, or an operation that works in place, shows here.

        Raises:
            ModelError: the two differ.
        """
        _, rows = self.logit_gradients(model, x)
        whole = summed_gradients(model, [part.name for part in self.parts], x)
        direct = {name: _float64(gradient) for name, gradient in whole.items()}
        found, expected = _float64(rows).sum(axis=0), self.pull_back(direct)
        tolerance = 1e3 * torch.finfo(rows.dtype).eps
        for name, block in self.blocks.items():
            size = float(np.linalg.norm(_float64(rows)[:, block]) + np.linalg.norm(expected[block]))
            if not float(np.linalg.norm(found[block] - expected[block])) <= tolerance * size:
                raise ModelError(
                    f"model parameter {name!r}: the gradients of single rows do not add up to autograd's; the model "
                    "uses it outside its layer or changes values in place; use the space `head`"
                )


def _is_mixed(prefix: str, layer: nn.Module, in_head: bool) -> bool | None:
    """Whether a layer's weight moves by a mix of filters (else by its entries); None where the layer stays as it is."""
    if in_head:
        if type(layer) is not nn.Linear:
            raise ModelError(f"model layer {prefix!r} is a {type(layer).__name__}: a head must be an nn.Linear")
        return False
    if type(layer) is nn.GroupNorm or is_last_axis_norm(layer):
        return False
    if type(layer) is nn.Linear:
        return True
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros":
        return True if layer.kernel_size in MIXED_KERNELS else None
    raise ModelError(
        f"model layer {prefix[:-1]!r} is a {type(layer).__name__}: the space `whole` knows Linear, Conv2d padded with "
        "zeros, GroupNorm and LayerNorm over the last axis; use the space `head`"
    )


def _filters(weight: Tensor, stream: np.random.Generator, rank: int) -> Vector:
    """Random filters of the weight's mean filter norm: (rank, *shape[1:])."""
    norm = float(weight.detach().double().flatten(1).norm(dim=1).mean())
    entries = weight[0].numel()
    filters = stream.standard_normal((min(rank, entries), entries))
    filters *= norm / np.linalg.norm(filters, axis=1, keepdims=True)
    return filters.reshape(-1, *weight.shape[1:])


def _float64(tensor: Tensor) -> Vector:
    values: Vector = tensor.detach().double().cpu().numpy()
    return values
