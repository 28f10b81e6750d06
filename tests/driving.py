"""Drives a method over sites in memory, each query through the site's computation and the last step of its door.

Tests of a method read sums here as the engine would give them, without agents, transcripts or ledgers on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from equipoise.common.classifier import Classifier
from equipoise.common.methods import METHODS
from equipoise.common.methods.method import Outcome
from equipoise.common.query import Query, Sum
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from tests.tiny import (
    FEATURES,
    Memory,
    People,
    classifier_of,
    contribution,
    declare,
    draw_people,
    make_study,
    weights_file,
)


@dataclass
class Driven:
    """What a run came to.

    Attributes:
        outcome: of the generator.
        sums: every release, in order.
    """

    outcome: Outcome
    sums: list[Sum] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Names of the queries, in order."""
        return [total.query.name for total in self.sums]

    def named(self, name: str) -> list[Sum]:
        """The releases of one kind."""
        return [total for total in self.sums if total.query.name == name]


def drive(
    study: Study,
    sites: Mapping[str, Memory],
    model: Classifier,
    *,
    noise: bool = True,
    absent: Callable[[int], Sequence[str]] = lambda _: (),
) -> Driven:
    """Run the study's method; what it asks must stand in its plan, in order.

    Args:
        sites: name -> its patients.
        noise: False leaves the plan's noise out (queries as in mode none, from a private study).
        absent: number of the release -> sites that do not answer it.
    """
    method = METHODS[study.method.name]
    plan = StudyPlan.single(study.method.name, method.plan(study, model)).calibrated(study)
    planned, place = plan.arm(study.method.name), 0
    sums: list[Sum] = []
    steps = method.run(study, model)
    try:
        asked = next(steps)
        while True:
            place = 1 + next(i for i in range(place, len(planned)) if planned[i].template == asked.template)
            query = planned[place - 1].with_inputs(**asked.inputs)
            if not noise:
                query = exact(query)
            sums.append(answer(study, query, sites, len(sums), absent(len(sums))))
            asked = steps.send(sums[-1])
    except StopIteration as end:
        return Driven(end.value, sums)


def answer(study: Study, query: Query, sites: Mapping[str, Memory], number: int = 0, absent: Sequence[str] = ()) -> Sum:
    """The sum over the sites that answer."""
    present = [name for name in sites if name not in absent]
    points = [contribution(study, query, sites[name].split(query.split), name, number) for name in present]
    total = {block: np.sum([one[block] for one in points], axis=0) for block in query.blocks}
    return Sum(query, tuple(present), total)


def exact(query: Query) -> Query:
    """A private query without its noise, still clipped and on its lattice: noise of a sixteenth of a lattice step."""
    if not query.private:
        return query
    return query.under(replace(query.plan, noise=query.plan.step / 16))


@dataclass(frozen=True)
class Town:
    """A study, the vendor's classifier and patients, in one place and in several."""

    study: Study
    model: Classifier
    people: People

    def sites(self, *parts: Sequence[int]) -> dict[str, Memory]:
        """Sites `a`, `b`, ... with the patients of each part, in all three splits."""
        return {chr(ord("a") + i): Memory.everywhere(self.people.split(part)) for i, part in enumerate(parts)}

    def run(self, *parts: Sequence[int], **how: Any) -> Driven:
        """Drive the method over sites that hold `parts`; all patients at one site where none is given."""
        chosen = parts or (range(len(self.people)),)
        sites = self.sites(*chosen)
        return drive(
            declare(self.study, {s: len(p) for s, p in zip(sites, chosen, strict=True)}), sites, self.model, **how
        )


def town(
    name: str, count: int = 60, seed: int = 3, *, file: bytes | None = None, people: People | None = None, **how: Any
) -> Town:
    """A town whose study has a method; `how` are the method's parameters, and `study` other keys of the study."""
    file = weights_file() if file is None else file
    changes = how.pop("study", {})
    study = make_study({"name": name, **how}, file=file, **changes)
    return Town(study, classifier_of(study, file), draw_people(count, seed) if people is None else people)


def parts_of(count: int, sites: int = 3) -> list[range]:
    """Uneven parts of 0..count-1."""
    cuts = [0, *(count * (i + 1) * (i + 2) // (sites * (sites + 1)) for i in range(sites))]
    return [range(a, b) for a, b in pairwise(cuts)]


def file_of(network: Any) -> bytes:
    """A network's weights as the vendor's file."""
    return save(network.state_dict())


def private_town(folder: Path, name: str, epsilon: float = 3.0, count: int = 60, **how: Any) -> Town:
    """A town whose study asks for noise, with a public pool of draws from the features' range."""
    rng = np.random.default_rng(5)
    rows = np.concatenate([rng.uniform(-1, 1, (300, FEATURES)), np.zeros((300, FEATURES))], axis=1)
    pool = folder / "pool.safetensors"
    pool.write_bytes(save({"rows": torch.from_numpy(rows.astype(np.float32))}))
    privacy = {"mode": "local", "epsilon": epsilon, "public_pool": {"path": str(pool)}}
    study = {"privacy": privacy, "evaluation": {"bins": 8, "threshold": {"rule": "fixed:0.5"}}}
    return town(name, count, study=study, **how)
