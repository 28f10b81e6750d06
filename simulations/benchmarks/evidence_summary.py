"""The first table of docs/evidence.md: what is known, what is not, each with one figure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equipoise.server.report.side_by_side import widening
from equipoise.simulations.benchmarks import frontier, left_out, real_search, real_search_page
from equipoise.simulations.benchmarks.evidence_private import soft_mask_count
from equipoise.simulations.benchmarks.real_search_page import listed

Json = dict[str, Any]
STUDIES = {
    "bench-a": "bench A, synthetic",
    "heart": "UCI Heart, by sex",
    "ham10000": "HAM10000, by age",
    "diabetes": "Diabetes 130, by race",
}
LOSS = 0.01  # of the worst group's AUC
HEAD = """## At a glance

SWiFT without privacy, with the parameters of each study's file, on the figure that the study declared. *Yes* and *no*
are said where a 95 % interval lies wholly on one side; on public data it is made as wide as seeds that share patients
ask for. Nothing is corrected for the number of questions.
"""
BELOW, ABOVE, NEITHER = "yes", "no", "cannot tell"


def at_a_glance(results: Path) -> str:
    """Questions by studies, and three more answers; of results that are there."""
    found = {name: json.loads(file.read_text()) for name in STUDIES if (file := results / f"{name}.json").exists()}
    rows = [f"| question | {' | '.join(STUDIES[name] for name in found)} |", f"|{'---|' * (len(found) + 1)}"]
    questions: dict[str, tuple[str, str]] = {
        "Did the gap fall?": ("swift", "gap_change"),
        "Is it smaller than after plain fine-tuning?": ("plain", "gap_method_minus_this"),
        "Than after fine-tuning on balanced cells?": ("balanced", "gap_method_minus_this"),
        "Than without a mask?": ("no_mask", "gap_method_minus_this"),
    }
    for question, (model, figure) in questions.items():
        cells = [
            answer(value["over_seeds"][model][figure], _factor(value)) if model in value["over_seeds"] else "not run"
            for value in found.values()
        ]
        rows.append(f"| {question} | {' | '.join(cells)} |")
    kept = [
        answer(value["over_seeds"]["swift"]["worst_group_auc_change"], _factor(value), above=True, bound=-LOSS)
        for value in found.values()
    ]
    rows.append(f"| Is a loss of {LOSS:g} of the worst group's AUC ruled out? | {' | '.join(kept)} |")
    seeds = ", ".join(f"{STUDIES[name]}: {len(value['seeds'])}" for name, value in found.items())
    return "\n".join([HEAD, *rows, "", f"Seeds: {seeds}. Further answers:", "", *further(results), ""])


def further(results: Path) -> list[str]:
    """One line each on the left-out hospital, on privacy and on the mask."""
    lines = []
    if left_out.FILE.exists():
        table = {line["design"]: line for line in json.loads(left_out.FILE.read_text())["summary"]}
        said = [f"{name} {answer(table[name]['less_plain'])}" for name in table if name != left_out.PLAIN.name]
        lines.append(
            "- At a hospital that took no part, is the gap smaller than after plain fine-tuning? "
            f"{'; '.join(said)} (bench A, [below](#a-hospital-that-took-no-part))."
        )
    if (results / "private-outcome-frontier.json").exists():
        rows = frontier.read(results)["rows"]
        said = [
            f"{method} {100 * share['mean']:.0f} % [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"
            for method in frontier.METHODS
            for share in (frontier.kept(rows, method, "distributed 3"),)
        ]
        lines.append(
            "- How much of the cut without noise is kept at epsilon 3, in mode distributed? "
            f"{'; '.join(said)} (bench A, [the frontier](#the-frontier-how-much-of-the-gap-privacy-gives-back))."
        )
    if (file := results / "real-search.json").exists():
        value = json.loads(file.read_text())
        words = []
        for primary in real_search.PRIMARIES:
            found = real_search_page.Reported.of(value, primary)
            words.append(
                f"By {primary}: {listed(found.passed)} (widened for the number of settings: "
                f"{listed(found.passed_of_all)}; as wide as shared lesions ask for: {listed(found.passed_on_others)})."
            )
        lines.append(
            f"- Which settings debias HAM10000 behind a stronger network, by the declared rule? {' '.join(words)} See "
            "[the search](#does-any-trained-method-debias-ham10000-behind-a-stronger-network)."
        )
    if (file := results / "private-outcome-regimes.json").exists():
        smaller, larger, looked = soft_mask_count(json.loads(file.read_text()))
        lines.append(
            f"- Is there a setting in which the soft mask is worth its name? Smaller gap in {smaller}, larger in "
            f"{larger} of {looked} comparisons after Holm's correction "
            "([the regimes](#where-might-the-mask-matter))."
        )
    return lines


def answer(figure: Mapping[str, float] | None, factor: float = 1.0, *, above: bool = False, bound: float = 0.0) -> str:
    """Yes, no or cannot tell, with the interval; yes is below the bound, or with `above` above it.

    >>> answer({"mean": -0.2, "low": -0.3, "high": -0.1})
    'yes: -0.200 [-0.300, -0.100]'
    >>> answer({"mean": -0.2, "low": -0.3, "high": -0.1}, factor=3)
    'cannot tell: -0.200 [-0.500, 0.100]'
    >>> answer({"mean": 0.02, "low": 0.01, "high": 0.03}, above=True, bound=-0.01)
    'yes: 0.020 [0.010, 0.030]'
    """
    if figure is None or "low" not in figure:
        return "not estimable"
    mean = figure["mean"]
    low, high = (mean + factor * (figure[end] - mean) for end in ("low", "high"))
    side = BELOW if high < bound else ABOVE if low > bound else NEITHER
    if above:
        side = {BELOW: ABOVE, ABOVE: BELOW}.get(side, side)
    return f"{side}: {mean:.3f} [{low:.3f}, {high:.3f}]"


def _factor(value: Json) -> float:
    return widening(value["resplit"], len(value["seeds"]))
