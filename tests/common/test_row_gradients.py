"""Row gradients equal what autograd gives for each row alone, by the layer rules and by the way around them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from equipoise.common.models import mlp, resnet_small
from equipoise.common.row_gradients import RowGradients


class Twice(nn.Module):
    """Calls one layer twice, so its rule alone would see half of its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x))))).squeeze(1)


class Beside(nn.Module):
    """Uses a layer's weight outside the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x)) @ self.inner.weight).squeeze(1)


class Depthwise(nn.Module):
    """Holds a layer without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 6, 3, groups=3)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(x)).mean(dim=(2, 3))).squeeze(1)


class Odd(nn.Module):
    """Unequal strides, paddings and kernels, a bias, and a linear layer over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 4, (3, 5), stride=(2, 1), padding=(0, 2))
        self.norm = nn.GroupNorm(2, 4)
        self.mix = nn.Linear(8, 5)
        self.head = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.norm(self.inner(x)))).mean(dim=(1, 2))).squeeze(1)


IMAGES, TABLE = (3, 8, 8), (6,)
RULED = [(resnet_small, (3, 32, 32)), (lambda: mlp(6), TABLE), (Odd, IMAGES)]
AROUND = [(Twice, TABLE), (Beside, TABLE), (Depthwise, IMAGES)]


@pytest.mark.parametrize(("factory", "shape", "by_rule"), [(*m, True) for m in RULED] + [(*m, False) for m in AROUND])
def test_each_row_s_gradient_is_its_own(factory: type[nn.Module], shape: tuple[int, ...], by_rule: bool) -> None:
    torch.manual_seed(1)
    model = factory().double().eval()
    x = torch.randn(5, *shape, dtype=torch.float64)
    names = [name for name, _ in model.named_parameters()]
    gradients = RowGradients(model, names)
    for part in (x[:3], x[3:].contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x[3:]):
        logits, found = gradients(part)
        rows = dict(found)
        assert sorted(rows) == sorted(names)
        torch.testing.assert_close(logits, model(part).detach())
        for index in range(len(part)):
            expected = torch.autograd.grad(model(part[index : index + 1]).sum(), list(model.parameters()))
            for name, value in zip(names, expected, strict=True):
                torch.testing.assert_close(rows[name][index], value)
    assert (gradients._layers is not None) == by_rule


def test_only_the_named_parameters_come() -> None:
    gradients = RowGradients(resnet_small().eval(), ["head.weight"])
    _, found = gradients(torch.zeros(2, 3, 32, 32))
    assert [(name, tuple(value.shape)) for name, value in found] == [("head.weight", (2, 1, 96))]


def test_the_rules_do_not_load_the_compiler() -> None:
    program = (
        "import sys, torch; from equipoise.common.models import mlp; from equipoise.common.row_gradients import "
        "RowGradients; m = mlp(6); list(RowGradients(m, [n for n, _ in m.named_parameters()])(torch.ones(2, 6))[1]); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
