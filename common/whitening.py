"""Whitened directions and a clip bound for private rounds, from unlabelled public images alone.

Noise of one size falls on every direction, so directions are scaled until the loss bends alike in all of them. How it
bends, the Gauss-Newton matrix M of the mean cross-entropy, needs no labels: M = J^T diag(p (1 - p)) J / n, with J the
gradients of the pool's logits (Schraudolph 2002, Neural Computation 14(7)). With M = U diag(l) U^T the basis is
V = U_k (l + damp * l_1)^(-1/2), and theta = V u.

>>> logits, gradients = pool_gradients(space, model, torch.split(images, 64))
>>> whitening = whiten(logits, gradients, directions=32, damp=0.1)
>>> check = check_pool(images, logits, gradients, len(whitening.basis.T))

Nothing here touches a patient of a site. A pool that fits badly costs usefulness and never privacy: each contribution
is clipped to the bound whatever the basis is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor, nn

from equipoise.common.errors import DataError
from equipoise.common.space import Space

Vector = NDArray[np.float64]

SHRINK = 0.9  # of p towards 0.5, so that a pool on which the model is certain still says how the loss bends
CLIP_PERCENTILE = 60.0
IMAGES_PER_DIRECTION = 4
LEAST_DIFFERENCE = 0.1  # measured: photographs 0.20 to 0.39, smooth noise 0.02 to 0.06, white noise at most 0.01
CONSTANT_SD = 0.02  # of a normalised image's values, in which one 8-bit step is 0.016
MOST_CONSTANT = 0.05
NULL = 1e-12  # eigenvalues below this share of the largest are rounding

CANNOT_SEE = (
    "The check has no labels and no groups: it cannot see that the pool lacks skin tones, sexes, ages, devices or "
    "diseased patients of the study, nor that its images are varied copies (crops, flips, added noise) of a few."
)


@dataclass(frozen=True)
class Whitening:
    """Directions in which the rounds move, and how far one patient may pull.

    Attributes:
        basis: V, (D, k) float64; theta = V u.
        clip: C, the L2 bound of one patient's gradient in these directions.
    """

    basis: Vector
    clip: float

    @property
    def directions(self) -> int:
        """k."""
        return int(self.basis.shape[1])


def pool_gradients(space: Space, model: nn.Module, batches: Iterable[Tensor]) -> tuple[Vector, Vector]:
    """Logits (n,) and gradients J (n, D) of the pool, float64.

    Args:
        batches: normalised inputs, (m, ...) each. The first rows also serve to compare with autograd.

    Raises:
        DataError: the pool is empty, or a gradient is not finite.
        ModelError: single rows' gradients do not add up to autograd's (`Space.check`).
    """
    logits: list[Vector] = []
    gradients: list[Vector] = []
    for x in batches:
        if not gradients:
            space.check(model, x[:4])
        z, dz = space.logit_gradients(model, x)
        logits.append(z.double().cpu().numpy())
        gradients.append(dz.double().cpu().numpy())
    if not gradients:
        raise DataError("public pool: it holds no rows; give unlabelled public images or rows")
    z_all, j = np.concatenate(logits), np.concatenate(gradients)
    if not (np.isfinite(z_all).all() and np.isfinite(j).all()):
        raise DataError("public pool: a row's score or gradient is not finite; look for damaged inputs or weights")
    return z_all, j


def whiten(
    logits: Vector, gradients: Vector, *, directions: int | None, damp: float, percentile: float = CLIP_PERCENTILE
) -> Whitening:
    """The whitened basis and the clip bound.

    Args:
        logits: (n,) of the pool at the base model.
        gradients: J, (n, D).
        directions: k, the largest eigenvalues that are kept; None keeps all that exist, at most min(n, D).
        damp: added to every eigenvalue, as a share of the largest; it holds back directions the pool hardly knows.
        percentile: of max(p, 1 - p) |V^T dz| over the pool: C. Tight bounds silence the misclassified minority.

    Raises:
        DataError: no image has a gradient.
        ValueError: damp, percentile or directions out of range.
    """
    if damp <= 0 or not 0 < percentile <= 100 or (directions is not None and directions < 1):
        raise ValueError(f"damp={damp}, percentile={percentile}, directions={directions}: out of range")
    rows = _weighted(logits, gradients)
    eigenvalues, vectors = _eigen(rows)
    if not eigenvalues.size or eigenvalues[0] <= 0:
        raise DataError("public pool: the score does not change with any weight of the space; give other images")
    kept = min(int((eigenvalues > NULL * eigenvalues[0]).sum()), directions or len(eigenvalues))
    spectrum = eigenvalues[:kept]
    basis = vectors[:, :kept] / np.sqrt(spectrum + damp * spectrum[0])
    p = expit(logits)
    lengths = np.maximum(p, 1 - p) * np.linalg.norm(gradients @ basis, axis=1)
    return Whitening(np.ascontiguousarray(basis), float(np.percentile(lengths, percentile)))


def _weighted(logits: Vector, gradients: Vector) -> Vector:
    """Rows whose Gram matrix is M: sqrt(p (1 - p) / n) times the gradients, p shrunk to .05 + .9 p."""
    p = (1 - SHRINK) / 2 + SHRINK * expit(logits)
    weighted: Vector = np.sqrt(p * (1 - p) / len(p))[:, None] * gradients
    return weighted


def _eigen(rows: Vector) -> tuple[Vector, Vector]:
    """Eigenvalues (falling) and eigenvectors (columns) of rows^T rows, from the smaller of the two Gram matrices."""
    count, size = rows.shape
    values, vectors = np.linalg.eigh(rows @ rows.T if count < size else rows.T @ rows)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    if count < size:
        known = values > NULL * max(values[0], 0.0)
        values = values[known]
        vectors = rows.T @ vectors[:, known] / np.sqrt(values)
    if vectors.size:
        # Eigenvectors have no sign of their own; the largest entry is made positive, so that a run repeats.
        vectors = vectors * np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])] < 0, -1, 1)
    return values, vectors


@dataclass(frozen=True)
class PoolCheck:
    """Whether a public pool is large and varied enough to whiten with, as far as that shows without labels.

    Attributes:
        images: rows of the pool; distinct: without exact repeats.
        directions: k, wanted from it.
        constant: share of images without any structure (tables: 0).
        difference: share of M that differs between images, tr(M about the mean gradient) / tr(M). Near 0 the model sees
            the same thing in every image, be it one image or noise.
    """

    images: int
    distinct: int
    directions: int
    constant: float
    difference: float

    @cached_property
    def problems(self) -> tuple[str, ...]:
        """One line for each reason against the pool."""
        found = []
        needed = IMAGES_PER_DIRECTION * self.directions
        if self.distinct < needed:
            repeats = f" ({self.images} with repeats)" if self.distinct < self.images else ""
            found.append(
                f"public pool: {self.distinct} distinct images{repeats}, {self.directions} directions need {needed}; "
                "add images or lower `directions`"
            )
        if self.constant > MOST_CONSTANT:
            found.append(f"public pool: {self.constant:.0%} of the images are almost one colour; take photographs")
        if self.difference < LEAST_DIFFERENCE:
            found.append(
                f"public pool: only {self.difference:.1%} of what the model sees differs between images (at least "
                f"{LEAST_DIFFERENCE:.0%} wanted), as with noise or one image repeated; take images like the patients'"
            )
        return tuple(found)

    @property
    def passed(self) -> bool:
        """Nothing speaks against the pool. What the check cannot see is in `CANNOT_SEE`; print it beside."""
        return not self.problems


def check_pool(inputs: Tensor, logits: Vector, gradients: Vector, directions: int) -> PoolCheck:
    """Look at the pool's rows and at what the model makes of them.

    Args:
        inputs: (n, C, H, W) normalised images, or (n, F) rows of a table.
        logits, gradients: (n,) and (n, D) from `pool_gradients`.
        directions: k.
    """
    constant = 0.0
    if inputs.ndim == 4:
        constant = float((inputs.flatten(2).std(dim=2).amax(dim=1) < CONSTANT_SD).float().mean())
    rows = _weighted(logits, gradients)
    centred = _weighted(logits, gradients - gradients.mean(axis=0))
    total = float((rows**2).sum())
    return PoolCheck(
        images=len(inputs),
        distinct=len(torch.unique(inputs.flatten(1), dim=0)),
        directions=directions,
        constant=constant,
        difference=float((centred**2).sum()) / total if total > 0 else 0.0,
    )
