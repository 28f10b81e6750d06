"""Score bins and integer tables: half-open bins, >= decisions, and sums over sites that equal the pooled table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.common.errors import DataError, ModelError
from equipoise.common.fairness.tables import (
    bin_scores,
    counts_after,
    counts_at,
    counts_at_every_edge,
    counts_before,
    decide,
    group_names,
    histogram,
    hybrid_edges,
    pair_table,
)


@pytest.mark.parametrize("bins", [8, 9, 16, 255, 1024, 4096])
@pytest.mark.parametrize("reference", [None, np.zeros(50), np.random.default_rng(0).normal(2, 0.1, 500)])
def test_edges_are_exactly_bins_minus_one_increasing_float32_and_hold_zero(
    bins: int, reference: np.ndarray | None
) -> None:
    edges = hybrid_edges(reference, bins)
    assert edges.shape == (bins - 1,)
    assert (np.diff(edges) > 0).all()
    assert (edges == edges.astype(np.float32)).all()
    assert edges[0] == -20
    assert edges[-1] == 20
    assert 0.0 in edges


def test_half_of_the_edges_follow_the_reference() -> None:
    reference = np.random.default_rng(1).normal(-6, 0.5, 20_000)
    edges = hybrid_edges(reference, 1024)
    inside = ((edges > -7.5) & (edges < -4.5)).sum()
    assert inside > 500
    assert ((hybrid_edges(None, 1024) > -7.5) & (hybrid_edges(None, 1024) < -4.5)).sum() < 60


def test_a_reference_with_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        hybrid_edges(np.array([0.0, np.nan]), 16)


def test_a_score_on_an_edge_lies_above_it_and_is_positive() -> None:
    edges = np.array([-1.0, 0.0, 1.0])
    scores = np.array([-1.0, -0.1, 0.0, 1.0, 9.0, -9.0])
    assert bin_scores(scores, edges).tolist() == [1, 1, 2, 3, 3, 0]
    assert decide(scores, 0.0).tolist() == [False, False, True, True, True, False]


def test_broken_scores_are_counted_in_the_error() -> None:
    with pytest.raises(DataError, match=r"2 of 3 are NaN or infinite"):
        bin_scores(np.array([0.0, np.nan, np.inf]), np.array([0.0]))


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 60), bins=st.sampled_from([8, 31, 64]))
@settings(max_examples=60, deadline=None)
def test_counts_at_an_edge_equal_decisions_at_that_threshold(seed: int, n: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    edges = hybrid_edges(None, bins)
    # Scores sit on edges as often as between them.
    scores = np.where(rng.random(n) < 0.5, rng.choice(edges, n), rng.normal(0, 3, n))
    label, group = rng.integers(0, 2, n), rng.integers(0, 4, n)
    hist = histogram(bin_scores(scores, edges), label, group, 4, bins)
    every = counts_at_every_edge(hist)
    for edge in (0, bins // 2, bins - 2):
        decided = decide(scores, edges[edge]).astype(int)
        direct = np.zeros((4, 2, 2), dtype=np.int64)
        np.add.at(direct, (group, label, decided), 1)
        assert (counts_at(hist, edge) == direct).all()
        assert (every[edge] == direct).all()


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 80), sites=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_tables_of_any_partition_add_up_to_the_pooled_table(seed: int, n: int, sites: int) -> None:
    rng = np.random.default_rng(seed)
    edges = hybrid_edges(None, 32)
    before, after = rng.normal(0, 2, n), rng.normal(0, 2, n)
    label, group = rng.integers(0, 2, n), rng.choice([0, 1, 4], n)  # groups 2 and 3 are empty, 4 is unknown
    site = rng.integers(0, sites, n)  # some sites are empty, some hold one patient

    def tables(members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y, g = label[members], group[members]
        return (
            histogram(bin_scores(after[members], edges), y, g, 5, 32),
            pair_table(decide(before[members], 0.0), decide(after[members], 0.5), y, g, 5),
        )

    pooled = tables(np.ones(n, dtype=bool))
    order = rng.permutation(sites)
    summed = [sum(parts) for parts in zip(*(tables(site == k) for k in order), strict=True)]
    for one, other in zip(pooled, summed, strict=True):
        assert one.dtype == np.int64
        assert (one == other).all()
        assert one.sum() == n


def test_margins_of_the_pair_table_are_each_models_counts() -> None:
    pair = np.arange(16).reshape(2, 2, 2, 2)
    assert counts_before(pair)[0, 0].tolist() == [0 + 1, 2 + 3]
    assert counts_after(pair)[0, 0].tolist() == [0 + 2, 1 + 3]


def test_an_index_outside_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="outside the table"):
        histogram(np.array([8]), np.array([0]), np.array([0]), 2, 8)
    with pytest.raises(ValueError, match="outside the table"):
        histogram(np.array([0]), np.array([0]), np.array([-1]), 2, 8)


def test_names_must_fit_the_table() -> None:
    assert group_names(3, ["a", "b"]) == ("a", "b", "unknown")
    with pytest.raises(ValueError, match="unknown included"):
        group_names(2, ["a", "b"])


@pytest.mark.parametrize(
    "edges",
    [
        np.array([0.0, 2.0, 1.0]),
        np.array([0.0, 0.0, 1.0]),
        np.array([0.0, np.nan, 1.0]),
        np.array([-np.inf, 0.0, 1.0]),
        np.array([2, 1, 0], dtype=np.uint8),
        np.zeros((2, 2)),
    ],
)
def test_edges_among_which_a_search_would_remember_are_refused_before_a_score_is_looked_at(edges: np.ndarray) -> None:
    for scores in (np.zeros(0), np.zeros(5), np.array([np.nan])):
        with pytest.raises(ModelError, match="increase"):
            bin_scores(scores, edges)
