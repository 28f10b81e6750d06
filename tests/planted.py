"""A task with a planted answer for searches over parts, and a line to sites that needs no agents.

The model is a sum of five linear blocks, each with features of its own. In four of them the vendor's weights are right,
and the training patients carry an artefact that gives their disease away and that no other patient has (they were
scanned again): training these blocks learns it, which only validation patients can show. The fifth block carries a
shortcut: a feature that went with the disease where the vendor trained, and goes against it in one group here.
Fine-tuning that block alone is the answer. The head is one weight and one shift, which can repair nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from equipoise.client.cohort import Split
from equipoise.client.computations import COMPUTATIONS, Workplace
from equipoise.client.release import release
from equipoise.client.scores import ScoreCache
from equipoise.common.canonical import sha256
from equipoise.common.classifier import Classifier
from equipoise.common.query import Query, Sum
from equipoise.common.study import Study

BLOCKS, WIDTH = 5, 4
ARTEFACT = 2.0
FEATURES = (BLOCKS - 1) * WIDTH + 1
ResultT = TypeVar("ResultT")


class Towers(nn.Module):
    """See the module's text; block `planted` has the one feature of the shortcut."""

    def __init__(self, planted: int) -> None:
        super().__init__()
        self.widths = [1 if block == planted else WIDTH for block in range(BLOCKS)]
        self.towers = nn.ModuleList(nn.Linear(width, 1, bias=False) for width in self.widths)
        self.head = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        slices = torch.split(x[:, :FEATURES], self.widths, dim=1)
        both: Tensor = self.head(sum(tower(part) for tower, part in zip(self.towers, slices, strict=True)))
        return both.squeeze(1)


def towers(planted: int = 0) -> nn.Module:
    """The planted task's model."""
    return Towers(planted)


@dataclass(frozen=True)
class Task:
    """A vendor's model and the sites' patients, by split."""

    planted: int
    file: bytes
    sites: Mapping[str, Mapping[str, Split]]

    @classmethod
    def of(cls, seed: int, train: int = 100, validation: int = 600, sites: int = 2) -> Task:
        """The task of a seed: which block is planted, and all patients."""
        rng = np.random.default_rng(seed)
        planted = int(rng.integers(BLOCKS))
        truth = rng.normal(0, 0.5, (BLOCKS, WIDTH))
        artefact = rng.normal(0, 1, (BLOCKS, WIDTH))
        # At right angles to what is right, so that the vendor's model does not see it.
        artefact -= truth * ((artefact * truth).sum(axis=1) / (truth**2).sum(axis=1))[:, None]
        artefact *= ARTEFACT / np.linalg.norm(artefact, axis=1, keepdims=True)
        model = Towers(planted)
        with torch.no_grad():
            for block, tower in enumerate(model.towers):
                tower.weight.copy_(torch.from_numpy(truth[block][None]) if block != planted else torch.tensor([[2.0]]))
            model.head.weight.fill_(1.0)
            model.head.bias.zero_()
        names = [f"s{k}" for k in range(sites)]
        people = {
            name: {
                "train": _draw(rng, truth, planted, train, artefact),
                "validation": _draw(rng, truth, planted, validation, 0 * artefact),
            }
            for name in names
        }
        return cls(planted, save(model.state_dict()), people)

    @property
    def classifier(self) -> Classifier:
        """The vendor's classifier."""
        return Classifier.of(self.file, Towers(self.planted), "head.")

    def study(self, seed: int = 0, **method: Any) -> Study:
        """A FairTune study of the task; `method` are its keys."""
        features = [{"name": f"f{i}", "range": [-4, 4]} for i in range(FEATURES)]
        return Study.model_validate(
            {
                "study": "planted",
                "seed": seed,
                "model": {
                    "factory": "tests.planted:towers",
                    "arguments": {"planted": self.planted},
                    "weights": {"path": "vendor", "sha256": sha256(self.file)},
                },
                "inputs": {"kind": "table", "features": features},
                "label": {"column": "disease", "positive": 1},
                "attributes": [{"name": "sex", "levels": ["female", "male"], "primary": True}],
                "method": {"name": "fairtune", "tying": "parts", **method},
                "sites": {"minimum": 1, "declared_patients": {n: s["train"].patients for n, s in self.sites.items()}},
            }
        )


def _draw(rng: np.random.Generator, truth: np.ndarray, planted: int, n: int, artefact: np.ndarray) -> Split:
    """Patients whose disease follows every block but the planted one; the shortcut goes with it in one group alone."""
    group = (rng.random(n) < 0.5).astype(np.int64)
    x = rng.normal(0, 1, (n, BLOCKS, WIDTH))
    logit = sum((x[:, block] @ truth[block] for block in range(BLOCKS) if block != planted), np.zeros(n))
    label = (rng.random(n) < 1 / (1 + np.exp(-1.5 * logit))).astype(np.int64)
    x += (2 * label - 1)[:, None, None] * artefact
    sign = np.where(rng.random(n) < np.where(group == 1, 0.9, 0.3), 1.0, -1.0)
    shortcut = sign * (2 * label - 1) * 0.8
    columns = [shortcut[:, None] if block == planted else x[:, block] for block in range(BLOCKS)]
    values = np.concatenate([*columns, np.zeros((n, FEATURES))], axis=1)
    return Split(
        inputs=torch.from_numpy(values.astype(np.float32)),
        patient=torch.arange(n),
        label=torch.from_numpy(label),
        groups={"sex": torch.from_numpy(group)},
    )


class _Charge:
    def use(self, digest: str) -> None:
        """Whatever is asked is paid for."""


def answered(study: Study, sites: Mapping[str, Mapping[str, Split]], query: Query, number: int) -> Sum:
    """The sum of what the sites release for a query."""
    points: list[Mapping[str, np.ndarray]] = []
    for site, splits in sites.items():
        place = Workplace(study, site, query, splits[query.split], ScoreCache(), number)
        points.append(release(_Charge(), query, COMPUTATIONS[query.name](place)))  # type: ignore[arg-type]
    total = {name: np.sum([one[name] for one in points], axis=0) for name in query.blocks}
    return Sum(query, tuple(sites), total)


def drive(
    steps: Generator[Query, Sum, ResultT], answer: Callable[[Query, int], Sum]
) -> tuple[ResultT, list[tuple[Query, Sum]]]:
    """The generator's result, and what was asked and answered."""
    asked: list[tuple[Query, Sum]] = []
    try:
        query = next(steps)
        while True:
            total = answer(query, len(asked))
            asked.append((query, total))
            query = steps.send(total)
    except StopIteration as end:
        return end.value, asked
