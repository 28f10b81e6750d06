"""Named tensors as one flat vector and back, in one fixed order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Layout:
    """Names and shapes of some of a model's tensors, in the model's order."""

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, torch.Tensor]]) -> Layout:
        """The layout of `named_parameters()`."""
        return cls({name: tuple(tensor.shape) for name, tensor in tensors})

    @cached_property
    def size(self) -> int:
        """Number of coordinates."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def only(self, names: Iterable[str]) -> Layout:
        """The layout of some of the tensors, in the order given."""
        return Layout({name: self.shapes[name] for name in names})

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def flatten(self, tensors: Mapping[str, torch.Tensor | NDArray[np.generic]]) -> NDArray[np.float64]:
        """One float64 vector (size,) of the named tensors, in the layout's order."""
        vector = np.empty(self.size)
        for name, part in self.split(vector).items():
            part[...] = _numpy(tensors[name]).reshape(part.shape)  # which refuses another size; a slice would repeat it
        return vector

    def split(self, vector: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """The named parts of a flat vector (size,), each in its shape."""
        parts, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            parts[name] = vector[start:stop].reshape(shape)
            start = stop
        return parts


def _numpy(value: torch.Tensor | NDArray[np.generic]) -> NDArray[np.generic]:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
