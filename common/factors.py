"""A weight matrix as the product of two thin ones, nearest to it where rows weigh differently.

    min over A (m, r), B (r, n) of  sum_i d_i^2 |W_i - (A B)_i|^2
    is solved by  D W = U S V^T,  A = D^-1 U_r S_r,  B = V_r^T

with D = diag(d) (weighted low-rank approximation with row weights, as in FWSVD, Hsu et al., ICLR 2022,
arXiv:2207.00112). What is left is the sum of the squares of the singular values beyond r, and no other product of rank
r leaves less. B has orthonormal rows, so a change of A is a change of A B of the same size.

>>> pair = factorise(np.diag([3.0, 2.0, 1.0]), np.ones(3), 2)
>>> pair.dense((3, 3)).round(12).diagonal().tolist()
[3.0, 2.0, 0.0]
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Factored:
    """A weight as left @ right.

    Attributes:
        left: A, (m, r).
        right: B, (r, n), with orthonormal rows.
    """

    left: NDArray[np.floating]
    right: NDArray[np.floating]

    @property
    def rank(self) -> int:
        """r."""
        return int(self.right.shape[0])

    def dense(self, shape: tuple[int, ...]) -> Vector:
        """The product in float64, in the weight's own shape (m, ...)."""
        product: Vector = self.left.astype(np.float64) @ self.right.astype(np.float64)
        return product.reshape(shape)

    def nearest(self, weight: NDArray[np.floating]) -> NDArray[np.float64]:
        """The left factor whose product is nearest to `weight` (m, ...), (m, r)."""
        flat: Vector = weight.reshape(len(weight), -1).astype(np.float64) @ self.right.astype(np.float64).T
        return flat


def singular(weight: NDArray[np.floating], rows: Vector) -> tuple[Vector, Vector, Vector]:
    """U (m, k), S (k,) and V^T (k, n) of D W, for a weight (m, ...) and row weights d (m,) above 0."""
    u, s, vt = np.linalg.svd(rows[:, None] * weight.reshape(len(weight), -1).astype(np.float64), full_matrices=False)
    return u, s, vt


def factorise(weight: NDArray[np.floating], rows: Vector, rank: int) -> Factored:
    """The nearest product of a rank.

    Args:
        weight: W, (m, ...); axes after the first count as one.
        rows: d, (m,) above 0.
        rank: r, at least 1 and at most min(m, n).
    """
    u, s, vt = singular(weight, rows)
    # Singular vectors have no sign of their own; the largest entry of each is made positive, so that a run repeats.
    largest = np.abs(vt).argmax(axis=1)
    signs = np.where(vt[np.arange(len(vt)), largest] < 0, -1.0, 1.0)
    left = (u * signs)[:, :rank] * s[:rank] / rows[:, None]
    return Factored(left, (vt * signs[:, None])[:rank])


def rank_for(weight: NDArray[np.floating], rows: Vector, energy: float) -> int:
    """The smallest rank that keeps at least a share `energy` of the weighted squares of W."""
    kept = np.cumsum(singular(weight, rows)[1] ** 2)
    return int(np.searchsorted(kept, energy * kept[-1] * (1 - 1e-12)) + 1)


def break_even(shape: tuple[int, ...]) -> int:
    """The largest rank at which two factors hold fewer numbers than the matrix: r (m + n) < m n; 0 where none does."""
    m, n = shape[0], math.prod(shape[1:])
    return (m * n - 1) // (m + n)
