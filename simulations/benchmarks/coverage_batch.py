"""The figures of many draws at once, from arrays of tables: what `common.fairness` gives for a single table.

Built from the functions that reports use wherever these take arrays (`score_limits`, `mover`, `placements_of_bins`,
`projected`); a test compares every figure with that of a report for single draws. Every function gives (value, low,
high), nan where a report would print no number.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from equipoise.common.fairness.auc_errors import correlated, noise_errors, normal_pairs, sampling_errors
from equipoise.common.fairness.contrasts import gap_contrasts
from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS
from equipoise.common.fairness.intervals import mover, normal_quantile, score_limits
from equipoise.common.fairness.noise import DETECTABLE, HistogramNoise, projected
from equipoise.common.fairness.paired import MEMBERS
from equipoise.common.fairness.placements import coarseness, placements_of_bins
from equipoise.common.fairness.shares import fraction
from equipoise.common.fairness.tables import Counts, Floats, Table

Figure = tuple[Floats, Floats, Floats]
Z = normal_quantile(LEVEL)


class Rates:
    """A rate of every draw and group.

    Args:
        rate: a name of `shares.RATES`.
        counts: (R, G, 2, 2) [y, decision].
        variances: (G, 2, 2) of the noise in it.
    """

    def __init__(self, rate: str, counts: Counts, variances: Floats) -> None:
        above, below = fraction(counts, rate)
        inside, whole = fraction(variances, rate)
        self.there = below >= np.maximum(MINIMUM_PATIENTS, np.ceil(DETECTABLE * np.sqrt(whole)))
        self.trials: Floats = np.where(self.there, below, 1).astype(np.float64)
        self.shares: Floats = np.clip(np.where(self.there, above, 0) / self.trials, 0.0, 1.0)
        self.inside: Floats = np.broadcast_to(inside, below.shape)
        self.outside: Floats = np.broadcast_to(whole - inside, below.shape)

    def limits(self, z: float) -> tuple[Floats, Floats]:
        """(R, G) score limits."""
        return score_limits(self.shares, self.trials, z, self.inside, self.outside)

    def of_group(self, group: int) -> Figure:
        """The rate of one group."""
        low, high = self.limits(Z)
        return _masked(self.there[:, group], self.shares[:, group], low[:, group], high[:, group])


def difference(rates: Rates, group: int, reference: int) -> Figure:
    """Rate of one group less that of another."""
    rows = [group, reference]
    low, high = (part[:, rows] for part in rates.limits(Z))
    shares, contrast = rates.shares[:, rows], np.array([[1.0, -1.0]])
    ends = mover(shares, low, high, contrast, np.eye(2))
    there = np.all(rates.there[:, rows], axis=1)
    return _masked(np.asarray(there, dtype=np.bool_), shares @ contrast[0], ends[0][:, 0], ends[1][:, 0])


def largest_gap(parts: list[Rates]) -> Figure:
    """The largest gap of several rates (one block each) over all groups."""
    groups = parts[0].shares.shape[1]
    contrasts = gap_contrasts([groups] * len(parts), "max")
    z = normal_quantile(LEVEL, len(contrasts) // 2)
    limits = [part.limits(z) for part in parts]
    shares, low, high = (
        np.concatenate(columns, axis=1)
        for columns in ([p.shares for p in parts], [one[0] for one in limits], [one[1] for one in limits])
    )
    lows, highs = mover(shares, low, high, contrasts, np.eye(shares.shape[1]))
    there = np.all([part.there.all(axis=1) for part in parts], axis=0)
    value = (shares @ contrasts.T).max(axis=1)
    return _masked(there, value, np.maximum(lows.max(axis=1), 0.0), np.minimum(highs.max(axis=1), 1.0))


def paired_change(table: Counts, variances: Floats) -> Figure:
    """Change of a rate from table (R, 2, 2) [before, after] with variances (2, 2): Newcombe's paired interval."""
    n = table.sum(axis=(1, 2)).astype(np.float64)
    there = n >= max(MINIMUM_PATIENTS, np.ceil(DETECTABLE * variances.sum() ** 0.5))
    trials = np.where(there, n, 1.0)
    shares = np.clip(np.stack([table[:, 1].sum(axis=1), table[:, :, 1].sum(axis=1)], axis=1) / trials[:, None], 0, 1)
    shares = np.where(there[:, None], shares, 0.5)
    inside = np.array([variances[1].sum(), variances[:, 1].sum()])
    both = np.broadcast_to(inside, shares.shape), np.broadcast_to(variances.sum() - inside, shares.shape)
    low, high = score_limits(shares, np.repeat(trials[:, None], 2, axis=1), Z, *both)
    a, b, c, d = np.maximum(table, 0).reshape(-1, 4).T.astype(np.float64)
    margins, cross = (a + b) * (c + d) * (a + c) * (b + d), a * d - b * c
    cross = np.where(cross > 0, np.maximum(cross - (a + b + c + d) / 2, 0.0), cross)
    phi = np.where(margins > 0, cross / np.sqrt(np.where(margins > 0, margins, 1.0)), 0.0)
    if variances.any():
        spread = shares * (1 - shares) / trials[:, None]
        weights = MEMBERS[None] - shares[..., None]
        added = (weights * variances.ravel()) @ np.swapaxes(weights, 1, 2) / trials[:, None, None] ** 2
        shared = phi * np.sqrt(spread.prod(axis=1)) + added[:, 0, 1]
        phi = shared / np.sqrt((added[:, 0, 0] + spread[:, 0]) * (added[:, 1, 1] + spread[:, 1]))
    correlation = np.ones((len(phi), 2, 2))
    correlation[:, 0, 1] = correlation[:, 1, 0] = phi
    ends = mover(shares, low, high, np.array([[-1.0, 1.0]]), correlation)
    return _masked(there, shares[:, 1] - shares[:, 0], ends[0][:, 0], ends[1][:, 0])


