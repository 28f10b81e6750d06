"""The sums that link a report's counts of patients, and which counts they force to hide for the sake of others.

Counts by group of every attribute stand in one vector. A reader knows that the groups of each attribute add up to all
patients, those of an intersection to the groups of its parts, and those of single hospitals to the sum over hospitals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import block_diag

from equipoise.common.attribute import Attribute
from equipoise.common.fairness.small_cells import Mask, Policy, complemented
from equipoise.common.fairness.tables import Counts, Floats

ALL = -1  # the row of all patients, last in every vector


@dataclass(frozen=True)
class Sums:
    """Counts by group of several attributes in one vector, all patients last, and the sums that link them.

    Attributes:
        names, sizes: the attributes, and how many rows each has, `unknown` included.
        lines: (m, n) sums that a reader knows.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    lines: Floats

    @classmethod
    def of(cls, attributes: Sequence[Attribute]) -> Sums:
        names, sizes = tuple(a.name for a in attributes), tuple(len(a.groups) + 1 for a in attributes)
        starts = dict(zip(names, np.cumsum([0, *sizes[:-1]]), strict=True))
        lines = []
        for attribute, size in zip(attributes, sizes, strict=True):
            line = np.zeros(sum(sizes) + 1)
            line[starts[attribute.name] : starts[attribute.name] + size], line[ALL] = 1.0, -1.0
            lines.append(line)
            parts = [next(a for a in attributes if a.name == part) for part in attribute.of or ()]
            grid = starts[attribute.name] + np.arange(size - 1).reshape([len(part.groups) for part in parts] or [-1])
            for axis, part in enumerate(parts):
                # Equal up to the patients whose other part is unknown; the reader is taken to know how many these are.
                for level in range(len(part.groups)):
                    line = np.zeros(sum(sizes) + 1)
                    line[grid.take(level, axis=axis).ravel()], line[starts[part.name] + level] = 1.0, -1.0
                    lines.append(line)
        return cls(names, sizes, np.array(lines))

    @property
    def unknown(self) -> Mask:
        """(n,) which places are those of `unknown`."""
        found = np.zeros(sum(self.sizes) + 1, dtype=bool)
        found[np.cumsum(self.sizes) - 1] = True
        return found

    def joined(self, tables: Mapping[str, Counts]) -> Counts:
        """(n, ...) of attribute -> (G + 1, ...)."""
        rows = [tables[name] for name in self.names]
        return np.concatenate([*rows, rows[0].sum(axis=0, keepdims=True)])

    def apart(self, joined: Any, axis: int = 0) -> dict[str, Any]:
        """attribute -> its rows along `axis`, that of all patients last where the vector stands alone."""
        ends = np.cumsum(self.sizes)
        found = {}
        for name, size, end in zip(self.names, self.sizes, ends, strict=True):
            rows = [*range(end - size, end), *([joined.shape[0] - 1] if axis == 0 else [])]
            found[name] = joined.take(rows, axis=axis)
        return found

    def order(self, counts: Counts) -> list[tuple[bool, bool, int]]:
        """Which row is hidden first to protect another: an `unknown`, then the smallest, all patients last."""
        last = len(counts) - 1
        return [
            (i == last, not unknown, int(n)) for i, (unknown, n) in enumerate(zip(self.unknown, counts, strict=True))
        ]

    def hidden_patients(self, counts: Counts, policy: Policy) -> Mask:
        """(n,) which counts of patients with one label are hidden."""
        units = np.where(counts > 0, np.arange(len(counts)), -1)
        return complemented(counts, self.lines, policy.small(counts), policy, units, self.order(counts))

    def hidden_decisions(self, table: Counts, patients: Mask, policy: Policy) -> Mask:
        """(n,) where table[row, decision] is hidden, of patients with one label whose number may be hidden."""
        counts = table.sum(axis=1)
        units = np.where(counts > 0, np.arange(len(counts)), -1)
        first = patients | policy.small(table).any(axis=1)
        return _of_both(table, counts, self.lines, patients, first, policy, units, self.order(counts))


