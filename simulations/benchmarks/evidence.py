"""Writes docs/evidence.md from the committed results files, so that text and results cannot part.

python -m equipoise.simulations.benchmarks.evidence
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from equipoise.common.files import write_whole
from equipoise.server.report.side_by_side import widening
from equipoise.simulations.benchmarks import bytes_to_gap, frontier, left_out, real_search, real_search_page, settings
from equipoise.simulations.benchmarks.evidence_private import private_sections
from equipoise.simulations.benchmarks.evidence_summary import at_a_glance

RESULTS = Path(__file__).parent / "results"
PAGE = "docs/evidence.md"

INTRODUCTION = """# Evidence

What the program did, over seeds, each with a base model of its own and, on the synthetic benches, patients of its own.
Written by `python -m equipoise.simulations.benchmarks.evidence` from the files in `simulations/benchmarks/results/`,
each made by the command that stands under its table; a test checks that this page and those files agree. No table of a
paper is reproduced. What a run costs stands in [Speed and memory](benchmarks.md) and, beside pfl and Flower, in
[Simulation beside its peers](benchmarks-peers.md).
"""

READING = """## How to read the tables

- *Gap*: the figure that the study declared, between the groups of its primary attribute on the test patients, at the
  declared rule; *rate-matched*: at the base model's selection rate (on the synthetic benches at the median score).
- Brackets hold 95 % t-intervals over seeds, or with fewer than three seeds the least and the largest value. One of few
  seeds may reach past what is possible, as below 0 for a gap: read such an end as *wide*.
- *Method minus this*: SWiFT's gap minus the row's, paired by seed. So -0.071 [-0.120, -0.021] says that SWiFT's gap is
  smaller by 0.071, and the interval excludes 0. Intervals are not widened for the number of controls: of eleven, one
  lies on one side of 0 by chance in about every second table.
- On public data a seed splits the same patients anew: runs share patients, and intervals are too narrow for a statement
  on others. There a second sentence says what is left with the variance of Nadeau & Bengio (2003), which allows for it.
- Nothing is private here (`privacy.mode: none`), but for the sections that say so. `+` after a commit: the code
  differed from it when those rows were made.

| model | is |
|---|---|
| base | the vendor's model as delivered |
| swift | soft-mask fine-tuning, the method that is tried |
| no_mask, constant, permuted | the same without a mask; with its mean everywhere; with its values in random places |
| plain, balanced, head | fine-tuning on the task alone; balanced over group and label; of the last layer alone |
| pooled, local_only | the method on all patients in one place; at each hospital by itself, the mean over their models |
| server_only | the method on the vendor's own data |
| auc_noise | the base model with noise on its scores, until their AUC is the method's |
"""

NOTES = {
    "bench-a": """## Bench A: synthetic dermoscopy, six hospitals of 300 patients

The vendor's training data hold almost no dark-skinned patient with the disease. All controls run beside SWiFT.
""",
    "heart": """## UCI Heart Disease by sex, four real hospitals

The vendor's model never saw heart disease in a woman. The unit is the row: the data have no patient identifiers. There
are few diseased women, so single seeds are imprecise; a figure that some seed could not estimate is left out. The test
share was raised from 0.2 to 0.4 after a first run in which some seeds had fewer than ten diseased women; gates and
controls were not changed.
""",
    "ham10000": """## HAM10000 by age (60 years), four real sources

The unit is the lesion: the data have no patient identifiers. Images of 40 x 40 pixels, a small network from scratch.
""",
    "diabetes": """## Diabetes 130 by race, six made-up sites

Readmission within 30 days. The public file does not name hospitals: patients are dealt to six sites. These columns tell
readmission little, for whichever group, and three of the five groups are small, so that noise alone would show a gap.
Controls other than no_mask, plain and auc_noise joined after a first run.
""",
    "collapse": """## The trap: a collapsed model

