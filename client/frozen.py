"""What the head sees of every row while the extractor stands still.

Where only the head is trained, one pass through the extractor serves all steps, epochs and rounds: the head's inputs
stay the same, and they are small. Each row's is a function of that row and of the public weights alone, to the last bit
(`equipoise.client.alike`), so what bounds a patient's part in a release bounds it here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equipoise.client.alike import PLACES, alike_places
from equipoise.client.workbench import View, precision
from equipoise.common.canonical import digest_arrays
from equipoise.common.errors import ModelError


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
        self._values: Tensor | None = None

    def view(self, whole: View, state: Mapping[str, NDArray[np.generic]], split_name: str) -> View:
        """The network from its head on; `whole` as it is where the network is more than an extractor and its head.

        Which of the two hangs on the network and its weights, and is tried on made-up rows.

        Args:
            whole: the network with the weights `state`.
            split_name: the split of `whole`.
        """
        path = whole.study.model.head.removesuffix(".")
        head = dict(whole.model.named_modules(remove_duplicate=False)).get(path)
        if not path or head is None:
            return whole
        extractor = {name: value for name, value in state.items() if not name.startswith(f"{path}.")}
        key = (whole.study.hash, digest_arrays(extractor), split_name)
        if key != self._key:
            self._key, self._values = key, _inputs(whole, path, head)
        if self._values is None:
            return whole
        seen = replace(whole.split, inputs=self._values)
        return View(whole.study, HeadAlone(path, head), seen, head=True)


def _inputs(whole: View, path: str, head: nn.Module) -> Tensor | None:
    """The head's input of each row, (m, ...), on the processor; None where the head's output is not the logit."""
    size = len(whole.split.patient)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        made_up = torch.randn(PLACES, *whole.split.inputs.shape[1:], dtype=torch.float64, generator=generator)
        found = _met(whole.model, head, made_up.to(whole.study.model.device, precision(whole.model)))
        if found is None or not torch.equal(HeadAlone(path, head)(found[0]), found[1].reshape(-1)):
            return None
        # `alike_places` looks at the layers' outputs, and at the head's input as what is computed.
        places = alike_places(whole, "head inputs", lambda x: _met(whole.model, head, x) or ())
        values = torch.zeros(size, *found[0].shape[1:], dtype=found[0].dtype)
        for rows in torch.split(torch.arange(size), len(places)) if size else ():
            at = places[: len(rows)]
            met = _met(whole.model, head, whole.rows_at(rows, at, PLACES))
            if met is None:
                raise ModelError(f"{whole.study.model.factory}: its head is not always called in the same way")
            values[rows] = met[0][at].cpu()
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
