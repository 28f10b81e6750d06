"""The edges of the score bins: a threshold that a study names is one of them, whatever the others follow."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from equipoise.common import evaluation
from equipoise.common.catalogue import score_histogram
from equipoise.common.evaluation import BASE
from equipoise.common.fairness.tables import bin_scores, decide, histogram, quantile_edges
from equipoise.common.fairness.thresholds import logit_reached_by, selection_rate_at
from equipoise.common.study import Study

SCORES = np.random.default_rng(0).normal(-1.5, 1.5, 3000)


def study(rule: str, edges: list[float] | None = None, **more: Any) -> Study:
    return Study.model_validate(
        {
            "study": "scores",
            "inputs": {"kind": "score", "before": "risk", "edges": edges},
            "label": {"column": "died", "positive": 1},
            "attributes": [{"name": "sex", "levels": ["female", "male"], "primary": True}],
            "evaluation": {"threshold": {"rule": rule}},
            **more,
        }
    )


def test_a_named_threshold_is_an_edge_beside_the_declared_ones() -> None:
    named = study("given:0.15", [0.05, 0.1, 0.2])
    assert named.declared_edges == [Fraction(text) for text in ("0.05", "0.1", "0.15", "0.2")]
    edges = evaluation._edges(named, {})
    assert edges.tolist() == [logit_reached_by(edge) for edge in named.declared_edges]
    assert score_histogram(named, "test", BASE).blocks["sex"].shape[-1] == named.score_bins == len(edges) + 1 == 5
    for rule in ("given:0.1", "youden"):
        assert study(rule, [0.05, 0.1, 0.2]).score_bins == 4


@pytest.mark.parametrize("rule", ["given:0.2", "decision:0.35", "fixed:0.5"])
@pytest.mark.parametrize("mode", ["pool", "declared", "exact"])
def test_the_base_models_selection_rate_is_that_of_its_threshold_in_every_mode(
    monkeypatch: pytest.MonkeyPatch, mode: str, rule: str
) -> None:
    """With 16 bins the nearest quantile was up to three patients in a hundred away."""
    monkeypatch.setattr(evaluation, "_quantiles", lambda study, models: quantile_edges(SCORES, study.score_bins))
    private = {"privacy": {"mode": "local", "epsilon": 3.0}} if mode == "pool" else {}
    chosen = study(rule, [0.05, 0.1, 0.3] if mode == "declared" else None, **private)
    edges = evaluation._edges(chosen, {})
    assert len(edges) == chosen.score_bins - 1
    assert (np.diff(edges) > 0).all()
    threshold = logit_reached_by(Fraction(rule.partition(":")[2]))
    assert threshold in edges
    nobody = np.zeros(SCORES.size, dtype=np.int64)
    hist = histogram(bin_scores(SCORES, edges), nobody, nobody, 1, len(edges) + 1)
    assert selection_rate_at(hist, edges, threshold) == Fraction(int(decide(SCORES, threshold).sum()), SCORES.size)
