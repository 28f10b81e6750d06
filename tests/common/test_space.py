"""The trainable space: gradients of single rows against autograd, the linear map, masks, and refusals."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise.common.errors import ModelError
from equipoise.common.mask import SoftMask
from equipoise.common.models import densenet121, mlp, resnet18, resnet_small
from equipoise.common.space import Kind, Space
from equipoise.common.vision_transformer import vit

WITHIN = {torch.float32: 1e-5, torch.float64: 1e-10}


class Odd(nn.Module):
    """What no model here has: groups, strides, dilation, a bias, a layer called twice, a frozen 7x7 stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 7, 2, padding=3)
        self.grouped = nn.Conv2d(4, 8, 3, 2, padding=2, dilation=2, groups=2)
        self.norm = nn.GroupNorm(2, 8)
        self.twice = nn.Conv2d(8, 8, 5, padding="same")
        self.dense = nn.Linear(8, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.grouped(self.stem(x))))
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        positions = self.dense(x.flatten(2).mT)  # a linear layer at every position
        logit: Tensor = self.head(torch.tanh(positions).mean(dim=1))
        return logit.squeeze(1)


def monai_densenet() -> nn.Module:
    if importlib.util.find_spec("monai") is None:
        pytest.skip("densenet121 needs the package monai")
    return densenet121()


