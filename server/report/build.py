"""The report of a finished run: report.json, and a page, a table and a model card from it; from stored sums alone.

The evaluation is replayed from the run's transcript, so no hospital is asked for anything. The same run folder gives
the same bytes; all of report.json but its `run_time` is a function of the released sums.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equipoise
from equipoise.common.alignment import Alignment
from equipoise.common.errors import StudyError, TranscriptError
from equipoise.common.evaluation import BASE, POINTS, Measured
from equipoise.common.fairness.thresholds import parse_rule
from equipoise.common.fairness.verdict import Bounds, Evidence, Verdict, verdict
from equipoise.common.files import write_whole
from equipoise.common.methods import METHODS
from equipoise.common.study import Study
from equipoise.common.study_evaluation import RateMatch, Threshold
from equipoise.common.study_plan import EVALUATION, StudyPlan
from equipoise.server.engine import Engine
from equipoise.server.report import tables
from equipoise.server.report.auc_noise import add_auc_noise
from equipoise.server.report.card import model_card
from equipoise.server.report.decision_figures import decision_figures
from equipoise.server.report.export import report_csv
from equipoise.server.report.hospital_figures import hospital_figures
from equipoise.server.report.level_down import NOBODY, level_down
from equipoise.server.report.limits import limits
from equipoise.server.report.lists import read_as_lists
from equipoise.server.report.notices import notices
from equipoise.server.report.page import render
from equipoise.server.report.privacy import privacy_of, small_cells_of
from equipoise.server.report.runtime import run_time
from equipoise.server.report.score_curves import roc_curves
from equipoise.server.report.score_figures import score_figures
from equipoise.server.report.summary import summary, summary_lines
from equipoise.server.report.suppression import Suppression
from equipoise.server.report.training import training_of
from equipoise.server.report.words import estimate_text, listed
from equipoise.server.rounds import read_rounds
from equipoise.server.run import measure
from equipoise.server.rundir import RunFolder, Task
from equipoise.server.transcript import Row

__all__ = ["FILES", "SCHEMA", "build_report", "compose", "derived_files", "report_json", "summary_lines"]

SCHEMA = "equipoise-report/2"  # schema.json
FILES = ("report.json", "report.html", "report.csv", "model_card.md")

Json = dict[str, Any]


def build_report(run: RunFolder) -> Path:
    """Write the files of a report; returns the path of the page.

    Raises:
        StudyError: the run has no method or no evaluation.
        TranscriptError: the transcript does not lead to these figures.
        StorageError: a file could not be written.
    """
    report = report_json(run)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in {"report.json": text, **derived_files(report)}.items():
        write_whole(run.path / name, content.encode())
    return run.path / "report.html"


def derived_files(report: Json) -> dict[str, str]:
    """What is written beside report.json and made from it alone: file name -> content."""
    return {"report.html": render(report), "report.csv": report_csv(report), "model_card.md": model_card(report)}


def report_json(run: RunFolder) -> Json:
    """The content of report.json, computed anew from the run folder; writes nothing.

    Raises:
        StudyError: the run has no method or no evaluation.
        TranscriptError: the transcript does not lead to these figures.
    """
    task = run.task()
    if not task.arms or task.arms[0].name not in task.evaluate:
        raise StudyError(f"{run.path}: nothing was evaluated in this run, so there is nothing to report")
    measured = measure(Engine(task.study, run.plan(), None), run, task)
    noise = add_auc_noise(run, measured, task.arms[0].name)
    notes = _notes(run.path / "notes.json")
    rows = {arm.name: run.transcript(arm.study, arm.name).rows for arm in task.arms}
    rows[EVALUATION] = run.transcript(task.study, EVALUATION).rows
    report = compose(task, run.plan(), measured, rows, notes, noise)
    report["run_time"] = run_time(read_rounds(run.path / "rounds.jsonl"))
    return report


def _notes(file: Path) -> Json:
    """What the method said of how it came about."""
    try:
        notes = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        notes = None
    if not isinstance(notes, dict):
        raise TranscriptError(f"{file}: missing or changed since the run ended; restore the file")
    return notes


def compose(
    task: Task, plan: StudyPlan, measured: Measured, rows: dict[str, list[Row]], notes: Json, noise: Json | None
) -> Json:
    """All of the report but `run_time`.

    Args:
        task: what the run was to do.
        plan: what it might ask, with its noise.
        measured: the evaluation's tables, those of `auc_noise` added where there are any.
        rows: the transcripts' rows by arm, `evaluation` last.
        notes: what the method says of how it came about.
        noise: size of the noise of `auc_noise` and its draws, or None.
    """
    study, method = task.study, task.arms[0].name
    simulated, alone = study.simulation is not None, study.audits_one_model
    shown = (BASE,) if alone else (BASE, method)
    hidden = Suppression.of(study, measured)
    every = tables.models(study, measured, hidden)
    report: Json = {
        "schema": SCHEMA,
        "kind": "one_model" if alone else "two_models" if study.method.name == "audit" else "method",
        "software": {"equipoise": equipoise.__version__},
        "study": _study(study),
        "card": study.card.model_dump(),
        "data": {**{key: task.facts.get(key, default) for key, default in _FACTS.items()}, "simulated": simulated},
        "sites": _sites(task, rows),
        "operating_points": _operating_points(study, every, shown),
        "attributes": tables.coverage(study, measured, hidden),
        "roles": {model: _role(model, method) for model in every if not alone or model == BASE},
        "thresholds": {
            model: points for model, points in tables.thresholds(measured).items() if not alone or model == BASE
        },
        "models": {model: figures for model, figures in every.items() if not alone or model == BASE},
        "changes": [] if alone else tables.changes(study, measured, hidden),
        "roc": roc_curves(study, measured, shown, hidden),
        "scores": score_figures(study, measured, shown, hidden),
        "decisions": decision_figures(study, measured, shown, hidden),
        "hospitals": hospital_figures(study, measured, hidden),
    }
    read_as_lists(report, study, measured, hidden)
    report["averages"] = tables.averages(study, report["models"])
    report["verdict"] = None if alone else judged(study, measured, method, hidden).to_json()
    report |= NOBODY if alone else level_down(report["changes"], study, measured, method, hidden)
    report["training"] = training_of(notes, rows[method], hidden)
    report["method_warnings"] = notes.get("warnings", [])
    if "alignment" in notes:
        alignment = Alignment.from_json(notes["alignment"])
        report["group_thresholds"] = tables.group_thresholds(study, measured, method, alignment)
    if noise is not None:
        # Each draw's gap is that of other decisions on the same patients, whose counts nobody has looked at.
        report["auc_noise"] = {**noise, "gap_by_draw": []} if hidden.active else noise
    report["privacy"] = privacy_of(study, plan)
    report["small_cells"] = small_cells_of(study)
    report["notices"] = notices(report)
    report["limits"] = limits(report)
    report["summary"] = summary(report)
    return report


_FACTS: Json = {"source": "hospitals' own patients", "note": "", "synthetic": False}


def _study(study: Study) -> Json:
    """The study as it was declared before the run."""
    rendered = study.model_dump(mode="json", by_alias=True)
    entry = METHODS[study.method.name]
    return {
        "name": study.study,
        "hash": study.hash,
        "seed": study.seed,
        "label": rendered["label"],
        "primary": study.primary.name,
        "attributes": rendered["attributes"],
        "method": {
            "name": study.method.name,
            "title": entry.title,
            "paper": entry.paper,
            "travels": entry.travels,
            "parameters": entry.parameters.model_validate(study.method.parameters).model_dump(mode="json"),
            "controls": study.method.controls,
        },
        "model": {
            "factory": study.model.factory,
            "sha256": None if study.model.weights is None else study.model.weights.sha256,
        },
        "privacy": rendered["privacy"],
        "evaluation": rendered["evaluation"],
        "sites": rendered["sites"],
    }


def _role(model: str, method: str) -> str:
    return "base" if model == BASE else "method" if model == method else "control"


def _operating_points(study: Study, figures: Json, shown: Sequence[str]) -> list[Json]:
    """The three operating points in words; `from` is the split that a threshold was chosen on, or None."""
    own, match = study.evaluation.threshold, study.evaluation.rate_match
    matched = {
        "base_rate": "as many patients flagged as under the model as delivered",
        "median": "half of the patients flagged under every model",
    }[match.rule]
    rates = {model: figures[model]["points"]["base_rate"]["selection_rate"] for model in shown}
    came = listed([f"{estimate_text(rate)} ({model})" for model, rate in rates.items()])
    words = {
        "rule": f"{own.rule}, applied to each model",
        "base_rate": f"{matched}, as near as an edge of the score bins comes; of the test patients: {came}",
        "base_threshold": "the threshold of the model as delivered, for every model",
    }
    sources: dict[str, Threshold | RateMatch] = {"rule": own, "base_rate": match, "base_threshold": own}
    return [{"point": point, "text": words[point], "from": _source(sources[point])} for point in POINTS]


def _source(threshold: Threshold | RateMatch) -> str | None:
    return threshold.source if parse_rule(threshold.rule).needs_histogram else None


def _sites(task: Task, rows: dict[str, list[Row]]) -> Json:
    """Who was asked and who answered, by arm."""
    arms = []
    for arm, own in rows.items():
        answered = Counter(site for row in own for site in row.cohort)
        incomplete = [
            {"release": row.number, "query": row.name, "absent": sorted(set(task.sites) - set(row.cohort))}
            for row in own
            if set(task.sites) - set(row.cohort)
        ]
        arms.append(
            {
                "arm": arm,
                "releases": len(own),
                "answered": {site: answered[site] for site in sorted(task.sites)},
                "incomplete": incomplete,
            }
        )
    return {"connected": sorted(task.sites), "declared_patients": task.study.sites.declared_patients, "arms": arms}


def judged(study: Study, measured: Measured, method: str, hidden: Suppression) -> Verdict:
    """The verdict on a method."""
    found = evidence(study, measured, method, hidden)
    return verdict(found, Bounds.of(study.evaluation), minimum=hidden.least)


def evidence(study: Study, measured: Measured, method: str, hidden: Suppression) -> Evidence:
    """What a verdict on a method is made from, and what may be shown of it."""
    name = study.primary.name
    before, after, blur, joint = measured.score_pair(BASE, method, name)
    controls = [
        control
        for control, other in measured.pairs
        if other == method and control != BASE and not control.startswith(tables.LOCAL)
    ]
    return Evidence(
        names=study.primary.groups,
        pair=measured.pairs[BASE, method][name],
        hist_before=before,
        hist_after=after,
        placement_sums=measured.placements.get(method, {}).get(name),
        controls={control: measured.pairs[control, method][name] for control in controls},
        joint=joint,
        pair_noise=measured.pair_noise[BASE, method],
        hist_noise=blur,
        control_noise={control: measured.pair_noise[control, method] for control in controls},
        shown=lambda found, control, point: hidden.figure(found, name, (control or BASE, method), point),
    )
