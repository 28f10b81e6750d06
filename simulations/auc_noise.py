"""Control `auc_noise`: the base model's scores made worse by random noise until their AUC is the method's.

A model whose scores carry less information treats the groups more alike, whatever it was trained for. A method that
does no better than this has not reduced bias; it has levelled down. The runner owns every hospital's scores, so it can
add the noise itself; no site is ever asked for this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from equipoise.client.cohort import Split
from equipoise.client.cohort_store import Patients
from equipoise.client.scores import patient_scores
from equipoise.client.workbench import View, network
from equipoise.common import evaluation
from equipoise.common.classifier import Classifier
from equipoise.common.evaluation import BASE, POINTS, Measured
from equipoise.common.fairness.auc import overall_auc
from equipoise.common.fairness.joint import interval_cells, joint_table
from equipoise.common.fairness.rates import gap
from equipoise.common.fairness.tables import Counts, bin_scores, counts_after, histogram
from equipoise.common.files import write_whole
from equipoise.common.query import Query, SplitName
from equipoise.common.streams import numpy_stream
from equipoise.common.study import Study
from equipoise.common.study_plan import EVALUATION
from equipoise.server.engine import Engine
from equipoise.server.report.auc_noise import FILE, NAME, pairs_of
from equipoise.server.run import measure
from equipoise.server.rundir import RunFolder

DRAWS = 51  # odd, so that a draw with the median gap exists
STEPS = 30  # bisection steps of the noise's size
LARGEST = 64.0  # logit

Release = Callable[[Counts], Counts]


@dataclass(frozen=True)
class Scored:
    """All hospitals' patients of a split.

    Attributes:
        logits: model -> (n,) float64.
        label: (n,) int64.
        groups: attribute -> (n,) int64.
    """

    logits: dict[str, NDArray[np.float64]]
    label: NDArray[np.int64]
    groups: dict[str, NDArray[np.int64]]


def write_auc_noise(run: RunFolder, hospitals: Mapping[str, Patients]) -> None:
    """Measure the control for a run whose evaluation is complete, and keep its tables in `controls/auc_noise/`.

    The size of the noise is found by bisection on the pooled test AUC, averaged over draws with common random numbers.
    Of the draws, the one with the median primary gap stands for the control; the spread of all is kept beside it.
    Where noise protects the patients, the kept tables carry as much of it as a control's that hospitals were asked for.
    """
    task = run.task()
    study, method = task.study, task.arms[0].name
    measured = measure(Engine(study, run.plan(), None), run, task)
    base = run.base(study)
    models = {BASE: base, method: run.result(method, base)}
    splits = {split: _scored(study, hospitals, models, split) for split in evaluation.splits_needed(study)}
    normals = {
        split: numpy_stream(study.seed, NAME, split).standard_normal((DRAWS, len(scored.label)))
        for split, scored in splits.items()
    }
    test, primary = splits["test"], study.primary.name
    target = _auc(test, test.logits[method], measured, primary)
    if target is None:
        return
    size = _matching_size(test, normals["test"], measured, primary, target)

    def tables(draw: int, hist: Release, joint: Release) -> Measured:
        noisy = {split: scored.logits[BASE] + size * normals[split][draw] for split, scored in splits.items()}
        return _tables(study, measured, splits, noisy, method, hist, joint)

    gaps = [_primary_gap(study, tables(draw, _exact, _exact)) for draw in range(DRAWS)]
    hist, joint = (_asked(run, name, method) for name in ("score_histogram", "decision_table"))
    chosen = tables(
        int(np.argsort(gaps, kind="stable")[DRAWS // 2]),
        partial(_as_released, hist, len(hospitals)),
        partial(_as_released, joint, len(hospitals)),
    )
    value = {
        "noise_sd_logit": size,
        "draws": DRAWS,
        "gap_by_draw": [float(g) for g in gaps],
        "histograms": {split: _lists(chosen.histograms[NAME, split]) for split in splits},
        "joints": {role: _lists(chosen.joints[pair]) for role, pair in pairs_of(method).items()},
        "noise": {
            name: len(hospitals) * query.plan.site_variance for name, query in (("histograms", hist), ("joints", joint))
        },
    }
    write_whole(run.path / "controls" / NAME / FILE, json.dumps(value).encode())


def _asked(run: RunFolder, name: str, method: str) -> Query:
    """The evaluation's query of this kind about the method."""
    queries = (query for query in run.plan().arm(EVALUATION) if query.name == name)
    return next(query for query in queries if method in (query.parameters.get("model"), query.parameters.get("after")))


