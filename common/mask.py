"""The soft mask: how far each part of the model may move.

A part that serves the bias much and the task little moves freely (mask near 1); a part that the task needs is held
(mask near 0). Mask = tanh of the ratio of the two sensitivities, each brought to one scale (docs/methods.md, SWiFT 1.4,
steps 4 to 6, with the cures of section 6). The mask acts on the update of a parameter, so weight decay and adaptive
preconditioners cannot go around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.common.layout import Layout

Granularity = Literal["parameter", "channel", "tensor"]
Scaling = Literal["mean", "minmax"]
Vector = NDArray[np.float64]

PUBLISHED_EPSILON = 1e-10  # docs/methods.md, SWiFT 1.4, steps 4 and 5


def units(layout: Layout, granularity: Granularity) -> dict[str, int]:
    """Number of sensitivities per tensor: one per entry, per output channel (first axis), or one."""
    count = {}
    for name, shape in layout.shapes.items():
        if granularity == "parameter":
            count[name] = int(np.prod(shape))
        elif granularity == "channel":
            count[name] = shape[0] if shape else 1
        else:
            count[name] = 1
    return count


def scale(energies: Mapping[str, Vector], scaling: Scaling) -> dict[str, Vector]:
    """Sensitivities on one scale: share of the mean over a tensor, or between a tensor's least and largest.

    Where a tensor has a single unit, both are undefined within it; the units of the whole model are then scaled
    together. A constant tensor is left as it is under `minmax` (as published).
    """
    if all(len(energy) == 1 for energy in energies.values()):
        together = np.concatenate(list(energies.values()))
        average = max(float(together.mean()), 1e-300)
        return {name: energy / average for name, energy in energies.items()}
    scaled = {}
    for name, energy in energies.items():
        if scaling == "mean":
            scaled[name] = energy / max(float(energy.mean()), 1e-300)
        else:
            low, high = float(energy.min()), float(energy.max())
            scaled[name] = energy if high == low else (energy - low) / (high - low + PUBLISHED_EPSILON)
    return scaled


@dataclass(frozen=True)
class SoftMask:
    """A factor in [0, 1] for every parameter.

    Attributes:
        values: parameter name -> float64 array of the parameter's shape.
    """

    values: Mapping[str, NDArray[np.float64]]

    @classmethod
    def from_sensitivities(
        cls, layout: Layout, bias: Vector, task: Vector, granularity: Granularity, scaling: Scaling, floor: float
    ) -> SoftMask:
        """tanh(scaled bias sensitivity / (scaled task sensitivity + floor)), broadcast to the parameters.

        Args:
            layout: the parameters.
            bias, task: flat vectors of sensitivities, non-negative, in the order of `units`.
            floor: added to the denominator, in units of the scaled task sensitivity.
        """
        counts = units(layout, granularity)
        bounds = np.cumsum([0, *counts.values()])
        pieces = [slice(int(a), int(b)) for a, b in pairwise(bounds)]
        scaled_bias = scale({name: bias[piece] for name, piece in zip(counts, pieces, strict=True)}, scaling)
        scaled_task = scale({name: task[piece] for name, piece in zip(counts, pieces, strict=True)}, scaling)
        values = {}
        for name, shape in layout.shapes.items():
            ratio = scaled_bias[name] / (scaled_task[name] + floor)
            values[name] = spread(np.tanh(ratio), shape, granularity)
        return cls(values)

    @classmethod
    def ones(cls, layout: Layout) -> SoftMask:
        """Every parameter moves freely (control `no_mask`)."""
        return cls({name: np.ones(shape) for name, shape in layout.shapes.items()})

    def constant(self) -> SoftMask:
        """The mask's mean everywhere (control `constant`): all that is left is a smaller step."""
        mean = self.mean
        return SoftMask({name: np.full(value.shape, mean) for name, value in self.values.items()})

    def permuted(self, generator: np.random.Generator) -> SoftMask:
        """The same values in random places over the whole model (control `permuted`)."""
        flat = np.concatenate([value.ravel() for value in self.values.values()])
        flat = flat[generator.permutation(len(flat))]
        layout = Layout({name: value.shape for name, value in self.values.items()})
        return SoftMask(layout.split(flat))

    def permuted_tensors(self, generator: np.random.Generator) -> SoftMask:
        """The tensors' mean values in random places: the control of a mask that has one value a tensor."""
        means = [float(value.mean()) for value in self.values.values()]
        order = generator.permutation(len(means))
        return SoftMask(
            {name: np.full(value.shape, means[i]) for (name, value), i in zip(self.values.items(), order, strict=True)}
        )

    def above_mean(self, name: str) -> NDArray[np.bool_]:
        """Entries of a tensor above its mean. Equal entries never are, though their mean may round below them."""
        value = self.values[name]
        above: NDArray[np.bool_] = value > value.mean() * (1 + 1e-12)
        return above

    @property
    def mean(self) -> float:
        """Mean over all parameters."""
        total = sum(value.size for value in self.values.values())
        return float(sum(value.sum() for value in self.values.values()) / total)

    def summary(self) -> list[dict[str, float | int | str]]:
        """One row per tensor for the report: size, mean and the share of entries that hardly move."""
        return [
            {
                "tensor": name,
                "parameters": int(value.size),
                "mean": float(value.mean()),
                "held": float((value < 0.1).mean()),
            }
            for name, value in self.values.items()
        ]


def spread(values: Vector, shape: tuple[int, ...], granularity: Granularity) -> NDArray[np.float64]:
    """A tensor's values by unit, (units,), at all the entries that they stand for."""
    if granularity == "parameter":
        return values.reshape(shape)
    column = values.reshape((-1,) + (1,) * (len(shape) - 1)) if granularity == "channel" and shape else values
    return np.broadcast_to(column if shape else column.reshape(()), shape).copy()
