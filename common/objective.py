"""What a search optimises, from the summed score histogram of the validation patients of all sites.

Every objective is a function of one table H[g, y, bin] over all sites, never a mean of what single sites measured, and
larger is better. The groups that are compared are fixed from the vendor's model's table before the first candidate.

    worst_group_auc        the smallest AUC of a group (default)
    largest_group_loss     minus the largest mean cross-entropy of a group: FairTune's L_fair
    worst_group_accuracy   the smallest accuracy of a group at probability 0.5
    auc, accuracy          over all patients: plain hyper-parameter search
    auc_gap, accuracy_gap  minus the largest difference between groups; candidates must keep close to the best AUC

Under noise a cell may be below 0. Sums over bins are then still right on average, since the cells of the two labels
have noises of their own; only the final values are held in their range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from equipoise.common.fairness.tables import Floats

Name = Literal[
    "worst_group_auc",
    "largest_group_loss",
    "worst_group_accuracy",
    "auc",
    "accuracy",
    "auc_gap",
    "accuracy_gap",
]
GAPS: tuple[Name, ...] = ("auc_gap", "accuracy_gap")
BY_GROUP_AUC: tuple[Name, ...] = ("worst_group_auc", "auc_gap")
AUC_WITHIN = 0.01  # of the best candidate's, for a gap to count


def auc_of(counts: Floats) -> float:
    """AUC of counts[y, bin], in [0, 1]; 0.5 where a class has less than one patient."""
    positives, negatives = counts[1].sum(), counts[0].sum()
    if min(positives, negatives) < 1:
        return 0.5
    below = np.cumsum(counts[0]) - counts[0] / 2
    return float(np.clip((counts[1] * below).sum() / (positives * negatives), 0.0, 1.0))


def auc_noise(counts: Floats, variance: float) -> float:
    """Standard deviation of `auc_of` from noise of this variance on each cell, to first order.

    With the AUC A, dA / dn1[b] = (share of the negatives below bin b) - A, over the positives; likewise for the others.
    """
    positives, negatives = max(counts[1].sum(), 1.0), max(counts[0].sum(), 1.0)
    value = auc_of(counts)
    below = (np.cumsum(counts[0]) - counts[0] / 2) / negatives
    above = 1 - (np.cumsum(counts[1]) - counts[1] / 2) / positives
    slopes = ((below - value) / positives) ** 2 + ((above - value) / negatives) ** 2
    return float(np.sqrt(variance * slopes.sum()))


def bin_logits(edges: Floats) -> NDArray[np.float64]:
    """The logit that stands for each bin: its middle, and for the open bins at both ends their edge."""
    middles = (edges[1:] + edges[:-1]) / 2
    return np.concatenate([edges[:1], middles, edges[-1:]])


def loss_of(counts: Floats, edges: Floats) -> float:
    """Mean cross-entropy of counts[y, bin], in nats and at least 0.

    It differs from that of the scores themselves by at most half a bin's width, except in the open bins, where the loss
    is held at the edge's: a bound on what one patient adds.
    """
    z = bin_logits(edges)
    total = (counts[1] * np.logaddexp(0.0, -z)).sum() + (counts[0] * np.logaddexp(0.0, z)).sum()
    return max(float(total / max(counts.sum(), 1.0)), 0.0)


def accuracy_of(counts: Floats, edges: Floats) -> float:
    """Share of right decisions at probability 0.5, which is an edge of every histogram here, in [0, 1]."""
    zero = int(np.searchsorted(edges, 0.0)) + 1
    right = counts[1, zero:].sum() + counts[0, :zero].sum()
    return float(np.clip(right / max(counts.sum(), 1.0), 0.0, 1.0))


@dataclass(frozen=True)
class Objective:
    """See the module's text.

    Attributes:
        name: what is optimised.
        groups: indices of the groups that are compared.
        wanted: what the study asked for; another name where its groups are too small for it.
    """

    name: Name
    groups: tuple[int, ...]
    wanted: Name

    @classmethod
    def of(cls, wanted: Name, histogram: Floats, fewest: int) -> Objective:
        """Fix the groups, from the vendor's model's H[g, y, bin] (`unknown` last).

        A group counts with `fewest` patients of each label (for accuracy and loss: `fewest` patients). Where an AUC
        objective has fewer than two such groups, the largest group loss takes its place, which needs no class to be
        large; where that has none, all declared groups count.
        """
        declared = range(len(histogram) - 1)
        by_label = histogram.sum(axis=2)
        large = tuple(g for g in declared if by_label[g].sum() >= fewest) or tuple(declared)
        if wanted not in BY_GROUP_AUC:
            return cls(wanted, large, wanted)
        both = tuple(g for g in declared if by_label[g].min() >= fewest)
        return cls(wanted, both, wanted) if len(both) > 1 else cls("largest_group_loss", large, wanted)

    def value(self, histogram: Floats, edges: Floats) -> float:
        """The objective of H[g, y, bin] with inner edges on the logit; larger is better."""
        if self.name == "auc":
            return auc_of(histogram.sum(axis=0))
        if self.name == "accuracy":
            return accuracy_of(histogram.sum(axis=0), edges)
        groups = [histogram[g] for g in self.groups]
        if self.name == "largest_group_loss":
            return -max(loss_of(counts, edges) for counts in groups)
        by_auc = self.name in BY_GROUP_AUC
        values = [auc_of(counts) if by_auc else accuracy_of(counts, edges) for counts in groups]
        return min(values) - max(values) if self.name in GAPS else min(values)

    @property
    def auc_within(self) -> float | None:
        """How close to the best AUC a candidate has to be; None where the objective itself sees to it."""
        return AUC_WITHIN if self.name in GAPS else None
