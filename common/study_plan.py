"""The study's plan: every query that any arm of it may ask, in order, each with the noise that its budget buys.

A method and the evaluation list templates. The plan places them, and where noise protects the patients it finds the
noise: within one split of the patients the phases share the budget (`privacy.split`), and all of a split's releases
together cost at most the study's epsilon at its delta. A coordinator makes the plan; a hospital makes the templates
again from the study that it approved, compares everything but the noise, and prices the noise itself (`check_plan`).

>>> plan = StudyPlan.of(study).calibrated(study)
>>> plan.cost("train", study.privacy.delta).epsilon <= study.privacy.epsilon
True
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
from safetensors.torch import save

from equipoise.common import evaluation
from equipoise.common.canonical import canonical_json, digest_arrays, digest_json
from equipoise.common.classifier import Classifier
from equipoise.common.errors import RefusedError, StudyError
from equipoise.common.factory import load_factory
from equipoise.common.methods import METHOD_CONTROLS, control_of, resolve
from equipoise.common.privacy.accounting import PrivacyCost, cost_of
from equipoise.common.privacy.calibration import TOLERANCE, calibrate
from equipoise.common.privacy.plan import ReleasePlan
from equipoise.common.query import MOST_RELEASES, SPLITS, Arrays, Query, SplitName
from equipoise.common.study import ScoreInputs, Study

EVALUATION = "evaluation"
PLANS_KEPT = 2  # of the last studies; the sites of a simulation are all sent the same one
STUDY = ""  # the account of the study itself; every other account is a control's own
# Shares of a split's budget where the study names none; of the phases that are there.
DEFAULT_SHARES: Mapping[SplitName, Mapping[str, float]] = {
    "train": {"counts": 0.03, "mask": 0.15, "rounds": 0.82, "losses": 0.15, "histogram": 1.0},
    "validation": {"search": 0.8, "histogram": 0.2},
    "test": {"tables": 0.5, "histogram": 0.5},
}


@dataclass(frozen=True)
class Entry:
    """One query of the plan.

    Attributes:
        arm: the method, a control, or `evaluation`.
        account: who pays: the study (""), or a control whose budget is its own.
        query: placed, and calibrated where it is private.
    """

    arm: str
    account: str
    query: Query

    def to_json(self) -> list[Any]:
        """As in the plan that travels."""
        return [self.arm, self.account, self.query.public]


@dataclass(frozen=True)
class StudyPlan:
    """See the module's text."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, study: Study) -> StudyPlan:
        """The templates of every arm and of the evaluation, placed; neither weights nor data are read.

        Raises:
            StudyError: a method, control or rule is unknown, or has no private form that the study asks for; or the
                queries are more than any study needs.
            ModelError: no such factory.
        """
        network = load_factory(study.model.factory, study.model.arguments)
        model = Classifier.of(save(network.state_dict()), network, study.model.head)
        shared = study.privacy.controls == "shared" or not study.privacy.private
        arms = arms_of(study)
        rows = [
            (arm, STUDY if shared or arm == study.method.name else arm, query)
            for arm, variant in arms.items()
            for query in resolve(variant).plan(variant, model)
        ]
        models = [evaluation.BASE, *arms, *alone_controls(study)]
        rows += [
            (EVALUATION, STUDY if shared else _payer(query, study.method.name), query)
            for query in evaluation.plan(study, models, study.method.name)
        ]
        if len(rows) > MOST_RELEASES:
            most, count = Counter(arm for arm, _, _ in rows).most_common(1)[0]
            raise StudyError(
                f"method: the study asks for {len(rows)} releases ({most}: {count}), expected at most "
                f"{MOST_RELEASES}; take fewer rounds"
            )
        plan = cls(tuple(Entry(arm, account, query.placed(i)) for i, (arm, account, query) in enumerate(rows)))
        if study.privacy.private:
            for entry in plan.entries:
                if not entry.query.private:
                    raise StudyError(
                        f"privacy.mode={study.privacy.mode}: {entry.arm} asks {entry.query.name}, which no noise "
                        "protects; choose another step or method (docs/methods.md says which are private)"
                    )
        return plan

    @classmethod
    def single(cls, arm: str, queries: Sequence[Query]) -> StudyPlan:
        """A plan of one arm, placed."""
        return cls(tuple(Entry(arm, STUDY, query.placed(i)) for i, query in enumerate(queries)))

    def calibrated(self, study: Study) -> StudyPlan:
        """The plan with the noise of every private query.

        Raises:
            StudyError: `privacy.split` and the phases that there are differ, or no noise fits.
        """
        if not study.privacy.private:
            return self
        asked = {entry.query.split for entry in self.entries}
        for split in SPLITS:
            if getattr(study.privacy.split, split) is not None and split not in asked:
                raise StudyError(
                    f"privacy.split.{split}: the study asks nothing of its {split} patients; leave the key out"
                )
        noise: dict[int, float] = {}
        for account in dict.fromkeys(entry.account for entry in self.entries):
            for split in SPLITS:
                mine = [e.query for e in self.entries if (e.account, e.query.split) == (account, split)]
                if mine:
                    noise |= _noise(study, account, split, mine)
        return StudyPlan(tuple(replace(e, query=e.query.placed(i, noise[i])) for i, e in enumerate(self.entries)))

    def arm(self, name: str) -> list[Query]:
        """The queries of one arm, in order."""
        return [entry.query for entry in self.entries if entry.arm == name]

    def plans(self, split: SplitName, account: str = STUDY) -> list[ReleasePlan]:
        """What one account pays for on the patients of a split."""
        return [e.query.plan for e in self.entries if e.query.split == split and e.account == account]

    def cost(self, split: SplitName, delta: float, account: str = STUDY) -> PrivacyCost:
        """What all releases of an account on one split cost together, by PLD."""
        return cost_of(self.plans(split, account), delta)

    @property
    def accounts(self) -> tuple[str, ...]:
        """Who pays, the study first."""
        return tuple(dict.fromkeys([STUDY, *(entry.account for entry in self.entries)]))

    @cached_property
    def bundle(self) -> Arrays:
        """The plan as an input bundle."""
        text = canonical_json([entry.to_json() for entry in self.entries])
        return {"json": np.frombuffer(text, dtype=np.uint8)}

    @cached_property
    def digest(self) -> str:
        """Digest of the bundle."""
        return digest_arrays(self.bundle)

    @classmethod
    def from_bundle(cls, bundle: Arrays) -> StudyPlan:
        """The plan that a bundle holds.

        Raises:
            RefusedError: it is none.
        """
        try:
            return _read(bundle["json"].tobytes())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RefusedError("the plan received is no plan of this version") from None


