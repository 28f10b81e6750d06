"""Federated averaging as one plain PyTorch script: the yardstick of what a simulation costs. FROZEN.

It imports nothing of equipoise and no framework. The scripts of the frameworks take the network, the data, the order of
the patients and (where the framework has no loop of its own) the local epoch from here, so that all do the same work.

    python peer_plain.py SITES.npz VENDOR.safetensors OUT.safetensors --rounds 20
"""

from __future__ import annotations

import argparse
import hashlib
from functools import cache

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

SEED, LR, BATCH = 1, 0.01, 10


class Block(nn.Module):
    """Two 3x3 convolutions with group normalisation, added to the input."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, outside)
        same = stride == 1 and inside == outside
        self.shortcut = nn.Identity() if same else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(m, inside, h, w) to (m, outside, h / stride, w / stride)."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Network(nn.Module):
    """A residual network of 174,265 parameters."""

    def __init__(self) -> None:
        super().__init__()
        stem = (nn.Conv2d(3, 24, 5, 2, padding=2, bias=False), nn.GroupNorm(8, 24), nn.ReLU())
        self.extractor = nn.Sequential(*stem, Block(24, 24, 1), Block(24, 48, 2), Block(48, 96, 2))
        self.head = nn.Linear(96, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (m, 3, 32, 32) to logits (m,)."""
        logit: Tensor = self.head(self.extractor(x).mean(dim=(2, 3)))
        return logit.squeeze(1)


@cache
def read(file: str) -> tuple[list[str], Tensor, Tensor]:
    """The sites' names, images (sites, n, 3, 32, 32) uint8, and labels (sites, n), 0 or 1."""
    with np.load(file) as arrays:
        names = [str(name) for name in arrays["name"]]
        return names, torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["label"])


def order(site: str, number: int, patients: int) -> Tensor:
    """The shuffle of a site's patients in a round, counted from 1: a public random stream of that name."""
    name = "\x1f".join([str(SEED), site, str(number), "local training"])
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1
    return torch.randperm(patients, generator=torch.Generator().manual_seed(seed))


def loss(model: Network, images: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy of a batch: images (m, 3, 32, 32) uint8, label (m,)."""
    x = ((images.float() / 255 - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
    return binary_cross_entropy_with_logits(model(x), label.float())


def train(model: Network, images: Tensor, label: Tensor, rows: Tensor) -> None:
    """One local epoch of stochastic gradient descent, in the order of `rows`."""
    optimiser = torch.optim.SGD(model.parameters(), lr=LR)
    for batch in torch.split(rows, BATCH):
        optimiser.zero_grad()
        loss(model, images[batch], label[batch]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def arguments() -> argparse.Namespace:
    """The command line that the scripts share."""
    parser = argparse.ArgumentParser(
        description="Federated averaging of one local epoch a round, every site each round."
    )
    for name in ("sites", "vendor", "out"):
        parser.add_argument(name)
    parser.add_argument("--rounds", type=int, required=True)
    return parser.parse_args()


def main() -> None:
    """Read, train, write."""
    given = arguments()
    torch.set_num_threads(1)
    names, images, label = read(given.sites)
    state = load_file(given.vendor)
    model = Network()
    for number in range(1, given.rounds + 1):
        total = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        for index, site in enumerate(names):
            model.load_state_dict(state)
            train(model, images[index], label[index], order(site, number, len(label[index])))
            for name, tensor in model.state_dict().items():
                total[name] += tensor
        state = {name: tensor / len(names) for name, tensor in total.items()}
    save_file(state, given.out)


if __name__ == "__main__":
    main()
