"""The site's network, loaded with the weights of the query at hand, the rows that it takes, and its logits.

Networks are shared by all agents of a process and kept one per thread, since a network holds nothing between two
queries: a thousand simulated sites need no more of them than there are workers.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equipoise.client.cohort import Split
from equipoise.common.errors import ModelError
from equipoise.common.factory import load_factory
from equipoise.common.losses import cell_index
from equipoise.common.models import normalise
from equipoise.common.study import Study

SCORE_BATCH = 128  # larger ones leave the cache
_networks = threading.local()


def network(study: Study, state: Mapping[str, NDArray[np.generic]]) -> nn.Module:
    """The study's network in eval mode with the given state dict, on the study's device.

    Eval mode throughout: no dropout, so that what a site computes is a function of its patients, the query and named
    public streams alone.

    Raises:
        ModelError: the state does not fit the network.
    """
    torch.set_num_threads(1)  # per thread; parallelism is over sites, and sums stay the same for any number of workers
    spec = study.model
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    floating = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    dtype = floating.pop() if len(floating) == 1 else None
    # A network of its own for each precision: on the way to a coarser one and back a buffer would lose digits.
    key = (spec.factory, tuple(sorted(spec.arguments.items())), spec.device, dtype)
    kept: dict[object, nn.Module] = _networks.__dict__.setdefault("kept", {})
    if key not in kept:
        kept[key] = _laid_out(load_factory(spec.factory, spec.arguments).to(spec.device, dtype))
    model = kept[key]
    _load(model, tensors, spec.factory)
    # A training that broke off may have left tensors frozen.
    return model.requires_grad_(True).eval()


def _laid_out(model: nn.Module) -> nn.Module:
    """The network with its filters in the layout of the images (`prepared`), so that no step lays them out anew.

    Parameter by parameter: `nn.Module.to` would refuse a model that has one of five dimensions.
    """
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def _load(model: nn.Module, tensors: Mapping[str, Tensor], factory: str) -> None:
    """`load_state_dict` without its walk over the modules, which takes longer than a small site's whole training."""
    own = model.state_dict()  # anew: a forward pass may have put another tensor in the place of one
    if {name: tensor.shape for name, tensor in own.items()} == {name: t.shape for name, t in tensors.items()}:
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        return
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(f"weights do not fit {factory}: {str(error).splitlines()[-1].strip()}") from None


def precision(model: nn.Module) -> torch.dtype:
    """The floating type of the network's weights, in which it computes."""
    return next(model.parameters()).dtype


@dataclass(frozen=True)
class View:
    """A network and the rows that it takes: the whole one and decoded rows, or its head and what the head sees of them.

    Attributes:
        study: says how decoded rows are read.
        model: gives one logit a row.
        split: the patients, with their rows.
        head: the model is the network's head alone, and `split.inputs` are its inputs
            (`equipoise.client.frozen.HeadInputs`).
    """

    study: Study
    model: nn.Module
    split: Split
    head: bool = False

    @cached_property
    def precision(self) -> torch.dtype:
        """The floating type of the model's weights, in which it computes."""
        return precision(self.model)

    def rows(self, index: slice | Tensor) -> Tensor:
        """Some rows as the model wants them."""
        return self.prepared(self.split.inputs[index])

    def rows_at(self, index: slice | Tensor, places: Tensor, size: int) -> Tensor:
        """Some rows at some places of a batch of zeros."""
        batch = self.split.inputs.new_zeros(size, *self.split.inputs.shape[1:])
        batch[places] = self.split.inputs[index]
        return self.prepared(batch)

    def prepared(self, rows: Tensor) -> Tensor:
        """Decoded rows, or inputs of the head, as the model wants them."""
        batch = rows if self.head else normalise(self.study.inputs, rows)
        batch = batch.to(self.study.model.device, self.precision)
        # Convolutions train a fifth faster on this layout, which they keep from layer to layer; the values are the
        # same.
        return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch

    def logits(self) -> Tensor:
        """Logit of each row, (m,), without gradients."""
        with torch.no_grad():
            parts = [
                self.model(self.rows(slice(start, start + SCORE_BATCH)))
                for start in range(0, len(self.split.patient), SCORE_BATCH)
            ]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=self.precision)


def cells_of(study: Study, split: Split) -> Tensor:
    """Cell (primary group x label) of each patient, (n,) int64."""
    return cell_index(split.groups[study.primary.name], split.label)


def of_compared(cell: Tensor, patients: NDArray[np.float64]) -> Tensor:
    """Whether each is of a group that is compared, (n,) bool: `patients` by cell, (G + 1, 2), are 0 for all others."""
    return torch.from_numpy(patients.reshape(-1) > 0)[cell]
