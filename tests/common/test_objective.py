"""Objectives from summed histograms: by hand, against scikit-learn, over partitions, under noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from equipoise.common.fairness.tables import bin_scores, histogram, hybrid_edges
from equipoise.common.objective import (
    Objective,
    accuracy_of,
    auc_noise,
    auc_of,
    bin_logits,
    loss_of,
)

EDGES = np.array([-1.0, 0.0, 1.0])
# Bins below -1, to 0, to 1, above; label 0 first.
BY_HAND = np.array([[2.0, 1, 1, 0], [0, 1, 1, 2]])


def drawn(seed: int, n: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label, group = rng.integers(0, 2, n), rng.integers(0, 3, n)
    return rng.normal(1.5 * label - 0.4 * group, 1.0), label, group


def test_auc_accuracy_and_loss_by_hand() -> None:
    # Pairs of 4 x 4: label-1 patients in bins 1, 2, 3, 3 beat 2.5, 3.5, 4 and 4 of the four others.
    assert auc_of(BY_HAND) == pytest.approx((2.5 + 3.5 + 4 + 4) / 16)
    assert accuracy_of(BY_HAND, EDGES) == pytest.approx(6 / 8)
    assert bin_logits(EDGES).tolist() == [-1.0, -0.5, 0.5, 1.0]
    expected = sum(np.log1p(np.exp(z)) for z in (-1, -1, -0.5, 0.5)) + sum(
        np.log1p(np.exp(-z)) for z in (-0.5, 0.5, 1, 1)
    )
    assert loss_of(BY_HAND, EDGES) == pytest.approx(expected / 8)


def test_they_are_those_of_the_scores() -> None:
    z, label, _ = drawn(0, 3000)
    edges = hybrid_edges(None, 1024)
    counts = histogram(bin_scores(z, edges), label, np.zeros_like(label), 1, 1024)[0].astype(float)
    assert auc_of(counts) == pytest.approx(roc_auc_score(label, z), abs=1e-3)
    assert loss_of(counts, edges) == pytest.approx(log_loss(label, 1 / (1 + np.exp(-z))), abs=1e-3)
    assert accuracy_of(counts, edges) == pytest.approx(((z >= 0) == label).mean())


def test_a_federated_value_is_the_pooled_one_and_no_mean_of_sites() -> None:
    # Sites that lack a group or a class; a mean of their own AUCs is undefined there.
    z, label, group = drawn(1)
    edges = hybrid_edges(None, 256)
    bins = bin_scores(z, edges)
    whole = histogram(bins, label, group, 3, 256)
    parts = [(group == 0) & (label == 0), (group == 0) & (label == 1), group == 1, group == 2]
    summed = sum((histogram(bins[m], label[m], group[m], 3, 256) for m in parts), np.zeros_like(whole))
    for name in ("worst_group_auc", "largest_group_loss", "worst_group_accuracy", "auc_gap", "auc", "accuracy"):
        objective = Objective.of(name, whole.astype(float), 10)
        assert objective.name == name
        value = objective.value(summed.astype(float), edges)
        assert value == objective.value(whole.astype(float), edges)
        assert np.isfinite(value)


def test_group_objectives_by_hand() -> None:
    good = np.array([[4.0, 0, 0, 0], [0, 0, 0, 4]])
    table = np.stack([BY_HAND, good, np.zeros((2, 4))])
    assert Objective.of("worst_group_auc", table, 4).value(table, EDGES) == pytest.approx(14 / 16)
    assert Objective.of("auc_gap", table, 4).value(table, EDGES) == pytest.approx(14 / 16 - 1)
    assert Objective.of("worst_group_accuracy", table, 4).value(table, EDGES) == pytest.approx(6 / 8)
    assert Objective.of("accuracy_gap", table, 4).value(table, EDGES) == pytest.approx(6 / 8 - 1)
    assert Objective.of("largest_group_loss", table, 4).value(table, EDGES) == pytest.approx(-loss_of(BY_HAND, EDGES))
    assert Objective.of("auc_gap", table, 4).auc_within == 0.01
    assert Objective.of("worst_group_auc", table, 4).auc_within is None


def test_the_worst_group_is_not_the_mean_over_groups_nor_weighted_by_size() -> None:
    small = np.array([[0.0, 2, 0, 0], [2, 0, 0, 0]])  # every pair ranked wrong
    table = np.stack([100 * np.array([[4.0, 0, 0, 0], [0, 0, 0, 4]]), small, np.zeros((2, 4))])
    assert Objective.of("worst_group_auc", table, 2).value(table, EDGES) == 0.0


def test_groups_too_small_for_an_auc_fall_back_to_the_loss_which_never_is_nan() -> None:
    # The public code's guard against NaN does nothing: one batch in which a group has a single class breaks a trial.
    table = np.stack([BY_HAND, np.array([[9.0, 0, 0, 0], [0, 0, 0, 1]]), np.zeros((2, 4))])
    objective = Objective.of("worst_group_auc", table, 2)
    assert (objective.name, objective.wanted, objective.groups) == ("largest_group_loss", "worst_group_auc", (0, 1))
    one_class = np.stack([BY_HAND, np.array([[9.0, 0, 0, 0], [0, 0, 0, 0]]), np.zeros((2, 4))])
    assert np.isfinite(objective.value(one_class, EDGES))
    assert auc_of(one_class[1]) == 0.5
    assert Objective.of("worst_group_auc", 0 * table, 2).value(0 * table, EDGES) == 0.0


def test_a_third_small_group_is_left_out() -> None:
    table = np.stack([BY_HAND, BY_HAND, np.array([[1.0, 0, 0, 0], [0, 0, 0, 0]]), np.zeros((2, 4))])
    assert Objective.of("worst_group_auc", table, 4).groups == (0, 1)


@settings(max_examples=50)
@given(st.integers(0, 10**6))
def test_noisy_tables_give_values_in_range(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.normal(0, 20, (3, 2, 4))
    for name in ("worst_group_auc", "largest_group_loss", "worst_group_accuracy", "auc"):
        objective = Objective.of(name, table, 5)
        value = objective.value(table, EDGES)
        assert np.isfinite(value)
        assert value <= 0 if objective.name == "largest_group_loss" else 0 <= value <= 1


def test_the_noise_of_an_auc_is_foretold() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([[300.0, 200, 100, 50], [40, 80, 120, 160]])
    found = [auc_of(counts + rng.normal(0, 6, counts.shape)) for _ in range(4000)]
    assert np.mean(found) == pytest.approx(auc_of(counts), abs=0.002)
    assert np.std(found) == pytest.approx(auc_noise(counts, 36.0), rel=0.06)
    assert auc_noise(counts, 0.0) == 0.0