@dataclass(frozen=True)
class SiteSums:
    """The same at every hospital: one vector of `pooled` after the other, then their sum.

    A report shows hospitals' declared groups; `unknown` and all patients of a hospital are nowhere, and may follow.
    """

    pooled: Sums
    sites: int
    lines: Floats

    @classmethod
    def of(cls, sums: Sums, sites: int) -> SiteSums:
        n = sums.lines.shape[1]
        added = np.concatenate([np.tile(np.eye(n), (1, sites)), -np.eye(n)], axis=1)
        return cls(sums, sites, np.concatenate([block_diag(*[sums.lines] * (sites + 1)), added]))

    @property
    def nowhere(self) -> Mask:
        """(sites, n) what no report shows of a hospital."""
        own = self.pooled.unknown.copy()
        own[ALL] = True
        return np.tile(own, (self.sites, 1))

    def joined(self, pairs: Mapping[str, Counts], side: Callable[[Counts], Counts]) -> Counts:
        """(sites, n, label, decision) of attribute -> pairs[site, g, y, before, after], of one model."""
        own = {name: side(table) for name, table in pairs.items()}
        return np.stack([self.pooled.joined({name: t[site] for name, t in own.items()}) for site in range(self.sites)])

    def _units(self, counts: Counts) -> Counts:
        places = np.arange(counts.size).reshape(counts.shape)
        own = np.where((counts > 0) & ~self.nowhere, places, -1).ravel()
        return np.concatenate([own, np.full(counts.shape[1], -1)])

    def hidden_patients(self, counts: Counts, pooled: Mask, total: Counts, policy: Policy) -> Mask:
        """(sites, n, 2) of counts[site, row, label] and the pooled (n, 2) that are hidden."""
        found = []
        for y in (0, 1):
            own = counts[..., y]
            values = np.concatenate([own.ravel(), total[:, y]])
            first = np.concatenate([(policy.small(own) | self.nowhere).ravel(), pooled[:, y]])
            order = [int(n) for n in values]
            hidden = complemented(values, self.lines, first, policy, self._units(own), order)
            found.append(hidden[: own.size].reshape(own.shape))
        return np.stack(found, axis=-1)

    def hidden_decisions(
        self, table: Counts, patients: Mask, decided: Mask, pooled_patients: Mask, pooled: Counts, policy: Policy
    ) -> Mask:
        """(sites, n, 2) of table[site, row, label, decision], where `patients` and the pooled figures are hidden."""
        found = []
        for y in (0, 1):
            own, counts = table[:, :, y], table[:, :, y].sum(axis=-1)
            whole = np.concatenate([own.reshape(-1, 2), pooled[:, y]])
            margins = np.concatenate([(patients[..., y] | self.nowhere).ravel(), pooled_patients[:, y]])
            first = np.concatenate(
                [(patients[..., y] | policy.small(own).any(axis=-1) | self.nowhere).ravel(), decided[:, y]]
            )
            sizes = whole.sum(axis=1)
            order = [int(n) for n in sizes]
            hidden = _of_both(whole, sizes, self.lines, margins, first, policy, self._units(counts), order)
            found.append(hidden[: counts.size].reshape(counts.shape))
        return np.stack(found, axis=-1)


def _of_both(
    table: Counts,
    counts: Counts,
    lines: Floats,
    margins: Mask,
    first: Mask,
    policy: Policy,
    units: Counts,
    order: Sequence[Any],
) -> Mask:
    """(n,) where table[row, decision] is hidden; each row adds up to its count, of which `margins` are hidden."""
    n = len(counts)
    rows = np.concatenate([-np.eye(n), np.eye(n), np.eye(n)], axis=1)
    linked = np.concatenate([block_diag(lines, lines, lines), rows])
    hidden = complemented(
        np.concatenate([counts, table[:, 0], table[:, 1]]),
        linked,
        np.concatenate([margins, first, first]),
        policy,
        np.concatenate([np.full(n, -1), units, units]),
        [*order] * 3,
    )
    return hidden[n : 2 * n]
