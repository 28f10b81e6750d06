"""How patients' energies are released and read: public units, a clip bound and a prior, from unlabelled images alone.

Energies of tensors (`equipoise.common.block_energies`) differ by orders of magnitude and rise and fall together. A
clipped vector of them says, tensor by tensor, how large a patient's gradients are, and hardly where the bias sits
elsewhere than a public pool already shows. Two public steps bring that out:

    equalise      divide by the pool's mean, so that 1 in every tensor is what the pool has
    hold back     of the mean over tensors, the *level*, keep a small part: it takes most of a patient's norm, says only
                  how large her gradients are, and cancels in a mask

What is left is clipped to norm 1, jointly for bias and task. For reading the sum, the directions in which the pool's
images differ, and how much, serve as a prior (`equipoise.common.private_mask`).

>>> logits, energies = BlockEnergies(model, names).rows(pool_images)
>>> public = Equalisation.from_pool(logits, energies)
>>> vectors = contributions(public.unit, public.kept, *patients, cell, bias_weight, task_weight)     # at a site

Nothing here touches a patient of a site but `contributions`, which clips whatever the units are: a pool that fits badly
costs usefulness and never privacy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from equipoise.common.cells import BiasLoss, Cells, squared_bias_weights
from equipoise.common.errors import DataError
from equipoise.common.privacy.rounding import ROUNDING

Vector = NDArray[np.float64]

SHRINK = 0.9  # of p towards 0.5: the model's scores stand in for the pool's labels, and a model may be too certain
# Chosen by measurement on seeds that no reported figure uses (decision 0020).
TASK_SCALE = 0.3
LEVEL_SHARE = 0.1
RIDGE = 1e-3
PERCENTILE = 95.0


@dataclass(frozen=True)
class Equalisation:
    """See the module's text; public. Rows of length 2T hold the bias's tensors, then the task's.

    Attributes:
        unit: (2, T), for bias and task, by which energies are divided: the pool's mean, the clip bound and, for the
            task, 1 / task_scale in one number.
        kept: (2,) the part of each level that is kept, in (0, 1].
        mean: (2, T) the pool's mean energies, the sensitivities that it gives alone.
        directions: (2T - 2, 2T) orthonormal rows beside the levels, in which the pool's equalised images differ.
        spread: (2T - 2,) the pool's mean squares along them, plus the ridge; falling.
    """

    unit: Vector
    kept: Vector
    mean: Vector
    directions: Vector
    spread: Vector

    @classmethod
    def from_pool(
        cls,
        logits: Vector,
        energies: Vector,
        *,
        task_scale: float = TASK_SCALE,
        level_share: float = LEVEL_SHARE,
        ridge: float = RIDGE,
        percentile: float = PERCENTILE,
    ) -> Equalisation:
        """From an unlabelled pool at the base model.

        The task's energies need a label. Each image stands for both, with the weights 1 - q and q, where
        q = 0.05 + 0.9 p.

        Args:
            logits, energies: (n,) and (n, T) from `BlockEnergies.rows`.
            task_scale: of the equalised task energies; smaller, the bias is told more exactly and the task less.
            level_share: the pool's mean square along each level, as a share of that of all else together; smaller, the
                differences between tensors are told more exactly and the levels less.
            ridge: added to every spread, as a share of the largest: the pool may hardly differ where patients do.
            percentile: of the pool's norms: the clip bound. Far up, since the patients with large gradients are those
                about whom the bias is.

        Raises:
            DataError: the pool is empty, a row is not finite, or no tensor's energy is above 0.
            ValueError: a setting is out of range.
        """
        if min(task_scale, level_share, ridge) <= 0 or not 0 < percentile <= 100:
            raise ValueError(
                f"task_scale={task_scale}, level_share={level_share}, ridge={ridge}, percentile={percentile}: "
                "expected numbers above 0, and a percentile of at most 100"
            )
        rows, weight = _pool_rows(logits, energies)
        mean = np.tensordot(weight, rows, axes=1)
        mean = np.stack([_positive(half) for half in mean])
        equal = rows / mean * np.array([1.0, task_scale])[:, None]
        levels, others = _split(equal)
        level_squares = (weight @ equal.mean(axis=2) ** 2) * equal.shape[2]
        moments = (others * weight[:, None]).T @ others
        # A level that is small beside all else is kept whole.
        kept = (
            np.minimum(np.sqrt(level_share * np.trace(moments) / level_squares), 1.0) if moments.any() else np.ones(2)
        )
        norms = np.linalg.norm(others + (levels * kept[:, None]).reshape(len(equal), -1), axis=1)
        clip = _percentile(norms, weight, percentile)
        directions, squares = _directions(moments, equal.shape[2])
        # Where tensors never differ no prior can be had, and any will do.
        spread = squares + ridge * (squares[0] if squares.size and squares[0] > 0 else 1.0)
        return cls(mean * np.array([clip, clip / task_scale])[:, None], kept, mean, directions, spread / clip**2)

    @property
    def tensors(self) -> int:
        """T."""
        return int(self.unit.shape[1])

    @property
    def dimensions(self) -> int:
        """2T, the length of the released vector."""
        return 2 * self.tensors


def contributions(
    unit: Vector,
    kept: Vector,
    bias: Vector,
    task: Vector,
    cell: NDArray[np.int64],
    bias_weight: Cells,
    task_weight: Cells,
) -> Vector:
    """Every patient's vector.

    Args:
        unit, kept: (2, T) and (2,), `Equalisation.unit` and `kept`; public.
        bias, task: (n, T) from `BlockEnergies.patients`.
        cell: (n,) in 0..cells-1, 2 * group + label.
        bias_weight, task_weight: (G + 1, 2) factors of the energies by cell; public (`energy_weights`).

    Returns:
        (n, 2T) float64, bias then task: the weighted energies over their unit, less (1 - kept) of their mean over
        tensors; the whole row shortened to norm 1 where it is longer.

    Formal guarantee:
        For all arguments each row has L2 norm at most 1 and depends on that patient's energies and cell and on public
        arguments alone. The sum over patients therefore changes by at most 1 when one patient is added or removed
        (unit: patient, all images; relation: add/remove one). Nothing here adds noise: `ReleasePlan.vector(clip=1,
        dimensions=2T)` and `clip_and_round` go on from here.

    Edge cases:
        A patient with an energy, a quotient or a norm that is NaN or infinite contributes 0, as does one whose cell's
        weights or whose units are not finite. A cell of weight 0 contributes 0. No patients: shape (0, 2T).

    Raises:
        ValueError: sizes do not agree. That depends on shapes, never on what a patient's row holds.
    """
    shapes = (unit.shape, kept.shape, bias.shape, task.shape, cell.shape, bias_weight.shape)
    n, tensors = bias.shape
    if shapes[:5] != ((2, tensors), (2,), (n, tensors), (n, tensors), (n,)) or task_weight.shape != shapes[5]:
        raise ValueError(
            f"units {unit.shape} and {kept.shape}, energies {bias.shape} and {task.shape}, cells {cell.shape}, weights "
            f"{bias_weight.shape} and {task_weight.shape}: patients, tensors and cells must agree"
        )
    weights = np.stack([bias_weight.reshape(-1)[cell], task_weight.reshape(-1)[cell]], axis=1)
    with np.errstate(all="ignore"):
        equal = np.stack([bias, task], axis=1) * weights[:, :, None] / unit
        rows = (equal - (1 - kept)[:, None] * equal.mean(axis=2, keepdims=True)).reshape(n, 2 * tensors)
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        clipped: Vector = np.where(np.isfinite(norm), rows * (ROUNDING / np.maximum(norm, 1.0)), 0.0)
    return clipped


def energy_weights(counts: Cells, task: Cells, loss: BiasLoss = "equalized_odds") -> tuple[Cells, Cells]:
    """Factors of the bias and of the task energies by cell: squares of the losses' weights, the largest 1.

    Args:
        counts: released patients by cell, (G + 1, 2); may be noisy. No score is needed (`squared_bias_weights`).
        task: the task loss's weights by cell (`cells.task_weights`, with a cap).
        loss: the bias loss.

    Returns:
        Two arrays (G + 1, 2) in [0, 1]. Where no group can be compared the first is 0.
    """
    return _largest_one(squared_bias_weights(counts, loss)), _largest_one(task**2)


def _largest_one(weights: Cells) -> Cells:
    largest = float(weights.max(initial=0.0))
    scaled: Cells = weights / largest if largest > 0 else weights
    return scaled


def _pool_rows(logits: Vector, energies: Vector) -> tuple[Vector, Vector]:
    """Bias and task energies of each image with label 0, then with label 1: (2n, 2, T), and weights of sum 1."""
    if len(logits) == 0:
        raise DataError("public pool: it holds no rows; give unlabelled public images or rows")
    if not (np.isfinite(logits).all() and np.isfinite(energies).all()):
        raise DataError("public pool: a row's score or gradient is not finite; look for damaged inputs or weights")
    p = expit(logits)
    positive = (1 - SHRINK) / 2 + SHRINK * p
    rows = [
        np.stack([(p * (1 - p))[:, None] ** 2 * energies, (p - label)[:, None] ** 2 * energies], axis=1)
        for label in (0, 1)
    ]
    return np.concatenate(rows), np.concatenate([1 - positive, positive]) / len(p)


def _positive(mean: Vector) -> Vector:
    """Mean energies; a tensor that no public image moves gets the smallest that one has, not an infinite weight."""
    if not mean.max(initial=0.0) > 0:
        raise DataError("public pool: the score does not change with any tensor; give other images")
    return np.where(mean > 0, mean, mean[mean > 0].min())


def _split(equal: Vector) -> tuple[Vector, Vector]:
    """(n, 2, T) into the levels, (n, 2, T) with the mean in every tensor, and the rest, (n, 2T)."""
    levels = np.broadcast_to(equal.mean(axis=2, keepdims=True), equal.shape)
    return levels, (equal - levels).reshape(len(equal), -1)


def _directions(moments: Vector, tensors: int) -> tuple[Vector, Vector]:
    """Eigenvectors (as rows) and eigenvalues, falling, of second moments beside the two levels."""
    levels = np.kron(np.eye(2), np.full(tensors, tensors**-0.5))
    basis = np.linalg.svd(levels, full_matrices=True)[2][2:]
    squares, vectors = np.linalg.eigh(basis @ moments @ basis.T)
    return vectors[:, ::-1].T @ basis, np.maximum(squares[::-1], 0.0)


def _percentile(values: Vector, weight: Vector, percent: float) -> float:
    """The smallest value at or below which at least `percent` of the weight lies."""
    order = np.argsort(values)
    reached = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(reached, percent / 100 * reached[-1])])
