"""Equalised contributions: by hand, their bound, sums over sites, and what the public pool decides."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.common.block_energies import BlockEnergies
from equipoise.common.cells import bias_weights, squared_bias_weights, task_weights
from equipoise.common.equalisation import Equalisation, contributions, energy_weights
from equipoise.common.errors import DataError
from equipoise.common.models import mlp
from equipoise.common.privacy.plan import ReleasePlan
from equipoise.common.privacy.rounding import clip_and_round

CELLS = (3, 2)
ONES = np.ones(CELLS)


def pool(images: int = 400, tensors: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits and energies of images that differ in size and a little in where."""
    rng = np.random.default_rng(seed)
    size = rng.lognormal(sigma=1.0, size=(images, 1))
    where = rng.lognormal(sigma=0.4, size=(images, tensors))
    return 2 * rng.standard_normal(images), size * where * np.logspace(0, -4, tensors)


def asked(
    public: Equalisation,
    bias: np.ndarray,
    task: np.ndarray,
    cell: np.ndarray | None = None,
    bias_weight: np.ndarray = ONES,
    task_weight: np.ndarray = ONES,
) -> np.ndarray:
    cell = np.zeros(len(bias), dtype=np.int64) if cell is None else cell
    return contributions(public.unit, public.kept, bias, task, cell, bias_weight, task_weight)


def test_by_hand() -> None:
    """Scores of 1/2, so a bias energy is 1/16 of the logit's and a task energy 1/4, whatever the label."""
    energies = np.array([[16.0, 32.0], [48.0, 32.0]])
    found = Equalisation.from_pool(np.zeros(2), energies, task_scale=0.5, level_share=0.5, percentile=100)
    np.testing.assert_allclose(found.mean, [[2, 2], [8, 8]])
    # Equalised, the images are (1/2, 1) and (3/2, 1); levels 3/4 and 5/4; beside them -+(1/4, -1/4), half of it for
    # the task. All else has the mean square 2 (1/16 + 1/64) = 5/32, of which each level gets half.
    bias_square = 2 * (9 / 16 + 25 / 16) / 2
    kept = [np.sqrt(5 / 64 / bias_square), np.sqrt(5 / 64 / (bias_square / 4))]
    np.testing.assert_allclose(found.kept, kept)
    largest = np.sqrt(2 * (1 / 16 + 1 / 64) + 2 * (25 / 16) * (kept[0] ** 2 + kept[1] ** 2 / 4))
    np.testing.assert_allclose(found.unit, [[2 * largest] * 2, [16 * largest] * 2])
    # A patient with the energies of the second image: of norm 1.
    row = asked(found, energies[1:] / 16, energies[1:] / 4)[0] * largest
    np.testing.assert_allclose(row[:2], [5 / 4 * kept[0] + 1 / 4, 5 / 4 * kept[0] - 1 / 4])
    np.testing.assert_allclose(row[2:], [5 / 8 * kept[1] + 1 / 8, 5 / 8 * kept[1] - 1 / 8])
    np.testing.assert_allclose(np.linalg.norm(row / largest), 1.0)
    ten_times = asked(found, energies[1:] / 1.6, energies[1:] / 0.4)[0] * largest
    np.testing.assert_allclose(ten_times, row)  # shortened to the bound, and not turned


def test_directions_are_an_orthonormal_frame_beside_the_levels() -> None:
    found = Equalisation.from_pool(*pool())
    t = found.tensors
    levels = np.kron(np.eye(2), np.full(t, t**-0.5))
    frame = np.vstack([levels, found.directions])
    np.testing.assert_allclose(frame @ frame.T, np.eye(2 * t), atol=1e-10)
    assert (np.diff(found.spread) <= 0).all()
    assert found.spread.min() > 0


def test_spread_is_the_pools_mean_square_along_the_directions() -> None:
    """By drawing labels as the model's shrunk scores say, many times over."""
    logits, energies = pool(images=60)
    found = Equalisation.from_pool(logits, energies, ridge=1e-9)
    p = 1 / (1 + np.exp(-np.tile(logits, 4000)))
    rng = np.random.default_rng(1)
    label = rng.random(len(p)) < 0.05 + 0.9 * p
    tiled = np.tile(energies, (4000, 1))
    equal = np.stack([(p * (1 - p))[:, None] ** 2 * tiled, (p - label)[:, None] ** 2 * tiled], axis=1) / found.unit
    np.testing.assert_allclose(equal.mean(axis=0), found.mean / found.unit, rtol=0.02)
    along = equal.reshape(len(p), -1) @ found.directions.T
    np.testing.assert_allclose((along**2).mean(axis=0), found.spread, rtol=0.05)