@lru_cache(maxsize=PLANS_KEPT)
def _read(text: bytes) -> StudyPlan:
    rows = json.loads(text)
    if not isinstance(rows, list):
        raise TypeError
    return StudyPlan(tuple(Entry(arm, account, Query.from_public(public, {})) for arm, account, public in rows))


_own: OrderedDict[str, StudyPlan] = OrderedDict()


def _own_plan(study: Study) -> StudyPlan:
    """`StudyPlan.of`, kept for the last studies by their hash, which covers all that a plan depends on."""
    digest = study.hash
    plan = _own.get(digest)
    if plan is None:
        plan = _own[digest] = StudyPlan.of(study)
        while len(_own) > PLANS_KEPT:
            _own.popitem(last=False)
    return plan


def arms_of(study: Study) -> dict[str, Study]:
    """The method and the controls that sites run, each with the study in which it is the method."""
    arms = {study.method.name: study}
    for name in study.method.controls:
        variant = control_of(study, name) if name in METHOD_CONTROLS else None
        if variant is not None:
            arms[name] = variant
    return arms


def needs_pool(study: Study) -> bool:
    """Whether anything of the study takes its basis, units or bins from a public pool."""
    if isinstance(study.inputs, ScoreInputs):
        return False
    whitened = ("whitened_gradient", "block_sensitivities")
    return study.privacy.private or any(entry.query.name in whitened for entry in StudyPlan.of(study).entries)


def alone_controls(study: Study) -> list[str]:
    """Models that a simulation trains with a single site each and measures with the others."""
    controls = study.method.controls
    names = ["pooled"] if "pooled" in controls else []
    if "local_only" in controls:
        names += [f"local_only/{site}" for site in study.sites.declared_patients]
    return names + (["server_only"] if "server_only" in controls else [])


