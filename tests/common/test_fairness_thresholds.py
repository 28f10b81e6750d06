"""Threshold rules on a pooled histogram, each against a direct search over the scores."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.common.errors import StudyError
from equipoise.common.fairness.tables import bin_scores, decide, histogram, hybrid_edges
from equipoise.common.fairness.thresholds import (
    choose_threshold,
    match_selection_rate,
    parse_rule,
    selection_rate_at,
)

EDGES = hybrid_edges(None, 256)


def table(scores: np.ndarray, label: np.ndarray) -> np.ndarray:
    group = np.arange(len(label)) % 3  # the last group is unknown; the threshold is for everybody
    return histogram(bin_scores(scores, EDGES), label, group, 3, len(EDGES) + 1)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(4, 150), share=st.sampled_from(["0.5", "0.8", "0.9", "0.99"]))
@settings(max_examples=60, deadline=None)
def test_rules_find_the_best_edge(seed: int, n: int, share: str) -> None:
    rng = np.random.default_rng(seed)
    label = np.concatenate([[0, 1], rng.integers(0, 2, n - 2)])
    scores = rng.normal(2 * label - 1, 2)
    hist = table(scores, label)
    decided = np.stack([decide(scores, edge) for edge in EDGES])
    tpr, tnr = decided[:, label == 1].mean(axis=1), 1 - decided[:, label == 0].mean(axis=1)
    x = float(share)
    sens = choose_threshold(f"sens>={share}", hist, EDGES)
    assert sens == EDGES[tpr >= x - 1e-12].max()
    spec = choose_threshold(f"spec>={share}", hist, EDGES)
    assert spec == EDGES[tnr >= x - 1e-12].min()
    youden = choose_threshold("youden", hist, EDGES)
    assert (tpr + tnr)[youden == EDGES] == pytest.approx((tpr + tnr).max())
    selected = decided.mean(axis=1)
    median = choose_threshold("median", hist, EDGES)
    assert abs(selected - 0.5)[median == EDGES] == pytest.approx(abs(selected - 0.5).min())


def test_fixed_and_given_are_the_probability_itself() -> None:
    hist = np.zeros((3, 2, 256), dtype=np.int64)
    assert choose_threshold("fixed:0.5", hist, EDGES) == pytest.approx(0.0, abs=1e-8)
    assert choose_threshold("given:0.2", hist, EDGES) == pytest.approx(math.log(0.25))
    assert choose_threshold("decision:0.2", hist, EDGES) == pytest.approx(math.log(0.25))
    assert not parse_rule("decision:0.1").needs_histogram
    assert not parse_rule("fixed:0.5").needs_histogram
    assert parse_rule("sens>=0.9").value == Fraction(9, 10)


def test_a_score_that_equals_the_threshold_reaches_it_alone_and_as_a_mean_of_rows() -> None:
    """Scores of two or three digits meet the threshold all the time; the last bit of a logarithm may not decide."""
    hist = np.zeros((3, 2, 256), dtype=np.int64)
    for written in range(1, 1000):
        probability = torch.full((64,), written / 1000, dtype=torch.float64)
        threshold = choose_threshold(f"given:{written / 1000}", hist, EDGES)
        logits = torch.logit(probability)
        assert decide(logits.numpy(), threshold).all()
        assert decide(torch.logit(torch.sigmoid(logits)).numpy(), threshold).all()
        assert not decide(torch.logit(probability - 1e-6).numpy(), threshold).any()


def test_a_tie_over_empty_bins_takes_the_middle() -> None:
    label, scores = np.array([0] * 10 + [1] * 10), np.array([-4.0] * 10 + [4.0] * 10)
    for rule in ("youden", "median"):
        assert choose_threshold(rule, table(scores, label), EDGES) == pytest.approx(0.0, abs=0.1)


def test_matched_selection_rates_are_equal_up_to_one_bin_whatever_the_scores_became() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 3000)
    base = rng.normal(label * 2, 1)
    hists = table(base, label), table(0.3 * base - 3, label)
    rate = selection_rate_at(hists[0], EDGES, 1.0)
    matched = match_selection_rate(hists[1], EDGES, hists[0], 1.0)
    assert matched in EDGES
    assert float(selection_rate_at(hists[1], EDGES, matched)) == pytest.approx(float(rate), abs=0.02)
    same = match_selection_rate(hists[0], EDGES, hists[0], float(EDGES[130]))
    assert selection_rate_at(hists[0], EDGES, same) == selection_rate_at(hists[0], EDGES, float(EDGES[130]))


@pytest.mark.parametrize("rule", ["sens>0.9", "f1", "fixed:0", "spec>=1", "fixed:high", "given:1/0", "sens>=nan"])
def test_an_unknown_rule_is_one_line_that_lists_the_rules(rule: str) -> None:
    with pytest.raises(StudyError, match=r"threshold.rule=.*write one of fixed:0.5") as caught:
        parse_rule(rule)
    assert "\n" not in str(caught.value)


def test_a_rule_that_the_patients_cannot_answer_says_what_is_missing() -> None:
    only_negatives = table(np.zeros(20), np.zeros(20, dtype=np.int64))
    for rule in ("sens>=0.9", "youden"):
        with pytest.raises(StudyError, match="no positive patients"):
            choose_threshold(rule, only_negatives, EDGES)
    with pytest.raises(StudyError, match="no patients"):
        choose_threshold("median", only_negatives * 0, EDGES)
    with pytest.raises(StudyError, match="no edge of the histogram reaches it"):
        choose_threshold("sens>=0.9", table(np.full(20, -30.0), np.ones(20, dtype=np.int64)), EDGES)
    with pytest.raises(StudyError, match="needs the base model's selection rate"):
        choose_threshold("base_rate", only_negatives, EDGES)
