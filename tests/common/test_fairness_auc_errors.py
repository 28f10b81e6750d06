"""Errors of two AUCs: even draws, Wilson's limits at the end of the scale, losses that are not understated."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from equipoise.common.fairness.auc import placement_sums, placements_of_bins
from equipoise.common.fairness.auc_change import auc_change_by_group, worst_group_auc_change
from equipoise.common.fairness.auc_errors import correlated, noise_errors, normal_pairs, sampling_errors
from equipoise.common.fairness.estimate import Estimate
from equipoise.common.fairness.tables import bin_scores, histogram, hybrid_edges
from tests.interval import interval

EDGES = hybrid_edges(None, 1024)


def change(positives: int, negatives: int, before: float, after: float, rng: np.random.Generator) -> list[Estimate]:
    """A group's AUC change, and the worst group's beside a group three times as large of AUC .995."""
    sizes = [positives, negatives, 3 * positives, 3 * negatives]
    label, group = np.repeat([1, 0, 1, 0], sizes), np.repeat([0, 0, 1, 1], sizes)
    distance = np.sqrt(2) * norm.ppf(np.array([[before, 0.995], [after, 0.995]])[:, group]) * label
    first, other = rng.normal(size=(2, len(label)))
    scores = distance + np.stack([first, 0.95 * first + (1 - 0.95**2) ** 0.5 * other])
    bins = [bin_scores(2 * part, EDGES) for part in scores]
    hists = [histogram(part, label, group, 3, 1024) for part in bins]
    placed = [placements_of_bins(hist)[group, label, part] for hist, part in zip(hists, bins, strict=True)]
    sums = placement_sums(*placed, label, group, 3)
    return [auc_change_by_group(*hists, sums=sums)[0], worst_group_auc_change(*hists, sums=sums)]


def test_a_loss_near_1_is_not_understated() -> None:
    # Normal limits on the raw scale: in .10 of draws the true change lies below them (20 and 80), .07 (50 and 200).
    rng, repeats = np.random.default_rng(0), 300
    for sizes in ((20, 80), (50, 200)):
        found = np.array([[interval(e) for e in change(*sizes, 0.97, 0.94, rng)] for _ in range(repeats)], dtype=float)
        below, above = (found[..., 0] > -0.03).mean(axis=0), (found[..., 1] < -0.03).mean(axis=0)
        assert (below <= 0.05).all()
        assert (below + above <= 0.07).all()


def test_the_limits_of_one_auc_are_farther_below_where_it_is_near_1() -> None:
    errors = sampling_errors(0.97, 0.015, 25.0, 20.0, normal_pairs()[0], 1.96)
    low, high = np.quantile(errors, [0.025, 0.975])  # estimate less truth
    assert high > 1.5 * -low
    assert np.allclose(sampling_errors(0.03, 0.015, 25.0, 20.0, -normal_pairs()[0], 1.96), -errors)


def test_separated_classes_have_wilsons_limit() -> None:
    errors = sampling_errors(1.0, 0.0, 19.0, 20.0, np.array([-1.96, 0.0, 1.96]), 1.96)
    assert errors == pytest.approx([1.96**2 / (20 + 1.96**2), 0.0, 0.0])


def test_the_draws_lie_evenly_and_have_their_correlation() -> None:
    pairs = normal_pairs()
    assert pairs.mean(axis=1) == pytest.approx([0.0, 0.0], abs=1e-3)
    for angle in (0.0, 0.4, 1.2, 2.3):
        turned = np.cos(angle) * pairs[0] + np.sin(angle) * pairs[1]
        assert np.quantile(turned, [0.025, 0.5, 0.975]) == pytest.approx([-1.96, 0.0, 1.96], abs=0.02)
    assert np.corrcoef(correlated(pairs, 0.8))[0, 1] == pytest.approx(0.8, abs=0.005)
    added = np.array([[4.0, 1.5], [1.5, 1.0]])
    assert np.cov(noise_errors(added)) == pytest.approx(added, rel=0.02)
