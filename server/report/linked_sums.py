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
from equipoise.common.fairness.small_cells import NOTHING, SMALL, SOMEBODY, Mask, Policy, complemented
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

    @property
    def _told(self) -> Counts:
        return np.where(self.nowhere, NOTHING, SMALL)

    def _units(self, counts: Counts) -> Counts:
        return np.where((counts > 0) & ~self.nowhere, np.arange(len(counts)), -1)

    def hidden_patients(self, counts: Counts, policy: Policy) -> Mask:
        """(n,) which counts of patients with one label are hidden."""
        first = policy.small(counts) | self.nowhere
        units, order = self._units(counts), self.order(counts)
        return complemented(counts, self.lines, first, policy, units, order, told=self._told)

    def hidden_decisions(self, table: Counts, patients: Mask, policy: Policy) -> Mask:
        """(n,) where table[row, decision] is hidden, of patients with one label whose number may be hidden."""
        counts = table.sum(axis=1)
        first = patients | policy.small(table).any(axis=1)
        units, order, told = self._units(counts), self.order(counts), (self._told, self._told)
        return _of_both(table, self.lines, patients, first, policy, units, order, told)


@dataclass(frozen=True)
class SiteSums:
    """The same at every hospital: one vector of `pooled` after the other, then their sum.

    A report shows hospitals' declared groups; `unknown` and all patients of a hospital are nowhere, and may follow. A
    hospital's hidden count is told from 0 and no more; where the sum over hospitals is hidden, not even that, since ten
    hospitals that are not 0 with a sum below 11 have one patient each.
    """

    pooled: Sums
    sites: int
    lines: Floats

    @classmethod
    def of(cls, sums: Sums, sites: int) -> SiteSums:
        """The sums over `sites` hospitals."""
        n = sums.lines.shape[1]
        added = np.concatenate([np.tile(np.eye(n), (1, sites)), -np.eye(n)], axis=1)
        return cls(sums, sites, np.concatenate([block_diag(*[sums.lines] * (sites + 1)), added]))

    def joined(self, pairs: Mapping[str, Counts], side: Callable[[Counts], Counts]) -> Counts:
        """(sites, n, label, decision) of attribute -> pairs[site, g, y, before, after], of one model."""
        own = {name: side(table) for name, table in pairs.items()}
        return np.stack([self.pooled.joined({name: t[site] for name, t in own.items()}) for site in range(self.sites)])

    @property
    def _nowhere(self) -> Mask:
        """(sites, n) what no report shows of a hospital."""
        own = self.pooled.unknown | self.pooled.nowhere
        own[ALL] = True
        return np.tile(own, (self.sites, 1))

    def _whole(self, at_sites: Counts) -> Counts:
        """(sites * n + n, ...) the hospitals' vectors, then their sum, of (sites, n, ...)."""
        return np.concatenate([at_sites.reshape(-1, *at_sites.shape[2:]), at_sites.sum(axis=0)])

    def _order(self, counts: Counts) -> list[tuple[Any, ...]]:
        """Single hospitals are hidden before the sum over them, else as in `Sums`."""
        at_sites = [(False, *rest) for own in counts for rest in self.pooled.order(own)]
        return [*at_sites, *((True, *rest) for rest in self.pooled.order(counts.sum(axis=0)))]

    def _silent(self, pooled: Mask) -> Mask:
        """(sites, n) hidden counts of hospitals of which nothing is told."""
        return np.asarray(self._nowhere | pooled)

    def _settled(
        self, counts: Counts, small: Mask, pooled: Mask, aloud: int, hide: Callable[[Mask, Counts, Counts], Mask]
    ) -> tuple[Mask, Mask]:
        """What is hidden at hospitals, and of their sum; what is hidden of the sum is hidden at each of them.

        `hide` takes what is hidden at first, units and what is told, as `complemented` does; `aloud` is what is told
        of a hospital where the sum is shown.
        """
        n, sizes = len(pooled), self._whole(counts)
        while True:
            silent = self._silent(pooled)
            told = np.where(silent, NOTHING, aloud).ravel(), np.where(self.pooled.nowhere, NOTHING, SMALL)
            fixed = np.concatenate([silent.ravel(), self.pooled.nowhere]) | (sizes == 0)
            units = np.where(fixed, -1, np.arange(len(sizes)))
            hidden = hide(np.concatenate([(small | silent).ravel(), pooled]), units, np.concatenate(told))
            if np.array_equal(hidden[-n:], pooled):
                return hidden[:-n].reshape(counts.shape), pooled
            pooled = hidden[-n:]

    def hidden_patients(self, counts: Counts, pooled: Mask, policy: Policy) -> tuple[Mask, Mask]:
        """(sites, n) of counts[site, row] of one label, and (n,) of their sum, that are hidden."""
        values, order = self._whole(counts), self._order(counts)

        def hide(first: Mask, units: Counts, told: Counts) -> Mask:
            return complemented(values, self.lines, first, policy, units, order, told=told)

        return self._settled(counts, policy.small(counts), pooled, SOMEBODY, hide)

    def hidden_decisions(
        self, table: Counts, patients: Mask, pooled_patients: Mask, pooled: Mask, policy: Policy
    ) -> tuple[Mask, Mask]:
        """The same of table[site, row, decision], where the numbers of patients that are given may be hidden."""
        counts, whole, order = table.sum(axis=-1), self._whole(table), self._order(table.sum(axis=-1))
        margins = np.concatenate([(patients | self._nowhere).ravel(), pooled_patients])
        told_of_margins = np.concatenate(
            [
                np.where(self._silent(pooled_patients), NOTHING, SOMEBODY).ravel(),
                np.where(self.pooled.nowhere, NOTHING, SMALL),
            ]
        )

        def hide(first: Mask, units: Counts, told: Counts) -> Mask:
            both = first | margins
            return _of_both(whole, self.lines, margins, both, policy, units, order, (told_of_margins, told))

        return self._settled(counts, np.asarray(policy.small(table).any(axis=-1)), pooled, SMALL, hide)


def _of_both(
    table: Counts,
    lines: Floats,
    margins: Mask,
    first: Mask,
    policy: Policy,
    units: Counts,
    order: Sequence[Any],
    told: tuple[Counts, Counts],
) -> Mask:
    """(n,) where table[row, decision] is hidden; each row adds up to its patients, of which `margins` are hidden.

    `first`, `units`, `order` are those of the rows, as in `complemented`; `told` of the patients and of the decisions.
    """
    n = len(table)
    rows = np.concatenate([-np.eye(n), np.eye(n), np.eye(n)], axis=1)
    hidden = complemented(
        np.concatenate([table.sum(axis=1), table[:, 0], table[:, 1]]),
        np.concatenate([block_diag(lines, lines, lines), rows]),
        np.concatenate([margins, first, first]),
        policy,
        np.concatenate([np.full(n, -1), units, units]),
        [*order] * 3,
        told=np.concatenate([told[0], told[1], told[1]]),
    )
    return hidden[n : 2 * n]
