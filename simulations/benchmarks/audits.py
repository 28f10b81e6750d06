"""Audits of public data: how a vendor's model works for each group at hospitals that take part, from sums alone.

    python -m equipoise.simulations.benchmarks.audits

For each data set the vendor's model is trained on the vendor's rows, which leave the study; then every hospital's
patients are counted, except those of the validation split where the threshold comes from them. Nothing is trained at
hospitals, so their training patients are patients like others. Figures go to results/audits.json and
docs/audit-evidence.md. Resumable: a data set that is there is not done again; delete its entry to do so. Needs the
public files (EQUIPOISE_DATA).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import typer
from scipy.special import expit

from equipoise.client.scores import patient_scores
from equipoise.client.workbench import View, network
from equipoise.common.fairness.auc import auc_by_group, auc_gap, worst_group_auc
from equipoise.common.fairness.estimate import Estimate
from equipoise.common.fairness.rates import expected_if_equal, gap, rate_by_group
from equipoise.common.fairness.reference import largest_group
from equipoise.common.fairness.tables import (
    Counts,
    bin_scores,
    counts_after,
    decide,
    histogram,
    hybrid_edges,
    pair_table,
)
from equipoise.common.fairness.thresholds import choose_threshold, parse_rule
from equipoise.common.fairness.within import decompose
from equipoise.common.files import write_whole
from equipoise.common.query import SplitName
from equipoise.common.study import Study
from equipoise.common.study_file import load_study
from equipoise.simulations.doors import open_hospital
from equipoise.simulations.hospitals import build_hospitals
from equipoise.simulations.pretrain import pretrain

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results" / "audits.json"
PAGE = ROOT / "docs" / "audit-evidence.md"
EDGES = hybrid_edges(None, 1024)
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
DATA_SETS = {
    "heart": "UCI Heart Disease: four real hospitals",
    "ham10000": "HAM10000: four real sources of images",
    "diabetes": "Diabetes 130: six made-up sites",
    "adult": "Adult (Census Income): six made-up sites, nothing medical",
}
GAPS = ("equalized_odds_difference", "equal_opportunity_difference", "fpr_difference")
WITHIN = "tpr"

Tables = dict[str, dict[str, tuple[Counts, Counts]]]  # site -> attribute -> counts[g, y, decision], hist[g, y, bin]


def audit(name: str) -> dict[str, Any]:
    """All figures of one data set."""
    study = load_study(ROOT / "configs" / f"{name}.yaml", ["method={name: audit}"])
    with tempfile.TemporaryDirectory() as folder:
        threshold, tables, facts = counted(study, Path(folder))
    sites = list(tables)
    attributes = []
    for attribute in study.attributes:
        of_sites = [tables[site][attribute.name] for site in sites]
        counts, hist = (np.sum([part[k] for part in of_sites], axis=0) for k in (0, 1))
        figures = pooled(counts, hist, attribute.groups)
        figures["within"] = within([part[0] for part in of_sites], attribute.groups)
        figures["sites"] = {
            site: gap(GAPS[0], part[0], attribute.groups).to_json() for site, part in zip(sites, of_sites, strict=True)
        }
        attributes.append({"attribute": attribute.name, "groups": list(attribute.groups), **figures})
    return {**facts, "rule": study.evaluation.threshold.rule, "threshold": threshold, "attributes": attributes}


def counted(study: Study, folder: Path) -> tuple[float, Tables, dict[str, Any]]:
    """The threshold (a probability), the sites' tables, and what the data are."""
    hospitals = build_hospitals(study, folder)
    recipe = study.simulation.pretrain if study.simulation else None
    if recipe is None:
        raise ValueError(f"{study.study}: simulation.pretrain is missing")
    state = pretrain(study.model, study.inputs, hospitals.vendor_split(study), recipe, study.seed)
    model = network(study, {name: value.numpy() for name, value in state.items()})
    rule = study.evaluation.threshold.rule
    chosen_from: tuple[SplitName, ...] = ("validation",) if parse_rule(rule).needs_histogram else ()
    cohorts = {site: open_hospital(study, [file]) for site, file in hospitals.sites.items()}
    scored = {
        (site, name): (patient_scores(View(study, model, part)), part)
        for site, cohort in cohorts.items()
        for name in SPLITS
        for part in (cohort.split(name),)
    }
    primary = study.primary
    validation = np.zeros((len(primary.groups) + 1, 2, len(EDGES) + 1), dtype=np.int64)
    for (_, name), (scores, part) in scored.items():
        if name in chosen_from:
            who = part.label.numpy().astype(np.int64), part.groups[primary.name].numpy(), len(primary.groups) + 1
            validation += histogram(bin_scores(scores, EDGES), *who, len(EDGES) + 1)
    threshold = choose_threshold(rule, validation, EDGES)
    tables: Tables = {}
    for (site, name), (scores, part) in scored.items():
        if name in chosen_from:
            continue
        decision = decide(scores, threshold)
        for attribute in study.attributes:
            rows = len(attribute.groups) + 1
            who = part.label.numpy().astype(np.int64), part.groups[attribute.name].numpy(), rows
            mine = (
                counts_after(pair_table(decision, decision, *who)),
                histogram(bin_scores(scores, EDGES), *who, len(EDGES) + 1),
            )
            before = tables.setdefault(site, {}).get(attribute.name)
            tables[site][attribute.name] = mine if before is None else (before[0] + mine[0], before[1] + mine[1])
    return float(expit(threshold)), tables, dict(hospitals.facts)


