"""Levelling down: losses of a group's TPR or AUC are found, gains and noise are not."""

from __future__ import annotations

import numpy as np

from equipoise.common.fairness.change import rate_change_by_group
from equipoise.common.fairness.level_down import level_down, lost, more_false_alarms
from equipoise.common.fairness.tables import bin_scores, decide, histogram, hybrid_edges, pair_table

EDGES = hybrid_edges(None, 256)


def tables(shift: dict[tuple[int, int], float], n: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pair table and histograms where the scores of some (group, label) move by a shift."""
    rng = np.random.default_rng(0)
    label, group = rng.integers(0, 2, n), rng.integers(0, 2, n)
    before = rng.normal(2 * label - 1, 1)
    moved = np.array([shift.get((int(g), int(y)), 0.0) for g, y in zip(group, label, strict=True)])
    after = before + moved + rng.normal(0, 0.05, n)
    hists = [histogram(bin_scores(scores, EDGES), label, group, 3, 256) for scores in (before, after)]
    return pair_table(decide(before, 0.0), decide(after, 0.0), label, group, 3), hists[0], hists[1]


def test_a_group_that_is_served_worse_is_named() -> None:
    found = level_down(*tables({(1, 1): -0.8}), ["men", "women"])
    assert {(e.metric, e.group) for e in found} == {("tpr_change", "women"), ("auc_change", "women")}
    assert all(lost(e) for e in found)
    assert level_down(*tables({(1, 1): +0.8}), ["men", "women"]) == ()
    assert level_down(*tables({}), ["men", "women"]) == ()


def test_both_groups_can_lose() -> None:
    found = level_down(*tables({(0, 1): -0.6, (1, 1): -0.9}), ["men", "women"])
    assert [e.group for e in found if e.metric == "tpr_change"] == ["men", "women"]


def test_more_false_alarms_are_listed_apart() -> None:
    pair, before, after = tables({(0, 0): 0.7})
    changes = rate_change_by_group("fpr", pair, ["men", "women"])
    assert [e.group for e in changes if more_false_alarms(e)] == ["men"]
    assert [e.metric for e in level_down(pair, before, after, ["men", "women"])] == ["auc_change"]


def test_noise_that_could_have_done_it_is_no_loss() -> None:
    pair, before, after = tables({(1, 1): -0.8})
    noisy = level_down(pair, before, after, ["men", "women"], pair_noise=1e5, hist_noise=1e5)
    assert noisy == ()
    slight = level_down(pair, before, after, ["men", "women"], pair_noise=4.0, hist_noise=4.0)
    assert "tpr_change" in {e.metric for e in slight}