def _exact(table: Counts) -> Counts:
    return table


def _as_released(asked: Query, sites: int, table: Counts) -> Counts:
    """The table with the noise that as many hospitals would have added; as it is without noise.

    The simulation holds all patients, so it could keep exact tables; but then a report on private figures would hold
    exact ones beside them.
    """
    noise = asked.plan.sampler
    noised: Counts = table + np.sum([noise.noise(table.shape) for _ in range(sites)], axis=0)
    return noised


def _scored(study: Study, hospitals: Mapping[str, Patients], models: Mapping[str, Classifier], name: str) -> Scored:
    split_name: SplitName = "test" if name == "test" else "validation"
    parts = [hospitals[site].split(split_name) for site in sorted(hospitals)]
    return Scored(
        {model: np.concatenate([decided_scores(study, c, part) for part in parts]) for model, c in models.items()},
        np.concatenate([part.label.numpy() for part in parts]),
        {a.name: np.concatenate([part.groups[a.name].numpy() for part in parts]) for a in study.attributes},
    )


def decided_scores(study: Study, model: Classifier, split: Split) -> NDArray[np.float64]:
    """Each patient's score as it is compared with a threshold, logit, (n,)."""
    scores = patient_scores(View(study, network(study, model.state), split))
    if model.alignment is None:
        return scores
    return model.alignment(scores, split.groups[study.primary.name].numpy())


def _matching_size(
    test: Scored, normals: NDArray[np.float64], measured: Measured, primary: str, target: float
) -> float:
    """Standard deviation of the noise at which the mean AUC over draws is `target`; 0 where the base is not better."""

    def auc(size: float) -> float:
        chosen = normals[:: max(1, DRAWS // 8)]
        found = [_auc(test, test.logits[BASE] + size * normal, measured, primary) for normal in chosen]
        return float(np.mean([0.5 if value is None else value for value in found]))

    low, high = 0.0, LARGEST
    if auc(low) <= target:
        return 0.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if auc(middle) > target else (low, middle)
    return (low + high) / 2


def _tables(
    study: Study,
    measured: Measured,
    splits: Mapping[SplitName, Scored],
    noisy: Mapping[SplitName, NDArray[np.float64]],
    method: str,
    hist: Release,
    joint: Release,
) -> Measured:
    """The tables of one draw, made as the sites make theirs, each passed through `hist` or `joint`."""
    own = Measured(measured.edges, dict(measured.histograms), thresholds=dict(measured.thresholds))
    for split, scored in splits.items():
        bins = bin_scores(noisy[split], own.edges)
        own.histograms[NAME, split] = {
            name: hist(histogram(bins, scored.label, scored.groups[name], rows(study, name), len(own.edges) + 1))
            for name in measured.histograms[BASE, split]
        }
    own.choose_thresholds(study, NAME)
    test = splits["test"]
    scores = {BASE: test.logits[BASE], method: test.logits[method], NAME: noisy["test"]}
    for before, after in pairs_of(method).values():
        cells = interval_cells(scores[before], scores[after], own.thresholds[before], own.thresholds[after])
        kept = {
            a.name: joint(joint_table(*cells, test.label, test.groups[a.name], rows(study, a.name), len(POINTS)))
            for a in study.attributes
        }
        own.add_joint(before, after, kept, 0.0)
    return own


def rows(study: Study, attribute: str) -> int:
    """Groups of an attribute, `unknown` included."""
    return len(study.attribute(attribute).groups) + 1


def _auc(test: Scored, logits: NDArray[np.float64], measured: Measured, primary: str) -> float | None:
    """The exact AUC over all test patients, in the bins of the study."""
    bins = bin_scores(logits, measured.edges)
    return overall_auc(histogram(bins, test.label, test.groups[primary] * 0, 2, len(measured.edges) + 1)).value


def _primary_gap(study: Study, table: Measured) -> float:
    counts = counts_after(table.pairs[BASE, NAME][study.primary.name][0])
    value = gap(study.evaluation.primary, counts, study.primary.groups).value
    return 0.0 if value is None else value


def _lists(tables: Mapping[str, NDArray[np.int64]]) -> dict[str, object]:
    return {name: table.tolist() for name, table in tables.items()}
