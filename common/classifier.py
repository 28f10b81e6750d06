"""The hospital's classifier as a method sees it: named weights that start at the vendor's and move.

A classifier holds plain float arrays, not a network: the server never needs to run it. What changed since the vendor's
weights travels in three bundles (`base` once, `extractor` and `head` where they differ), so that a site that holds one
already is not sent it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load
from torch import nn

from equipoise.common.layout import Layout
from equipoise.common.query import Arrays


@dataclass(frozen=True)
class Classifier:
    """Weights of a model with a head.

    Attributes:
        file: the vendor's safetensors file; sites check its digest against the study that they approved.
        base: the state dict in it (parameters and buffers), name -> array.
        parameters: names of the trainable parameters, in the model's order.
        head: prefix of the head's names.
        changed: parameters that differ from the base.
    """

    file: bytes
    base: Arrays
    parameters: tuple[str, ...]
    head: str
    changed: Mapping[str, NDArray[np.floating]]

    @classmethod
    def of(cls, file: bytes, network: nn.Module, head: str) -> Classifier:
        """The classifier in a safetensors file that fits `network` (`equipoise.common.models.build` checked it)."""
        trainable = tuple(name for name, parameter in network.named_parameters() if parameter.requires_grad)
        return cls(file, load(file), trainable, head, {})

    def layout(self, part: str = "whole") -> Layout:
        """Layout of the trainable tensors of `whole`, `extractor` or `head`."""
        chosen = {
            "whole": self.parameters,
            "extractor": tuple(name for name in self.parameters if not name.startswith(self.head)),
            "head": tuple(name for name in self.parameters if name.startswith(self.head)),
        }[part]
        return Layout({name: tuple(self.base[name].shape) for name in chosen})

    @cached_property
    def state(self) -> dict[str, NDArray[np.floating]]:
        """The current state dict."""
        return {**self.base, **self.changed}

    def moved(self, layout: Layout, change: NDArray[np.float64]) -> Classifier:
        """The classifier after adding a flat change (layout.size,) float64; weights keep their own precision."""
        current = self.state
        new = {
            name: (current[name].astype(np.float64) + part).astype(current[name].dtype)
            for name, part in layout.split(change).items()
        }
        return replace(self, changed={**self.changed, **new})

    def with_values(self, values: Mapping[str, NDArray[np.floating]]) -> Classifier:
        """The classifier with some parameters replaced."""
        cast = {name: value.astype(self.base[name].dtype) for name, value in values.items()}
        return replace(self, changed={**self.changed, **cast})

    def inputs(self, prefix: str = "model") -> dict[str, Arrays]:
        """Input bundles of a query: `<prefix>.base`, and `.extractor` and `.head` where they changed."""
        parts: dict[str, Arrays] = {f"{prefix}.base": {"file": np.frombuffer(self.file, dtype=np.uint8)}}
        for part in ("extractor", "head"):
            names = [name for name in self.layout(part).shapes if name in self.changed]
            if names:
                parts[f"{prefix}.{part}"] = {name: self.changed[name] for name in names}
        return parts


def state_from_inputs(inputs: Mapping[str, Arrays], prefix: str = "model") -> dict[str, NDArray[np.floating]]:
    """The state dict that a site received in the bundles of `Classifier.inputs`."""
    state = load(inputs[f"{prefix}.base"]["file"].tobytes())
    for part in ("extractor", "head"):
        state.update(inputs.get(f"{prefix}.{part}", {}))
    return state
