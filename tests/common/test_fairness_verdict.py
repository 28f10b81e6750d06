"""The verdict: whole intervals decide, a collapsed model fails, controls are needed, levelling down is said aloud."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from equipoise.common.fairness.auc import placement_sums, placements_of_bins, worst_group_auc
from equipoise.common.fairness.auc_change import hidden_by_binning, worst_group_auc_change
from equipoise.common.fairness.estimate import Estimate
from equipoise.common.fairness.tables import (
    bin_scores,
    count_cells,
    decide,
    histogram,
    hybrid_edges,
    pair_table,
    quantile_edges,
)
from equipoise.common.fairness.thresholds import choose_threshold, match_selection_rate
from equipoise.common.fairness.verdict import NOT_REPAIRABLE, Bounds, Evidence, Verdict, judge, lost, verdict
from equipoise.common.study_evaluation import Evaluation

EDGES = hybrid_edges(None, 1024)
NAMES = ("men", "women")


class Patients:
    """Scores of a base model that misses diseased women, and what can become of them."""

    def __init__(self, n: int = 6000, signal: float = 2.6, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.rng = rng
        self.label, self.group = rng.integers(0, 2, n), rng.integers(0, 2, n)
        self.severity = rng.normal(signal * (self.label - 0.5), 1)
        self.scores = {"base": self.severity - 1.2 * self.group * self.label}
        self.add("repaired", self.severity)
        self.add("noisy", self.scores["base"] + rng.normal(0, 0.7, n))
        self.add("plain", self.scores["base"] + 0.1 * self.group * self.label)

    def add(self, name: str, scores: np.ndarray) -> None:
        """A model's scores, with a little noise of its own."""
        self.scores[name] = scores + self.rng.normal(0, 0.05, len(scores))

    def hist(self, model: str) -> np.ndarray:
        return histogram(bin_scores(self.scores[model], EDGES), self.label, self.group, 3, len(EDGES) + 1)

    def pair(self, before: str, after: str) -> np.ndarray:
        base = self.hist("base")
        points = []
        for matched in (False, True):
            decisions = []
            for model in (before, after):
                t = choose_threshold("fixed:0.5", base, EDGES)
                if matched:
                    t = match_selection_rate(self.hist(model), EDGES, base, t)
                decisions.append(decide(self.scores[model], t))
            points.append(pair_table(decisions[0], decisions[1], self.label, self.group, 3))
        return np.stack(points)

    def evidence(self, method: str, controls: dict[str, str] | None = None) -> Evidence:
        placed = [
            placements_of_bins(self.hist(m))[self.group, self.label, bin_scores(self.scores[m], EDGES)]
            for m in ("base", method)
        ]
        return Evidence(
            names=NAMES,
            pair=self.pair("base", method),
            hist_before=self.hist("base"),
            hist_after=self.hist(method),
            placement_sums=placement_sums(placed[0], placed[1], self.label, self.group, 3),
            controls={name: self.pair(model, method) for name, model in (controls or {}).items()},
        )


@pytest.fixture(scope="module")
def patients() -> Patients:
    return Patients()


CONTROLS = {"plain": "plain", "auc_noise": "noisy"}


def outcomes(result: Verdict) -> dict[str, str]:
    return {gate.name: gate.outcome for gate in result.gates}


@pytest.mark.parametrize(
    ("low", "high", "right", "expected"),
    [
        (-0.2, -0.01, "below", "pass"),
        (-0.2, 0.0, "below", "undecided"),
        (0.0, 0.1, "below", "fail"),
        (-0.01, 0.1, "above", "fail"),
        (0.02, 0.1, "above", "pass"),
        (-0.1, 0.1, "above", "undecided"),
    ],
)
def test_only_whole_intervals_decide(low: float, high: float, right: str, expected: str) -> None:
    bound = 0.0 if right == "below" else 0.02 if low >= 0 else 0.0
    if (low, high) == (-0.01, 0.1):
        bound = 0.2
    estimate = Estimate.of("x_change", (low + high) / 2, low, high, n=10, method="")
    assert judge(estimate, bound, right) == expected  # type: ignore[arg-type]
    assert judge(Estimate.missing("x_change", "none", n=0), bound, right) == "undecided"  # type: ignore[arg-type]


def test_a_repair_that_beats_its_controls_passes(patients: Patients) -> None:
    result = verdict(patients.evidence("repaired", CONTROLS), Bounds())
    assert result.outcome == "pass", result.to_json()
    assert set(outcomes(result).values()) == {"pass"}
    assert {gate.name for gate in result.comparisons} == {"beats_plain", "beats_auc_noise"}
    assert len(result.comparisons) == 4
    assert result.level_down == ()
    assert result.warnings == ()
    text = result.gates[0].text
    assert text.startswith("the gap (equalized_odds_difference) at the frozen threshold fell by 0.")
    assert ", interval -0." in text
    json.dumps(result.to_json(), allow_nan=False)


