"""The same effort of tuning for every method of a comparison: a few settings each, on a seed that no table shows.

A method's settings are its own parameters and these with the numbers that `Method.tuned` names, its learning rates as a
rule, multiplied; in whitened rounds their own rates, which alone they read. A number that would reach the bound of its
range goes halfway there instead. The setting with the largest worst-group AUC on validation patients is taken (the
minimax rule of MEDFAIR, Zong et al., ICLR 2023, with one run a setting); where no group's AUC can be told, the largest
AUC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from equipoise.client.cohort_store import Patients
from equipoise.common.classifier import Classifier
from equipoise.common.config import Strict
from equipoise.common.fairness.auc import overall_auc, worst_group_auc
from equipoise.common.fairness.tables import bin_scores, histogram, hybrid_edges
from equipoise.common.methods import METHODS
from equipoise.common.methods.averaging import step_of
from equipoise.common.methods.method import RATE_FACTORS
from equipoise.common.methods.whitened import WhitenedRounds
from equipoise.common.study import Study
from equipoise.simulations.auc_noise import decided_scores

SEED = 1_000_003  # added to the study's: no seed of a table


def settings(study: Study) -> list[Study]:
    """The study with its method's settings, its own first."""
    parameters, tuned = study.method.parameters, _tuned(study)
    found = [study]
    for place in range(max((len(factors) for factors in tuned.values()), default=0)):
        scaled = _changed(_own(study), {key: factors[place] for key, factors in tuned.items()})
        found.append(study.with_method(study.method.name, **{**parameters, **scaled}))
    return found


def tuned_values(study: Study) -> dict[str, Any]:
    """The numbers that tuning changes, as the study has them."""
    own = _own(study)
    return {key: reduce(getattr, key.split("."), own) for key in _tuned(study)}


def _own(study: Study) -> Strict:
    return METHODS[study.method.name].parameters.model_validate(study.method.parameters)


def _tuned(study: Study) -> Mapping[str, Sequence[float]]:
    """What tuning multiplies, and by what; a dot leads into a part of the parameters."""
    own = _own(study)
    if step_of(study, getattr(own, "step", "fedavg")) != "whitened":
        return METHODS[study.method.name].tuned
    return {f"{key}.lr": RATE_FACTORS for key, part in own if isinstance(part, WhitenedRounds)}


def _changed(own: Strict, factors: Mapping[str, float]) -> dict[str, Any]:
    """The parameters that change, with their numbers multiplied."""
    changed: dict[str, Any] = {}
    for key, factor in factors.items():
        name, _, rest = key.partition(".")
        value, field = getattr(own, name), type(own).model_fields[name]
        if rest:
            changed[name] = value.model_dump() | _changed(value, {rest: factor})
        else:
            bound = min((getattr(limit, "lt", np.inf) for limit in field.metadata), default=np.inf)
            changed[name] = value * factor if value * factor < bound else (value + bound) / 2
    return changed


def validation_auc(study: Study, patients: Mapping[str, Patients], model: Classifier) -> tuple[float | None, float]:
    """Worst-group AUC (None where it cannot be told) and AUC over all hospitals' validation patients; 0.5 for none."""
    splits = [people.split("validation") for people in patients.values()]
    edges = hybrid_edges(None, study.score_bins)
    bins = np.concatenate([bin_scores(decided_scores(study, model, split), edges) for split in splits])
    label = np.concatenate([split.label.numpy() for split in splits])
    group = np.concatenate([split.groups[study.primary.name].numpy() for split in splits])
    groups = study.primary.groups
    by_group = histogram(bins, label, group, len(groups) + 1, len(edges) + 1)
    pooled = overall_auc(by_group).value
    return worst_group_auc(by_group, groups).value, 0.5 if pooled is None else pooled


def best(judged: Sequence[tuple[float | None, float]]) -> int:
    """Which setting is taken; of equal ones the first, so that what changes nothing keeps the method's own.

    >>> best([(0.7, 0.8), (0.75, 0.7), (None, 0.9)]), best([(None, 0.6), (None, 0.7)])
    (1, 1)
    """
    worst = [own for own, _ in judged]
    if all(value is None for value in worst):
        return int(np.argmax([pooled for _, pooled in judged]))
    return int(np.argmax([-np.inf if value is None else value for value in worst]))
