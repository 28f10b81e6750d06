"""The coverage simulations: their batched figures are those of a report, their truth is true, their page agrees."""

from __future__ import annotations

import math

import numpy as np
import pytest

from equipoise.common.fairness.auc import auc_by_group, auc_gap, overall_auc, worst_group_auc
from equipoise.common.fairness.auc_change import auc_change_by_group
from equipoise.common.fairness.change import rate_change_by_group
from equipoise.common.fairness.estimate import Estimate
from equipoise.common.fairness.rates import gap, rate_by_group
from equipoise.common.fairness.reference import difference
from equipoise.common.fairness.tables import counts_after
from equipoise.simulations.benchmarks.coverage import (
    Setting,
    Tables,
    enumerated,
    figures,
    released,
    settings,
    simulate,
    truths,
)
from equipoise.simulations.benchmarks.coverage_worlds import Group, Sampler, World, noise, noise_variance, worlds

TINY = World("tiny", (Group(40, 160, 1.7, 1.6), Group(14, 60, 1.3, 1.6), Group(11, 40, 2.5, 2.5)), 1.0, (4,))


def reported(tables: Tables, k: int) -> dict[str, Estimate]:
    """What a report says of draw k."""
    pair, after, before = tables.pair[k], tables.after[k], tables.before[k]
    counts, of_counts = counts_after(pair), counts_after(tables.variances)
    last, scores = len(pair) - 2, tables.scores
    pairing = {"joint": tables.joint[k]} if tables.sums is None else {"sums": tables.sums[k]}
    blur = scores if scores.cell else 0.0
    return {
        "tpr": rate_by_group("tpr", counts, noise=of_counts)[last],
        "fpr": rate_by_group("fpr", counts, noise=of_counts)[last],
        "tpr_difference": difference("tpr", counts, last, 0, noise=of_counts),
        "equalized_odds_difference": gap("equalized_odds_difference", counts, noise=of_counts),
        "tpr_change": rate_change_by_group("tpr", pair, noise=tables.variances)[last],
        "auc": auc_by_group(after, noise=blur)[last],
        "auc of all": overall_auc(after, noise=blur),
        "auc_gap": auc_gap(after, noise=blur),
        "worst_group_auc": worst_group_auc(after, noise=blur),
        "auc_change": auc_change_by_group(before, after, noise=blur, **pairing)[last],  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("setting", settings(TINY), ids=lambda setting: setting.name)
def test_a_batched_figure_is_that_of_a_report(setting: Setting) -> None:
    rng = np.random.default_rng(3)
    tables = released(Sampler(TINY).draw(12, rng), setting, rng)
    made = figures(tables)
    for k in range(12):
        for name, estimate in reported(tables, k).items():
            found = [float(column[k]) for column in made[name]]
            if estimate.value is None or estimate.reason.startswith("without"):
                # A gap over fewer groups is another figure, and not counted.
                assert math.isnan(found[0]), name
            else:
                assert found == pytest.approx([estimate.value, estimate.low, estimate.high], abs=1e-12), name


def test_the_worlds_are_those_of_the_specification() -> None:
    world = next(world for world in worlds() if world.name == "4 x 1000")
    assert world.rates("before")[0] == pytest.approx([0.758, 0.637], abs=1e-3)
    assert world.rates("before")[1] == pytest.approx([0.159, 0.158], abs=1e-3)
    assert world.aucs("before") == pytest.approx([0.885, 0.830], abs=1e-3)
    assert [(group.positives, group.negatives) for group in world.groups] == [(600, 2400), (200, 800)]
    assert truths(world)["equalized_odds_difference"] == pytest.approx(0.033, abs=1e-3)
    assert len({world.name for world in worlds()}) == len(worlds())


def test_samples_estimate_the_truth() -> None:
    groups = (Group(4000, 8000, 1.7, 1.65), Group(4000, 8000, 1.35, 1.55))
    world = World("large", groups, 1.0, (4,))
    rng = np.random.default_rng(5)
    made = figures(released(Sampler(world).draw(20, rng), Setting("exact"), rng))
    for name, truth in truths(world).items():
        if name in made and name not in ("auc_gap", "equalized_odds_difference"):
            assert float(np.mean(made[name][0])) == pytest.approx(truth, abs=0.006), name


def test_the_noise_has_its_variance() -> None:
    drawn = noise((200_000,), 1.0, 4.0, np.random.default_rng(0))
    assert float(drawn.var()) == pytest.approx(noise_variance(1.0, 4.0), rel=0.02)
    assert float(drawn.mean()) == pytest.approx(0.0, abs=0.02)


def test_an_interval_that_ignores_its_noise_is_caught() -> None:
    rng = np.random.default_rng(7)
    setting = Setting("local", 0.5, 10.0)
    tables = released(Sampler(TINY).draw(400, rng), setting, rng)
    ignorant = Tables(**{**vars(tables), "variances": tables.variances * 1e-9})
    value, low, high = figures(ignorant)["fpr"]
    truth = truths(TINY)["fpr"]
    there = np.isfinite(value)
    assert np.mean((low <= truth) & (truth <= high), where=there) < 0.85


def test_one_world_from_end_to_end() -> None:
    found = simulate(TINY, 60)
    exact = found["settings"]["exact"]["fpr"]
    assert exact["draws"] == 60
    assert exact["coverage"] > 0.85
    assert 0.7 < exact["ratio"] < 1.4
    assert found["settings"]["exact"]["auc_gap_change"] == {"draws": 6, "estimable": 1.0}


def test_enumerated_coverage_by_hand() -> None:
    # Ten patients, p = .9: Wilson's interval misses it for 6 or fewer (probability .0128) and not for 7 to 10, and
    # above for none; with 10 of 10 its lower limit is .722.
    row = next(row for row in enumerated()["rates"] if (row["n"], row["p"]) == (10, 0.9))
    assert row["coverage"] == pytest.approx(0.9298, abs=1e-4)
