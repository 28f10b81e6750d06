"""What the head sees of every row while the extractor stands still.

Where only the head is trained, one pass through the extractor serves all steps, epochs and rounds: the head's inputs
stay the same, and they are small. Each row's is a function of that row and of the public weights alone, to the last bit
(`equipoise.client.alike`), so what bounds a patient's part in a release bounds it here too.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equipoise.client.alike import PLACES, alike_places, made_up, network_key
from equipoise.client.workbench import View
from equipoise.common.canonical import digest_arrays

LARGE = 1e3  # times a made-up head's weights: scores far out

_shapes: dict[Hashable, tuple[int, ...] | None] = {}


class HeadAlone(nn.Module):
    """A network's head under the name that it has there, so that what names its parameters need not know.

    Args:
        path: of the head in its network.
        head: gives one number a row.
    """

    def __init__(self, path: str, head: nn.Module) -> None:
        super().__init__()
        self._path = path
        holder: nn.Module = self
        *outer, last = path.split(".")
        for name in outer:
            holder.add_module(name, nn.Module())
            holder = holder.get_submodule(name)
        holder.add_module(last, head)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (m,) from the head's inputs (m, ...)."""
        logits: Tensor = self.get_submodule(self._path)(x)
        return logits.reshape(-1)


class HeadInputs:
    """The last head's inputs of a site, since the rounds of a run ask for the same ones each time."""

    def __init__(self) -> None:
        self._key: tuple[str, ...] | None = None
        self._values = torch.zeros(0)

    def view(self, whole: View, state: Mapping[str, NDArray[np.generic]], split_name: str) -> View:
        """The network from its head on; `whole` as it is where the network is more than an extractor and its head.

        Args:
            whole: the network with the weights `state`.
            split_name: the split of `whole`.
        """
        path = whole.study.model.head.removesuffix(".")
        head = dict(whole.model.named_modules(remove_duplicate=False)).get(path)
        shape = None if not path or head is None else _shape(whole, path, head)
        if head is None or shape is None:
            return whole
        extractor = {name: value for name, value in state.items() if not name.startswith(f"{path}.")}
        key = (whole.study.hash, digest_arrays(extractor), split_name)
        if key != self._key:
            self._key, self._values = key, _inputs(whole, head, shape)
        return View(whole.study, HeadAlone(path, head), replace(whole.split, inputs=self._values), head=True)


def _shape(whole: View, path: str, head: nn.Module) -> tuple[int, ...] | None:
    """Shape of one input of the head where its output is the network's; else None.

    Tried once for a network, on made-up rows and weights, and not at the weights of the day: a head of zeros, or a
    small one, would hide what comes after it, and a large one shows a bound on the scores. Among the rows is what
    batches are filled up with.
    """
    key = (network_key(whole), tuple(whole.split.inputs.shape[1:]))
    if key not in _shapes:
        generator = torch.Generator().manual_seed(0)
        filler = whole.rows_at(slice(0), torch.arange(0), PLACES)
        x = torch.randn(filler.shape, dtype=torch.float64, generator=generator).to(filler)
        x[0] = filler[0]
        with torch.no_grad(), made_up(whole.model, generator):
            agree = _agrees(whole.model, path, head, x)
            for parameter in head.parameters():
                parameter.mul_(LARGE)
            agree = agree and _agrees(whole.model, path, head, x)
            met = _met(whole.model, head, filler)
        _shapes[key] = tuple(met[0].shape[1:]) if agree and met is not None else None
    return _shapes[key]


def _agrees(model: nn.Module, path: str, head: nn.Module, x: Tensor) -> bool:
    found = _met(model, head, x)
    return found is not None and torch.equal(HeadAlone(path, head)(found[0]), found[1].reshape(-1))


def _inputs(whole: View, head: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The head's input of each row, (m, ...), on the processor; NaN for a row that does not get as far as the head."""

    def seen(x: Tensor) -> list[Tensor]:
        found = _met(whole.model, head, x)
        return [] if found is None else [found[0]]

    values = torch.full((len(whole.split.patient), *shape), torch.nan, dtype=whole.precision)
    with torch.no_grad():
        # `alike_places` looks at the layers' outputs, and at the head's input as what is computed.
        places = alike_places(whole, "head inputs", seen)
        for rows in torch.split(torch.arange(len(values)), len(places)) if len(values) else ():
            batch = seen(whole.rows_at(rows, places[: len(rows)], PLACES))
            for met in batch:
                values[rows] = met[places[: len(rows)]].cpu()
            # Else each alone, so that nobody's numbers, nor whether there is an answer, hang on another.
            for row in [] if batch else rows.tolist():
                for met in seen(whole.rows_at(slice(row, row + 1), places[:1], PLACES)):
                    values[row] = met[places[0]].cpu()
    return values


def _met(model: nn.Module, head: nn.Module, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """The head's input of each row, and the logits; None where the head is not called once, on one tensor of rows."""
    calls: list[tuple[Any, ...]] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    try:
        logits: Tensor = model(x)
    finally:
        handle.remove()
    if len(calls) != 1 or len(calls[0]) != 1 or not isinstance(calls[0][0], Tensor) or len(calls[0][0]) != len(x):
        return None
    return calls[0][0].detach(), logits
