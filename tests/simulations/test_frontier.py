"""Figures of the sections on privacy, by hand; the page itself is checked by test_evidence.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from equipoise.simulations.benchmarks.evidence_private import holm, paired
from equipoise.simulations.benchmarks.frontier import IMAGE, drawing, kept, read, rows_of
from equipoise.simulations.benchmarks.private_designs import SWEEPS
from equipoise.simulations.benchmarks.private_outcome import RESULTS, rows
from tests.simulations.test_evidence import ROOT

GAP = "equalized_odds_mean"
SEED = 0


def row(design: str, seed: int, base: float, after: float, draw: int = 0) -> dict[str, Any]:
    return {"design": design, "seed": seed, "draw": draw, "base": {GAP: base}, "after": {GAP: after}}


def test_what_is_kept_is_the_share_of_the_cut_without_noise_paired_by_seed() -> None:
    rows = [
        row("swift none", 0, 0.4, 0.1),
        row("swift local 3", 0, 0.4, 0.2),  # with the next: 0.25 on average, a cut of 0.15 of 0.3
        row("swift local 3", 0, 0.4, 0.3, draw=1),
        row("swift none", 1, 0.5, 0.1),
        row("swift local 3", 1, 0.5, 0.2),  # 0.3 of 0.4
    ]
    found = kept(rows, "swift", "local 3")
    assert found["mean"] == pytest.approx((0.5 + 0.75) / 2)
    # Two seeds 0.25 apart: half-width t(0.975, 1) * 0.125, 12.706 * 0.125.
    assert found["high"] - found["mean"] == pytest.approx(12.7062 * 0.125, rel=1e-4)


def test_designs_are_paired_by_the_seeds_that_both_have() -> None:
    rows = [row("soft", 0, 0.4, 0.1), row("soft", 0, 0.4, 0.3, draw=1), row("ones", 0, 0.4, 0.25)]
    rows += [row("soft", 1, 0.4, 0.1), row("ones", 2, 0.4, 0.1)]
    assert paired(rows, "soft", "ones", GAP) == pytest.approx([-0.05])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holms_correction_is_that_of_statsmodels(values: list[float]) -> None:
    assert holm(values) == pytest.approx(list(multipletests(values, method="holm")[1]))


def test_every_setting_of_the_sweep_is_drawn_and_the_image_is_that_of_the_results() -> None:
    value = read(RESULTS)
    assert 2 * len(rows_of(value)) == len(SWEEPS["frontier"])
    assert (ROOT / IMAGE).read_text() == drawing(value)


@pytest.mark.slow
def test_a_row_comes_out_again_inside_the_printed_interval(tmp_path: Path) -> None:
    """Without noise a run repeats: base model, hospitals, agents, rounds and scores, all made anew."""
    value = read(RESULTS)
    design = next(design for design in SWEEPS["frontier"] if design.name == "private_head none")
    printed = next(line for line in value["summary"] if line["design"] == design.name)[GAP]
    known = next(row for row in value["rows"] if row["design"] == design.name and row["seed"] == SEED)
    (again,) = rows([design], [SEED], 1, tmp_path, set())
    assert again["after"][GAP] == pytest.approx(known["after"][GAP], abs=0.02)  # other processors round otherwise
    assert again["base"]["auc"] == pytest.approx(known["base"]["auc"], abs=0.01)
    assert printed["low"] <= again["after"][GAP] <= printed["high"]
