"""Factories that a user may write by mistake, for a table of six columns; imported as `tests.wrong`."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

WIDTH = 6


class Net(nn.Module):
    """A network as it should be, with dropout, which no patient's answer depends on at a hospital."""

    def __init__(self, features: int = WIDTH) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(features, 8), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).squeeze(1)


class Tied(Net):
    """A layer that is used again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.again.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.again(self.first(x)))


class Centred(Net):
    """Takes the mean of the batch away by hand, which no name of a layer shows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class Undefined(Net):
    """Divides nothing by nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0 / 0


class Squeezed(Net):
    """Loses the axis of the batch where a batch is one row."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).squeeze()


class Strided(Net):
    """A weight in another order than its axes'."""

    def __init__(self) -> None:
        super().__init__()
        self.head.weight.data, self.wide = torch.zeros(8, 2).t()[:1], nn.Parameter(torch.zeros(3, 2).t())


class Lazy(Net):
    """A layer that waits for its first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LazyLinear(8))


class Stateful(Net):
    """Keeps something that is no tensor."""

    def get_extra_state(self) -> str:
        return "note"

    def set_extra_state(self, state: object) -> None:
        del state


def good(features: int = WIDTH) -> nn.Module:
    return Net(features)


def raises() -> nn.Module:
    raise ValueError("boom\nsecond line")


def exits() -> nn.Module:
    sys.exit(3)


def none() -> nn.Module:
    return None


def odd() -> nn.Modul:
    return Net()


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Net()