def test_without_controls_nothing_passes(patients: Patients) -> None:
    result = verdict(patients.evidence("repaired"), Bounds())
    assert (result.outcome, result.reason) == ("undecided", "controls missing: plain, auc_noise")
    one = verdict(patients.evidence("repaired", {"plain": "plain", "no_mask": "noisy"}), Bounds())
    assert (one.outcome, one.reason) == ("undecided", "controls missing: auc_noise")


def test_a_method_that_equals_its_control_does_not_pass(patients: Patients) -> None:
    controls = {"plain": "repaired", "auc_noise": "noisy"}
    result = verdict(patients.evidence("repaired", controls), Bounds())
    assert (result.outcome, result.reason) == ("undecided", "undecided: beats_plain")
    shown = verdict(patients.evidence("repaired", CONTROLS | {"no_mask": "repaired"}), Bounds())
    assert shown.outcome == "pass"  # a control that is not required is shown and decides nothing
    assert shown.comparisons[-1].outcome == "undecided"


def test_noise_fails_by_its_worst_group_and_is_called_levelling_down(patients: Patients) -> None:
    result = verdict(patients.evidence("noisy", CONTROLS), Bounds())
    assert result.outcome == "fail"
    assert outcomes(result)["worst_group_auc"] == "fail"
    assert "AUC of women" in " ".join(result.warnings)
    assert all(estimate.high is not None and estimate.high < 0 for estimate in result.level_down)
    assert {e.group for e in result.level_down if e.metric == "auc_change"} == set(NAMES)


@pytest.mark.parametrize("kind", ["constant", "one decision", "no signal"])
def test_a_collapsed_model_fails_though_its_gap_is_gone(kind: str) -> None:
    patients = Patients(n=4000)
    collapsed = {
        "constant": np.zeros(4000),
        "one decision": 0.01 * patients.severity - 5,
        "no signal": patients.rng.normal(0, 1, 4000),
    }[kind]
    patients.scores["collapsed"] = collapsed
    result = verdict(patients.evidence("collapsed", CONTROLS), Bounds())
    assert outcomes(result)["gap"] == "pass"
    assert outcomes(result)["not_collapsed"] == ("undecided" if kind == "no signal" else "fail")
    assert outcomes(result)["balanced_accuracy"] == "fail"
    assert result.outcome == "fail"
    said = {"constant": "all scores are alike", "one decision": "all patients get the same decision"}
    assert said.get(kind, "balanced accuracy is 0.5") in result.gates[-1].text


def test_a_collapse_fails_even_where_the_declared_floor_would_let_it_pass() -> None:
    patients = Patients(n=4000)
    patients.scores["collapsed"] = np.full(4000, -3.0)
    result = verdict(patients.evidence("collapsed", CONTROLS), Bounds(balanced_accuracy=0.4, relative=False))
    assert outcomes(result)["balanced_accuracy"] == "pass"
    assert result.outcome == "fail"


@pytest.mark.parametrize(("signal", "low"), [(0.0, 0.45), (0.35, 0.52)])
def test_a_base_model_without_the_signal_is_flagged(signal: float, low: float) -> None:
    patients = Patients(n=6000)
    women = signal * patients.label + patients.rng.normal(0, 1, 6000)
    patients.scores["base"] = np.where(patients.group == 1, women, patients.severity)
    result = verdict(patients.evidence("repaired", CONTROLS), Bounds())
    assert result.base_signal.value is not None
    assert result.base_signal.low is not None
    assert result.base_signal.value < 0.65
    assert result.base_signal.low > low
    assert any(NOT_REPAIRABLE in warning for warning in result.warnings)


def test_the_second_operating_point_is_named_as_the_study_chose_it(patients: Patients) -> None:
    evidence = patients.evidence("repaired", CONTROLS)
    for bounds, words in (
        (Bounds(), "at the base model's selection rate"),
        (Bounds(matched="the median score"), "at the median score"),
    ):
        result = verdict(evidence, bounds)
        assert words in result.gates[1].text
        assert [words in gate.text for gate in result.comparisons] == [False, True, False, True]


def test_a_loss_lies_beyond_what_binning_could_have_done() -> None:
    def change(high: float, bound: float | None) -> Estimate:
        return Estimate.of("auc_change", -0.05, -0.09, high, n=50, method="", binning_bound=bound)

    assert lost(change(-0.01, None))
    assert lost(change(-0.01, 0.009))
    assert not lost(change(-0.01, 0.01))
    assert not lost(change(0.0, None))
    assert not lost(Estimate.missing("auc_change", "none", n=0))