class Aucs:
    """The AUC of every draw and group.

    Args:
        hist: (R, G, 2, B) [y, bin].
        noise: of it.
    """

    def __init__(self, hist: Table, noise: HistogramNoise) -> None:
        total = hist.sum(axis=-1).astype(np.float64)
        need = max(MINIMUM_PATIENTS, float(np.ceil(DETECTABLE * noise.total**0.5)))
        self.there = (np.rint(total) >= need).all(axis=-1)
        hist = np.where(self.there[..., None, None], hist, 1.0)
        total = hist.sum(axis=-1)
        self.noise = noise
        self.value = (hist[..., 1, :] * _placed(hist)[..., 1, :]).sum(axis=-1) / total[..., 1]
        nearest = projected(hist, total) if noise.cell else hist
        placed, n = _placed(nearest), np.rint(total)
        self.positives, self.negatives = n[..., 1], n[..., 0]
        self.centre = (nearest[..., 1, :] * placed[..., 1, :]).sum(axis=-1) / n[..., 1]
        rest = placed - self.centre[..., None, None]
        freedom = np.maximum(n - 1, 1)
        parts = (nearest * rest**2).sum(axis=-1) / (freedom * n)
        self.variance, spread = parts.sum(axis=-1), (parts**2 / freedom).sum(axis=-1)
        certain = spread > 0
        least = freedom.min(axis=-1)
        self.degrees = np.where(certain, self.variance**2 / np.where(certain, spread, 1.0), least)
        self.influence = rest / nearest.sum(axis=-1, keepdims=True)
        mean = self.influence.mean(axis=-1, keepdims=True)
        cells = ((self.influence - mean) ** 2).sum(axis=(-2, -1))
        self.added = noise.cell * cells + noise.total * (mean**2).sum(axis=(-2, -1))
        if noise.cell:
            self.value = np.clip(self.value + coarseness(hist), 0.0, 1.0)

    def limits(self, z: float) -> tuple[Floats, Floats]:
        """(R, G) limits, as `auc.BinnedAUC.limits`."""
        flat = self.variance == 0
        spread = z * z / (np.minimum(self.positives, self.negatives) + z * z)
        centre = np.where(flat, 0.5, self.centre)
        half = stdtrit(self.degrees, ndtr(z)) * np.sqrt(self.variance) / (centre * (1 - centre))
        middle = np.log(centre / (1 - centre))
        low, high = (0.5 * (1 + np.tanh(0.5 * (middle + sign * half))) for sign in (-1, 1))
        low = np.where(flat, np.maximum(self.centre - spread, 0.0), low)
        high = np.where(flat, np.minimum(self.centre + spread, 1.0), high)
        if not self.noise.cell:
            return low, high
        blur = z * np.sqrt(self.added)
        down, up = np.hypot(self.centre - low, blur), np.hypot(high - self.centre, blur)
        return np.maximum(self.value - down, 0.0), np.minimum(self.value + up, 1.0)

    def of_group(self, group: int) -> Figure:
        """The AUC of one group."""
        low, high = self.limits(Z)
        return _masked(self.there[:, group], self.value[:, group], low[:, group], high[:, group])

    def worst(self) -> Figure:
        """The smallest AUC."""
        low, high = self.limits(normal_quantile(LEVEL, self.value.shape[1]))
        return _masked(self.there.all(axis=1), self.value.min(axis=1), low.min(axis=1), high.min(axis=1))

    def gap(self) -> Figure:
        """The largest difference of two groups."""
        pairs = list(combinations(range(self.value.shape[1]), 2))
        low, high = self.limits(normal_quantile(LEVEL, len(pairs)))
        found = []
        for i, j in pairs:
            swap = self.value[:, i] < self.value[:, j]
            first, second = np.where(swap, j, i)[:, None], np.where(swap, i, j)[:, None]
            v1, l1, h1 = (np.take_along_axis(part, first, 1)[:, 0] for part in (self.value, low, high))
            v2, l2, h2 = (np.take_along_axis(part, second, 1)[:, 0] for part in (self.value, low, high))
            bottom = v1 - v2 - np.hypot(v1 - l1, h2 - v2)
            top = v1 - v2 + np.hypot(h1 - v1, v2 - l2)
            found.append((v1 - v2, np.maximum(bottom, 0.0), np.minimum(np.maximum(top, -bottom), 1.0)))
        value, lows, highs = (np.max(column, axis=0) for column in zip(*found, strict=True))
        return _masked(self.there.all(axis=1), value, lows, highs)

    def errors(self, group: int, x: Floats) -> Floats:
        """(R, DRAWS) sampling errors of a group's AUC, as `auc_errors.sampling_errors`."""
        fewest = np.minimum(self.positives, self.negatives)
        centre, deviation, degrees, fewest = (
            part[:, group] for part in (self.centre, np.sqrt(self.variance), self.degrees, fewest)
        )
        return sampling_errors(centre, deviation, degrees, fewest, x, Z)


