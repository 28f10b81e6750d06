"""What a computation behind the door may look at, and the sums by cell that several of them make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.client.cohort import Split
from equipoise.client.contribution import Totals
from equipoise.client.frozen import HeadInputs
from equipoise.client.scores import ScoreCache
from equipoise.client.workbench import View, network
from equipoise.common.classifier import state_from_inputs
from equipoise.common.layout import Layout
from equipoise.common.losses import row_shares
from equipoise.common.query import Query
from equipoise.common.streams import torch_stream
from equipoise.common.study import ImageInputs, Study


@dataclass(frozen=True)
class Workplace:
    """What a computation may look at: one query, the site's patients of its split, and public facts."""

    study: Study
    site: str
    query: Query
    split: Split
    scores: ScoreCache
    release: int
    heads: HeadInputs = field(default_factory=HeadInputs)

    @cached_property
    def state(self) -> Mapping[str, NDArray[np.floating]]:
        """The query's weights, as a state dict."""
        return state_from_inputs(self.query.inputs)

    def view(self) -> View:
        """The network with the query's weights, and the patients."""
        return View(self.study, network(self.study, self.state), self.split)

    def view_for(self, names: Iterable[str], flips: bool = False) -> View:
        """The same for a computation that moves some tensors: from the head on, where they are all the head's.

        Args:
            flips: images are mirrored at random, so that what the head sees of them changes.
        """
        flips = flips and isinstance(self.study.inputs, ImageInputs)
        head = self.study.model.head.removesuffix(".") + "."  # the cut is at a layer, whatever begins like its name
        if flips or not all(name.startswith(head) for name in names):
            return self.view()
        return self.heads.view(self.view(), self.state, self.query.split)

    def generator(self, purpose: str) -> torch.Generator:
        """The site's public stream for this release, or for the place in a trial that the query names."""
        return torch_stream(self.study.seed, self.site, self.query.parameters.get("stream", self.release), purpose)

    @property
    def layout(self) -> Layout:
        """Layout of the tensors that the query names; a factorised one by its left factor."""
        state = {**self.state, **self.query.inputs.get("model.left", {})}
        return Layout({name: tuple(state[name].shape) for name in self.query.parameters["tensors"]})

    @property
    def label(self) -> NDArray[np.int64]:
        """Label of each patient, (n,)."""
        return self.split.label.numpy()

    def group(self, attribute: str) -> NDArray[np.int64]:
        """Group of each patient, (n,)."""
        return self.split.groups[attribute].numpy()

    def cell_weights(self) -> tuple[Tensor, Tensor]:
        """The query's task and bias weights by cell, flat float64."""
        weights = self.query.inputs["weights"]
        return torch.from_numpy(weights["task"].reshape(-1)), torch.from_numpy(weights["bias"].reshape(-1))


def nothing(query: Query) -> Totals:
    """What a site without patients of the split contributes to an exact sum."""
    return Totals({name: np.zeros(block.shape) for name, block in query.blocks.items()})


def patients_by_cell(cell: Tensor, cells: int) -> NDArray[np.int64]:
    """Patients by cell, (G + 1, 2), from each patient's cell."""
    return torch.bincount(cell, minlength=cells).numpy().reshape(-1, 2)


def sums_by_cell(values: Tensor, split: Split, cell: Tensor, cells: int) -> NDArray[np.float64]:
    """Sums by cell, (G + 1, 2), of the patients' means over their rows of `values` (m,)."""
    weighted = values.to(torch.float64) * row_shares(split.patient, split.patients)
    sums = torch.zeros(cells, dtype=torch.float64).index_add_(0, cell[split.patient], weighted)
    return sums.numpy().reshape(-1, 2)
