"""Integer tables of patients, the score bins under them, and what adds up over sites.

A bin is half-open: bin b holds the scores with edges[b-1] <= score < edges[b], so a score that equals an edge lies
above it and, with that edge as the threshold, counts as positive (>=, everywhere in this project). Bins lie on the
logit, since probabilities saturate and lose the order of confident scores.

Design note: edges are half quantiles and half linear on +-20. Quantiles alone break when the fine-tuned model's scores
leave the reference's range; equal bins of the probability are unsafe for rare or overconfident scores (evaluation
specification 2.2, measured). Edges must not come from test scores: pass the scores of a public or synthetic reference,
or None for the quantiles of the standard logistic distribution (equal steps of the probability).

>>> bin_scores(np.array([-1.0, 0.0, 3.0]), np.array([0.0, 2.0]))
array([0, 1, 2])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from equipoise.common.errors import DataError, ModelError

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Table = Counts | Floats  # float where a table is expected, anchored or projected counts
T = TypeVar("T", bound=np.generic)

DEFAULT_BINS = 1024
LINEAR_RANGE = 20.0  # logit; a float32 sigmoid is 1 from about 17 on
UNKNOWN_NAME = "unknown"


def hybrid_edges(reference_logits: Floats | None, bins: int = DEFAULT_BINS) -> Floats:
    """The `bins - 1` strictly increasing inner edges of `bins` score bins, on the logit.

    Args:
        reference_logits: any shape, scores of a public or synthetic reference; None for the logistic distribution.
        bins: number of bins, at least 8.

    Returns:
        (bins - 1,) float64, each exactly a float32 (so that every float32 score compares alike everywhere). 0, the
        threshold of probability 0.5, and -20 and +20 are always among them.

    Raises:
        ValueError: fewer than 8 bins, or a reference that is empty or not finite.
    """
    if bins < 8:
        raise ValueError(f"bins={bins}: expected at least 8")
    count = bins - 1
    linear = np.linspace(-LINEAR_RANGE, LINEAR_RANGE, (count // 2) | 1)  # an odd number, so that 0 is an edge
    shares = np.arange(1, count - linear.size + 1) / (count - linear.size + 1)
    if reference_logits is None:
        quantiles = np.log(shares / (1 - shares))
    else:
        reference = np.asarray(reference_logits, dtype=np.float64).ravel()
        if reference.size == 0 or not np.isfinite(reference).all():
            raise ValueError("reference_logits: expected at least one score, all finite")
        quantiles = np.quantile(reference, shares)
    edges = np.unique(np.concatenate([linear, quantiles]).astype(np.float32))
    while edges.size < count:
        # Tied quantiles (a reference with few distinct scores) leave edges over: halve the widest gaps instead.
        gaps = np.diff(edges)
        widest = np.sort(np.argsort(-gaps, kind="stable")[: count - edges.size])
        edges = np.unique(np.concatenate([edges, (edges[widest] + gaps[widest] / 2).astype(np.float32)]))
    return edges.astype(np.float64)


def quantile_edges(reference_logits: Floats, bins: int) -> Floats:
    """`bins - 1` strictly increasing inner edges at the quantiles of a reference, 0 (probability 0.5) among them.

    For few bins under noise, where each has to hold patients (evaluation specification 0.6). Every edge is exactly a
    float32.

    Args:
        reference_logits: any shape, scores of public rows.
        bins: at least 2.

    Raises:
        ValueError: fewer than 2 bins, or a reference that is empty or not finite.
    """
    reference = np.asarray(reference_logits, dtype=np.float64).ravel()
    if bins < 2 or reference.size == 0 or not np.isfinite(reference).all():
        raise ValueError(f"bins={bins}, {reference.size} reference scores: expected 2 bins or more, finite scores")
    edges = np.quantile(reference, np.arange(1, bins) / bins).astype(np.float32)
    edges[np.argmin(np.abs(edges))] = 0.0
    # Tied quantiles (few distinct scores) leave edges over: they go on above the largest.
    edges = np.unique(edges)
    missing = bins - 1 - len(edges)
    return np.concatenate([edges, edges[-1] + np.arange(1, missing + 1, dtype=np.float32)]).astype(np.float64)


def bin_scores(logits: NDArray[np.floating], edges: Floats) -> Counts:
    """The bin of each score: shape of `logits`, int64 in 0..len(edges).

    Args:
        logits: any shape.
        edges: (L,), strictly increasing. They may come from a server, and a search among edges in any other order
            starts where the score before it ended: one patient would move all who come after.

    Raises:
        ModelError: the edges are not finite or do not increase; found before a score is looked at.
        DataError: a score is not finite; says how many.
    """
    rising = np.asarray(edges, dtype=np.float64)
    if rising.ndim != 1 or not np.isfinite(rising).all() or (np.diff(rising) <= 0).any():
        raise ModelError("edges of score bins: they have to be finite and to increase")
    scores = np.asarray(logits, dtype=np.float64)
    broken = int((~np.isfinite(scores)).sum())
    if broken:
        raise DataError(f"scores: {broken} of {scores.size} are NaN or infinite; check the model and its inputs")
    return np.searchsorted(rising, scores, side="right").astype(np.int64)


def decide(logits: NDArray[np.floating], threshold: float) -> NDArray[np.bool_]:
    """Positive decisions: score >= threshold, both on the logit, compared in float64."""
    positive: NDArray[np.bool_] = np.asarray(logits, dtype=np.float64) >= threshold
    return positive


def histogram(bins: Counts, label: Counts, group: Counts, groups: int, bin_count: int) -> Counts:
    """hist[g, y, bin] of one site's patients.

    Args:
        bins, label, group: (n,) integers, one entry a patient; n may be 0.
        groups: number of groups, `unknown` included.
        bin_count: number of bins.
    """
    return count_cells((group, label, bins), (groups, 2, bin_count))


def pair_table(
    before: NDArray[np.bool_], after: NDArray[np.bool_], label: Counts, group: Counts, groups: int
) -> Counts:
    """pair[g, y, before, after] of one site's patients at one operating point; arrays are (n,)."""
    return count_cells((group, label, before, after), (groups, 2, 2, 2))


