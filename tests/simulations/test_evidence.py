"""docs/evidence.md says what the committed results files say."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.common.fairness.t_interval import half_width
from equipoise.common.study_file import load_study
from equipoise.server.report.side_by_side import widening
from equipoise.simulations.benchmarks.evidence import NOTES, PAGE, RESULTS, page
from equipoise.simulations.benchmarks.evidence_summary import at_a_glance
from equipoise.simulations.benchmarks.origin import commit_of
from equipoise.simulations.benchmarks.outcome import figures_of, summarise
from equipoise.simulations.benchmarks.private_designs import SWEEPS
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


OUTCOMES = [file for file in sorted(RESULTS.glob("*.json")) if '"over_seeds"' in file.read_text()]


@pytest.mark.parametrize("file", OUTCOMES, ids=lambda file: str(file.stem))
def test_the_summary_of_an_outcome_follows_from_its_seeds(file: Path) -> None:
    value = json.loads(file.read_text())
    assert value["over_seeds"] == json.loads(json.dumps(summarise(value["per_seed"], value["method"])))
    assert value["metric"] == load_study(ROOT / shlex.split(value["command"])[3]).evaluation.primary
    assert len(value["per_seed"]) == len(value["verdicts"]) == len(value["seeds"])


def test_every_sweep_is_of_as_many_rows_as_its_command_makes_and_each_row_has_its_commit() -> None:
    sweeps = sorted(RESULTS.glob("private-outcome-*.json"))
    assert sweeps
    for file in sweeps:
        value = json.loads(file.read_text())
        words = shlex.split(value["command"])
        options = dict(zip(words[4::2], words[5::2], strict=True))
        designs = [design for design in SWEEPS[words[3]] if options.get("--only", "") in design.name]
        each = [1 if design.epsilon is None else int(options["--draws"]) for design in designs]
        assert len(value["rows"]) == int(options["--seeds"]) * sum(each), file.name
        assert value["commit"] == commit_of(value["rows"])


def test_a_reader_sees_first_what_is_known_and_what_is_not(tmp_path: Path) -> None:
    def study(name: str, gaps: Sequence[float], resplit: dict[str, int] | None) -> None:
        seeds = [
            {
                "base": {"gap": 0.4, "worst_group_auc": 0.8},
                "swift": {"gap": gap, "worst_group_auc": 0.75},
                "plain": {"gap": gap - 0.1 - number / 100, "worst_group_auc": 0.8},
            }
            for number, gap in enumerate(gaps)
        ]
        value = {"resplit": resplit, "seeds": list(range(len(gaps))), "over_seeds": summarise(seeds, "swift")}
        (tmp_path / f"{name}.json").write_text(json.dumps(value))

    study("bench-a", (0.2, 0.25, 0.3), None)
    study("heart", (0.2, 0.25, 0.3), {"train": 10, "test": 30})
    rows = {line.split(" | ")[0].strip("| "): line for line in at_a_glance(tmp_path).splitlines() if "| " in line}
    fall = rows["Did the gap fall?"].split(" | ")
    # 0.15 less than 0.4; t(0.975, 2) * 0.05 / sqrt(3) = 0.124; with the factor sqrt(1 + 3 * 3) it is 0.393.
    assert fall[1] == "yes: -0.150 [-0.274, -0.026]"
    assert fall[2].startswith("cannot tell: -0.150 [-0.543")
    assert rows["Is it smaller than after plain fine-tuning?"].split(" | ")[1].startswith("no: 0.110")
    assert rows["Than without a mask?"].split(" | ")[1] == "not run"
    assert rows["Is a loss of 0.01 of the worst group's AUC ruled out?"].split(" | ")[1].startswith("no: -0.050")


def test_the_first_page_says_of_balanced_fine_tuning_what_the_comparisons_show() -> None:
    """README.md names numbers and directions; here they are again, with intervals for seeds that share patients."""
    text = " ".join((ROOT / "README.md").read_text().split())
    assert (
        "fine-tuning balanced over group and label left a slightly smaller gap than SWiFT on bench A (by 0.01), a "
        "larger one on Adult, and one that cannot be told apart on UCI Heart and HAM10000" in text
    )
    found = {}
    for name in ("bench-a", "adult", "heart", "ham10000"):
        value = json.loads((RESULTS / f"compare-{name}.json").read_text())
        gap = value["study"]["evaluation"]["primary"]
        apart = [
            seed["swift"]["figures"][gap] - seed["fine_tune"]["figures"][gap] for seed in value["per_seed"].values()
        ]
        half = half_width(apart) * widening(value["study"]["resplit"], len(apart))
        found[name] = (float(np.mean(apart)) - half, float(np.mean(apart)), float(np.mean(apart)) + half)
    low, mean, _ = found["bench-a"]
    assert low > 0
    assert round(mean, 2) == 0.01
    assert found["adult"][2] < 0
    assert all(found[name][0] < 0 < found[name][2] for name in ("heart", "ham10000"))


def test_the_methods_page_says_of_single_groups_what_was_found() -> None:
    text = " ".join((ROOT / "docs" / "methods.md").read_text().split())
    assert "`balanced` left a clearly smaller gap in our own runs" in text
    found = json.loads((RESULTS / "bench-a-6-single-group.json").read_text())["over_seeds"]
    assert found["balanced"]["gap_method_minus_this"]["low"] > 0
    assert found["plain"]["gap_method_minus_this"]["low"] < 0 < found["plain"]["gap_method_minus_this"]["high"]


@pytest.mark.parametrize("metric", ["equalized_odds_mean", "equalized_odds_difference"])
def test_the_figures_of_a_run_are_of_the_gap_that_the_study_declared(metric: str) -> None:
    def model(gap: float) -> dict[str, Any]:
        points = {
            point: {"gaps": {"equalized_odds_mean": {"value": shift + gap}, metric: {"value": shift + 2 * gap}}}
            for point, shift in (("rule", 0.0), ("base_rate", 0.5))
        }
        own = {"points": points, "worst_group_auc": {"value": 0.7}}
        accuracy = {"rule": {"balanced_accuracy": {"value": 0.75}}}
        return {"auc": {"value": 0.8}, "points": accuracy, "attributes": {"sex": own}}

    models = {"base": model(0.1), "local_only/a": model(0.1), "local_only/b": model(0.2)}
    report = {"study": {"primary": "sex", "evaluation": {"primary": metric}}, "models": models}
    found = figures_of(report)
    assert found["base"]["gap"] == pytest.approx(0.2)
    assert found["base"]["gap_rate_matched"] == pytest.approx(0.7)
    assert found["local_only"]["gap"] == pytest.approx(0.3)
    assert set(found) == {"base", "local_only"}
