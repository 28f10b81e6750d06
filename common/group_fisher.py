"""How much each weight serves the task in each group: the empirical Fisher information, per patient.

For patient i the gradient g_i of the mean cross-entropy over the patient's rows, squared; summed over the patients of a
group, and over the entries of a unit (an entry, a row of a layer, a tensor). The squares are of single patients, never
of a batch, so that the sums add up over hospitals and do not depend on anyone's batch size. Dividing by the group's
patients is left to the coordinator, who has the sums: a hospital with three patients of a group has the say of three.

Under noise a patient's vector is the row sums of one layer after the other, divided by a public unit for each layer
and clipped (`Scale`); |v|_2 <= |v|_1 = |g|^2 for any way of summing squares.

References: Kirkpatrick et al., PNAS 2017 (diagonal Fisher); Hsu et al., ICLR 2022 (row sums).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equipoise.common.layout import Layout
from equipoise.common.mask import Granularity, units
from equipoise.common.privacy.rounding import ROUNDING
from equipoise.common.row_gradients import RowGradients

Vector = NDArray[np.float64]
CLIP_PERCENTILE = 50.0


class PatientFisher:
    """Squared gradients of single patients.

    Args:
        model: gives one logit a row and mixes no rows; in eval mode.
        layout: the tensors.
        granularity: what a unit is.
    """

    def __init__(self, model: nn.Module, layout: Layout, granularity: Granularity) -> None:
        self._gradients = RowGradients(model, list(layout.shapes))
        self._granularity = granularity

    def patients(self, x: Tensor, owner: Tensor, label: Tensor) -> Iterator[tuple[str, Tensor]]:
        """By tensor, (n, units) float64: the pooled squares of each patient's gradient; one tensor's are held at once.

        Args:
            x: (m, ...) normalised rows of n patients.
            owner: (m,) int64 in 0..n-1.
            label: (n,) int64.
        """
        logits, gradients = self._gradients(x)
        n = len(label)
        share = 1.0 / torch.bincount(owner, minlength=n)[owner].to(logits)
        factor = share * (torch.sigmoid(logits) - label[owner].to(logits))
        for name, dz in gradients:
            with torch.no_grad():
                rows = dz.reshape(len(dz), -1) * factor[:, None]
                if len(x) != n:
                    rows = torch.zeros((n, rows.shape[1]), dtype=rows.dtype).index_add_(0, owner, rows)
                yield name, self._pooled(rows, dz.shape[1:]).double()

    def rows(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The same of unlabelled public rows, each a patient: (p - y)^2 by its mean p (1 - p) under the model."""
        logits, gradients = self._gradients(x)
        p = torch.sigmoid(logits)
        for name, dz in gradients:
            with torch.no_grad():
                yield (
                    name,
                    self._pooled(dz.reshape(len(dz), -1) * (p * (1 - p)).sqrt()[:, None], dz.shape[1:]).double(),
                )

    def _pooled(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """(n, entries) gradients to (n, units) sums of squares."""
        squares = rows.square()
        if self._granularity == "parameter":
            return squares
        if self._granularity == "channel" and len(shape) > 0:
            return squares.reshape(len(rows), shape[0], -1).sum(dim=2)
        return squares.sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class Scale:
    """Public units of the layers, and the clip bound of a patient's vector in them.

    Attributes:
        unit: (tensors,), by which a layer's sums are divided.
        clip: L2 bound of what results.
    """

    unit: Vector
    clip: float

    @classmethod
    def from_pool(cls, fisher: PatientFisher, layout: Layout, batches: Iterator[Tensor]) -> Scale:
        """From unlabelled public rows: units are the layers' mean norms, the bound is the median of what results.

        Raises:
            ValueError: no rows, or no gradient anywhere.
        """
        norms = [
            torch.stack([found[name].norm(dim=1) for name in layout.shapes], dim=1).numpy()
            for found in (dict(fisher.rows(x)) for x in batches)
        ]
        together = np.concatenate(norms) if norms else np.zeros((0, len(layout.shapes)))
        unit = together.mean(axis=0) if len(together) else np.zeros(len(layout.shapes))
        if not np.isfinite(unit).all() or unit.max(initial=0.0) <= 0:
            raise ValueError("group Fisher: the public pool is empty, or its gradients are 0 or not finite")
        unit = np.where(unit > 0, unit, unit[unit > 0].min())
        return cls(unit, float(np.percentile(np.linalg.norm(together / unit, axis=1), CLIP_PERCENTILE)))

    @property
    def arrays(self) -> dict[str, Vector]:
        """As an input bundle of a query."""
        return {"unit": self.unit, "clip": np.array([self.clip])}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Vector]) -> Scale:
        """From the bundle of `arrays`."""
        return cls(arrays["unit"], float(arrays["clip"][0]))

    def contributions(self, energies: Mapping[str, Tensor], group: NDArray[np.int64], groups: int) -> Vector:
        """Every patient's vector, (n, groups * units): their scaled and clipped sums at their group, 0 elsewhere.

        Args:
            energies: tensor -> (n, units), in the order of the units.
            group: (n,) in 0..groups-1.

        Formal guarantee:
            Entries are >= 0 and a row has L2 norm at most 1, whatever the patient holds; it depends on that patient
            and on public values alone. The sum changes by at most 1 in L2 when one patient is added or removed.

        Edge cases:
            A patient with a value that is not finite contributes 0. No patients: shape (0, ...).
        """
        together = np.concatenate(
            [values.numpy() / unit for values, unit in zip(energies.values(), self.unit, strict=True)], axis=1
        )
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = together / self.clip
            norm = np.linalg.norm(scaled, axis=1, keepdims=True)
            sound = np.isfinite(scaled).all(axis=1, keepdims=True) & np.isfinite(norm)
            clipped = np.where(sound, scaled * (ROUNDING / np.maximum(norm, 1.0)), 0.0)
        result = np.zeros((len(group), groups, clipped.shape[1]))
        result[np.arange(len(group)), group] = clipped
        return result.reshape(len(group), -1)

    def energies(self, released: Vector, layout: Layout, granularity: Granularity) -> Vector:
        """Sums in their own unit, (groups, units), from a released sum of contributions."""
        unit = np.repeat(self.unit, list(units(layout, granularity).values()))
        found: Vector = released * unit * self.clip
        return found