def pooled(counts: Counts, hist: Counts, names: Iterable[str]) -> dict[str, Any]:
    """Figures of the summed tables counts[g, y, decision] and hist[g, y, bin]."""
    groups = list(names)
    rates = {rate: [one.to_json() for one in rate_by_group(rate, counts, groups)] for rate in ("tpr", "fpr")}
    return {
        "patients": counts.sum(axis=(1, 2)).tolist(),
        "positives": counts[:, 1].sum(axis=1).tolist(),
        "rates": rates | {"auc": [one.to_json() for one in auc_by_group(hist, groups)]},
        "gaps": {metric: gap(metric, counts, groups).to_json() for metric in GAPS},
        "expected_if_equal": expected_if_equal(GAPS[0], counts, groups),
        "auc_gap": auc_gap(hist, groups).to_json(),
        "worst_group_auc": worst_group_auc(hist, groups).to_json(),
    }


def within(sites: list[Counts], names: Iterable[str]) -> list[dict[str, Any]]:
    """Each group less the largest: the pooled difference of TPR, that within hospitals, and their difference."""
    groups, total = list(names), np.sum(sites, axis=0)
    reference = groups.index(largest_group(total, groups))
    found = []
    for row, group in enumerate(groups):
        if row == reference:
            continue
        parts = decompose(WITHIN, np.stack(sites), row, reference, groups)
        found.append(
            {
                "groups": f"{group} less {groups[reference]}",
                "pooled": parts.pooled.to_json(),
                "within": parts.within.to_json(),
                "composition": parts.composition,
                "sites": parts.sites,
            }
        )
    return found


def text(estimate: dict[str, Any]) -> str:
    """A figure as the page prints it; never a number where there is none."""
    found = Estimate(**estimate)
    if found.value is None:
        return f"{found.status.replace('_', ' ')}: {found.reason}"
    mark = " (imprecise)" if found.status == "imprecise" else ""
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]{mark}"


def section(name: str, result: dict[str, Any]) -> str:
    """One data set's part of the page."""
    lines = [f"## {DATA_SETS[name]}", "", f"{result['note']}. Threshold: `{result['rule']}`, a probability of "]
    lines[-1] += f"{result['threshold']:.3f}."
    for one in result["attributes"]:
        lines += ["", f"### By {one['attribute']}", "", "| group | patients | with the label | TPR | FPR | AUC |"]
        lines.append("|---|---|---|---|---|---|")
        for row, group in enumerate([*one["groups"], "unknown"]):
            cells = [text(one["rates"][rate][row]) for rate in ("tpr", "fpr", "auc")]
            if one["patients"][row]:
                lines.append(f"| {group} | {one['patients'][row]} | {one['positives'][row]} | {' | '.join(cells)} |")
        chance = one["expected_if_equal"]
        said = "" if chance is None else f"; {chance:.3f} would be expected if all groups had the same rates"
        lines += ["", "| figure | pooled |", "|---|---|"]
        lines.append(f"| `{GAPS[0]}` | {text(one['gaps'][GAPS[0]])}{said} |")
        lines += [f"| `{metric}` | {text(one['gaps'][metric])} |" for metric in GAPS[1:]]
        lines += [f"| `{metric}` | {text(one[metric])} |" for metric in ("auc_gap", "worst_group_auc")]
        for part in one["within"]:
            share = part["composition"]
            rest = "" if share is None else f"; composition {share:+.3f}"
            what = f"| TPR, {part['groups']} | {text(part['pooled'])}; within hospitals {text(part['within'])}{rest} |"
            lines.append(what)
        lines += ["", "| site | gap | there |", "|---|---|---|"]
        lines += [f"| {site} | `{found['metric']}` | {text(found)} |" for site, found in one["sites"].items()]
    return "\n".join(lines) + "\n"


INTRODUCTION = """# Audits of public data

How a vendor's model works for each group, measured across sites from sums alone, before anything is repaired. Written
by `python -m equipoise.simulations.benchmarks.audits` from `simulations/benchmarks/results/audits.json`; a test checks
that this page and that file agree. The tables are exact (`privacy.mode: none`); brackets hold 95 % intervals (see
[Fairness metrics](fairness-metrics.md)). A figure of fewer than ten patients is not estimable; with half
its interval's width over 0.10 it is imprecise. The vendors' models of heart and Adult were made with a known bias (see
the `configs/`), so their gaps show that the audit finds what was planted; those of HAM10000 and Diabetes 130 were not.
Each site's own gap is that of equalized odds. *TPR, A less B* is A's rate minus B's.
"""


def page(results: dict[str, Any]) -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *(section(name, results[name]) for name in DATA_SETS if name in results)])


def main() -> None:
    """Audit every data set that the results lack, and write the page."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in DATA_SETS:
        if name not in results:
            results[name] = audit(name)
            write_whole(RESULTS, json.dumps(results, indent=1).encode())
            print(name, flush=True)
    write_whole(PAGE, page(results).encode())


if __name__ == "__main__":
    typer.run(main)
