"""docs/evidence.md says what the committed results files say."""

from __future__ import annotations

from pathlib import Path

from equipoise.simulations.benchmarks.evidence import NOTES, PAGE, RESULTS, page
from equipoise.simulations.benchmarks.outcome import summarise
from equipoise.simulations.benchmarks.settings import SETTINGS

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_results_give() -> None:
    assert (ROOT / PAGE).read_text() == page()


def test_every_results_file_of_an_outcome_has_its_section() -> None:
    outcomes = {file.stem for file in RESULTS.glob("*.json") if '"over_seeds"' in file.read_text()}
    assert outcomes
    assert outcomes <= set(NOTES) | set(SETTINGS)


def test_a_summary_of_two_seeds_by_hand() -> None:
    def seed(gap: float, base: float) -> dict[str, dict[str, float | None]]:
        return {"base": {"gap": base}, "swift": {"gap": gap}, "plain": {"gap": gap + 0.1}}

    table = summarise([seed(0.1, 0.4), seed(0.2, 0.4)], "swift")
    assert table["swift"]["gap"]["mean"] == 0.15
    # Two values 0.1 apart: half-width t(0.975, 1) * 0.0707 / sqrt(2) = 12.706 * 0.05.
    assert table["swift"]["gap"]["high"] == round(0.15 + 12.7062 * 0.05, 4)
    assert table["swift"]["gap_change"]["mean"] == -0.25
    assert table["plain"]["gap_method_minus_this"]["mean"] == -0.1
    assert table["plain"]["gap_method_minus_this"]["low"] == -0.1
    assert table["swift"]["gap_cut"]["least"] == 0.5


def test_a_figure_that_a_seed_could_not_estimate_is_left_out() -> None:
    seeds: list[dict[str, dict[str, float | None]]] = [
        {"base": {"gap": 0.4}, "swift": {"gap": None}},
        {"base": {"gap": 0.4}, "swift": {"gap": 0.1}},
    ]
    assert summarise(seeds, "swift")["swift"]["gap"] is None
