"""A made-up evaluation: patients with known scores, and the report of it. No hospital, no network, no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.common.evaluation import BASE, POINTS, Measured, comparisons, splits_needed
from equipoise.common.fairness.auc import placement_sums, placements_of_bins
from equipoise.common.fairness.joint import interval_cells, joint_table
from equipoise.common.fairness.tables import bin_scores, count_cells, histogram, hybrid_edges
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from equipoise.server.report.build import compose
from equipoise.server.report.runtime import run_time
from equipoise.server.rundir import Arm, Task
from equipoise.server.transcript import Row

METHOD = "swift"
SITES = ("east", "west")


@dataclass(frozen=True)
class Patients:
    """Test patients: labels, groups (the last index is `unknown`) and each model's logits.

    `further` has the groups by other attributes of the study; `site` each patient's place in `SITES`.
    """

    label: NDArray[np.int64]
    group: NDArray[np.int64]
    logits: Mapping[str, NDArray[np.float64]]
    further: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    site: NDArray[np.int64] | None = None

    def rate(self, model: str, group: int, label: int, threshold: float = 0.0) -> float:
        """Share of a cell that is flagged, counted directly."""
        cell = (self.group == group) & (self.label == label)
        return float((self.logits[model][cell] >= threshold).mean())


def draw(sizes: Sequence[int], shifts: Mapping[str, Sequence[float]], seed: int = 0, spread: float = 2.0) -> Patients:
    """Half of each group has the disease; a model's score of a diseased patient moves by its shift for the group."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    label = np.concatenate([np.arange(size) % 2 for size in sizes]).astype(np.int64)
    noise = rng.normal(0, 1, len(label))
    logits: dict[str, NDArray[np.float64]] = {
        model: noise + 0.3 * rng.normal(0, 1, len(label)) + spread * (label - 0.5) + np.array(shift)[group] * label
        for model, shift in shifts.items()
    }
    return Patients(label, group.astype(np.int64), logits)


def make_study(
    groups: Sequence[str] = ("light", "dark"),
    controls: Sequence[str] = ("plain",),
    further: Sequence[Mapping[str, Any]] = (),
    **evaluation: Any,
) -> Study:
    """A study with one attribute, and further ones; small counts are shown unless `min_cell` says otherwise."""
    return Study.model_validate(
        {
            "study": "made-up",
            "seed": 3,
            "model": {
                "factory": "equipoise.common.models:mlp",
                "arguments": {"features": 1},
                "weights": {"path": "w", "sha256": "0" * 64},
            },
            "inputs": {"kind": "table", "features": [{"name": "x", "range": [0, 1]}]},
            "label": {"column": "malignant", "positive": 1},
            "attributes": [{"name": "tone", "levels": list(groups), "primary": True}, *further],
            "method": {"name": METHOD, "controls": list(controls)},
            "sites": {"declared_patients": dict.fromkeys(SITES, 60) if evaluation.get("by_site") else {}},
            "evaluation": {"threshold": {"rule": "fixed:0.5"}, "bins": 256, "min_cell": 0, **evaluation},
        }
    )


def measure(study: Study, patients: Patients, edges: NDArray[np.float64] | None = None) -> Measured:
    """The tables that the sites' sums would give, with these edges of the score bins or those of the study's number."""
    models = list(patients.logits)
    measured = Measured(hybrid_edges(None, study.evaluation.bins) if edges is None else edges)
    groups = {study.primary.name: patients.group, **patients.further}
    rows = {a.name: len(a.groups) + 1 for a in study.attributes}
    bins = {model: bin_scores(patients.logits[model], measured.edges) for model in models}
    for split in splits_needed(study):
        for model in models:
            measured.histograms[model, split] = {
                name: histogram(bins[model], patients.label, group, rows[name], len(measured.edges) + 1)
                for name, group in groups.items()
            }
    for model in models:
        measured.choose_thresholds(study, model)
    for before, after in comparisons(models, METHOD):
        sides = (patients.logits[before], patients.logits[after])
        cells = interval_cells(*sides, measured.thresholds[before], measured.thresholds[after])
        joint = {
            name: joint_table(*cells, patients.label, group, rows[name], len(POINTS)) for name, group in groups.items()
        }
        measured.add_joint(before, after, joint, 0.0)
    for model in models[1:]:
        measured.placements[model] = {}
        for name, group in groups.items():
            placed = [
                placements_of_bins(measured.histograms[m, "test"][name])[group, patients.label, bins[m]]
                for m in (BASE, model)
            ]
            measured.placements[model][name] = placement_sums(placed[0], placed[1], patients.label, group, rows[name])
    if patients.site is not None:
        decided = [(patients.logits[m] >= measured.thresholds[m][0]).astype(np.int64) for m in (BASE, METHOD)]
        measured.site_pairs = {
            name: count_cells((patients.site, group, patients.label, *decided), (len(SITES), rows[name], 2, 2, 2))
            for name, group in groups.items()
        }
    return measured


NOTES: dict[str, Any] = {
    "mask": [
        {"tensor": "extractor.0.weight", "parameters": 40, "mean": 0.25, "held": 0.5},
        {"tensor": "head.weight", "parameters": 8, "mean": 0.75, "held": 0.0},
    ],
    "mask_mean": 1 / 3,
    "bias_loss_by_round": [0.4, 0.2, 0.1],
}
ROUNDS = [
    {
        "run": f"made-up/{METHOD}",
        "phase": phase,
        "seconds": 0.5,
        "sites": list(SITES),
        "bytes_down": dict.fromkeys(SITES, 1000),
        "bytes_up": dict.fromkeys(SITES, 250_000),
    }
    for phase in ("counts", "extractor", "head")
]


def rows_of(arm: str, absent: Mapping[int, str] | None = None) -> list[Row]:
    """A transcript's rows; `absent` names a site that did not answer a release."""
    queries = [("cell_statistics", "counts"), ("local_training", "extractor"), ("local_training", "head")]
    if arm == "evaluation":
        queries = [("score_histogram", "evaluation"), ("decision_table", "evaluation")]
    return [
        Row(number, "", name, phase, tuple(site for site in SITES if site != (absent or {}).get(number)), "", "", "")
        for number, (name, phase) in enumerate(queries)
    ]


def make_report(
    study: Study,
    patients: Patients,
    noise: dict[str, Any] | None = None,
    notes: dict[str, Any] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """The report of a made-up run; `notes` are the method's, those above by default."""
    controls = [model for model in patients.logits if model not in (BASE, METHOD)]
    arms = tuple(Arm(name, study) for name in (METHOD, *controls))
    task = Task(study, arms, SITES, tuple(m for m in patients.logits if m != BASE), facts)
    rows = {**{arm.name: rows_of(arm.name) for arm in arms}, "evaluation": rows_of("evaluation")}
    named = sorted({control.partition("/")[0] for control in controls})
    plan = StudyPlan.of(study.model_copy(update={"method": study.method.model_copy(update={"controls": named})}))
    report = compose(task, plan, measure(study, patients), rows, NOTES if notes is None else notes, noise)
    report["run_time"] = run_time(ROUNDS)
    return report