def test_the_clip_bound_is_the_declared_percentile_of_the_pool() -> None:
    logits, energies = pool(images=4000)
    p = 1 / (1 + np.exp(-logits))
    label = np.random.default_rng(1).random(len(p)) < 0.05 + 0.9 * p
    for percentile in (60.0, 95.0):
        found = Equalisation.from_pool(logits, energies, percentile=percentile)
        rows = asked(found, (p * (1 - p))[:, None] ** 2 * energies, (p - label)[:, None] ** 2 * energies)
        reached = (np.linalg.norm(rows, axis=1) > 1 - 1e-9).mean()
        assert reached == pytest.approx(1 - percentile / 100, abs=0.02)


def test_units_of_tensors_do_not_matter() -> None:
    """Energies that are a million times larger in one tensor, of pool and patients: the same contributions."""
    logits, energies = pool()
    bias, task = np.random.default_rng(2).exponential(size=(2, 5, 6)) * np.logspace(0, -4, 6)
    factor = np.array([1, 1e6, 1, 1e-6, 1, 1])
    one = asked(Equalisation.from_pool(logits, energies), bias, task)
    two = asked(Equalisation.from_pool(logits, energies * factor), bias * factor, task * factor)
    np.testing.assert_allclose(one, two, rtol=1e-9)


def test_tensors_keep_their_places() -> None:
    logits, energies = pool()
    order = np.random.default_rng(3).permutation(6)
    bias, task = np.random.default_rng(2).exponential(size=(2, 5, 6)) * np.logspace(0, -4, 6)
    one = asked(Equalisation.from_pool(logits, energies), bias, task).reshape(5, 2, 6)
    two = asked(Equalisation.from_pool(logits, energies[:, order]), bias[:, order], task[:, order]).reshape(5, 2, 6)
    np.testing.assert_allclose(two, one[:, :, order], rtol=1e-9)
    assert not np.allclose(two, one)


numbers = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_patient_exceeds_the_bound(data: Any) -> None:
    """Whatever the energies, the units, the weights and the cell."""
    n, t = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 5))

    def drawn(*shape: int) -> np.ndarray:
        size = int(np.prod(shape))
        return np.reshape(data.draw(st.lists(numbers, min_size=size, max_size=size)), shape)

    cell = np.array(data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)), dtype=np.int64)
    found = contributions(drawn(2, t), drawn(2), drawn(n, t), drawn(n, t), cell, drawn(*CELLS), drawn(*CELLS))
    assert found.shape == (n, 2 * t)
    assert np.isfinite(found).all()
    assert (np.linalg.norm(found, axis=1) <= 1).all()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_adding_or_removing_one_patient_moves_the_lattice_sum_by_no_more_than_the_bound(data: Any) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    public = Equalisation.from_pool(*pool(images=50))
    plan = ReleasePlan.vector(clip=1.0, dimensions=public.dimensions, noise=1.0)
    bias, task = rng.lognormal(sigma=6.0, size=(2, 5, 6))
    extreme = data.draw(st.sampled_from([0.0, np.nan, np.inf, 1e300, -1e300]))
    bias[4, data.draw(st.integers(0, 5))] = extreme
    cell = rng.integers(0, 6, 5)
    weights = rng.random((2, *CELLS))

    def summed(chosen: slice) -> np.ndarray:
        rows = asked(public, bias[chosen], task[chosen], cell[chosen], *weights)
        return clip_and_round(rows, plan.clip, plan.step).sum(axis=0)

    moved = np.linalg.norm((summed(slice(5)) - summed(slice(4))) * plan.step)
    assert moved <= plan.sensitivity


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_sites_add_up_to_the_pooled_sum_integer_for_integer(data: Any) -> None:
    """Empty sites and sites of one cell included: a patient's integers do not depend on who else is there."""
    public = Equalisation.from_pool(*pool(images=50))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    n, sites = 24, data.draw(st.integers(1, 6))
    bias, task = rng.lognormal(sigma=2.0, size=(2, n, 6)) * public.mean[:, None, :]
    cell, site = rng.integers(0, 6, n), rng.integers(0, sites, n)
    if data.draw(st.booleans()):
        site = np.minimum(cell, sites - 1)
    weights = energy_weights(rng.integers(0, 50, CELLS).astype(float), ONES)
    step = ReleasePlan.vector(clip=1.0, dimensions=12, noise=1.0).step

    def points(chosen: np.ndarray) -> np.ndarray:
        return clip_and_round(asked(public, bias[chosen], task[chosen], cell[chosen], *weights), 1.0, step).sum(axis=0)

    everyone = points(np.ones(n, dtype=bool))
    assert everyone.dtype == np.int64
    np.testing.assert_array_equal(sum(points(site == s) for s in range(sites)), everyone)
    assert everyone.any()


def test_a_patient_of_several_images_counts_once() -> None:
    """The mean gradient over the images first: the same image twice, or beside a damaged one that counts as 0."""
    torch.manual_seed(0)
    model = mlp(4).eval()
    names = [name for name, _ in model.named_parameters()]
    energies = BlockEnergies(model, names)
    public = Equalisation.from_pool(*energies.rows(torch.randn(100, 4)))
    x = torch.randn(1, 4)

    def vector(rows: torch.Tensor) -> np.ndarray:
        owner = torch.zeros(len(rows), dtype=torch.int64)
        return asked(public, *energies.patients(rows, owner, torch.tensor([1])))[0]

    once = vector(x)
    assert np.linalg.norm(once) > 0
    np.testing.assert_allclose(vector(torch.cat([x, x, x])), once, rtol=1e-4)
    damaged = torch.cat([x, torch.full((1, 4), torch.nan)])
    np.testing.assert_allclose(vector(damaged), once / 4, rtol=1e-4, atol=1e-7)
    assert not vector(damaged[1:]).any()


