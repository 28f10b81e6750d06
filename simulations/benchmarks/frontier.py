"""The privacy-fairness frontier: what is left of the gap between all patients in one place and every hospital alone.

Drawn from results/private-outcome-frontier.json, which is made by

    python -m equipoise.simulations.benchmarks.private_outcome frontier --seeds 5 --draws 1

and, for real data, from the comparisons of `side_by_side`. `evidence` puts the section into docs/evidence.md and writes
docs/images/frontier.svg.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.common.fairness.t_interval import half_width
from equipoise.server.report.plots.intervals import Row, interval_rows
from equipoise.server.report.plots.svg import WIDTH, Drawing
from equipoise.simulations.benchmarks.side_by_side import TITLES

Json = dict[str, Any]
IMAGE = "docs/images/frontier.svg"
STYLE = Path(__file__).resolve().parents[2] / "server" / "report" / "style.css"
METHODS = {"private_head": "before", "swift": "after"}  # method -> marker
GAP = "equalized_odds_mean"
REFERENCE = "none"  # the setting whose cut is 100 %
AXIS = "gap between light and dark skin, mean form (0: equal)"
MEANINGS = {
    "before": "private_head; line: 95 % interval, dots: seeds",
    "after": "swift in masked whitened rounds",
    "expected": "the model as delivered, mean over seeds",
}
LEGEND = 62  # pixels above the panel
SETTINGS = {
    "pooled": "all patients in one place, no noise",
    "none": "six hospitals, no noise",
    **{
        f"{mode} {epsilon}": f"six hospitals, {mode}, epsilon {epsilon}"
        for mode in ("distributed", "local")
        for epsilon in (8, 3, 1)
    },
    "alone": "every hospital alone, no noise",
    "alone 3": "every hospital alone, epsilon 3",
}
SECTION = """## The frontier: how much of the gap privacy gives back

Bench A as above. From the top: all patients in one place without noise, which no federation has; six hospitals together
without noise; with one noise of which each adds a share, inside the secure sum (*distributed*, at the honest survivors
that the protocol guarantees), or a whole noise each (*local*); every hospital by itself, the mean over their models.
*Kept* is the share of the cut without noise, paired by seed. Dots are single seeds; where an interval reaches below 0,
which no gap can, its end in the image is open.

![Gap of both methods by setting, with intervals](images/frontier.svg)

The table has the figures.
"""
REAL = """Does real data follow? Declared gaps of the comparisons ([Methods side by side](comparison.md)), mode local.
On public data seeds share patients, and the brackets are too narrow for a statement on others, as said there.
"""


def read(results: Path) -> Json:
    """The sweep's results file."""
    value: Json = json.loads((results / "private-outcome-frontier.json").read_text())
    return value


def rows_of(value: Json) -> list[tuple[str, dict[str, Json]]]:
    """(setting, method -> line of the summary), in the order of the drawing, without settings that were not run."""
    lines = {line["design"]: line for line in value["summary"]}
    found = []
    for setting in SETTINGS:
        cells = {method: lines[f"{method} {setting}"] for method in METHODS if f"{method} {setting}" in lines}
        if len(cells) == len(METHODS):
            found.append((setting, cells))
    return found


def drawing(value: Json) -> str:
    """The plot as an image of its own, with the report's palette inside."""
    base = _mean_of(value["rows"], "base")
    drawn = [
        Row(
            SETTINGS[setting],
            [(shape, _estimate(cells[method][GAP])) for method, shape in METHODS.items()],
            tick=base,
            singles=[_by_seed(value["rows"], f"{method} {setting}") for method in METHODS],
            linked=False,
        )
        for setting, cells in rows_of(value)
    ]
    panel = str(interval_rows("frontier", "Gap by privacy", AXIS, drawn, high=None))
    height = LEGEND + int(panel.partition('height="')[2].partition('"')[0])
    palette = STYLE.read_text().partition("@media")[0]
    ground = '<rect width="100%" height="100%" fill="#fffefb"/>'
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    placed = panel.replace("<svg ", f'<svg y="{LEGEND}" ', 1)
    parts = f"<style>{palette}</style>{ground}{_legend()}{placed}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{parts}</svg>\n'


