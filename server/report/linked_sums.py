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
    """Counts by group of several attributes in one vector, and the sums that link them.

    The vector has the rows of each attribute, `unknown` last; then, for each intersection, the patients of each group
    of its parts whose other part is unknown, which no report shows and which may follow; all patients last.

    Attributes:
        names, sizes: the attributes, and how many rows each has, `unknown` included.
        leftover: for each count that no report shows, the row of the part's group and those of the intersection in it.
        lines: (m, n) sums that are 0.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    leftover: tuple[tuple[int, Counts], ...]
    lines: Floats

    @classmethod
    def of(cls, attributes: Sequence[Attribute]) -> Sums:
        """The sums of a study's attributes."""
        names, sizes = tuple(a.name for a in attributes), tuple(len(a.groups) + 1 for a in attributes)
        starts = dict(zip(names, (int(start) for start in np.cumsum([0, *sizes[:-1]])), strict=True))
        unknown = {name: starts[name] + size - 1 for name, size in zip(names, sizes, strict=True)}
        leftover: list[tuple[int, Counts]] = []
        sums: list[tuple[Sequence[int], Sequence[int]]] = []  # what is added, and what it adds up to
        for attribute, size in zip(attributes, sizes, strict=True):
            sums.append((range(starts[attribute.name], starts[attribute.name] + size), [ALL]))
            parts = [next(a for a in attributes if a.name == part) for part in attribute.of or ()]
            grid = starts[attribute.name] + np.arange(size - 1).reshape([len(part.groups) for part in parts] or [-1])
            for axis, part in enumerate(parts):
                first = sum(sizes) + len(leftover)
                rows = [grid.take(level, axis=axis).ravel() for level in range(len(part.groups))]
                leftover += [(starts[part.name] + level, inside) for level, inside in enumerate(rows)]
                sums += [([*inside, first + level], [starts[part.name] + level]) for level, inside in enumerate(rows)]
                sums.append(([*range(first, first + len(rows)), unknown[part.name]], [unknown[attribute.name]]))
        lines = np.zeros((len(sums), sum(sizes) + len(leftover) + 1))
        for line, (added, total) in zip(lines, sums, strict=True):
            line[list(added)], line[list(total)] = 1.0, -1.0
        return cls(names, sizes, tuple(leftover), lines)

    @property
    def unknown(self) -> Mask:
        """(n,) which places are those of `unknown`."""
        found = np.zeros(self.lines.shape[1], dtype=bool)
        found[np.cumsum(self.sizes) - 1] = True
        return found

    @property
    def nowhere(self) -> Mask:
        """(n,) which counts no report shows."""
        found = np.zeros(self.lines.shape[1], dtype=bool)
        found[sum(self.sizes) : ALL] = True
        return found

    def joined(self, tables: Mapping[str, Counts]) -> Counts:
        """(n, ...) of attribute -> (G + 1, ...)."""
        rows = np.concatenate([tables[name] for name in self.names])
        others = [rows[part] - rows[inside].sum(axis=0) for part, inside in self.leftover]
        return np.concatenate([rows, *(other[None] for other in others), tables[self.names[0]].sum(axis=0)[None]])

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
        rows = enumerate(zip(self.unknown, counts, strict=True))
        return [(place == last, not unknown, int(n)) for place, (unknown, n) in rows]

    def _units(self, counts: Counts) -> Counts:
        return np.where((counts > 0) & ~self.nowhere, np.arange(len(counts)), -1)

    def hidden_patients(self, counts: Counts, policy: Policy) -> Mask:
        """(n,) which counts of patients with one label are hidden."""
        first = policy.small(counts) | self.nowhere
        units, order = self._units(counts), self.order(counts)
        return complemented(counts, self.lines, first, policy, units, order, marked=~self.nowhere)

    def hidden_decisions(self, table: Counts, patients: Mask, policy: Policy) -> Mask:
        """(n,) where table[row, decision] is hidden, of patients with one label whose number may be hidden."""
        counts = table.sum(axis=1)
        first = patients | policy.small(table).any(axis=1)
        return _of_both(
            table, counts, self.lines, patients, first, policy, self._units(counts), self.order(counts), ~self.nowhere
        )


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
        own = self.pooled.unknown | self.pooled.nowhere
        own[ALL] = True
        return np.tile(own, (self.sites, 1))

    @property
    def _marked(self) -> Mask:
        return np.concatenate([~self.nowhere.ravel(), ~self.pooled.nowhere])

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
            hidden = complemented(values, self.lines, first, policy, self._units(own), order, marked=self._marked)
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
            units = self._units(counts)
            hidden = _of_both(whole, sizes, self.lines, margins, first, policy, units, order, self._marked)
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
    marked: Mask,
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
        marked=np.tile(marked, 3),
    )
    return hidden[n : 2 * n]
