"""Group thresholds: an operating point for each group from one score histogram; the model stays as it is.

After Hardt, Price & Srebro, NeurIPS 2016 (arXiv:1610.02413), without their randomisation. For a declared `aim` every
group's threshold is chosen so that a rate is the same for all groups:

    equal_sensitivity              the true positive rate
    equal_false_positive_rate      the false positive rate
    equalized_odds                 both as nearly as one threshold a group can

at every level of the rate at once, which gives each group an increasing map of its scores to one scale
(`equipoise.common.alignment`). The study's rule then chooses one threshold on that scale, as for every other model.

What leaves a hospital is one table, patients by group, label and score bin, of training patients. It is a sum, and its
private form is the same table with noise: the whole budget of the training patients goes into it.

**The attribute is needed at use**: whoever flags a patient must know the group, and treats patients of equal scores
unequally because of it. Whether that is allowed and wanted is not for a program to say, so the study has to say
`allow_group_thresholds: true`. Equal rates over all hospitals are not equal rates within one: where groups and
hospitals are mixed, the gap at a fixed site mix may turn round (docs/methods.md). Within a group the AUC stays; over
all patients it can fall, since the information in the attribute is taken out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import expit

from equipoise.common import catalogue
from equipoise.common.alignment import Alignment, increasing
from equipoise.common.classifier import Classifier
from equipoise.common.config import Strict, validate
from equipoise.common.errors import DataError, StudyError
from equipoise.common.fairness.estimate import MINIMUM_PATIENTS
from equipoise.common.fairness.noise import needed, projected
from equipoise.common.fairness.tables import Counts, hybrid_edges, quantile_edges
from equipoise.common.methods.method import Method, Outcome, Steps, plain_and_balanced
from equipoise.common.pool import Pool, network_of
from equipoise.common.query import Query
from equipoise.common.study import Study

Floats = NDArray[np.float64]
Aim = Literal["equal_sensitivity", "equal_false_positive_rate", "equalized_odds"]
LEVELS = np.linspace(0.05, 0.95, 19)  # of the rate that the aim is about
GRID = np.linspace(0.0, 1.0, 101)  # of false positive rates, where both rates are aimed at
THRESHOLDS = 401

WARNING = (
    "Each group has a threshold of its own: the patient's {attribute} must be known at use, and patients of equal "
    "scores are treated unequally because of it. This is an operating point; the model is the one that was delivered."
)


class GroupThresholds(Strict):
    """Parameters of group thresholds."""

    aim: Aim = "equal_sensitivity"
    allow_group_thresholds: bool = False
    bins: int = Field(default=32, ge=8, le=1024)  # of the noisy histogram; without noise those of the evaluation


def plan(study: Study, model: Classifier) -> list[Query]:
    """One histogram.

    Raises:
        StudyError: the study does not allow thresholds by group.
    """
    p = _parameters(study)
    if not p.allow_group_thresholds:
        raise StudyError(
            "method.name=group_thresholds: patients of equal scores are treated unequally by their group, and "
            f"{study.primary.name} must be known at use; if that is wanted, set method.allow_group_thresholds: true "
            "(or --allow-group-thresholds)"
        )
    return [_histogram(study, p)]


def run(study: Study, model: Classifier) -> Steps:
    """The histogram, and from it every group's map."""
    p = _parameters(study)
    edges = hybrid_edges(None, study.score_bins)
    if study.privacy.private:
        scores = Pool.of(study).scores(network_of(study, model)).numpy()
        edges = positive_edges(scores, p.bins)
    total = yield _histogram(study, p).with_inputs(**model.inputs(), edges={"edges": edges})
    hist = total.count(study.primary.name)
    alignment, left_out = align(hist, edges, p.aim, total.noise_variance, study.primary.groups)
    rows = [
        [f"{level:.2f}", f"{common:.2f}", *(f"{x:.2f}" for x in column)]
        for level, common, column in zip(LEVELS[::-1], alignment.common, alignment.of_group[:-1].T, strict=True)
    ]
    rate = "false positive rate" if p.aim == "equal_false_positive_rate" else "true positive rate"
    facts = {
        "title": f"Thresholds by group (logits), aim {p.aim}",
        "columns": [f"{rate} aimed at", "common scale", *study.primary.groups],
        "rows": rows,
    }
    warnings = [WARNING.format(attribute=study.primary.name), *left_out]
    notes = {"facts": [facts], "warnings": warnings, "alignment": alignment.to_json()}
    return Outcome(model.aligned(alignment), notes)