def test_gaps_are_not_compared_at_selection_rates_that_few_bins_left_apart(patients: Patients) -> None:
    """Few edges, and the base model's own threshold is none of theirs: the gap may fall for want of alarms alone."""
    evidence = patients.evidence("repaired", CONTROLS)
    cut = [decide(patients.scores[model], limit) for model, limit in (("base", 0.0), ("repaired", 1.5))]
    evidence.pair[1] = pair_table(cut[0], cut[1], patients.label, patients.group, 3)
    gate = verdict(evidence, Bounds()).gates[1]
    rates = [side.mean() for side in cut]
    assert (rates[0] - rates[1] > 0.05, gate.outcome) == (True, "undecided")
    assert f"(flagged: {rates[0]:.3f} and {rates[1]:.3f} of all patients)" in gate.text
    assert gate.text.endswith("undecided, since selection rates are more than 0.05 apart")
    same = verdict(patients.evidence("repaired", CONTROLS), Bounds())
    assert same.gates[1].outcome == "pass"
    # At the median half of the patients are to be flagged, and not any other share alike.
    other = verdict(patients.evidence("repaired", CONTROLS), Bounds(matched="the median score", rate=0.8))
    assert [gate.outcome for gate in (other.gates[1], other.comparisons[1])] == ["undecided"] * 2
    assert "more than 0.05 from it" in other.gates[1].text


