"""Whitening with a public pool: the basis against its definition, the clip bound, and what the pool check finds."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import Tensor

from equipoise.common.errors import DataError
from equipoise.common.models import mlp, normalise, resnet_small
from equipoise.common.space import Space
from equipoise.common.study import ImageInputs, ModelSpec
from equipoise.common.study_simulation import Recipe
from equipoise.common.whitening import CANNOT_SEE, PoolCheck, check_pool, pool_gradients, whiten
from equipoise.simulations.pretrain import pretrain
from equipoise.simulations.synthetic import ImageSet, diverse_pool, vendor_set

INPUTS = ImageInputs(kind="image", size=32, channels=3, mean=0.5, std=0.25)
MODEL = ModelSpec(factory="equipoise.common.models:resnet_small", head="head.")


def drawn(count: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scales = np.logspace(0, -1.5, size)
    return 2 * rng.standard_normal(count), rng.standard_normal((count, size)) * scales


def gauss_newton(logits: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    p = 0.05 + 0.9 * expit(logits)
    m: np.ndarray = (gradients * (p * (1 - p))[:, None]).T @ gradients / len(logits)
    return m


@pytest.mark.parametrize(("count", "size"), [(200, 30), (30, 200)], ids=["more images", "more weights"])
def test_the_basis_makes_the_curvature_flat(count: int, size: int) -> None:
    """V^T M V = l / (l + damp l_1), whichever Gram matrix was the smaller."""
    logits, gradients = drawn(count, size)
    m = gauss_newton(logits, gradients)
    found = whiten(logits, gradients, directions=12, damp=0.1)
    largest = np.sort(np.linalg.eigvalsh(m))[::-1][:12]
    np.testing.assert_allclose(
        found.basis.T @ m @ found.basis, np.diag(largest / (largest + 0.1 * largest[0])), atol=1e-10
    )
    assert found.basis.shape == (size, 12)
    assert found.directions == 12


def test_both_gram_matrices_give_the_same_basis() -> None:
    logits, gradients = drawn(40, 39)
    wide = np.hstack([gradients, np.zeros((40, 5))])  # 44 weights, of which 5 never matter
    one = whiten(logits, gradients, directions=10, damp=0.05)
    two = whiten(logits, wide, directions=10, damp=0.05)
    np.testing.assert_allclose(two.basis, np.vstack([one.basis, np.zeros((5, 10))]), atol=1e-8)
    assert two.clip == pytest.approx(one.clip, rel=1e-10)


def test_all_directions_are_those_that_exist() -> None:
    logits, gradients = drawn(20, 50)
    assert whiten(logits, gradients, directions=None, damp=0.1).directions == 20
    doubled = np.hstack([gradients[:, :4], gradients[:, :4]])
    assert whiten(logits, doubled, directions=None, damp=0.1).directions == 4
    assert whiten(logits, doubled, directions=7, damp=0.1).directions == 4


def test_the_clip_bound_by_hand() -> None:
    """One weight, gradient 1 everywhere: |V^T dz| is one number v, so C is the percentile of max(p, 1 - p) times v."""
    p = np.array([0.5, 0.6, 0.3, 0.9, 0.2])
    logits = np.log(p / (1 - p))
    shrunk = 0.05 + 0.9 * p
    curvature = float((shrunk * (1 - shrunk)).mean())
    v = (curvature * 1.1) ** -0.5
    found = whiten(logits, np.ones((5, 1)), directions=None, damp=0.1, percentile=75)
    assert found.basis[0, 0] == pytest.approx(v)
    assert found.clip == pytest.approx(0.8 * v)  # of 0.5 0.6 0.7 0.8 0.9


def test_whitening_knows_no_units() -> None:
    """Weights measured in other units, the same everywhere, leave V^T dz and C as they are."""
    logits, gradients = drawn(60, 20)
    one = whiten(logits, gradients, directions=8, damp=0.1)
    two = whiten(logits, 1000 * gradients, directions=8, damp=0.1)
    np.testing.assert_allclose(gradients @ one.basis, 1000 * gradients @ two.basis, rtol=1e-8)
    assert two.clip == pytest.approx(one.clip)


def test_a_run_repeats_its_signs() -> None:
    logits, gradients = drawn(60, 20)
    basis = whiten(logits, gradients, directions=8, damp=0.1).basis
    assert (basis[np.abs(basis).argmax(axis=0), np.arange(8)] > 0).all()
    order = np.random.default_rng(0).permutation(60)
    again = whiten(logits[order], gradients[order], directions=8, damp=0.1).basis
    np.testing.assert_allclose(again, basis, atol=1e-8)


def test_wrong_settings_and_dead_pools_are_refused() -> None:
    logits, gradients = drawn(10, 5)
    for settings in ({"damp": 0.0}, {"percentile": 0.0}, {"percentile": 101.0}, {"directions": 0}):
        with pytest.raises(ValueError, match="out of range"):
            whiten(logits, gradients, **{"directions": 3, "damp": 0.1, **settings})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="does not change"):
        whiten(logits, np.zeros((10, 5)), directions=3, damp=0.1)
    with pytest.raises(DataError, match="does not change"):
        whiten(logits, np.zeros((10, 20)), directions=3, damp=0.1)
    model = mlp(4).eval()
    space = Space.of(model, "whole")
    with pytest.raises(DataError, match="no rows"):
        pool_gradients(space, model, [])
    with pytest.raises(DataError, match="not finite"):
        pool_gradients(space, model, [torch.zeros(4, 4), torch.full((1, 4), float("nan"))])


def test_pool_gradients_are_those_of_all_batches() -> None:
    torch.manual_seed(0)
    model = mlp(4).eval()
    space, x = Space.of(model, "whole"), torch.randn(10, 4)
    logits, gradients = pool_gradients(space, model, torch.tensor_split(x, 3))
    expected = space.logit_gradients(model, x)
    np.testing.assert_allclose(logits, expected[0].numpy(), atol=1e-6)
    np.testing.assert_allclose(gradients, expected[1].numpy(), atol=1e-6)


# --- the pool check, on a model that has learnt something


@cache
def trained() -> torch.nn.Module:
    """The benchmark's network after four epochs on 1,000 of the vendor's images."""
    full = vendor_set("A", 100)
    part = ImageSet(full.images[:1000], full.label[:1000], full.group[:1000])
    model = resnet_small().eval()
    model.load_state_dict(pretrain(MODEL, INPUTS, part.as_split(), Recipe(epochs=4, batch=32), 100))
    return model


def tensor(images: np.ndarray) -> Tensor:
    pixels = torch.from_numpy(np.clip(np.rint(images), 0, 255).astype(np.uint8))
    return normalise(INPUTS, pixels.permute(0, 3, 1, 2).contiguous())


def check_of(images: np.ndarray, directions: int = 32) -> PoolCheck:
    model, x = trained(), tensor(images)
    space = Space.of(model, "whole")
    return check_pool(x, *pool_gradients(space, model, torch.split(x, 100)), directions)


def photographs(count: int = 200) -> np.ndarray:
    return diverse_pool(100, count=count)


def test_varied_photographs_pass() -> None:
    for images in (photographs(), vendor_set("A", 100).images[:200]):
        check = check_of(images)
        assert check.problems == ()
        assert check.passed
        assert (check.images, check.distinct, check.constant) == (200, 200, 0.0)
        assert check.difference > 0.15


@pytest.mark.parametrize("kind", ["white", "grey", "one", "one with noise"])
def test_noise_and_one_image_repeated_fail(kind: str) -> None:
    rng = np.random.default_rng(0)
    shape = (200, 32, 32, 3)
    images = {
        "white": rng.integers(0, 256, shape).astype(np.float64),
        "grey": rng.normal(128, 32, shape),
        "one": np.repeat(photographs(1), 200, axis=0),
        "one with noise": photographs(1) + rng.normal(0, 8, shape),
    }[kind]
    check = check_of(images)
    assert not check.passed
    assert check.difference < 0.1
    assert any("differs between images" in line for line in check.problems)
    assert all("\n" not in line for line in check.problems)


def test_too_small_a_pool_fails_by_its_distinct_images() -> None:
    assert check_of(photographs(128), directions=32).passed
    assert "127 distinct images, 32 directions need 128" in check_of(photographs(127), directions=32).problems[0]
    repeated = check_of(np.repeat(photographs(10), 20, axis=0), directions=32)
    assert "10 distinct images (200 with repeats)" in repeated.problems[0]


def test_images_of_one_colour_fail() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (40, 1, 1, 3))
    mixed = np.concatenate([photographs(160), np.broadcast_to(colours, (40, 32, 32, 3))])
    check = check_of(mixed)
    assert check.constant == pytest.approx(0.2)
    assert any("one colour" in line for line in check.problems)


def test_what_the_check_cannot_see_is_said() -> None:
    """A pool of light skin alone passes, so the text beside the verdict must name it."""
    full = vendor_set("A", 100)
    assert check_of(full.images[full.group == 0][:200]).passed
    assert "skin tones" in CANNOT_SEE


def test_tables_have_no_colours() -> None:
    torch.manual_seed(0)
    model = mlp(6).eval()
    space, x = Space.of(model, "head"), 2 * torch.rand(300, 6) - 1
    check = check_pool(x, *pool_gradients(space, model, [x]), 20)
    assert check.constant == 0.0
    assert check.distinct == 300
