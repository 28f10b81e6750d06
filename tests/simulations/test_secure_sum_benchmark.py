"""The benchmark of the secure sum: both protocols are really driven, and its kept figures keep their bounds."""

import json

import numpy as np

from equipoise.simulations.benchmarks.secagg_plus import secagg_plus
from equipoise.simulations.benchmarks.secure_sum import BOUNDS, HERE, beside, draw_floats, large


def test_both_protocols_give_their_sums_in_a_small_run() -> None:
    """`beside` raises where one of the sums is wrong."""
    found = beside(2_000, 1)
    assert found["sites"] == 10
    assert found["bytes_64"] > 1
    assert large(3_000, 1)["site_s"] > 0


def test_secagg_plus_is_driven_as_its_workflow_does() -> None:
    drawn = draw_floats(500)
    _, mean = secagg_plus(drawn, 4, 500)
    expected = sum(drawn(number).astype(np.float64) for number in range(4)) / 4
    assert np.abs(mean - expected).max() < 1e-5  # it rounds at random


def test_the_kept_figures_keep_their_bounds() -> None:
    result = json.loads((HERE / "results" / "secure_sum.json").read_text())
    small, wide = result["beside"], result["large"]
    assert (small["sites"], small["parameters"], wide["parameters"]) == (10, 1_000_000, 11_000_000)
    assert result["bounds"] == BOUNDS
    assert small["excess_64"] <= BOUNDS["excess_64"]
    assert small["excess_32"] <= BOUNDS["excess_32"]
    assert wide["site_s"] <= BOUNDS["site_s"]
    assert max(small["bytes_64"], small["bytes_32"], wide["bytes"]) <= BOUNDS["bytes"]
