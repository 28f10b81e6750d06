"""The same effort of tuning for every method of a comparison: a few settings each, on a seed that no table shows.

A method's settings are its own parameters and these with the numbers that `Method.tuned` names, its learning rates as a
rule, multiplied. The setting with the largest worst-group AUC on validation patients is taken (the minimax rule of
MEDFAIR, Zong et al., ICLR 2023, with one run a setting); where no group's AUC can be told, the largest AUC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from equipoise.client.cohort_store import Patients
from equipoise.common.classifier import Classifier
from equipoise.common.fairness.auc import overall_auc, worst_group_auc
from equipoise.common.fairness.tables import bin_scores, histogram, hybrid_edges
from equipoise.common.methods import METHODS
from equipoise.common.study import Study
from equipoise.simulations.auc_noise import decided_scores

SEED = 1_000_003  # added to the study's: no seed of a table


def settings(study: Study) -> list[Study]:
    """The study with its method's settings, its own first."""
    method = METHODS[study.method.name]
    own = method.parameters.model_validate(study.method.parameters)
    found = [study]
    for place in range(max((len(factors) for factors in method.tuned.values()), default=0)):
        scaled = {key: getattr(own, key) * factors[place] for key, factors in method.tuned.items()}
        found.append(study.with_method(method.name, **{**study.method.parameters, **scaled}))
    return found


def tuned_values(study: Study) -> dict[str, Any]:
    """The numbers that tuning changes, as the study has them."""
    method = METHODS[study.method.name]
    own = method.parameters.model_validate(study.method.parameters)
    return {key: getattr(own, key) for key in method.tuned}


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