def align(hist: Counts, edges: Floats, aim: Aim, noise: float, names: tuple[str, ...]) -> tuple[Alignment, list[str]]:
    """Every group's map, and a sentence for each group that has too few patients and keeps its scores.

    Args:
        hist: (G + 1, 2, B) patients, `unknown` last; may carry noise of variance `noise` in each cell.
        edges: (B - 1,).
        names: the declared groups.

    Raises:
        DataError: all patients together are too few.
    """
    labels = {"equal_sensitivity": [1], "equal_false_positive_rate": [0], "equalized_odds": [0, 1]}[aim]
    groups, _, bins = hist.shape
    pooled = hist.sum(axis=0)
    if pooled[labels].sum(axis=-1).min() < needed(MINIMUM_PATIENTS, noise * bins * groups):
        raise DataError("group_thresholds: too few training patients of a label over all sites to choose a threshold")
    least = needed(MINIMUM_PATIENTS, noise * bins)
    counted = hist[:-1, labels].sum(axis=-1).min(axis=-1)
    aligned = [g for g in range(groups - 1) if counted[g] >= least]
    curves = {g: [Curve.of(hist[g, y], edges) for y in (0, 1)] for g in aligned}
    reference = Curve.of(pooled[labels[-1]], edges).thresholds(LEVELS)
    own = {g: curves[g][labels[-1]].thresholds(LEVELS) for g in aligned}
    if aim == "equalized_odds":
        own = _both_rates(curves, edges)
    common = increasing(reference[::-1])
    rows = [increasing(own[g][::-1]) if g in own else common for g in range(groups - 1)]
    left_out = [
        f"{name} keeps the common threshold: {int(counted[g])} patients of a label, {least} needed."
        for g, name in enumerate(names)
        if g not in own
    ]
    return Alignment.checked(common, np.stack([*rows, common])), left_out


def _both_rates(curves: dict[int, list[Curve]], edges: Floats) -> dict[int, Floats]:
    """For each level of sensitivity the thresholds whose rates are nearest to one point for all groups.

    Near is |true positive rate - level| + |false positive rate - f|, summed over the groups, with the best f. For two
    groups no pair of thresholds around that level has a smaller sum of the two gaps.
    """
    grid = np.linspace(edges[0], edges[-1], THRESHOLDS)
    rates = {g: (negative.share(grid), positive.share(grid)) for g, (negative, positive) in curves.items()}
    found: dict[int, list[float]] = {g: [] for g in curves}
    for level in LEVELS:
        off = {g: np.abs(tpr - level)[:, None] + np.abs(fpr[:, None] - GRID) for g, (fpr, tpr) in rates.items()}
        best = int(np.argmin(sum(distance.min(axis=0) for distance in off.values()))) if off else 0
        for g, distance in off.items():
            found[g].append(float(grid[int(np.argmin(distance[:, best]))]))
    return {g: np.array(thresholds) for g, thresholds in found.items()}


@dataclass(frozen=True)
class Curve:
    """The share of patients at or above a threshold, a falling function of it.

    Noise is projected onto non-negative counts of the same sum; within a bin patients are taken to lie evenly. The two
    outer bins have no end: they are given the width of their neighbours.

    Attributes:
        ends: (B + 1,) ends of the bins.
        above: (B + 1,) share at or above each end: 1 at the first, 0 at the last.
    """

    ends: Floats
    above: Floats

    @classmethod
    def of(cls, counts: Counts, edges: Floats) -> Curve:
        """From (B,) patients and (B - 1,) inner edges."""
        kept = projected(counts, np.maximum(counts.sum(), 0))
        widths = np.diff(edges)
        ends = np.concatenate([[edges[0] - widths[0]], edges, [edges[-1] + widths[-1]]])
        return cls(ends, np.concatenate([np.cumsum(kept[::-1])[::-1], [0.0]]) / max(float(kept.sum()), 1e-12))

    def share(self, thresholds: Floats) -> Floats:
        """At or above each threshold."""
        return np.asarray(np.interp(thresholds, self.ends, self.above))

    def thresholds(self, shares: Floats) -> Floats:
        """The threshold with each share above it."""
        # Empty bins make the curve flat; a slope that no patient could show gives it one inverse.
        rising = self.above[::-1] + 1e-12 * np.arange(len(self.above))
        return np.asarray(np.interp(shares, rising, self.ends[::-1]))


def positive_edges(scores: Floats, bins: int) -> Floats:
    """Edges of a private histogram: half at quantiles of the pool's scores, half at quantiles weighted by the score.

    Thresholds are needed where the diseased are, who are few in a pool without labels.
    """
    falling = np.sort(scores)
    weights = np.cumsum(expit(falling))
    shares = np.arange(1, bins // 2 + 1) / (bins // 2 + 1)
    weighted = np.interp(shares * weights[-1], weights, falling)
    return quantile_edges(np.concatenate([np.quantile(falling, shares), weighted]), bins)


def _histogram(study: Study, p: GroupThresholds) -> Query:
    return catalogue.score_histogram(study, "train", "base", p.bins if study.privacy.private else None)


def _parameters(study: Study) -> GroupThresholds:
    return validate(GroupThresholds, study.method.parameters, "method")


METHOD = Method(
    name="group_thresholds",
    title="a threshold for each group from one score histogram; an operating point that needs the attribute at use",
    paper="Hardt, Price & Srebro, NeurIPS 2016, arXiv:1610.02413; from one private histogram",
    travels="one table: training patients by group, label and score bin",
    costs="one pass over the training patients; nothing is trained",
    private="the same table with noise",
    parameters=GroupThresholds,
    plan=plan,
    run=run,
    tuned={},  # nothing is trained
    controls=plain_and_balanced(lambda study, loss: study.with_method("fine_tune", loss=loss)),
)