def made(factory: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model whose norms are not the identity."""
    torch.manual_seed(seed)
    model = factory().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def by_loop(space: Space, model: nn.Module, x: Tensor) -> np.ndarray:
    rows = []
    for row in x:
        logit = model(row.unsqueeze(0)).sum()
        gradients = torch.autograd.grad(logit, [model.get_parameter(part.name) for part in space.parts])
        named = {part.name: g.double().numpy() for part, g in zip(space.parts, gradients, strict=True)}
        rows.append(space.pull_back(named))
    return np.stack(rows)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["head", "whole"])
@pytest.mark.parametrize(
    ("factory", "shape"),
    [
        (resnet_small, (4, 3, 32, 32)),
        (resnet18, (2, 3, 64, 64)),
        (partial(mlp, 10), (7, 10)),
        (Odd, (3, 3, 24, 24)),
        (monai_densenet, (2, 3, 32, 32)),
        (partial(vit, 16, depth=2), (3, 3, 16, 16)),
    ],
    ids=["resnet_small", "resnet18", "mlp", "odd", "densenet121", "vit"],
)
def test_row_gradients_are_those_of_a_loop_of_autograd(
    factory: Callable[[], nn.Module], shape: tuple[int, ...], kind: Kind, dtype: torch.dtype
) -> None:
    model = made(factory).to(dtype)
    x = torch.randn(*shape, dtype=dtype)
    space = Space.of(model, kind)
    logits, gradients = space.logit_gradients(model, x)
    expected = by_loop(space, model, x)
    assert gradients.shape == (len(x), space.size)
    assert gradients.dtype == dtype
    assert not gradients.requires_grad
    assert torch.allclose(logits, model(x).detach(), atol=1e-6)
    for row in range(len(x)):
        assert relative(gradients[row].double().numpy(), expected[row]) < WITHIN[dtype]
    for block in space.blocks.values():
        assert relative(gradients[:, block].double().numpy(), expected[:, block]) < 10 * WITHIN[dtype]


def test_gradients_are_slopes_along_weight_changes() -> None:
    """The logit after a small step of theta, by central differences: pull_back and the hooks cannot both be wrong."""
    model = made(Odd).double()
    x = torch.randn(3, 3, 24, 24, dtype=torch.float64)
    space = Space.of(model, "whole")
    _, gradients = space.logit_gradients(model, x)
    theta = np.random.default_rng(1).standard_normal(space.size)
    values = []
    for step in (1e-6, -1e-6):
        moved = made(Odd).double()
        with torch.no_grad():
            for name, change in space.weight_changes(step * theta).items():
                moved.get_parameter(name).add_(torch.from_numpy(change))
            values.append(moved(x))
    slope = ((values[0] - values[1]) / 2e-6).numpy()
    assert relative(gradients.numpy() @ theta, slope) < 1e-6


def test_gradients_at_moved_weights_use_the_filters_of_the_base() -> None:
    model = made(resnet_small)
    space = Space.of(model, "whole")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    x = torch.randn(3, 3, 32, 32)
    _, gradients = space.logit_gradients(model, x)
    assert relative(gradients.double().numpy(), by_loop(space, model, x)) < 1e-5
    block = space.blocks["extractor.3.conv1.weight"]
    anew = Space.of(model, "whole").logit_gradients(model, x)[1]
    assert torch.allclose(anew[:, block], 1.3 * gradients[:, block], rtol=1e-4)


def test_the_map_is_linear_and_pull_back_is_its_transpose() -> None:
    space = Space.of(made(resnet_small), "whole")
    rng = np.random.default_rng(0)
    one, two = rng.standard_normal((2, space.size))
    together, first, second = (space.weight_changes(t) for t in (2 * one - two, one, two))
    gradients = {name: rng.standard_normal(change.shape) for name, change in first.items()}
    for name in together:
        np.testing.assert_allclose(together[name], 2 * first[name] - second[name], atol=1e-12)
    inner = sum(float((first[name] * gradients[name]).sum()) for name in first)
    assert inner == pytest.approx(float(one @ space.pull_back(gradients)), rel=1e-12)


def test_what_the_spaces_of_the_benchmark_hold() -> None:
    model = made(resnet_small)
    head, whole = Space.of(model, "head"), Space.of(model, "whole")
    assert (head.size, head.blocks) == (97, {"head.weight": slice(0, 96), "head.bias": slice(96, 97)})
    norms = 2 * (24 + 2 * 24 + 2 * 48 + 2 * 96)
    mixes = 4 * (24 + 2 * 24 + 2 * 48 + 2 * 96)
    assert whole.size == norms + mixes + 97
    assert "extractor.4.shortcut.weight" not in whole.blocks  # a 1x1 convolution
    for part in whole.parts:
        if part.filters is not None:
            weight = model.get_parameter(part.name).detach().double()
            np.testing.assert_allclose(
                np.linalg.norm(part.filters.reshape(4, -1), axis=1), float(weight.flatten(1).norm(dim=1).mean())
            )


def test_filters_come_from_named_public_streams() -> None:
    model = made(resnet_small)

    def filters(seed: int) -> list[np.ndarray]:
        return [part.filters for part in Space.of(model, "whole", seed=seed).parts if part.filters is not None]

    for one, two, other in zip(filters(3), filters(3), filters(4), strict=True):
        assert np.array_equal(one, two)
        assert not np.allclose(one, other)
    same_shape = filters(3)[1], filters(3)[2]
    assert abs(np.corrcoef(same_shape[0].ravel(), same_shape[1].ravel())[0, 1]) < 0.2


def test_a_mask_scales_directions_and_drops_those_it_holds() -> None:
    model = made(resnet_small)
    space = Space.of(model, "whole")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    mask = {name: np.full(shape, 0.5) for name, shape in shapes.items()}
    mask["extractor.0.weight"] = np.zeros(shapes["extractor.0.weight"])
    mask["extractor.1.weight"] = np.r_[np.zeros(20), np.full(4, 0.25)]
    shaped = space.masked(SoftMask(mask).values)
    assert "extractor.0.weight" not in shaped.blocks
    assert shaped.size == space.size - 4 * 24 - 20
    x = torch.randn(3, 3, 32, 32)
    free, held = space.logit_gradients(model, x)[1], shaped.logit_gradients(model, x)[1]
    for name, block in shaped.blocks.items():
        before = free[:, space.blocks[name]]
        expected = 0.25 * before[:, 20:] if name == "extractor.1.weight" else 0.5 * before
        assert torch.allclose(held[:, block], expected, rtol=1e-5, atol=1e-7)
    theta = np.random.default_rng(0).standard_normal(shaped.size)
    changes = shaped.weight_changes(theta)
    assert not changes["extractor.1.weight"][:20].any()
    full = np.zeros(space.size)
    full[space.blocks["head.weight"]] = 0.5 * theta[shaped.blocks["head.weight"]]
    np.testing.assert_allclose(changes["head.weight"], space.weight_changes(full)["head.weight"])
    assert relative(held.double().numpy(), by_loop(shaped, model, x)) < 1e-5
    shaped.check(model, x)


def test_a_mask_that_does_not_fit_is_refused() -> None:
    model = made(partial(mlp, 4))
    space = Space.of(model, "whole")
    mask = {name: np.ones(tuple(p.shape)) for name, p in model.named_parameters()}
    with pytest.raises(ModelError, match=r"'head\.bias' needs factors of shape \(1,\), found none"):
        space.masked({name: value for name, value in mask.items() if name != "head.bias"})
    with pytest.raises(ModelError, match="nothing may move"):
        space.masked({name: 0.001 * value for name, value in mask.items()})


class Twisted(nn.Module):
    """Uses a weight outside its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        logit: Tensor = self.head(self.dense(x) + x @ self.dense.weight)
        return logit.squeeze(1)


def test_unknown_models_are_refused_with_one_line() -> None:
    embedded = nn.ModuleDict({"table": nn.Embedding(3, 2), "head": nn.Linear(2, 1)})
    with pytest.raises(ModelError, match="'table' is a Embedding") as caught:
        Space.of(embedded, "whole")
    assert "\n" not in str(caught.value)
    assert Space.of(embedded, "head").size == 3
    reflected = nn.ModuleDict({"c": nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), "head": nn.Linear(2, 1)})
    with pytest.raises(ModelError, match="Conv2d"):
        Space.of(reflected, "whole")
    with pytest.raises(ModelError, match="no layer's name begins"):
        Space.of(made(resnet_small), "whole", head="fc.")
    with pytest.raises(ModelError, match="must be an nn"):
        Space.of(nn.ModuleDict({"head": nn.Conv2d(1, 1, 3)}), "head")
    with pytest.raises(ModelError, match="rank=0"):
        Space.of(made(resnet_small), "whole", rank=0)
    tied = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    tied["b"].weight = tied["a"].weight
    with pytest.raises(ModelError, match="share a parameter"):
        Space.of(tied, "whole")