def auc_change(before: Aucs, after: Aucs, group: int, sums: Floats, total: Floats) -> Figure:
    """Change of a group's AUC with the correlation from placement sums (R, 2, 5) over total (R, 2) patients."""
    scatter = np.zeros((len(sums), 3))
    for y in (0, 1):
        n = np.maximum(total[:, y], 2)
        v_b, v_a, v_bb, v_aa, v_ba = sums[:, y].T
        rows = np.stack([v_bb - v_b * v_b / n, v_aa - v_a * v_a / n, v_ba - v_b * v_a / n], axis=1)
        scatter += np.where(total[:, [y]] >= 2, rows / (n * (n - 1))[:, None], 0.0)
    scale = np.sqrt(np.maximum(scatter[:, 0], 0) * np.maximum(scatter[:, 1], 0))
    phi = np.where(scale > 0, np.clip(scatter[:, 2] / np.where(scale > 0, scale, 1.0), -1, 1), 0.0)
    first, second = correlated(normal_pairs(), phi)
    errors = after.errors(group, second) - before.errors(group, first)
    if before.noise.cell:
        errors += _noise_of_change(before, after, group)
    change, there = after.value[:, group] - before.value[:, group], before.there[:, group] & after.there[:, group]
    least, most = np.quantile(errors, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    low, high = np.minimum(change - most, change), np.maximum(change - least, change)
    return _masked(there, change, np.maximum(low, -1.0), np.minimum(high, 1.0))


def _noise_of_change(before: Aucs, after: Aucs, group: int) -> Floats:
    """(R, DRAWS) errors of a change by noise alone."""
    means = (part.influence[:, group].mean(axis=-1) for part in (before, after))
    shared = before.noise.total * np.prod(list(means), axis=0).sum(axis=-1)
    added = np.array([[before.added[:, group], shared], [shared, after.added[:, group]]])
    return np.stack([np.diff(noise_errors(one), axis=0)[0] for one in np.moveaxis(added, -1, 0)])


def coarse_sums(joint: Counts) -> tuple[Floats, Floats]:
    """Placement sums (R, 2, 5) and totals (R, 2), as `auc_change` takes them, of joint tables (R, 2, I, J)."""
    flat = projected(joint.reshape(*joint.shape[:2], -1), np.maximum(joint.sum(axis=(-2, -1)), 0))
    table = flat.reshape(joint.shape)
    placed = [placements_of_bins(table.sum(axis=axis)) for axis in (-1, -2)]
    v_b, v_a = np.broadcast_arrays(placed[0][..., :, None], placed[1][..., None, :])
    terms = (v_b, v_a, v_b**2, v_a**2, v_b * v_a)
    return np.stack([(table * v).sum(axis=(-2, -1)) for v in terms], axis=-1), table.sum(axis=(-2, -1))


def _placed(hist: Table) -> Floats:
    return placements_of_bins(hist.reshape(-1, *hist.shape[-2:])).reshape(hist.shape)


def _masked(there: NDArray[np.bool_], *columns: Floats) -> Figure:
    value, low, high = (np.where(there, column, np.nan) for column in columns)
    return value, low, high