def test_what_is_not_finite_contributes_nothing() -> None:
    public = Equalisation.from_pool(*pool())
    bias, task = np.ones((5, 6)), np.ones((5, 6))
    bias[0, 0], task[1, 5], bias[2, 1], task[3, 2] = np.nan, np.inf, 1e308, -np.inf
    found = asked(public, bias, task, bias_weight=1e10 * ONES)
    assert not found[:4].any()
    assert found[4].any()


def test_a_cell_of_weight_zero_contributes_nothing() -> None:
    public = Equalisation.from_pool(*pool())
    bias_weight = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    found = asked(public, np.ones((2, 6)), np.ones((2, 6)), np.array([0, 1]), bias_weight)
    assert found[0, :6].any()
    assert not found[1, :6].any()
    assert found[1, 6:].any()


def test_sizes_that_do_not_agree() -> None:
    public = Equalisation.from_pool(*pool())
    with pytest.raises(ValueError, match="must agree"):
        asked(public, np.ones((2, 6)), np.ones((2, 5)))
    with pytest.raises(ValueError, match="must agree"):
        asked(public, np.ones((2, 5)), np.ones((2, 5)))
    with pytest.raises(ValueError, match="must agree"):
        asked(public, np.ones((2, 6)), np.ones((2, 6)), np.zeros(3, dtype=np.int64))
    with pytest.raises(ValueError, match="must agree"):
        asked(public, np.ones((2, 6)), np.ones((2, 6)), bias_weight=np.ones((2, 2)))
    assert asked(public, np.ones((0, 6)), np.ones((0, 6))).shape == (0, 12)


@pytest.mark.parametrize(
    ("logits", "energies", "says"),
    [
        (np.zeros(0), np.zeros((0, 2)), "holds no rows"),
        (np.zeros(2), np.zeros((2, 2)), "does not change"),
        (np.zeros(2), np.array([[1.0, np.nan], [1.0, 1.0]]), "not finite"),
        (np.array([0.0, np.inf]), np.ones((2, 2)), "not finite"),
    ],
)
def test_pools_that_say_nothing(logits: np.ndarray, energies: np.ndarray, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Equalisation.from_pool(logits, energies)


def test_a_tensor_that_no_public_image_moves_and_tensors_that_move_alike() -> None:
    still = Equalisation.from_pool(np.zeros(2), np.array([[16.0, 0.0], [32.0, 0.0]]))
    assert still.mean[0, 1] == still.mean[0, 0]
    alike = Equalisation.from_pool(np.array([0.0, 1.0]), np.array([[1.0, 2.0], [3.0, 6.0]]))
    assert np.isfinite(alike.unit).all()
    assert (alike.spread > 0).all()
    single = Equalisation.from_pool(np.array([0.0, 1.0]), np.array([[1.0], [3.0]]))
    assert single.directions.shape == (0, 2)
    np.testing.assert_array_equal(single.kept, 1.0)


@pytest.mark.parametrize("setting", [{"task_scale": 0.0}, {"level_share": -1.0}, {"ridge": 0.0}, {"percentile": 101.0}])
def test_settings_out_of_range(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(setting)))):
        partial(Equalisation.from_pool, *pool())(**setting)


# --- weights


def test_weights_without_gaps_are_those_with_large_gaps() -> None:
    """For two groups; the largest factor is 1."""
    counts = np.array([[643.0, 536.0], [412.0, 209.0], [7.0, 0.0]])
    scores = counts * np.array([[0.3, 0.8], [0.1, 0.4], [0.5, 0.5]])
    for loss in ("equalized_odds", "equal_opportunity", "demographic_parity"):
        expected = bias_weights(counts, scores, loss) ** 2
        found = squared_bias_weights(counts, loss)
        np.testing.assert_allclose(found / found.max(), expected / expected.max())
        np.testing.assert_allclose(energy_weights(counts, ONES, loss)[0], expected / expected.max())


def test_weights_of_absent_groups_and_noisy_counts() -> None:
    assert not energy_weights(np.array([[10.0, 5.0], [-3.0, 1.0], [0.0, 0.0]]), ONES)[0].any()
    three = np.array([[10.0, 5.0], [-3.0, 1.0], [20.0, 8.0], [4.0, -0.5]])
    bias, task = energy_weights(three, task_weights(three, "cells", 4.0))
    assert bias[1, 0] == 0
    assert not bias[3].any()
    assert bias.max() == task.max() == 1
    assert (bias >= 0).all()
    assert np.isfinite(task).all()
