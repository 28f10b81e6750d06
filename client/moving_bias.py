"""The bias weights of a site's local steps, kept current between two releases.

The weights of the bias loss hang on the signs of the global gaps, which a site learns once a round. A site that takes
many steps on old signs overshoots: the gap turns round and goes on growing. So the site follows how its own steps move
its patients' scores, adds that to the global means of the round's start, and takes the signs from there. Each patient
is compared with their own score at the start, so the differences between patients do not blur the estimate. A group
that the site lacks stays at its global mean.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.common.cells import BiasLoss, Cells, Form, bias_weights

MEMORY = 0.5  # share of the earlier estimate that is kept at each batch


class MovingBias:
    """Follows the mean scores by cell through a site's steps.

    Args:
        patients, scores: the global number of patients and sum of scores by cell at the round's start, (G + 1, 2).
        start: each patient's score under the received model, (n,) float64.
        cell: each patient's cell, (n,) int64.
        loss, form, smoothing: see `equipoise.common.cells.bias_weights`.
    """

    def __init__(
        self,
        patients: Cells,
        scores: Cells,
        start: Tensor,
        cell: Tensor,
        loss: BiasLoss,
        form: Form,
        smoothing: float,
    ) -> None:
        self._patients, self._scores = patients, scores
        self._start, self._cell = start, cell
        self._kind = (loss, form, smoothing)
        self._drift = np.zeros(patients.size)

    def observe(self, patients: Tensor, scores: Tensor) -> Tensor:
        """Take in the present scores of a batch of patients; the bias weights that follow, flat float64.

        Args:
            patients: (b,) int64, indices into the site's patients.
            scores: (b,) float64, their scores now.
        """
        cells = self._cell[patients]
        count = torch.bincount(cells, minlength=self._drift.size).numpy()
        moved = torch.zeros(self._drift.size, dtype=torch.float64)
        moved.index_add_(0, cells, scores - self._start[patients])
        seen = count > 0
        latest = moved.numpy()[seen] / count[seen]
        self._drift[seen] = MEMORY * self._drift[seen] + (1 - MEMORY) * latest
        means = self._scores + self._patients * self._drift.reshape(self._patients.shape)
        weights = bias_weights(self._patients, means, *self._kind)
        return torch.from_numpy(weights.reshape(-1))

    def sums(self) -> NDArray[np.float64]:
        """The site's own sums of scores by cell after its steps, (G + 1, 2): at the start, plus what was followed."""
        own = torch.zeros(self._drift.size, dtype=torch.float64).index_add_(0, self._cell, self._start).numpy()
        count = torch.bincount(self._cell, minlength=self._drift.size).numpy()
        sums: NDArray[np.float64] = np.clip(own + count * self._drift, 0.0, count).reshape(self._patients.shape)
        return sums