def test_a_weight_used_outside_its_layer_is_found() -> None:
    torch.manual_seed(0)
    model, x = Twisted(), torch.randn(5, 4)
    with pytest.raises(ModelError, match=r"'dense\.weight'"):
        Space.of(model, "whole").check(model, x)
    Space.of(model, "head").check(model, x)


@pytest.mark.parametrize("trained", [True, False])
def test_callers_are_left_as_they_were(trained: bool) -> None:
    """Grad mode, hooks, `requires_grad` and gradients; with frozen weights too."""
    model = made(resnet_small).requires_grad_(trained)
    space, x = Space.of(model, "whole"), torch.randn(2, 3, 32, 32)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            before = torch.is_grad_enabled()
            _, found = space.logit_gradients(model, x)
            space.check(model, x)
            assert torch.is_grad_enabled() == before
    assert relative(found.double().numpy(), by_loop(space, model.requires_grad_(True), x)) < 1e-5
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_no_rows_give_no_gradients() -> None:
    model = made(partial(mlp, 4))
    space = Space.of(model, "whole")
    logits, gradients = space.logit_gradients(model, torch.zeros(0, 4))
    assert logits.shape == (0,)
    assert gradients.shape == (0, space.size)


@pytest.mark.parametrize(("kind", "most"), [("whole", 2.0), ("head", 1.0)])
def test_it_costs_no_more_than_training(kind: Literal["head", "whole"], most: float) -> None:
    """CPU time against one plain forward and backward pass over the same 32 images of 64 x 64, ResNet-18."""
    model, x = made(resnet18), torch.randn(32, 3, 64, 64)
    space = Space.of(model, kind)

    def plain() -> None:
        torch.autograd.grad(model(x).sum(), list(model.parameters()))

    def cost(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    plain()
    space.logit_gradients(model, x)
    pairs = [(cost(plain), cost(lambda: space.logit_gradients(model, x))) for _ in range(3)]
    assert min(b for _, b in pairs) <= most * min(a for a, _ in pairs)