def _legend() -> str:
    drawing = Drawing("legend", "What the markers mean", ", ".join(MEANINGS.values()), LEGEND)
    for index, (shape, words) in enumerate(MEANINGS.items()):
        y = 16 + 16 * index
        if shape == "expected":
            drawing.line(16, y - 6, 16, y + 6, shape)
        else:
            drawing.line(8, y, 24, y, f"interval {shape}")
            drawing.marker(16, y, shape)
        drawing.text(32, y + 4, words)
    return str(drawing.markup())


def _estimate(figure: Mapping[str, float]) -> Json:
    return {
        "value": figure["mean"],
        "low": figure["low"],
        "high": figure["high"],
        "status": "ok",
        "level": 0.95,
        "reason": None,
    }


def _by_seed(rows: Sequence[Json], design: str) -> list[float]:
    """The gap of each seed, the mean over its draws."""
    mine = [row for row in rows if row["design"] == design]
    seeds = sorted({row["seed"] for row in mine})
    return [float(np.mean([row["after"][GAP] for row in mine if row["seed"] == seed])) for seed in seeds]


def _mean_of(rows: Sequence[Json], side: str) -> float:
    return float(np.mean([row[side][GAP] for row in rows]))


def kept(rows: Sequence[Json], method: str, setting: str) -> Json:
    """Share of the cut without noise that a setting keeps, paired by seed: mean and 95 % t-interval over seeds."""
    shares = []
    for seed in sorted({row["seed"] for row in rows}):
        cuts = {
            name: [
                row["base"][GAP] - row["after"][GAP]
                for row in rows
                if row["seed"] == seed and row["design"] == f"{method} {name}"
            ]
            for name in (REFERENCE, setting)
        }
        shares.append(float(np.mean(cuts[setting]) / np.mean(cuts[REFERENCE])))
    half = half_width(shares)
    mean = float(np.mean(shares))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def section(results: Path) -> str:
    """The section of docs/evidence.md."""
    value = read(results)
    heads = [f"{method}: {what}" for method in METHODS for what in ("gap", "kept")]
    table = [f"| setting | {' | '.join(heads)} |", f"|{'---|' * (len(heads) + 1)}"]
    for setting, cells in rows_of(value):
        words = []
        for method in METHODS:
            figure, share = cells[method][GAP], kept(value["rows"], method, setting)
            median = float(np.median(_by_seed(value["rows"], f"{method} {setting}")))
            words.append(f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}], median {median:.3f}")
            words.append(
                "reference"
                if setting == REFERENCE
                else f"{100 * share['mean']:.0f} % in every seed"
                if share["low"] == share["high"]
                else f"{100 * share['mean']:.0f} % [{100 * share['low']:.0f}, {100 * share['high']:.0f}]"
            )
        table.append(f"| {SETTINGS[setting]} | {' | '.join(words)} |")
    seeds = sorted({row["seed"] for row in value["rows"]})
    runs = len(value["rows"])
    facts = [
        f"The gap of the model as delivered is {_mean_of(value['rows'], 'base'):.3f} on average. Where one seed of "
        "few lies apart, the mean and the width are its doing: see the dots and the medians.",
        f"{runs} runs, one draw of noise a seed, `{value['command']}`, commit {value['commit']}, {value['machine']}, "
        f"seeds {seeds}.",
    ]
    return "\n".join([SECTION, *table, "", *facts, "", REAL, *real(results), ""])


def real(results: Path) -> list[str]:
    """A table of the real data sets that were compared without and with privacy, by their declared gap."""
    found = ["| data | gap | privacy | as delivered | plain | swift | private_head |", f"|{'---|' * 7}"]
    for name, title in TITLES.items():
        files = {"none": results / f"compare-{name}.json"}
        files |= {f"epsilon {epsilon}": results / f"compare-{name}-epsilon-{epsilon}.json" for epsilon in (8, 3, 1)}
        for privacy, file in files.items():
            if not file.exists():
                continue
            value = json.loads(file.read_text())
            table, gap = value["table"], value["study"]["evaluation"]["primary"]
            cells = [
                _cell(table[model]["figures"][gap]["value"]) for model in ("base", "plain", "swift", "private_head")
            ]
            found.append(f"| {title} | `{gap}` | {privacy} | {' | '.join(cells)} |")
    return found


def _cell(figure: Mapping[str, Any]) -> str:
    if figure["low"] is None:
        return "-" if figure["mean"] is None else f"{figure['mean']:.3f}"
    return f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
