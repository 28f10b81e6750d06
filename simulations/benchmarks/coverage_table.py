"""Writes the coverage tables of docs/fairness-metrics.md from results/coverage.json, so that they cannot part.

python -m equipoise.simulations.benchmarks.coverage_table
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from statistics import median
from typing import Any

from equipoise.common.files import write_whole
from equipoise.simulations.benchmarks.coverage import RESULTS
from equipoise.simulations.benchmarks.coverage_worlds import worlds
from equipoise.simulations.benchmarks.speed import ROOT

PAGE = ROOT / "docs" / "fairness-metrics.md"
BEGIN, END = "<!-- coverage: begin -->\n", "<!-- coverage: end -->\n"
LEAST, WIDEST = 0.93, 1.2


def settings(results: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, float]]]:
    """(figure, noise, world, what was measured) of everything that has a coverage."""
    for world, result in results["worlds"].items():
        for noise, figures in result["settings"].items():
            for figure, measured in figures.items():
                if "coverage" in measured:
                    yield figure, noise, world, measured


def beyond_chance(measured: dict[str, float]) -> bool:
    """Whether the coverage lies below LEAST by more than two standard errors of the simulation."""
    share = measured["coverage"]
    drawn = measured["draws"] * measured["estimable"]
    return bool(share + 2 * (share * (1 - share) / drawn) ** 0.5 < LEAST)


def block(results: dict[str, Any]) -> str:
    """The generated part of the page."""
    found = list(settings(results))
    groups: dict[tuple[str, str], list[dict[str, float]]] = {}
    for figure, noise, _, measured in found:
        groups.setdefault((figure, "exact" if noise == "exact" else "noisy"), []).append(measured)
    lines = [
        "| figure | tables | settings | coverage: least, median | under .93 (beyond chance) | "
        "width / oracle's: median, largest | over 1.2 |",
        "|---|---|---|---|---|---|---|",
    ]
    for (figure, kind), rows in groups.items():
        coverage, ratio = ([row[key] for row in rows] for key in ("coverage", "ratio"))
        under, sure = sum(c < LEAST for c in coverage), sum(beyond_chance(row) for row in rows)
        over = sum(r > WIDEST for r in ratio)
        lines.append(
            f"| {figure} | {kind} | {len(rows)} | {min(coverage):.3f}, {median(coverage):.3f} | {under} ({sure}) | "
            f"{median(ratio):.2f}, {max(ratio):.2f} | {over} |"
        )
    lines += ["", "Where the coverage lies under .93 beyond chance:", "", "| figure | noise | world | coverage |"]
    lines.append("|---|---|---|---|")
    missing = [
        f"| {figure} | {noise} | {world} | {measured['coverage']:.3f} |"
        for figure, noise, world, measured in found
        if beyond_chance(measured)
    ]
    lines += missing or ["| none | | | |"]
    for what, rows in results["enumerated"].items():
        low = [row for row in rows if row["coverage"] < LEAST]
        said = "; ".join(f"n {row['n']}, p {row['p']}: {row['coverage']:.3f}" for row in low) or "none"
        widest = max(row["ratio"] for row in rows)
        lines += ["", f"Enumerated {what}: {len(rows)} settings, coverage under .93 in {len(low)} ({said}); "]
        lines[-1] += f"largest ratio of widths {widest:.2f}."
    draws = sorted({result["replications"] for result in results["worlds"].values()})
    done = f"{len(results['worlds'])} of {len(worlds())} worlds are drawn"
    lines += ["", f"{done}, {' or '.join(map(str, draws))} times each; the others wait for the same command."]
    return "\n".join(lines) + "\n"


def page(text: str, results: dict[str, Any]) -> str:
    """The page with its generated part made anew."""
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return text[:start] + block(results) + text[end:]


def main() -> None:
    """Write the page."""
    write_whole(PAGE, page(PAGE.read_text(), json.loads(RESULTS.read_text())).encode())


if __name__ == "__main__":
    main()
