"""Energies by tensor against autograd, for patients with one image and with several, sound and damaged."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise.common.block_energies import BlockEnergies
from equipoise.common.models import mlp, resnet18, resnet_small
from equipoise.common.vision_transformer import vit

WITHIN = {torch.float32: 1e-4, torch.float64: 1e-10}


class Shared(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.head = nn.Linear(5, 5), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        logit: Tensor = self.head(torch.tanh(self.dense(torch.tanh(self.dense(x)))))
        return logit.squeeze(1)


class Grouped(nn.Module):
    """A convolution in groups, which has no rule; and a linear layer at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dense, self.head = nn.Conv2d(4, 4, 3, groups=2), nn.Linear(4, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        logit: Tensor = self.head(torch.tanh(self.dense(self.conv(x).flatten(2).mT)).mean(dim=1))
        return logit.squeeze(1)


class Positions(nn.Module):
    """A convolution with a bias and dilation, and a linear layer at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dense = nn.Conv2d(3, 4, 3, 2, padding=1, dilation=2), nn.Linear(4, 3)
        self.point, self.head = nn.Conv2d(4, 4, 1, 2), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.tanh(self.point(torch.tanh(self.conv(x))))
        logit: Tensor = self.head(torch.tanh(self.dense(seen.flatten(2).mT)).mean(dim=1))
        return logit.squeeze(1)


def made(factory: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = factory().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype)


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def by_autograd(model: nn.Module, x: Tensor, owner: Tensor, label: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Squared gradient norms of each patient's mean score and mean cross-entropy."""
    tables = []
    for bias in (True, False):
        table = []
        for patient in range(len(label)):
            z = model(x[owner == patient])
            y = label[patient].to(z.dtype).expand_as(z)
            values = (
                torch.sigmoid(z) if bias else nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none")
            )
            gradients = torch.autograd.grad(values.mean(), list(model.parameters()))
            table.append([float(g.double().square().sum()) for g in gradients])
        tables.append(np.array(table))
    return tables[0], tables[1]


ONE, SEVERAL = [0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 2, 2]


@pytest.mark.parametrize("owner", [ONE, SEVERAL], ids=["one image", "several images"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("factory", "shape"),
    [
        (resnet_small, (6, 3, 32, 32)),
        (partial(mlp, 10), (6, 10)),
        (Positions, (6, 3, 16, 16)),
        (Shared, (6, 5)),
        (Grouped, (6, 4, 6, 6)),
        (partial(vit, 16, depth=2), (6, 3, 16, 16)),
    ],
    ids=["resnet_small", "mlp", "positions", "shared", "grouped", "vit"],
)
def test_energies_are_those_of_autograd(
    factory: Callable[[], nn.Module], shape: tuple[int, ...], dtype: torch.dtype, owner: list[int]
) -> None:
    model, x = made(factory, dtype), torch.randn(*shape, dtype=dtype)
    label = torch.tensor([0, 1, 1, 0, 1, 0])[: owner[-1] + 1]
    found = BlockEnergies(model, names_of(model)).patients(x, torch.tensor(owner), label)
    expected = by_autograd(model, x, torch.tensor(owner), label)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == np.float64
        np.testing.assert_allclose(mine, theirs, rtol=WITHIN[dtype], atol=1e-12 * theirs.max())


def test_energies_of_resnet18() -> None:
    """Both ways, by positions and by forming, are in use here."""
    model, x = made(resnet18), torch.randn(3, 3, 64, 64)
    owner, label = torch.tensor([0, 0, 1]), torch.tensor([1, 0])
    found = BlockEnergies(model, names_of(model)).patients(x, owner, label)
    for mine, theirs in zip(found, by_autograd(model, x, owner, label), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4)


def test_rows_are_patients_of_one_image_without_a_loss() -> None:
    model, x = made(resnet_small), torch.randn(5, 3, 32, 32)
    energies = BlockEnergies(model, names_of(model))
    logits, rows = energies.rows(x)
    bias, task = energies.patients(x, torch.arange(5), torch.ones(5, dtype=torch.int64))
    p = 1 / (1 + np.exp(-logits))[:, None]
    np.testing.assert_allclose(bias, (p * (1 - p)) ** 2 * rows, rtol=1e-5)
    np.testing.assert_allclose(task, (1 - p) ** 2 * rows, rtol=1e-5)


def test_patients_do_not_touch_each_other() -> None:
    """In any company, beside a damaged image, in any number of rows at once."""
    model, x = made(resnet_small), torch.randn(40, 3, 32, 32)
    owner, label = torch.arange(20).repeat_interleave(2), torch.arange(20) % 2
    energies = BlockEnergies(model, names_of(model))
    everyone = energies.patients(x, owner, label)
    alone = energies.patients(x[6:8], torch.tensor([0, 0]), label[3:4])
    x[0, 0, 0, 0] = float("nan")
    beside = energies.patients(x, owner, label)
    for together, single, damaged in zip(everyone, alone, beside, strict=True):
        np.testing.assert_allclose(together[3], single[0], rtol=1e-4)
        np.testing.assert_allclose(damaged[1:], together[1:], rtol=1e-4)


@pytest.mark.parametrize("damage", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("factory", [resnet_small, Positions, Grouped], ids=["rules", "dilated", "vmap"])
def test_a_damaged_row_counts_as_zero(factory: Callable[[], nn.Module], damage: float) -> None:
    """It stays one of the patient's rows: a patient of a sound and a damaged row has a quarter of the sound row's."""
    model = made(factory)
    shape = (4, 4, 6, 6) if factory is Grouped else (4, 3, 32, 32)
    x, owner, label = torch.randn(*shape), torch.tensor([0, 0, 1, 2]), torch.tensor([1, 0, 1])
    x[0, 1], x[2, 0] = damage, damage
    energies = BlockEnergies(model, names_of(model))  # sees a damaged row first
    found = energies.patients(x, owner, label)
    sound = BlockEnergies(model, names_of(model)).patients(x[[1, 3]], torch.tensor([0, 1]), label[[0, 2]])
    for mine, theirs in zip(found, sound, strict=True):
        np.testing.assert_allclose(mine[0], theirs[0] / 4, rtol=1e-4)
        assert not mine[1].any()
        np.testing.assert_allclose(mine[2], theirs[1], rtol=1e-4)
    assert (energies._layers is None) == (factory is Grouped)  # the way taken did not depend on the damage


def test_some_tensors_and_no_rows() -> None:
    model, x = made(partial(mlp, 4)), torch.randn(3, 4)
    every, some = names_of(model), ["head.weight", "extractor.0.bias"]
    owner, label = torch.arange(3), torch.tensor([0, 1, 1])
    whole = BlockEnergies(model, every).patients(x, owner, label)
    part = BlockEnergies(model, some)
    for found, expected in zip(part.patients(x, owner, label), whole, strict=True):
        np.testing.assert_allclose(found, expected[:, [every.index(name) for name in some]])
    nobody = part.patients(x[:0], owner[:0], label[:0])
    assert nobody[0].shape == nobody[1].shape == (0, 2)
    assert not part.patients(x[:1], owner[:1], label)[0][1:].any()  # patients without rows


def test_frozen_tensors_have_energies_too() -> None:
    model, x = made(partial(mlp, 4)), torch.randn(3, 4)
    expected = BlockEnergies(model, names_of(model)).rows(x)[1]
    found = BlockEnergies(model.requires_grad_(False), names_of(model)).rows(x)[1]
    np.testing.assert_allclose(found, expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_it_costs_little_more_than_training() -> None:
    """CPU time against a forward and backward pass over the same 32 images of 64 x 64, ResNet-18: at most 1.8."""
    images = 2
    model, x = made(resnet18), torch.randn(32, 3, 64, 64)
    energies = BlockEnergies(model, names_of(model))
    owner = torch.arange(32 // images).repeat_interleave(images)
    label = torch.zeros(32 // images, dtype=torch.int64)

    def plain() -> None:
        torch.autograd.grad(model(x).sum(), list(model.parameters()))

    def cost(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    plain()
    energies.patients(x, owner, label)
    pairs = [(cost(plain), cost(lambda: energies.patients(x, owner, label))) for _ in range(3)]
    assert min(b for _, b in pairs) <= 1.8 * min(a for a, _ in pairs)