With the published share of the task loss (0.1) and the published batch losses the first phase ends in a model that
decides alike for everybody. Its gap is small or 0, and the gates fail it.
""",
}
AFTERWORDS = {
    "heart": "Plain fine-tuning has SWiFT's learning rate here; where each takes the best of three on a seed of its "
    "own, see [Methods side by side](comparison.md).",
}
COLUMNS = ("gap", "gap_rate_matched", "auc", "worst_group_auc", "balanced_accuracy", "gap_method_minus_this")
FEWEST_SEEDS = 3  # with fewer, a t-interval says nothing
HEADS = ("gap", "rate-matched", "AUC", "worst-group AUC", "balanced accuracy", "method minus this")


def page() -> str:
    """The whole page, from the results files that are there."""
    parts = [INTRODUCTION, at_a_glance(RESULTS), READING]
    for name, note in NOTES.items():
        file = RESULTS / f"{name}.json"
        if file.exists():
            parts.append(note)
            parts.append(_section(json.loads(file.read_text())))
    if elsewhere := settings.section(RESULTS):
        parts.append(elsewhere)
    if left_out.FILE.exists():
        parts.append(left_out.section(json.loads(left_out.FILE.read_text())))
    parts += private_sections(RESULTS)
    if bytes_to_gap.FILE.exists():
        parts.append(bytes_to_gap.section(json.loads(bytes_to_gap.FILE.read_text())))
    if real_search.FILE.exists():
        parts.append(real_search_page.section(json.loads(real_search.FILE.read_text())))
    return "\n".join(parts)


def _section(value: dict[str, Any]) -> str:
    seeds = len(value["seeds"])
    rows = [f"| {' | '.join(('model', *HEADS))} |", f"|{'---|' * (len(HEADS) + 1)}"]
    for name, figures in value["over_seeds"].items():
        rows.append(f"| {name} | {' | '.join(_cell(figures.get(column), seeds) for column in COLUMNS)} |")
    method = value["over_seeds"][value["method"]]
    cuts = [
        f"{label} falls by {_percent(method[key], seeds)}"
        for key, label in (("gap_cut", "the gap"), ("gap_rate_matched_cut", "rate-matched"))
        if method.get(key) is not None
    ]
    verdicts = ", ".join(f"{value['verdicts'].count(word)} {word}" for word in sorted(set(value["verdicts"])))
    facts = [
        f"Gap: `{value['metric']}`." + (f" Under {value['method']} {'; '.join(cuts)}." if cuts else ""),
        _comparison(value, seeds, widening(value["resplit"], seeds)),
        AFTERWORDS.get(value["study"], ""),
        f"Verdicts of the {len(value['seeds'])} runs against gates and controls: {verdicts}.",
        f"`{value['command']}`, commit {value['commit']}, {value['machine']}, seeds {value['seeds']}.",
    ]
    return "\n".join([*rows, "", *(fact for fact in facts if fact), ""])


def _comparison(value: dict[str, Any], seeds: int, factor: float) -> str:
    """Which controls the method's gap differs from over seeds, by direction; empty for too few seeds.

    With a factor above 1, that again with intervals so many times as wide.
    """
    if seeds < FEWEST_SEEDS:
        return ""
    idle = all(seed.get("auc_noise") == seed["base"] for seed in value["per_seed"])
    added = " auc_noise added no noise in any seed and is the base model." if idle else ""
    text = f"Over seeds {value['method']}'s gap is {_sides(value, 1.0)}.{added}"
    return text + (f" With intervals {factor:.1f} times as wide it is {_sides(value, factor)}." if factor > 1 else "")


def _sides(value: dict[str, Any], factor: float) -> str:
    sides: dict[str, list[str]] = {
        "smaller than that of": [],
        "larger than that of": [],
        "not clearly different from": [],
    }
    for name, figures in value["over_seeds"].items():
        difference = figures.get("gap_method_minus_this")
        if difference is None:
            continue
        half = factor * (difference["high"] - difference["mean"])
        below, above = difference["mean"] + half < 0, difference["mean"] - half > 0
        side = "smaller than that of" if below else "larger than that of" if above else "not clearly different from"
        sides[side].append(name)
    return "; ".join(f"{side} {', '.join(names)}" for side, names in sides.items() if names)


def _cell(figure: dict[str, Any] | None, seeds: int) -> str:
    if figure is None:
        return "-"
    low, high = _ends(figure, seeds)
    return f"{figure['mean']:.3f} [{low:.3f}, {high:.3f}]"


def _ends(figure: dict[str, Any], seeds: int) -> tuple[float, float]:
    """The t-interval, or for too few seeds the least and the largest value."""
    if seeds < FEWEST_SEEDS:
        return figure["least"], figure["worst"]
    return figure["low"], figure["high"]


def _percent(figure: dict[str, Any], seeds: int) -> str:
    low, high = _ends(figure, seeds)
    span = f"[{100 * low:.0f}, {100 * high:.0f}]"
    worst = figure["least"]
    least = f"at least {100 * worst:.0f} % in every seed" if worst >= 0 else f"and grew by {-100 * worst:.0f} % in one"
    return f"{100 * figure['mean']:.0f} % {span}, {least}"


if __name__ == "__main__":
    write_whole(Path(PAGE), page().encode())
    write_whole(Path(frontier.IMAGE), frontier.drawing(frontier.read(RESULTS)).encode())
    print(PAGE)