def check_plan(study: Study, received: StudyPlan) -> None:
    """A hospital's check of the plan it is sent: the queries of its own copy of the code, and noise that pays for them.

    Formal guarantee:
        Unit: patient; relation: add or remove one. After it, all releases that one account makes on one split of the
        patients, composed adaptively in the plan's order or any part of it, cost at most the approved study's epsilon
        at its delta by a PLD that is rounded upwards.

    Raises:
        RefusedError: a query that the approved study does not ask, or less noise than its epsilon needs.
    """
    expected = _own_plan(study)
    if len(expected.entries) != len(received.entries):
        raise RefusedError(f"a plan of {len(received.entries)} queries; the study asks {len(expected.entries)}")
    for mine, theirs in zip(expected.entries, received.entries, strict=True):
        same = (mine.arm, mine.account, mine.query.index) == (theirs.arm, theirs.account, theirs.query.index)
        if not same or mine.query.template != theirs.query.template:
            raise RefusedError(f"query {mine.query.index} of the plan ({mine.query.name}) is not the study's")
    epsilon = study.privacy.epsilon
    if epsilon is None:
        return
    for account in received.accounts:
        for split in SPLITS:
            if received.plans(split, account):
                cost = received.cost(split, study.privacy.delta, account)
                # A coordinator's search ends below epsilon; another machine may price the last digits otherwise.
                if not cost.epsilon <= epsilon * (1 + TOLERANCE):
                    raise RefusedError(
                        f"the plan's releases on {split} cost epsilon {cost.epsilon:.4f}, more than the {epsilon:g} of "
                        "the study"
                    )


def _payer(query: Query, method: str) -> str:
    """The control that an evaluation query is about; the study where it is about the base and the method alone."""
    named = [str(query.parameters[role]) for role in ("model", "before", "after") if role in query.parameters]
    return next((name for name in named if name not in (evaluation.BASE, method)), STUDY)


def _noise(study: Study, account: str, split: SplitName, queries: Sequence[Query]) -> dict[int, float]:
    """Noise of each query of an account on one split, by its place."""
    epsilon = study.privacy.epsilon
    if epsilon is None:
        raise StudyError("privacy.epsilon is missing")
    shares = _shares(study, account, split, {query.budget for query in queries})
    # Queries that are protected alike are one phase of several releases; different ones share in proportion.
    alike: dict[str, list[Query]] = {}
    for query in queries:
        alike.setdefault(digest_json([query.budget, query.plan.to_json()]), []).append(query)
    releases = Counter[str]()
    for query in queries:
        releases[query.budget] += query.plan.releases
    phases, parts = {}, {}
    for key, same in alike.items():
        plan, budget = same[0].plan, same[0].budget
        phases[key] = replace(plan, releases=plan.releases * len(same))
        parts[key] = shares[budget] * phases[key].releases / releases[budget]
    try:
        found = _calibrated(tuple((phases[key], parts[key]) for key in alike), epsilon, study.privacy.delta)
    except ValueError as error:
        raise StudyError(f"privacy.epsilon={epsilon:g}: no noise fits the releases on {split} ({error})") from None
    return {
        query.index: noise
        for noise, same in zip(found, alike.values(), strict=True)
        for query in same
        if query.index is not None
    }


@cache
def _calibrated(phases: tuple[tuple[ReleasePlan, float], ...], epsilon: float, delta: float) -> list[float]:
    """Noise of each phase; several controls of one study have the same phases."""
    numbered = {str(number): part for number, part in enumerate(phases)}
    found = calibrate(
        {name: plan for name, (plan, _) in numbered.items()},
        {name: share for name, (_, share) in numbered.items()},
        epsilon,
        delta,
    )
    return [found[name].noise for name in numbered]


def _shares(study: Study, account: str, split: SplitName, phases: set[str]) -> dict[str, float]:
    """Share of each phase on a split; they sum to 1.

    Raises:
        StudyError: a phase without a share, or for the study itself a share without a phase.
    """
    given: Mapping[str, float] | None = getattr(study.privacy.split, split)
    chosen = DEFAULT_SHARES[split] if given is None else given
    missing = sorted(phases - set(chosen))
    if missing:
        raise StudyError(f"privacy.split.{split}: no share for {', '.join(missing)}; give it one")
    unused = sorted(set(chosen) - phases)
    if given is not None and account == STUDY and unused:
        raise StudyError(
            f"privacy.split.{split}: {', '.join(unused)} has a share and nothing to spend it on; give it to "
            f"{', '.join(sorted(phases))}"
        )
    total = sum(chosen[phase] for phase in phases)
    return {phase: chosen[phase] / total for phase in phases}
