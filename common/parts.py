"""The named parts of a model that fine-tuning can switch on and off, and the bits that switch them.

A model is a row of *blocks*, and a block has parts by what they do: `norm`, `attention`, `mlp` in a transformer, and
`norm`, `conv`, `linear` elsewhere. A bit switches the tensors of one part, or of the same part in several neighbouring
blocks (a *stage*), which makes the search space small. The head is no part: it is always trained.

>>> [bit.name for bit in bits_of(parts_of(vit_small(), "head."), "parts")][:4]
['blocks.0.norm', 'blocks.0.attention', 'blocks.0.mlp', 'blocks.1.norm']

Which modules are blocks is found from the model: the first modules, from the outside in, that have a sibling of the
same class and layers inside them (the blocks of a transformer, the residual blocks of a ResNet). In a model without
any, such as a small fully connected network, each layer is a block. `blocks` names them otherwise.

References: FairTune's search space, public code at 76539bc (docs/methods.md); the tying over stages is ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
from torch import nn

from equipoise.common.errors import StudyError

Kind = Literal["norm", "attention", "mlp", "conv", "linear", "other"]
Tying = Literal["parts", "stages", "blocks", "kinds"]
KINDS: tuple[Kind, ...] = ("norm", "attention", "mlp", "conv", "linear", "other")


@dataclass(frozen=True)
class Part:
    """Tensors of one kind in one block.

    Attributes:
        block: path of the block; "" for what lies outside every block (embeddings, a stem, a final norm).
        kind: what they do.
        tensors: their names, in the model's order.
    """

    block: str
    kind: Kind
    tensors: tuple[str, ...]

    @property
    def name(self) -> str:
        """`block.kind`, or `outside.kind`."""
        return f"{self.block or 'outside'}.{self.kind}"


@dataclass(frozen=True)
class Bit:
    """What one bit of a mask switches.

    Attributes:
        name: for people and for the searcher.
        kinds: kinds of the parts in it.
        tensors: their names.
    """

    name: str
    kinds: frozenset[Kind]
    tensors: tuple[str, ...]


def parts_of(network: nn.Module, head: str, blocks: str | None = None) -> list[Part]:
    """The parts of a network, in its order, without the head; tensors that are not trainable are in none.

    Args:
        network: any.
        head: prefix of the names of the last layer.
        blocks: a regular expression; where it matches at the beginning of a parameter's name, what it matched is the
            parameter's block. None finds the blocks from the model.

    Raises:
        StudyError: no tensor is in a block, or `blocks` is no regular expression.
    """
    paths = None if blocks is not None else _blocks(network, head)
    modules = dict(network.named_modules())
    within: dict[tuple[str, Kind], list[str]] = {}
    attentive = set()
    placed = []
    for name, tensor in network.named_parameters():
        if name.startswith(head) or not tensor.requires_grad:
            continue
        block = _matched(blocks, name) if paths is None else _inside(paths, name)
        placed.append((name, block))
        if block and _attends(modules, block, name):
            attentive.add(block)
    for name, block in placed:
        within.setdefault((block, _kind(modules, block, name, block in attentive)), []).append(name)
    if not any(block for block, _ in within):
        raise StudyError(f"blocks={blocks!r}: no trainable tensor outside the head is in a block; give a pattern")
    order = list(dict.fromkeys(block for block, _ in within))
    found = sorted(within.items(), key=lambda row: (order.index(row[0][0]), KINDS.index(row[0][1])))
    return [Part(block, kind, tuple(tensors)) for (block, kind), tensors in found]


def bits_of(parts: Sequence[Part], tying: Tying, stages: int = 4, outside: bool = False) -> list[Bit]:
    """The bits of a mask.

    Args:
        parts: of a model (`parts_of`).
        tying: `parts`, a bit a part (3 x blocks for a transformer); `stages`, parts of one kind over a stage together;
            `blocks`, a bit a block; `kinds`, a bit a kind over the whole model.
        stages: into how many stages the blocks are cut, at most as many as there are blocks; of `stages`.
        outside: whether what lies outside the blocks has bits of its own too, one a kind; otherwise it rests.
    """
    inner = [part for part in parts if part.block]
    order = list(dict.fromkeys(part.block for part in inner))
    stage = {
        block: number
        for number, chunk in enumerate(np.array_split(np.arange(len(order)), min(stages, len(order))))
        for block in (order[i] for i in chunk)
    }
    tied: dict[str, list[Part]] = {}
    for part in inner:
        names = {
            "parts": part.name,
            "stages": f"stage{stage[part.block]}.{part.kind}",
            "blocks": part.block,
            "kinds": part.kind,
        }
        tied.setdefault(names[tying], []).append(part)
    for part in parts:
        if not part.block and outside:
            tied.setdefault(part.name, []).append(part)
    return [
        Bit(name, frozenset(part.kind for part in mine), tuple(tensor for part in mine for tensor in part.tensors))
        for name, mine in tied.items()
    ]


def fixed_masks(bits: Sequence[Bit]) -> dict[str, tuple[int, ...]]:
    """The masks that every search holds: all bits, norms alone, attention alone, and none (the head alone).

    Those that this model cannot have (a ResNet has no attention) or that equal an earlier one are left out.
    """
    wanted = {
        "all": tuple(1 for _ in bits),
        "norm": tuple(int(bit.kinds == {"norm"}) for bit in bits),
        "attention": tuple(int(bit.kinds == {"attention"}) for bit in bits),
        "head": tuple(0 for _ in bits),
    }
    masks: dict[str, tuple[int, ...]] = {}
    for name, mask in wanted.items():
        if mask not in masks.values() and (any(mask) or name == "head"):
            masks[name] = mask
    return masks


def tensors_of(bits: Sequence[Bit], mask: Sequence[int]) -> tuple[str, ...]:
    """The tensors that a mask switches on, without the head's."""
    return tuple(tensor for bit, on in zip(bits, mask, strict=True) if on for tensor in bit.tensors)


