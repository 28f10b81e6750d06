"""What went wrong, is missing or has to be known before a figure is read: one sentence each, with a code to look up.

The codes are those of docs/audit.md. Codes E1xx are shown at a hospital, by the command that meets the cause; of what a
page can say, E1xx and E2xx name figures that are not there, W3xx figures that are easily misread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from equipoise.common.evaluation import BASE
from equipoise.common.fairness.estimate import MINIMUM_PATIENTS
from equipoise.server.report.blocks import Section, Table
from equipoise.server.report.training import training_notices
from equipoise.server.report.words import LABELS, LEVEL_TEXT, known, listed, number

Json = dict[str, Any]
SHIFT = 0.05  # of prevalence or by composition, from which it is worth a sentence if chance does not explain it


def notices(report: Json) -> list[Json]:
    """`code` and `text` of each, by code."""
    found = [
        *_of_groups(report),
        *_of_unknown(report),
        *_of_scores(report),
        *_of_prevalence(report),
        *_of_hospitals(report),
        *_of_absences(report),
        *training_notices(report),
    ]
    return [{"code": code, "text": text} for code, text in sorted(found, key=lambda row: row[0])]


def _of_groups(report: Json) -> Iterator[tuple[str, str]]:
    noisy = report["privacy"]["mode"] != "none"
    for row in report["attributes"]:
        name = row["attribute"]
        for group in row["groups"]:
            if not group["declared"]:
                continue
            n, positives = known(group["n"]), known(group["positives"])
            what = f"{name}, group {group['group']}"
            silent = "its true positive rate, its AUC and every gap with it are not estimable; gaps compare the others"
            if n is None or positives is None:
                yield (
                    "E205",
                    f"{what}: its number of patients is hidden, since a count below {report['small_cells']['minimum']} "
                    "could be read from it; figures that rest on it are suppressed.",
                )
            elif n <= 0:
                yield "E202", f"{what}: no patients anywhere; this report cannot speak for this group."
            elif min(positives, n - positives) <= 0:
                lacking = "positives" if positives <= 0 else "negatives"
                if lacking == "negatives":
                    silent = silent.replace("true", "false")
                yield "E201", f"{what}: no {lacking} anywhere; {silent}."
            elif min(positives, n - positives) < MINIMUM_PATIENTS:
                counted = ", counted with noise" if noisy else ""
                yield (
                    "E203",
                    f"{what}: {positives} positives and {n - positives} negatives{counted}, {MINIMUM_PATIENTS} of each "
                    "needed; what needs more is not estimable and stands as no number anywhere.",
                )


def _of_unknown(report: Json) -> Iterator[tuple[str, str]]:
    for name, found in report["decisions"][BASE].items():
        if found["unknown"] is not None:
            for text in found["unknown"]["warnings"]:
                yield "E110", f"{name}: {text}; these patients are in no gap."


def _of_scores(report: Json) -> Iterator[tuple[str, str]]:
    for model, figures in report["models"].items():
        reason = figures["auc"]["reason"]
        if figures["auc"]["value"] is None and "constant" in reason:
            yield "E204", f"{model}: {reason}; the AUC of 0.5 that ties alone would give is no measurement."


def _of_prevalence(report: Json) -> Iterator[tuple[str, str]]:
    for row in report["attributes"]:
        if row["prevalence_shift"] is None:
            continue
        counted = {group["group"]: (known(group["n"]), known(group["positives"])) for group in row["groups"]}
        (low, rare), (high, common) = (
            (name, (positives or 0) / (n or 1)) for name in row["prevalence_shift"] for n, positives in [counted[name]]
        )
        if common - rare < SHIFT:
            continue
        yield (
            "W301",
            f"{row['attribute']}: the disease is rarer in {low} ({number(rare)}) than in {high} ({number(common)}). "
            "Predictive values, average precision, Brier score, net benefit and selection rates depend on the "
            "prevalence; compare predictive values at the common one.",
        )


def _of_hospitals(report: Json) -> Iterator[tuple[str, str]]:
    for name, found in (report["hospitals"] or {}).items():
        coverage = found["coverage"]
        told = [site for site in coverage if all(known(group["n"]) is not None for group in site["groups"])]
        single = [site["hospital"] for site in told if sum(group["n"] > 0 for group in site["groups"]) < 2]
        if single:
            yield (
                "E101",
                f"{name}: one group only at {listed(single)}; there is no gap there, and no weight in the gap within "
                f"hospitals ({len(told) - len(single)} of {len(told)} hospitals have two groups or more).",
            )
        classes = [site["hospital"] for site in coverage if _one_class(site["groups"])]
        if classes:
            yield (
                "E102",
                f"{name}: patients of one label only at {listed(classes)}; they count in pooled figures alone.",
            )
        for entry in found["contrasts"]:
            composition = entry["base"]["composition"]
            low, high = entry["base"]["composition_interval"] or (0.0, 0.0)
            if composition is not None and abs(composition) >= SHIFT and not low <= 0 <= high:
                yield (
                    "W302",
                    f"{name}: of the pooled difference in {entry['rate']} of {entry['group']} less "
                    f"{entry['reference']}, {number(composition)} ({LEVEL_TEXT} interval {number(low)} to "
                    f"{number(high)}) is composition: where the groups are treated, which is no cause yet.",
                )
        share, group, site = _most_influence(coverage)
        if share > 0:
            yield (
                "W310",
                f"{name}: {site} has {100 * share:.0f} % of the positives of {group}; hospitals are trusted to report "
                "honestly, and one that does not could move that group's rate by up to its share.",
            )

        if found["far"]:
            far = found["far"][0]
            lies = "far from"
            if far["z"] is not None:
                side = "above" if far["z"] > 0 else "below"
                lies = f"{number(abs(far['z']), 1)} standard errors {side}"
            yield (
                "W311",
                f"{name}: {far['hospital']}'s {LABELS[far['rate']]} of {far['group']} lies {lies} that of the other "
                "hospitals together; ask there for the coding, the device and the table.",
            )


def _one_class(groups: Sequence[Json]) -> bool:
    """Whether all patients of a hospital have one label, as far as its counts are shown."""
    positives = [known(group["positives"]) for group in groups]
    if any(group["n"] != 0 for group in groups) and not any(n != 0 for n in positives):
        return True
    patients = [known(group["n"]) for group in groups]
    return bool(None not in patients and patients == positives and any(patients))


def _most_influence(coverage: Sequence[Json]) -> tuple[float, str, str]:
    """Largest share of a group's positives that one hospital has, the group, and the hospital."""
    largest = (0.0, "", "")
    for place, group in enumerate(coverage[0]["groups"]):
        positives = [known(site["groups"][place]["positives"]) for site in coverage]
        total = sum(n or 0 for n in positives)
        if None in positives or not total:
            continue  # nobody, or a hidden count that the share would give away
        for site, n in zip(coverage, positives, strict=True):
            largest = max(largest, ((n or 0) / total, group["group"], site["hospital"]))
    return largest


def _of_absences(report: Json) -> Iterator[tuple[str, str]]:
    hospitals = len(report["sites"]["connected"])
    for arm in report["sites"]["arms"]:
        absent = sorted({site for entry in arm["incomplete"] for site in entry["absent"]})
        if absent:
            yield (
                "W320",
                f"{arm['arm']}: {hospitals - len(absent)} of {hospitals} hospitals answered every release; "
                f"{listed(absent)} did not. Not comparable with a report of all of them.",
            )
    if any(figures["auc_gap"]["status"] == "not_released" for figures in report["models"][BASE]["attributes"].values()):
        yield "E171", "AUC by some attributes was not released: under noise the budget goes to the primary attribute."


def notices_section(report: Json) -> Section:
    """The section of the page."""
    if not report["notices"]:
        text = "Nothing is missing and no hospital was absent. Codes stand in the manual (audit)."
        return Section("notices", "What is missing", (text,))
    rows = [[notice["code"], notice["text"]] for notice in report["notices"]]
    table = Table("Missing, or easily misread", ("code", "what"), rows, frozenset({0, 1}))
    return Section("notices", "What is missing", ("Codes stand in the manual (audit).",), (table,))
