"""Federated SWiFT as one plain PyTorch script: the yardstick of equipoise's speed. FROZEN.

It reads what a simulated study reads (hospitals' folders with manifest.csv and images.zip, the vendor's safetensors)
and ends with the same weights up to rounding, in one process and one thread, with nothing around it: no messages, no
integers, no ledger, no transcript, no evaluation, no report. It imports nothing of equipoise on purpose; whoever
changes the method changes both, and tests/simulations/test_plain_swift.py compares them.

    python simulations/benchmarks/plain_swift.py HOSPITALS VENDOR.safetensors OUT.safetensors --seed 1
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import binary_cross_entropy_with_logits

TONES = ("light", "dark")
CELLS = 6  # (light, dark, unknown) x (benign, malignant)
MEAN, STD = 0.5, 0.25
BETA, LR, MOMENTUM, BATCH = 0.5, 0.003, 0.9, 64
SMOOTHING, WEIGHT_CAP, FLOOR = 0.08, 4.0, 0.05
CHUNK = 64  # rows whose gradients are held at once
SCORED = 128  # rows scored at once

Cells = NDArray[np.float64]


@dataclass
class Hospital:
    """The training patients of one hospital, one image each: images (n, 3, 32, 32) uint8, label and cell (n,)."""

    name: str
    images: Tensor
    label: Tensor
    cell: Tensor

    def batch(self, rows: Tensor | slice) -> Tensor:
        """Normalised images, channels last."""
        x = (self.images[rows].float() / 255 - MEAN) / STD
        return x.contiguous(memory_format=torch.channels_last)


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
    """The small residual network of the synthetic benchmark."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor = nn.Sequential(
            nn.Conv2d(3, 24, 5, 2, padding=2, bias=False),
            nn.GroupNorm(8, 24),
            nn.ReLU(),
            Block(24, 24, 1),
            Block(24, 48, 2),
            Block(48, 96, 2),
        )
        self.head = nn.Linear(96, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (m, 3, 32, 32) to logits (m,)."""
        logit: Tensor = self.head(self.extractor(x).mean(dim=(2, 3)))
        return logit.squeeze(1)


def read_hospital(folder: Path) -> Hospital:
    """The training rows of a hospital's manifest and their images."""
    with (folder / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    with zipfile.ZipFile(folder / "images.zip") as archive:
        images = [np.asarray(Image.open(io.BytesIO(archive.read(row["image"])))) for row in rows]
    label = torch.tensor([int(row["malignant"]) for row in rows])
    tone = torch.tensor([TONES.index(row["tone"]) for row in rows])
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Hospital(folder.name, pixels, label, 2 * tone + label)


def stream(seed: int, *names: str | int) -> torch.Generator:
    """A public random stream, named."""
    digest = hashlib.sha256("\x1f".join([str(seed), *map(str, names)]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def task_weights(counts: Cells) -> Cells:
    """Every cell weighs alike, mean 1 over the patients, capped; counts are (3, 2), `unknown` last."""
    weights = np.divide(1.0, counts, out=np.zeros_like(counts), where=counts > 0)
    weights *= counts.sum() / (weights * counts).sum()
    return np.minimum(weights, WEIGHT_CAP)


def bias_weights(counts: Cells, scores: Cells) -> Cells:
    """Weights of each patient's score whose mean has the gradient of the absolute equalized-odds loss."""
    n, s = counts[:2], scores[:2]
    weights = np.zeros_like(counts)
    if n.min() < 2:
        raise SystemExit("a cell has fewer than two patients; the script has no rule for that")
    gap = s[0] / n[0] - s[1] / n[1]  # by label
    # Both groups are compared with the other, each at half weight, and both labels at half weight.
    slope = 0.5 * np.clip(gap / SMOOTHING, -1, 1) * counts.sum()
    weights[0], weights[1] = slope / n[0], -slope / n[1]
    return weights


def losses(logits: Tensor, label: Tensor, cell: Tensor, task: Tensor, bias: Tensor, beta: float) -> Tensor:
    """beta * weighted cross-entropy + (1 - beta) * weighted score, by row."""
    entropy = binary_cross_entropy_with_logits(logits, label.to(logits.dtype), reduction="none")
    return beta * task[cell] * entropy + (1 - beta) * bias[cell] * torch.sigmoid(logits)


def soft_mask(model: Network, hospitals: list[Hospital], task: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """tanh(bias sensitivity / task sensitivity) by tensor, from squared gradients of single patients."""
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}

    def logit(values: dict[str, Tensor], row: Tensor) -> Tensor:
        output: Tensor = functional_call(model, values, (row.unsqueeze(0),))
        return output.squeeze()

    gradients: Callable[[dict[str, Tensor], Tensor], dict[str, Tensor]] = vmap(grad(logit), in_dims=(None, 0))
    total = torch.zeros(2, len(parameters), dtype=torch.float64)
    for hospital in hospitals:
        for rows in torch.split(torch.arange(len(hospital.label)), CHUNK):
            x, label, cell = hospital.batch(rows), hospital.label[rows], hospital.cell[rows]
            with torch.no_grad():
                p = torch.sigmoid(model(x))
            by_row = gradients(parameters, x)
            squares = torch.stack([by_row[name].flatten(1).square().sum(dim=1) for name in parameters], dim=1)
            factors = torch.stack([bias[cell] * p * (1 - p), task[cell] * (p - label)])
            total += (factors.square() @ squares).double()
    scaled = total / total.mean(dim=1, keepdim=True)
    values = torch.tanh(scaled[0] / (scaled[1] + FLOOR)).float()
    return {name: torch.full_like(parameters[name], float(v)) for name, v in zip(parameters, values, strict=True)}


def patient_scores(model: Network, hospital: Hospital) -> Tensor:
    """Score of each patient, (n,) float64."""
    with torch.no_grad():
        parts = torch.split(torch.arange(len(hospital.label)), SCORED)
        return torch.cat([torch.sigmoid(model(hospital.batch(rows))) for rows in parts]).double()


def by_cell(values: Tensor, cell: Tensor) -> Cells:
    """Sums of values (n,) by cell, (3, 2)."""
    return torch.zeros(CELLS, dtype=torch.float64).index_add_(0, cell, values).numpy().reshape(-1, 2)


def train(
    model: Network,
    hospital: Hospital,
    mask: dict[str, Tensor],
    task: Tensor,
    counts: Cells,
    sums: Cells,
    generator: torch.Generator,
) -> Cells:
    """One local epoch of masked SGD on the tensors of `mask`; the hospital's sums of scores by cell after it.

    The signs of the bias loss follow the global gaps at the start (`counts`, `sums`) and how the hospital's own steps
    move its patients' scores, kept to one half from batch to batch.
    """
    start, own = patient_scores(model, hospital), by_cell(torch.ones(len(hospital.label)).double(), hospital.cell)
    drift = np.zeros_like(counts)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in mask)
    named = dict(model.named_parameters())
    trained = [named[name] for name in mask]
    optimiser = torch.optim.SGD(trained, lr=LR, momentum=MOMENTUM)
    for rows in torch.split(torch.randperm(len(hospital.label), generator=generator), BATCH):
        label, cell = hospital.label[rows], hospital.cell[rows]
        logits = model(hospital.batch(rows))
        moved = by_cell(torch.sigmoid(logits.detach()).double() - start[rows], cell)
        met = by_cell(torch.ones(len(rows)).double(), cell)
        drift[met > 0] = 0.5 * drift[met > 0] + 0.5 * (moved[met > 0] / met[met > 0])
        bias = torch.from_numpy(bias_weights(counts, sums + counts * drift)).float().flatten()
        optimiser.zero_grad()
        losses(logits, label, cell, task, bias, BETA).mean().backward()  # type: ignore[no-untyped-call]
        for parameter, factor in zip(trained, mask.values(), strict=True):
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        optimiser.step()
    return np.clip(by_cell(start, hospital.cell) + own * drift, 0.0, own)


def swift(model: Network, hospitals: list[Hospital], seed: int, rounds: tuple[int, int]) -> None:
    """Counts and mask once, then federated averages of masked epochs: extractor, then head."""
    cell = torch.cat([hospital.cell for hospital in hospitals])
    counts = torch.bincount(cell, minlength=CELLS).double().numpy().reshape(-1, 2)
    patients = len(cell)
    scores = by_cell(torch.cat([patient_scores(model, hospital) for hospital in hospitals]), cell)
    task = torch.from_numpy(task_weights(counts)).float().flatten()
    bias = torch.from_numpy(bias_weights(counts, scores)).float().flatten()
    mask = soft_mask(model, hospitals, task, bias)
    # Head entries whose mask is above their tensor's mean would start again at 0; with one value a tensor, none is.
    release = 2  # 0 was the counts, 1 the mask
    for phase, number in zip(("extractor", "head"), rounds, strict=True):
        inside = {name: value for name, value in mask.items() if name.startswith("head.") == (phase == "head")}
        acting = inside if phase == "extractor" else {name: torch.ones_like(value) for name, value in inside.items()}
        for _ in range(number):
            start = OrderedDict((name, tensor.clone()) for name, tensor in model.state_dict().items())
            moved = {name: torch.zeros_like(start[name], dtype=torch.float64) for name in acting}
            sums = np.zeros_like(counts)
            for hospital in hospitals:
                model.load_state_dict(start)
                generator = stream(seed, hospital.name, release, "local training")
                sums += train(model, hospital, acting, task, counts, scores, generator)
                for name, parameter in model.named_parameters():
                    if name in acting:
                        change = parameter.detach().double() - start[name].double()
                        moved[name] += change * (len(hospital.label) / patients)
            start.update({name: (start[name].double() + change).float() for name, change in moved.items()})
            model.load_state_dict(start)
            scores = sums
            release += 1


def main() -> None:
    """Read, train, write."""
    parser = argparse.ArgumentParser(description="Federated SWiFT in plain PyTorch.")
    parser.add_argument("hospitals", type=Path)
    parser.add_argument("vendor", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, nargs=2, default=(5, 5))
    given = parser.parse_args()
    torch.set_num_threads(1)
    hospitals = [read_hospital(file.parent) for file in sorted(given.hospitals.glob("*/site.yaml"))]
    model = Network().eval()
    model.load_state_dict(load_file(given.vendor))
    swift(model, hospitals, given.seed, tuple(given.rounds))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, given.out)


if __name__ == "__main__":
    main()