def _blocks(network: nn.Module, head: str) -> list[str]:
    """Paths of the blocks: the outermost modules that have layers inside and a sibling of their class; else layers."""
    level: list[tuple[str, nn.Module]] = [("", network)]
    while level:
        children = [
            [(f"{path}.{name}" if path else name, child) for name, child in module.named_children()]
            for path, module in level
        ]
        found = []
        for siblings in children:
            inner = [row for row in siblings if _has_layers(row[1]) and not f"{row[0]}.".startswith(head)]
            inner.sort(key=lambda row: type(row[1]).__name__)
            for _, alike in groupby(inner, key=lambda row: type(row[1]).__name__):
                same = [path for path, _ in alike]
                found += same if len(same) > 1 else []
        if found:
            return found
        level = [row for siblings in children for row in siblings]
    return [
        path
        for path, module in network.named_modules()
        if path and next(module.parameters(recurse=False), None) is not None and not f"{path}.".startswith(head)
    ]


def _has_layers(module: nn.Module) -> bool:
    """Whether a module has modules with parameters inside it."""
    return any(next(child.parameters(), None) is not None for child in module.children())


def _inside(paths: Sequence[str], name: str) -> str:
    return next((path for path in paths if name.startswith(f"{path}.")), "")


def _matched(pattern: str | None, name: str) -> str:
    try:
        found = re.match(pattern or "", name)
    except re.error as error:
        raise StudyError(f"blocks={pattern!r}: no regular expression ({error})") from None
    return found[0] if found else ""


def _attends(modules: Mapping[str, nn.Module], block: str, name: str) -> bool:
    """Whether a module between the block and the tensor is an attention, by its class or its name."""
    inner = name.removeprefix(block).lstrip(".").split(".")[:-1]
    path = block
    for step in inner:
        path = f"{path}.{step}" if path else step
        if "attention" in type(modules.get(path)).__name__.lower() or step.lower() in ("attn", "attention"):
            return True
    return False


def _kind(modules: Mapping[str, nn.Module], block: str, name: str, attentive: bool) -> Kind:
    owner = modules[name.rpartition(".")[0]]
    layer = type(owner).__name__.lower()
    if "norm" in layer:
        return "norm"
    if attentive:
        return "attention" if _attends(modules, block, name) else "mlp"
    if isinstance(owner, nn.modules.conv._ConvNd):
        return "conv"
    return "linear" if isinstance(owner, nn.Linear) else "other"
