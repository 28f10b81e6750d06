"""Models measured on all hospitals' test patients exactly, whatever the study's privacy.

A comparison of methods asks what training did. Under noise the released tables would answer less: so the simulation,
which owns all patients, makes the tables of the evaluation itself, by the sites' own computations and without noise.
Nothing of it leaves the simulation, and no deployment can do it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from equipoise.client.cohort_store import Patients
from equipoise.client.computations import COMPUTATIONS
from equipoise.client.contribution import Contribution, Fills, Totals
from equipoise.client.scores import ScoreCache
from equipoise.client.workplace import Workplace
from equipoise.common import evaluation
from equipoise.common.classifier import Classifier
from equipoise.common.evaluation import Measured
from equipoise.common.fairness.rates import gap
from equipoise.common.query import Query, SplitName, Sum
from equipoise.common.study import Study
from equipoise.common.study_privacy import Privacy
from equipoise.simulations.auc_noise import decided_scores

FEWEST = 5  # patients of each group and label at a hospital that takes part in a gap at a fixed site mix


def measure_exactly(study: Study, hospitals: Mapping[str, Patients], models: Mapping[str, Classifier]) -> Measured:
    """The tables of an evaluation of `models`, of which `base` is the first; each is compared with it."""
    plain = without_noise(study)
    caches = {site: ScoreCache(2 * len(models) + 2) for site in hospitals}
    steps = evaluation.evaluate(plain, models, None)
    try:
        query = next(steps)
        while True:
            places = [
                Workplace(plain, site, query, patients.split(query.split), caches[site], 0)
                for site, patients in hospitals.items()
            ]
            points = [exact_points(query, COMPUTATIONS[query.name](place)) for place in places]
            total = {name: np.sum([one[name] for one in points], axis=0) for name in query.blocks}
            query = steps.send(Sum(query, tuple(hospitals), total))
    except StopIteration as end:
        measured: Measured = end.value
        return measured


def without_noise(study: Study) -> Study:
    """The study with exact tables."""
    return study.model_copy(update={"privacy": Privacy()})


def exact_points(query: Query, contribution: Contribution) -> dict[str, NDArray[np.int64]]:
    """A site's exact integers for a query of an evaluation.

    Raises:
        TypeError: the query is no table and no exact sum.
    """
    if isinstance(contribution, Fills):
        found = {}
        for name, block in query.blocks.items():
            cells = contribution.cells[name]
            found[name] = np.bincount(cells[cells >= 0], minlength=block.size).reshape(block.shape).astype(np.int64)
        return found
    if isinstance(contribution, Totals):
        return query.encode(contribution.values)
    raise TypeError(f"{query.name}: {type(contribution).__name__}")


def gap_at_site_mix(
    study: Study, hospitals: Mapping[str, Patients], model: Classifier, threshold: float, metric: str
) -> float | None:
    """A gap of the primary attribute on the test patients where every group is spread over hospitals alike.

    A group's rate is the mean of its rates at the hospitals, each weighed by the hospital's share of all patients of
    that label; hospitals that lack a group there (fewer than five patients) take no part. None where none is left.

    Args:
        threshold: logit, as decided on (on the common scale of a model whose operating point differs by group).
        metric: a gap of `equipoise.common.fairness.rates`.
    """
    split: SplitName = "test"
    groups = len(study.primary.groups)
    counts = np.zeros((len(hospitals), groups, 2, 2))
    for row, patients in enumerate(hospitals.values()):
        part = patients.split(split)
        decision = decided_scores(study, model, part) >= threshold
        group = part.groups[study.primary.name].numpy()
        known = group < groups
        np.add.at(counts[row], (group[known], part.label.numpy()[known], decision[known].astype(int)), 1)
    standard = site_standardised(counts)
    if standard is None:
        return None
    table = np.concatenate([standard, np.zeros((1, 2, 2))]) * 10**6
    return gap(metric, table.round().astype(np.int64), study.primary.groups).value


def site_standardised(counts: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Shares by group, label and decision at one site mix: (G, 2, 2) from counts[site, g, y, decision].

    >>> same = np.array([[[[8.0, 2.0], [4.0, 6.0]]] * 2] * 2)
    >>> site_standardised(same)[0, 1].tolist()
    [0.4, 0.6]
    """
    shares: NDArray[np.float64] = np.zeros(counts.shape[1:])
    for label in (0, 1):
        own = counts[:, :, label]
        n = own.sum(axis=-1)
        kept = (n >= FEWEST).all(axis=1)
        if not kept.any():
            return None
        mix = n[kept].sum(axis=1) / n[kept].sum()
        shares[:, label] = (own[kept] / n[kept][..., None] * mix[:, None, None]).sum(axis=0)
    return shares
