"""Federated averaging as one plain PyTorch script: the yardstick of what a simulation costs. FROZEN.

It imports nothing of equipoise and no framework. The scripts of the frameworks take the network, the data, the order of
the patients, the evaluation and (where the framework has no loop of its own) the local epoch from here, so that all do
the same work.

    python peer_plain.py HOSPITALS VENDOR.safetensors OUT.safetensors --rounds 20
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
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


Split = tuple[Tensor, Tensor]  # images (n, 3, 32, 32) uint8, and labels (n,), 0 or 1


@cache
def read(folder: str) -> dict[str, dict[str, Split]]:
    """The splits `train` and `test` of every site, by name, from its table and its zip of PNG images."""
    return {site.name: site_splits(site) for site in sorted(Path(folder).iterdir())}


def site_splits(site: Path) -> dict[str, Split]:
    """A site's splits."""
    found: dict[str, list[tuple[np.ndarray, int]]] = {"train": [], "test": []}
    with zipfile.ZipFile(site / "images.zip") as archive, (site / "manifest.csv").open(newline="") as table:
        for row in csv.DictReader(table):
            image = np.asarray(Image.open(io.BytesIO(archive.read(row["image"]))).convert("RGB"))
            found[row["split"]].append((image, int(row["malignant"])))
    return {name: split_of(rows) for name, rows in found.items()}


def split_of(rows: list[tuple[np.ndarray, int]]) -> Split:
    """Images (32, 32, 3) uint8 and labels as a split."""
    images = np.stack([image for image, _ in rows]).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(images)), torch.tensor([label for _, label in rows])


def order(site: str, number: int, patients: int) -> Tensor:
    """The shuffle of a site's patients in a round, counted from 1: a public random stream of that name."""
    name = "\x1f".join([str(SEED), site, str(number), "local training"])
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1
    return torch.randperm(patients, generator=torch.Generator().manual_seed(seed))


def prepared(images: Tensor) -> Tensor:
    """Images (m, 3, 32, 32) uint8 as the network wants them."""
    return ((images.float() / 255 - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)


def loss(model: Network, images: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy of a batch: images (m, 3, 32, 32) uint8, label (m,)."""
    return binary_cross_entropy_with_logits(model(prepared(images)), label.float())


def train(model: Network, images: Tensor, label: Tensor, rows: Tensor) -> None:
    """One local epoch of stochastic gradient descent, in the order of `rows`."""
    optimiser = torch.optim.SGD(model.parameters(), lr=LR)
    for batch in torch.split(rows, BATCH):
        optimiser.zero_grad()
        loss(model, images[batch], label[batch]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()


@torch.no_grad()
def decisions(model: Network, tests: Iterable[Split]) -> list[list[int]]:
    """Test patients by label and decision, over all sites."""
    counted = torch.zeros(4, dtype=torch.int64)
    for images, label in tests:
        chosen = (model(prepared(images)) > 0).long()
        counted += torch.bincount(2 * label + chosen, minlength=4)
    return counted.reshape(2, 2).tolist()


def write(
    out: str, vendor: Mapping[str, Tensor], state: Mapping[str, Tensor], sites: Mapping[str, Mapping[str, Split]]
) -> None:
    """The trained weights, and what the vendor's model and they decide."""
    model, found = Network(), {}
    for name, weights in (("base", vendor), ("method", state)):
        model.load_state_dict(weights)
        found[name] = decisions(model, [site["test"] for site in sites.values()])
    save_file(dict(state), out)
    Path(out).with_suffix(".json").write_text(json.dumps(found))


def arguments() -> argparse.Namespace:
    """The command line that the scripts share."""
    parser = argparse.ArgumentParser(
        description="Federated averaging of one local epoch a round, every site each round."
    )
    for name in ("hospitals", "vendor", "out"):
        parser.add_argument(name)
    parser.add_argument("--rounds", type=int, required=True)
    return parser.parse_args()


def main() -> None:
    """Read, train, evaluate, write."""
    given = arguments()
    torch.set_num_threads(1)
    sites = read(given.hospitals)
    vendor = state = load_file(given.vendor)
    model = Network()
    for number in range(1, given.rounds + 1):
        total = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        for site, splits in sites.items():
            images, label = splits["train"]
            model.load_state_dict(state)
            train(model, images, label, order(site, number, len(label)))
            for name, tensor in model.state_dict().items():
                total[name] += tensor
        state = {name: tensor / len(sites) for name, tensor in total.items()}
    write(given.out, vendor, state, sites)


if __name__ == "__main__":
    main()