def inside(edges: np.ndarray, scores: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The scores in an order of their own inside each bin: a model that ranks at random there."""
    bins, shuffled = bin_scores(scores, edges), scores.copy()
    for found in (np.flatnonzero(bins == b) for b in np.unique(bins)):
        shuffled[found] = scores[rng.permutation(found)]
    return shuffled


def worst_auc(patients: Patients, scores: np.ndarray) -> float:
    fine = np.unique(np.concatenate([EDGES, np.quantile(scores, np.arange(1, 2000) / 2000)]))
    found = worst_group_auc(histogram(bin_scores(scores, fine), patients.label, patients.group, 3, len(fine) + 1))
    assert found.value is not None
    return found.value


def test_an_auc_that_is_lost_inside_the_bins_does_not_pass(patients: Patients) -> None:
    """Three edges, and nothing to be seen in the tables: the interval alone says -0.000 to +0.000."""
    edges = np.log(np.array([0.05, 0.1, 0.2]) / (1 - np.array([0.05, 0.1, 0.2])))
    before = patients.scores["base"]
    after = inside(edges, before, np.random.default_rng(0))
    assert worst_auc(patients, after) < worst_auc(patients, before) - 0.02
    coarse, shuffled = (
        histogram(bin_scores(scores, edges), patients.label, patients.group, 3, 4) for scores in (before, after)
    )
    placed = placements_of_bins(coarse)[patients.group, patients.label, bin_scores(before, edges)]
    evidence = replace(
        patients.evidence("base"),
        hist_before=coarse,
        hist_after=shuffled,
        placement_sums=placement_sums(placed, placed, patients.label, patients.group, 3),
    )
    result = verdict(evidence, Bounds())
    gate = next(gate for gate in result.gates if gate.name == "worst_group_auc")
    assert (gate.outcome, gate.estimate.status) == ("undecided", "imprecise")
    assert "that bins may hide; declared" in gate.text
    assert any(text.startswith("the worst group's AUC: binning may move it") for text in result.warnings)
    fine = next(gate for gate in verdict(patients.evidence("base"), Bounds()).gates if gate.name == "worst_group_auc")
    assert (fine.outcome, "bins" in fine.text) == ("pass", False)


def test_few_noisy_bins_are_allowed_what_they_may_hide_and_not_more() -> None:
    """A model that ranks at random inside 16 bins lost what was added for them; a bound of 0.01 can still be met."""
    patients = Patients(n=40_000)
    before = patients.scores["base"]
    edges = quantile_edges(before[:4000], 16)
    after = inside(edges, before, np.random.default_rng(0))
    loss = worst_auc(patients, before) - worst_auc(patients, after)
    coarse, shuffled = (
        histogram(bin_scores(scores, edges), patients.label, patients.group, 3, 16) for scores in (before, after)
    )
    allowed = hidden_by_binning(coarse, shuffled, 1e-6)
    assert 0.001 < 0.8 * loss < allowed < 0.006
    joint = count_cells((patients.group, patients.label, before >= 0, before >= 0), (3, 2, 2, 2))
    tables = replace(
        patients.evidence("base"),
        hist_before=coarse,
        hist_after=shuffled,
        placement_sums=None,
        joint=joint,
        hist_noise=1e-6,
    )
    change = worst_group_auc_change(coarse, shuffled, NAMES, joint=joint, noise=1e-6)
    assert change.low is not None
    judged = [
        next(gate for gate in verdict(tables, Bounds(worst_group_auc_loss=limit)).gates if gate.bound == -limit)
        for limit in (-change.low + 0.5 * allowed, -change.low + 1.5 * allowed)
    ]
    assert [gate.outcome for gate in judged] == ["undecided", "pass"]
    assert all(gate.estimate.binning_bound > 5 * allowed for gate in judged)  # type: ignore[operator]


def test_few_patients_leave_it_undecided() -> None:
    small = Patients(n=90, seed=3)
    result = verdict(small.evidence("repaired", CONTROLS), Bounds())
    assert result.outcome == "undecided"
    assert "fail" not in outcomes(result).values()


def test_a_group_without_positives_is_undecided_not_zero() -> None:
    patients = Patients(n=2000)
    patients.label[patients.group == 1] = 0
    result = verdict(patients.evidence("repaired", CONTROLS), Bounds())
    assert result.outcome != "pass"
    gate = result.gates[0]
    assert (gate.outcome, gate.estimate.value) == ("undecided", None)
    assert "is not estimable" in gate.text
    assert "women: 0 positives" in gate.text


def test_bounds_come_from_the_study() -> None:
    default = Bounds.of(Evaluation())
    assert default == Bounds()
    floor = Evaluation.model_validate(
        {"primary": "equalized_odds_mean", "gates": {"balanced_accuracy": 0.7, "worst_group_auc_loss": 0.03}}
    )
    assert Bounds.of(floor) == Bounds("equalized_odds_mean", 0.03, 0.7, relative=False)
    median = Bounds.of(Evaluation.model_validate({"rate_match": {"rule": "median", "from": "test"}}))
    assert median == replace(Bounds(), matched="the median score", rate=0.5)
    same = Evaluation.model_validate({"gates": {"balanced_accuracy": "base"}})
    assert Bounds.of(same) == replace(Bounds(), balanced_accuracy=0.0)


def test_the_word_of_a_verdict_is_never_fair(patients: Patients) -> None:
    text = json.dumps(verdict(patients.evidence("repaired", CONTROLS), Bounds()).to_json()).lower()
    for word in ("unbiased", "is fair", "debiased", "compliant", "certified"):
        assert word not in text


def blurred(evidence: Evidence, variance: float, seed: int = 0) -> Evidence:
    """The same evidence from noisy tables, without placement sums: a decision table pairs the AUCs."""
    rng = np.random.default_rng(seed)

    def noisy(table: np.ndarray) -> np.ndarray:
        return table + np.rint(rng.normal(0, variance**0.5, table.shape)).astype(np.int64)

    coarse = [
        hist.reshape(*hist.shape[:2], 16, -1).sum(axis=-1) for hist in (evidence.hist_before, evidence.hist_after)
    ]
    return replace(
        evidence,
        pair=noisy(evidence.pair),
        hist_before=noisy(coarse[0]),
        hist_after=noisy(coarse[1]),
        placement_sums=None,
        joint=noisy(evidence.pair[0]),
        controls={name: noisy(table) for name, table in evidence.controls.items()},
        pair_noise=np.full((2, 1, 1, 2, 2), variance),
        hist_noise=variance,
        control_noise=dict.fromkeys(evidence.controls, variance),
    )


def test_a_verdict_on_noisy_tables_knows_their_noise() -> None:
    patients = Patients(n=40_000)
    evidence = patients.evidence("repaired", CONTROLS)
    result = verdict(blurred(evidence, 50.0), Bounds())
    assert outcomes(result)["gap"] == "pass"
    assert result.outcome == "pass", result.to_json()
    figures = [gate.estimate for gate in (*result.gates, *result.comparisons)]
    assert all(figure.noise_sd is not None and figure.noise_sd > 0 for figure in figures)
    assert result.base_signal.noise_sd > 0  # type: ignore[operator]
    exact = verdict(evidence, Bounds())
    assert {gate.estimate.noise_sd for gate in exact.gates} == {0.0}
    drowned = verdict(blurred(evidence, 1e6), Bounds())
    assert drowned.outcome == "undecided"
    assert "fail" not in outcomes(drowned).values()


def test_noise_hides_whether_a_model_has_collapsed() -> None:
    patients = Patients(n=4000)
    patients.scores["collapsed"] = 0.01 * patients.severity - 5
    for seed in range(3):
        result = verdict(blurred(patients.evidence("collapsed", CONTROLS), 400.0, seed), Bounds())
        assert outcomes(result)["not_collapsed"] == "undecided"
        assert result.outcome != "pass"
    # A count of 0 that carries noise is no empty cell.
    evidence = patients.evidence("collapsed", CONTROLS)
    assert evidence.pair[0].sum(axis=(0, 1, 2))[1] == 0
    exact, noisy = (verdict(replace(evidence, pair_noise=v), Bounds()).gates[-1] for v in (0.0, 9.0))
    assert (exact.outcome, noisy.outcome) == ("fail", "undecided")
