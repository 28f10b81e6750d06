"""A query: what the server may ask of a site, declared before anything is read.

A query has a public part (name, split, parameters and the blocks that come back), which is in the plan that a site
approves, and inputs: arrays made from earlier releases (the model, the mask, the weights), named by their digests. A
method's `plan(study)` lists public parts; at run time the method adds the inputs and yields the query.

Kinds: `patient_sum`, a sum over a site's patients of vectors of bounded norm; `site_update`, a site's weighted update
after several local steps.

What protects a query is its release plan (`equipoise.common.privacy.plan`): law, bound, lattice, noise, sampling and
event in one object. A method writes queries as templates, whose noise says nothing; the study's plan
(`equipoise.common.study_plan`) gives each its noise and its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from equipoise.common.canonical import digest_arrays, digest_json
from equipoise.common.lattice import Lattice
from equipoise.common.privacy.plan import ReleasePlan

Arrays = Mapping[str, NDArray[Any]]
Kind = Literal["patient_sum", "site_update"]
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
# As often as the declared patients of all sites, one site may have, before a lattice or a secure sum overflows.
LARGER_THAN_DECLARED = 16

NOISY_STEPS = 2.0**48  # a noised sum may reach this many lattice steps; what is larger is no sum of patients
MOST_RELEASES = 10_000  # of one plan; the methods need some hundreds, and a slip must not plan for days


@dataclass(frozen=True)
class Block:
    """One array of a contribution, on a lattice of its own.

    Attributes:
        shape: shape of the array.
        patient_l2: L2 bound of one patient's contribution (of the site's, for a site update).
        site_bound: largest absolute value that a whole site may send in one coordinate.
        step: lattice step, a power of two.
    """

    shape: tuple[int, ...]
    patient_l2: float
    site_bound: float
    step: float

    @classmethod
    def counts(cls, shape: tuple[int, ...], per_patient: int = 1) -> Block:
        """Counts of patients, each of whom adds 1 to `per_patient` cells."""
        return cls(shape, float(per_patient) ** 0.5, float(2**40), 1.0)

    @classmethod
    def real(cls, shape: tuple[int, ...], patient_l2: float, patients: int) -> Block:
        """Real numbers; `patients` is the declared number over all sites, which fixes the finest safe lattice."""
        room = LARGER_THAN_DECLARED * max(patients, 1)
        return cls(shape, patient_l2, patient_l2 * room, Lattice.for_bound(patient_l2, room).step)

    @classmethod
    def noisy(cls, shape: tuple[int, ...], plan: ReleasePlan) -> Block:
        """A part of the one vector that `plan` clips, noises and accounts for."""
        return cls(shape, plan.sensitivity, NOISY_STEPS * plan.step, plan.step)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def lattice(self) -> Lattice:
        """The lattice of the block."""
        return Lattice(self.step)


UNPROTECTED = ReleasePlan.none()
MOVED = "change"  # the block of a site's update that holds its tensors, one after the other
TEMPLATE_STEPS = 64.0  # noise of a template in lattice steps; any value that every law supports would do


@dataclass(frozen=True)
class Query:
    """See the module's text; equality and digests cover everything but where the arrays lie in memory."""

    name: str
    kind: Kind
    split: SplitName
    phase: str  # what the progress display and the plan call it
    parameters: Mapping[str, Any]
    blocks: Mapping[str, Block]
    inputs: Mapping[str, Arrays] = field(default_factory=dict)
    version: int = 1
    budget: str = ""  # whose share of the split's budget pays for it, as in the study's `privacy.split`
    plan: ReleasePlan = UNPROTECTED
    index: int | None = None  # place in the study's plan; None in a template
    planned: Query | None = field(default=None, compare=False, repr=False)  # of which this is a narrower form
    # Digests of the inputs, by role, where whoever holds the arrays has checked them already.
    known_digests: Mapping[str, str] | None = field(default=None, compare=False, repr=False)

    def with_inputs(self, known_digests: Mapping[str, str] | None = None, /, **inputs: Arrays) -> Query:
        """The planned query with its arrays, ready to be asked.

        A tensor whose mask is 0 throughout cannot move. Where the plan names the tensors' `sizes`, such a tensor is
        left out of the update and does not travel; server and site both derive the narrower query from the inputs.
        """
        asked = replace(self, inputs=inputs, known_digests=known_digests)
        vars(asked)["public"] = self.public  # which has no inputs in it, and is the same for every site of a simulation
        sizes, mask = self.parameters.get("sizes"), inputs.get("mask")
        if sizes is None or mask is None:
            return asked
        kept = [i for i, name in enumerate(self.parameters["tensors"]) if np.any(mask.get(name, 0))]
        parameters = {key: [self.parameters[key][i] for i in kept] for key in ("tensors", "sizes")}
        moved = replace(self.blocks[MOVED], shape=(sum(parameters["sizes"]),))
        return replace(
            asked,  # without `public`, which is another
            parameters={**self.parameters, **parameters},
            blocks={name: moved if name == MOVED else block for name, block in self.blocks.items()},
            planned=self,
        )

    def under(self, plan: ReleasePlan) -> Query:
        """The template with the plan that protects it."""
        return replace(self, plan=plan)

    def placed(self, index: int, noise: float | None = None) -> Query:
        """The template at its place in the study's plan, with the noise that its share of the budget asks for."""
        plan = self.plan if noise is None else replace(self.plan, noise=noise)
        return replace(self, index=index, plan=plan)

    @property
    def private(self) -> bool:
        """Whether noise protects the patients."""
        return self.plan.kind != "none"

    @cached_property
    def template(self) -> str:
        """Digest of the public part without place and noise: what a method may ask for."""
        if self.planned is not None:
            return self.planned.template
        plan = self.plan if not self.private else replace(self.plan, noise=self.plan.step * TEMPLATE_STEPS)
        return digest_json({**self.public, "plan": plan.to_json(), "index": None})

    @cached_property
    def public(self) -> dict[str, Any]:
        """The part that a plan lists, as canonical JSON values."""
        return {
            "index": self.index,
            "name": self.name,
            "version": self.version,
            "kind": self.kind,
            "split": self.split,
            "phase": self.phase,
            "parameters": dict(self.parameters),
            # A list: a patient's vector has its blocks in this order, which a JSON object would not keep.
            "blocks": [
                {
                    "name": name,
                    "shape": list(block.shape),
                    "patient_l2": block.patient_l2,
                    "site_bound": block.site_bound,
                    "step": block.step,
                }
                for name, block in self.blocks.items()
            ],
            "budget": self.budget,
            "plan": self.plan.to_json(),
        }

    @cached_property
    def input_digests(self) -> dict[str, str]:
        """Digest of each input bundle."""
        if self.known_digests is not None:
            return dict(self.known_digests)
        return {role: digest_arrays(arrays) for role, arrays in self.inputs.items()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the public part and of the inputs' digests."""
        return digest_json({"public": self.public, "inputs": self.input_digests})

    @staticmethod
    def from_public(public: Mapping[str, Any], inputs: Mapping[str, Arrays]) -> Query:
        """The query that `public` describes (as received by a site)."""
        blocks = {
            row["name"]: Block(tuple(row["shape"]), row["patient_l2"], row["site_bound"], row["step"])
            for row in public["blocks"]
        }
        return Query(
            name=public["name"],
            kind=public["kind"],
            split=public["split"],
            phase=public["phase"],
            parameters=public["parameters"],
            blocks=blocks,
            inputs=inputs,
            version=public["version"],
            budget=public["budget"],
            plan=ReleasePlan.from_json(public["plan"]),
            index=public["index"],
        )

    def encode(self, values: Arrays) -> dict[str, NDArray[np.int64]]:
        """A site's contribution on the lattice of each block.

        Raises:
            ValueError: a block is missing or has another shape than declared.
            RefusedError: a value is not finite or beyond its bound.
        """
        if set(values) != set(self.blocks):
            raise ValueError(f"{self.name}: blocks {sorted(values)}, expected {sorted(self.blocks)}")
        points = {}
        for name, block in self.blocks.items():
            if values[name].shape != block.shape:
                raise ValueError(f"{self.name}.{name}: shape {values[name].shape}, expected {block.shape}")
            points[name] = block.lattice.encode(values[name], block.site_bound)
        return points


@dataclass(frozen=True)
class Sum:
    """A completed release: the exact sum over the sites that answered.

    Attributes:
        query: what was asked.
        cohort: the sites that answered.
        points: block -> sums on its lattice.
        witness: site -> head of its ledger when it answered; no part of the result.
    """

    query: Query
    cohort: tuple[str, ...]
    points: Mapping[str, NDArray[np.int64]]
    witness: Mapping[str, str] = field(default_factory=dict)

    def value(self, block: str) -> NDArray[np.float64]:
        """The sum of `block` in its unit, float64."""
        return self.query.blocks[block].lattice.decode(self.points[block])

    def count(self, block: str) -> NDArray[np.int64]:
        """The sum of a block of counts, int64."""
        return self.points[block]

    @property
    def noise_variance(self) -> float:
        """Variance of the noise on every entry of a sum of all its plan's releases, in the unit of the values.

        0 without privacy. Every site that answered added what its plan says: all of the noise, or its share, once a
        release. Of DP-SGD it is the noise on what was summed over the steps (the scores), not on the weights' change.
        """
        plan = self.query.plan
        return len(self.cohort) * plan.releases * plan.site_variance
