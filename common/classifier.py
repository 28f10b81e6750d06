"""The hospital's classifier as a method sees it: named weights that start at the vendor's and move.

A classifier holds plain float arrays, not a network: the server never needs to run it. What changed since the vendor's
weights travels in three bundles (`base` once, `extractor` and `head` where they differ), so that a site that holds one
already is not sent it again. A weight that was factorised (`equipoise.common.factors`) travels as its factors, of which
the right one stays as it is: it is sent once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load
from torch import nn

from equipoise.common.alignment import Alignment
from equipoise.common.factors import Factored
from equipoise.common.layout import Layout
from equipoise.common.query import Arrays

WEIGHTS = (".base", ".extractor", ".head", ".left", ".right")
"""How the roles of the bundles end that hold weights; what else a model travels with moves no score."""


@dataclass(frozen=True)
class Classifier:
    """Weights of a model with a head.

    Attributes:
        file: the vendor's safetensors file; sites check its digest against the study that they approved.
        base: the state dict in it (parameters and buffers), name -> array.
        parameters: names of the trainable parameters, in the model's order.
        head: prefix of the head's names.
        changed: parameters that differ from the base.
        factors: parameters that are products; none of them is in `changed`.
        alignment: each group's scores on one scale, where the operating point differs by group. It acts where scores
            are compared with thresholds, and never in training.
    """

    file: bytes
    base: Arrays
    parameters: tuple[str, ...]
    head: str
    changed: Mapping[str, NDArray[np.floating]]
    factors: Mapping[str, Factored] = field(default_factory=dict)
    alignment: Alignment | None = None

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
        return {**self.base, **self.changed, **_products(self.factors, self.base)}

    def moved(self, layout: Layout, change: NDArray[np.float64]) -> Classifier:
        """The classifier after adding a flat change (layout.size,) float64; weights keep their own precision.

        A factorised weight stands in `layout` with the shape of its left factor (`layout_of`), which the change is of.
        """
        current = self.state
        parts = layout.split(change)
        new = {
            name: (current[name].astype(np.float64) + part).astype(current[name].dtype)
            for name, part in parts.items()
            if name not in self.factors
        }
        lefts = {name: self.factors[name].left + part for name, part in parts.items() if name in self.factors}
        return replace(self, changed={**self.changed, **new})._with_left(lefts)

    def with_values(self, values: Mapping[str, NDArray[np.floating]]) -> Classifier:
        """The classifier with some parameters replaced; a factorised one by the nearest of its right factor."""
        cast = {name: value.astype(self.base[name].dtype) for name, value in values.items() if name not in self.factors}
        lefts = {name: self.factors[name].nearest(values[name]) for name in values if name in self.factors}
        return replace(self, changed={**self.changed, **cast})._with_left(lefts)

    def factorised(self, factors: Mapping[str, Factored]) -> Classifier:
        """The classifier in which some parameters are products from now on."""
        changed = {name: value for name, value in self.changed.items() if name not in factors}
        rights = {name: pair.right.astype(self.base[name].dtype) for name, pair in factors.items()}
        products = {name: Factored(pair.left, rights[name]) for name, pair in factors.items()}
        start = replace(self, changed=changed, factors={**self.factors, **products})
        return start._with_left({name: pair.left for name, pair in factors.items()})

    def aligned(self, alignment: Alignment | None) -> Classifier:
        """The same model with an operating point for each group."""
        return replace(self, alignment=alignment)

    def layout_of(self, names: Iterable[str]) -> Layout:
        """Layout of some parameters as they travel: a factorised one by its left factor."""
        return Layout(
            {
                name: tuple(self.factors[name].left.shape if name in self.factors else self.base[name].shape)
                for name in names
            }
        )

    def _with_left(self, lefts: Mapping[str, NDArray[np.floating]]) -> Classifier:
        moved = {
            name: Factored(left.astype(self.base[name].dtype), self.factors[name].right) for name, left in lefts.items()
        }
        return replace(self, factors={**self.factors, **moved})

    def inputs(self, prefix: str = "model") -> dict[str, Arrays]:
        """Input bundles: `<prefix>.base`, `.extractor` and `.head` where they changed, factors and alignment."""
        parts: dict[str, Arrays] = {f"{prefix}.base": {"file": np.frombuffer(self.file, dtype=np.uint8)}}
        for part in ("extractor", "head"):
            names = [name for name in self.layout(part).shapes if name in self.changed]
            if names:
                parts[f"{prefix}.{part}"] = {name: self.changed[name] for name in names}
        if self.factors:
            parts[f"{prefix}.left"] = {name: pair.left for name, pair in self.factors.items()}
            parts[f"{prefix}.right"] = {name: pair.right for name, pair in self.factors.items()}
        if self.alignment is not None:
            parts[f"{prefix}.alignment"] = self.alignment.arrays()
        return parts


def state_from_inputs(inputs: Mapping[str, Arrays], prefix: str = "model") -> dict[str, NDArray[np.floating]]:
    """The state dict that a site received in the bundles of `Classifier.inputs`."""
    state = load(inputs[f"{prefix}.base"]["file"].tobytes())
    for part in ("extractor", "head"):
        state.update(inputs.get(f"{prefix}.{part}", {}))
    right = inputs.get(f"{prefix}.right", {})
    pairs = {name: Factored(left, right[name]) for name, left in inputs.get(f"{prefix}.left", {}).items()}
    state.update(_products(pairs, state))
    return state


def alignment_from_inputs(inputs: Mapping[str, Arrays], prefix: str = "model") -> Alignment | None:
    """The alignment that a site received, checked; None where scores are compared as they are.

    Raises:
        ValueError: the knots do not increase.
    """
    received = inputs.get(f"{prefix}.alignment")
    return None if received is None else Alignment.checked(received["common"], received["of_group"])


def _products(
    factors: Mapping[str, Factored], like: Mapping[str, NDArray[np.floating]]
) -> dict[str, NDArray[np.floating]]:
    """The factorised weights, each in the shape and type of `like`."""
    return {name: pair.dense(like[name].shape).astype(like[name].dtype) for name, pair in factors.items()}
