"""Control `auc_noise`: the base model's scores made worse by random noise until their AUC is the method's.

A model whose scores carry less information treats the groups more alike, whatever it was trained for. A method that
does no better than this has not reduced bias; it has levelled down. The runner owns every hospital's scores, so it can
add the noise itself; no site is ever asked for this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.client.cohort import SplitName
from equipoise.client.cohort_store import Patients
from equipoise.client.workbench import network, patient_scores
from equipoise.common import evaluation
from equipoise.common.classifier import Classifier
from equipoise.common.evaluation import BASE, Measured
from equipoise.common.fairness.auc import overall_auc
from equipoise.common.fairness.rates import gap
from equipoise.common.fairness.tables import bin_scores, counts_after, decide, histogram, pair_table
from equipoise.common.files import write_whole
from equipoise.common.streams import numpy_stream
from equipoise.common.study import Study
from equipoise.server.engine import Engine
from equipoise.server.report.noise import FILE, NAME
from equipoise.server.run import measure
from equipoise.server.rundir import RunFolder

DRAWS = 51  # odd, so that a draw with the median gap exists
STEPS = 30  # bisection steps of the noise's size
LARGEST = 64.0  # logit


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
    primary = study.primary.name
    target = overall_auc(measured.histograms[method, "test"][primary]).value
    if target is None:
        return
    size = _matching_size(splits["test"], normals["test"], measured, primary, target)
    draws = [_tables(study, measured, splits, normals, size, draw, method) for draw in range(DRAWS)]
    gaps = [_primary_gap(study, table) for table in draws]
    chosen = draws[int(np.argsort(gaps, kind="stable")[DRAWS // 2])]
    value = {
        "noise_sd_logit": size,
        "draws": DRAWS,
        "gap_by_draw": [float(g) for g in gaps],
        "thresholds": chosen.thresholds[NAME].tolist(),
        "histograms": {s: _lists(chosen.histograms[NAME, s]) for s in splits},
        "pairs": {"base": _lists(chosen.pairs[BASE, NAME]), "method": _lists(chosen.pairs[NAME, method])},
    }
    write_whole(run.path / "controls" / NAME / FILE, json.dumps(value).encode())


def _scored(study: Study, hospitals: Mapping[str, Patients], models: Mapping[str, Classifier], name: str) -> Scored:
    split_name: SplitName = "test" if name == "test" else "validation"
    parts = [hospitals[site].split(split_name) for site in sorted(hospitals)]
    return Scored(
        {
            model: np.concatenate([patient_scores(study, network(study, c.state), part) for part in parts])
            for model, c in models.items()
        },
        np.concatenate([part.label.numpy() for part in parts]),
        {a.name: np.concatenate([part.groups[a.name].numpy() for part in parts]) for a in study.attributes},
    )


def _matching_size(
    test: Scored, normals: NDArray[np.float64], measured: Measured, primary: str, target: float
) -> float:
    """Standard deviation of the noise at which the mean AUC over draws is `target`; 0 where the base is not better."""

    def auc(size: float) -> float:
        values = []
        for normal in normals[:: max(1, DRAWS // 8)]:
            bins = bin_scores(test.logits[BASE] + size * normal, measured.edges)
            table = histogram(bins, test.label, test.groups[primary] * 0, 2, len(measured.edges) + 1)
            values.append(overall_auc(table).value or 0.5)
        return float(np.mean(values))

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
    normals: Mapping[SplitName, NDArray[np.float64]],
    size: float,
    draw: int,
    method: str,
) -> Measured:
    """The tables of one draw, made as the sites make theirs."""
    own = Measured(measured.edges, dict(measured.histograms), dict(measured.thresholds))
    noisy = {split: scored.logits[BASE] + size * normals[split][draw] for split, scored in splits.items()}
    for split, scored in splits.items():
        bins = bin_scores(noisy[split], own.edges)
        own.histograms[NAME, split] = {
            a.name: histogram(bins, scored.label, scored.groups[a.name], len(a.groups) + 1, len(own.edges) + 1)
            for a in study.attributes
        }
    own.choose_thresholds(study, NAME)
    test = splits["test"]
    scores = {BASE: test.logits[BASE], method: test.logits[method], NAME: noisy["test"]}
    for before, after in ((BASE, NAME), (NAME, method)):
        own.pairs[before, after] = {
            a.name: np.stack(
                [
                    pair_table(
                        decide(scores[before], own.thresholds[before][point]),
                        decide(scores[after], own.thresholds[after][point]),
                        test.label,
                        test.groups[a.name],
                        len(a.groups) + 1,
                    )
                    for point in range(len(evaluation.POINTS))
                ]
            )
            for a in study.attributes
        }
    return own


def _primary_gap(study: Study, table: Measured) -> float:
    counts = counts_after(table.pairs[BASE, NAME][study.primary.name][0])
    value = gap(study.evaluation.primary, counts, study.primary.groups).value
    return 0.0 if value is None else value


def _lists(tables: Mapping[str, NDArray[np.int64]]) -> dict[str, object]:
    return {name: table.tolist() for name, table in tables.items()}