def count_cells(indices: Sequence[NDArray[np.generic]], shape: tuple[int, ...]) -> Counts:
    """Patients by their indices, one array (n,) for each axis of the table; n may be 0.

    Raises:
        ValueError: an index lies outside the table.
    """
    columns = tuple(np.asarray(index).astype(np.int64) for index in indices)
    if any(
        column.size and (column.min() < 0 or column.max() >= size) for column, size in zip(columns, shape, strict=True)
    ):
        raise ValueError(f"an index lies outside the table's shape {shape}")
    flat = np.ravel_multi_index(columns, shape)
    return np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape).astype(np.int64)


def counts_before(pair: NDArray[T]) -> NDArray[T]:
    """counts[..., g, y, decision] of the model before: the margin of pair[..., g, y, before, after]."""
    total: NDArray[T] = pair.sum(axis=-1)
    return total


def counts_after(pair: NDArray[T]) -> NDArray[T]:
    """counts[..., g, y, decision] of the model after."""
    total: NDArray[T] = pair.sum(axis=-2)
    return total


def counts_at(hist: NDArray[T], edge: int) -> NDArray[T]:
    """counts[g, y, decision] of a histogram with the threshold at edges[edge]; exact, because bins end at edges."""
    positive = hist[:, :, edge + 1 :].sum(axis=-1)
    return np.stack([hist.sum(axis=-1) - positive, positive], axis=-1)


def counts_at_every_edge(hist: NDArray[T]) -> NDArray[T]:
    """counts[edge, g, y, decision] for all edges: the ROC curve, and gaps against the threshold."""
    total = hist.sum(axis=-1, keepdims=True)
    positive = total - np.cumsum(hist, axis=-1)[:, :, :-1]
    return np.moveaxis(np.stack([total - positive, positive], axis=-1), 2, 0)


def group_names(groups: int, names: Sequence[str] | None) -> tuple[str, ...]:
    """Names for `groups` rows, `unknown` last; `names` are the declared ones, without it.

    Raises:
        ValueError: the table has another number of rows than the attribute declares.
    """
    given = tuple(names) if names is not None else tuple(f"group {g}" for g in range(groups - 1))
    if len(given) != groups - 1:
        raise ValueError(f"a table of {groups} rows (unknown included) for the {len(given)} declared groups {given}")
    return (*given, UNKNOWN_NAME)
