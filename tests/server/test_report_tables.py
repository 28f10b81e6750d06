"""The report's figures are those that a count of the patients gives, and its words say what the figures say."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from equipoise.common.evaluation import BASE
from equipoise.server.report.blocks import Table
from equipoise.server.report.comparison import comparison_sections
from equipoise.server.report.notices import notices
from equipoise.server.report.results import _gates, _patients
from equipoise.server.report.runtime import run_time
from equipoise.server.report.summary import headline, summary, summary_lines
from equipoise.server.report.suppression import Suppression
from equipoise.server.report.tables import averages, coverage
from equipoise.server.report.words import estimate_text
from tests.server.report_case import METHOD, ROUNDS, Patients, draw, make_report, make_study, measure

REPAIRED = {BASE: [1.0, -1.0, 0.0], METHOD: [0.0, 0.0, 0.0], "plain": [0.8, -0.8, 0.0], "auc_noise": [1.0, -1.0, 0.0]}
LEVELLED = {BASE: [0.0, -0.4, 0.0], METHOD: [-1.2, -1.2, 0.0], "plain": [0.0, -0.2, 0.0]}


@cache
def repaired() -> tuple[Patients, dict[str, Any]]:
    """A run whose method closes the gap; not to be changed."""
    patients = draw([900, 700, 60], REPAIRED)
    return patients, make_report(make_study(), patients)


def gap(report: dict[str, Any], model: str, metric: str, point: str = "rule") -> dict[str, Any]:
    found: dict[str, Any] = report["models"][model]["attributes"]["tone"]["points"][point]["gaps"][metric]
    return found


def test_rates_and_gaps_are_those_of_the_patients() -> None:
    patients, report = repaired()
    for model in (BASE, METHOD, "plain"):
        tpr = [patients.rate(model, group, 1) for group in (0, 1)]
        fpr = [patients.rate(model, group, 0) for group in (0, 1)]
        by_group = report["models"][model]["attributes"]["tone"]["points"]["rule"]["by_group"]
        assert [e["value"] for e in by_group["tpr"][:2]] == pytest.approx(tpr)
        assert [e["value"] for e in by_group["fpr"][:2]] == pytest.approx(fpr)
        gaps = abs(tpr[0] - tpr[1]), abs(fpr[0] - fpr[1])
        assert gap(report, model, "equalized_odds_difference")["value"] == pytest.approx(max(gaps))
        assert gap(report, model, "equalized_odds_mean")["value"] == pytest.approx(sum(gaps) / 2)
        assert gap(report, model, "equal_opportunity_difference")["value"] == pytest.approx(gaps[0])
        assert gap(report, model, "equalized_odds_difference")["expected_if_equal"] > 0


def test_a_prevalence_has_an_interval_and_is_no_number_outside_0_and_1() -> None:
    patients, report = repaired()
    share = report["attributes"][0]["groups"][1]["prevalence"]
    assert share["value"] == pytest.approx(patients.label[patients.group == 1].mean())
    assert share["low"] < share["value"] < share["high"]
    few = make_report(make_study(), draw([300, 300, 1], REPAIRED))["attributes"][0]["groups"][2]["prevalence"]
    assert (few["status"], few["value"]) == ("not_estimable", None)
    rows = {cells[1]: cells[4] for cells in _patients(report).blocks[0].rows}  # type: ignore[union-attr]
    assert rows["dark"] == estimate_text(share)


def test_noise_leaves_no_impossible_prevalence() -> None:
    """What noise of a few patients makes of tables of a few patients: -1 of 12, 13 of 10."""
    study = make_study()
    measured = measure(study, draw([300, 12, 10], REPAIRED))
    for pair in (pair for pair in measured.pairs if BASE in pair):
        measured.pairs[pair]["tone"][:, 1] = np.array([[[11, 2], [0, 0]], [[-1, 0], [0, 0]]])
        measured.pairs[pair]["tone"][:, 2] = np.array([[[-3, 0], [0, 0]], [[13, 0], [0, 0]]])
        measured.pair_noise[pair] = np.full((3, 1, 1, 2, 2), 2.0)
    _, few, unknown = coverage(study, measured, Suppression.of(study, measured))[0]["groups"]
    assert (few["positives"], unknown["positives"]) == (-1, 13)
    for row in (few, unknown):
        share = row["prevalence"]
        assert share["value"] is None or 0 <= share["low"] <= share["value"] <= share["high"] <= 1


@pytest.mark.parametrize(("bound", "shown"), [(0.005, "at least −0.005"), (0.02, "at least −0.02")])
def test_a_declared_bound_is_printed_as_declared(bound: float, shown: str) -> None:
    study = make_study(gates={"worst_group_auc_loss": bound})
    gates = _gates(make_report(study, draw([300, 300, 0], LEVELLED))).blocks[0]
    assert {row[0]: row[3] for row in gates.rows}["worst_group_auc"] == shown  # type: ignore[union-attr]


def test_auc_is_that_of_the_scores_up_to_binning() -> None:
    patients, report = repaired()
    for group, estimate in enumerate(report["models"][METHOD]["attributes"]["tone"]["auc_by_group"][:2]):
        scores = [patients.logits[METHOD][(patients.group == group) & (patients.label == y)] for y in (1, 0)]
        exact = mannwhitneyu(*scores).statistic / (len(scores[0]) * len(scores[1]))
        assert estimate["value"] == pytest.approx(exact, abs=estimate["binning_bound"])


def test_at_equal_selection_rate_every_model_flags_as_many_patients_as_the_base() -> None:
    patients = draw([400, 400, 0], LEVELLED)
    report = make_report(make_study(), patients)
    rates = [report["models"][m]["points"]["base_rate"]["selection_rate"]["value"] for m in (BASE, METHOD, "plain")]
    assert rates[1:] == pytest.approx([rates[0]] * 2, abs=0.02)
    assert report["models"][METHOD]["points"]["rule"]["selection_rate"]["value"] < rates[0] - 0.05


def test_a_change_is_the_difference_of_the_two_models() -> None:
    _, report = repaired()
    compared = [(c["before"], c["after"]) for c in report["changes"]]
    assert compared == [
        (BASE, METHOD), (BASE, "plain"), (BASE, "auc_noise"), ("plain", METHOD), ("auc_noise", METHOD)
    ]  # fmt: skip
    for change in report["changes"]:
        own = change["attributes"]["tone"]["points"]["rule"]["gaps"]["equalized_odds_difference"]
        ends = [gap(report, change[side], "equalized_odds_difference")["value"] for side in ("before", "after")]
        assert own["value"] == pytest.approx(ends[1] - ends[0])
        assert own["low"] <= own["value"] <= own["high"]
    paired = [c["attributes"]["tone"]["worst_group_auc"]["method"] for c in report["changes"]]
    assert ["coarsely" in method for method in paired] == [False, False, False, True, True]


def test_a_group_that_is_too_small_has_no_number_anywhere() -> None:
    patients = draw([300, 300, 12, 40], {BASE: [1, 0, 0, 0], METHOD: [0.5, 0, 0, 0]})
    report = make_report(make_study(("young", "old", "oldest")), patients)
    figures = report["models"][METHOD]["attributes"]["tone"]
    tpr = figures["points"]["rule"]["by_group"]["tpr"]
    assert [e["status"] for e in tpr] == ["ok", "ok", "not_estimable", "imprecise"]
    assert tpr[2]["value"] is None
    assert "6 positives" in tpr[2]["reason"]
    assert figures["worst_group_auc"]["value"] is None
    assert "oldest" in gap(report, METHOD, "equalized_odds_difference")["reason"]
    assert any("oldest has 6 positives" in line for line in report["limits"])
    assert any("40 of 652 test patients is unknown" in line for line in report["limits"])
    assert report["verdict"]["outcome"] != "pass"
    json.dumps(report, allow_nan=False)


def test_coverage_counts_every_patient_once() -> None:
    report = make_report(make_study(), draw([30, 50, 7], {BASE: [0, 0, 0], METHOD: [0, 0, 0]}))
    (row,) = report["attributes"]
    assert [(g["group"], g["n"], g["positives"]) for g in row["groups"]] == [
        ("light", 30, 15), ("dark", 50, 25), ("unknown", 7, 3)
    ]  # fmt: skip
    assert (row["n"], row["positives"]) == (87, 43)


def test_the_first_sentence_says_that_the_test_failed_and_why() -> None:
    report = make_report(make_study(controls=("plain",)), draw([800, 800, 0], LEVELLED))
    first = headline(report)
    assert report["verdict"]["outcome"] == "fail"
    assert first.startswith(
        "The declared test is failed, and sensitivity or AUC fell for light (tone) and dark (tone) "
        "(4 of 4 changes, 0.1 expected by chance):"
    )
    assert "it failed" in first
    assert "balanced_accuracy" in first
    assert "the control auc_noise is missing" in first
    assert summary_lines(report)[0] == first


def test_the_first_sentence_says_undecided_where_a_required_control_is_missing() -> None:
    chosen = {name: REPAIRED[name] for name in (BASE, METHOD)}
    report = make_report(make_study(controls=()), draw([900, 900, 0], chosen))
    assert headline(report).startswith("The declared test is undecided")
    assert "the controls plain and auc_noise are missing" in headline(report)


def test_the_first_sentence_tells_a_pass_its_loser() -> None:
    _, report = repaired()
    assert report["verdict"]["outcome"] == "pass"
    assert headline(report).startswith(
        "The declared test is passed, and sensitivity or AUC fell for light (tone) "
        "(2 of 4 changes, 0.1 expected by chance):"
    )
    change = report["changes"][0]["attributes"]["tone"]["points"]["rule"]["gaps"]["equalized_odds_difference"]
    assert f"fell by {-change['value']:.3f} (95 % interval {-change['high']:.3f} to {-change['low']:.3f})" in headline(
        report
    )


def test_plain_words_give_the_rates_as_patients_of_a_hundred() -> None:
    _, report = repaired()
    tpr = report["models"][BASE]["attributes"]["tone"]["points"]["rule"]["by_group"]["tpr"]
    light, dark = (f"{100 * e['value']:.0f} ({100 * e['low']:.0f} to {100 * e['high']:.0f})" for e in tpr[:2])
    assert report["summary"]["plain"][0] == (
        f"Of 100 patients of group light (tone) with the disease (malignant), the model as delivered finds {light}; "
        f"of 100 of group dark, {dark}."
    )


def test_a_control_that_is_the_base_model_is_no_hurdle_and_the_summary_says_so() -> None:
    _, report = repaired()
    facts = {"noise_sd_logit": 0.0, "draws": 51, "gap_by_draw": [0.4] * 51}
    assert any("adds no noise" in line for line in summary({**report, "auc_noise": facts})["others"])
    said = headline({**report, "auc_noise": facts})
    assert said.endswith("it beat the control plain, and the control auc_noise added no noise and is no hurdle.")
    noisy = {**report, "auc_noise": {**facts, "noise_sd_logit": 0.7}}
    assert summary(noisy)["others"] == []
    assert headline(noisy).endswith("it beat the controls plain and auc_noise.")


def test_more_false_alarms_are_told_and_flagged_for_declared_groups_alone() -> None:
    patients = draw([800, 800, 800], {BASE: [0, 0, 0], METHOD: [0, 0, 0]})
    logits = dict(patients.logits)
    logits[METHOD] = logits[METHOD] + 0.8 * (patients.group > 0)  # dark and unknown
    shifted = Patients(patients.label, patients.group, logits)
    report = make_report(make_study(), shifted)
    (row,) = report["more_false_alarms"]
    assert row["group"] == "dark"
    assert row["value"] == pytest.approx(shifted.rate(METHOD, 1, 0) - shifted.rate(BASE, 1, 0))
    assert report["summary"]["worse"][-2].startswith(
        f"More false alarms for dark (tone): false positive rate at the declared rule {row['value']:+.3f} ["
    )
    table = next(s for s in comparison_sections(report) if s.anchor == "worse").blocks[0]
    assert isinstance(table, Table)
    assert [(cells[1], cells[-1]) for cells in table.rows] == [
        ("light", "none shown"), ("dark", "more false alarms"), ("unknown", "none shown")
    ]  # fmt: skip


def test_a_group_too_small_to_judge_is_named_where_nobody_is_said_to_be_worse_off() -> None:
    equal = {BASE: [0, 0, 0], "plain": [0, 0, 0]}
    people = draw([6000, 6000, 12], {**equal, METHOD: [0.2, 0.2, -9.0]}, spread=6.0)
    assert (people.rate(BASE, 2, 1), people.rate(METHOD, 2, 1)) == (1.0, 0.0)  # all six diseased are missed afterwards
    report = make_report(make_study(("A", "B", "C")), people)
    worse = report["summary"]["worse"]
    assert worse[0].startswith("Of the groups that can be judged, no group's true positive rate or AUC became lower")
    assert worse[1] == (
        "Cannot be judged, and may be worse off: tone: C (true positive rate, false positive rate and AUC)."
    )
    assert "between the groups of tone that can be judged" in headline(report)
    assert report["summary"]["others"] == []  # not within any margin
    statement = report["decisions"][METHOD]["tone"]["statement"]
    assert (statement["shown"], statement["equivalent"]) == (False, None)
    assert "no margin can hold for all groups without C" in statement["text"]
    without = make_report(make_study(("A", "B")), draw([6000, 6000], {name: [0, 0] for name in (*equal, METHOD)}))
    assert without["summary"]["worse"][0].startswith("No group's true positive rate or AUC became lower")
    assert any("lies within the declared margin" in line for line in without["summary"]["others"])


def test_the_number_of_changes_looked_at_stands_beside_the_flags() -> None:
    age = {"name": "age", "levels": ["young", "old", "oldest"]}
    both = {"name": "both", "kind": "intersection", "of": ["tone", "age"]}
    people = draw([600, 600], {BASE: [0, 0], METHOD: [0, -1.5]})
    ages = np.arange(1200) % 3
    groups = {"age": ages, "both": people.group * 3 + ages}
    people = Patients(people.label, people.group, people.logits, groups)
    report = make_report(make_study(further=[age, both]), people)
    # TPR and AUC of 2 + 3 + 6 groups, FPR of the same.
    assert report["looked_at"] == {"level_down": 22, "more_false_alarms": 11}
    assert report["summary"]["worse"][-1] == (
        "Not corrected for their number: of true positive rates and AUCs 22 changes, 0.6 expected by chance; of false "
        "positive rates 11 changes, 0.3 expected by chance."
    )
    # Five gaps at three operating points of two attributes, but the two declared; the intersection has none.
    assert any("The other 28 gaps" in line and "the 33 changes by group" in line for line in report["limits"])


@pytest.mark.parametrize(("positives", "warned"), [((5, 3), False), ((30, 24), False), ((300, 240), True)])
def test_another_prevalence_is_said_where_chance_does_not_explain_it(positives: tuple[int, int], warned: bool) -> None:
    size = 2 * positives[0]
    people = draw([size, size], {BASE: [0, 0], METHOD: [0, 0]})
    group = people.group
    label = np.concatenate([np.arange(size) < n for n in positives]).astype(np.int64)
    report = make_report(make_study(), Patients(label, group, people.logits))
    assert ("W301" in {notice["code"] for notice in report["notices"]}) == warned
    assert report["attributes"][0]["prevalence_shift"] == (["dark", "light"] if warned else None)


@pytest.mark.parametrize(("interval", "warned"), [([-0.02, 0.18], False), ([0.02, 0.14], True)])
def test_composition_is_a_warning_where_its_interval_excludes_0(interval: list[float], warned: bool) -> None:
    people = draw([120, 120], {BASE: [0, 0], METHOD: [0, 0]})
    people = Patients(people.label, people.group, people.logits, site=np.arange(240) // 2 % 2)
    report = make_report(make_study(controls=(), by_site=True), people)
    first = report["hospitals"]["tone"]["contrasts"][0]["base"]
    assert first["composition_interval"][0] < first["composition"] < first["composition_interval"][1]
    first.update(composition=0.08, composition_interval=interval)
    found = [notice["text"] for notice in notices(report) if notice["code"] == "W302"]
    assert bool(found) == warned
    assert all("0.080 (95 % interval 0.020 to 0.140) is composition" in text for text in found)


def test_level_down_is_that_of_the_verdict_and_leaves_out_the_unknown() -> None:
    report = make_report(make_study(), draw([600, 600, 600], {BASE: [0, 0, 0], METHOD: [0, 0, -1.5]}))
    assert report["level_down"] == []
    report = make_report(make_study(), draw([800, 800, 800], {**LEVELLED, METHOD: [-1.2, -1.2, -1.2]}))
    assert report["level_down"] == [{"attribute": "tone", **row} for row in report["verdict"]["level_down"]]
    assert {row["group"] for row in report["level_down"]} == {"light", "dark"}


def test_the_gates_name_the_median_where_the_study_matches_at_it() -> None:
    study = make_study(rate_match={"rule": "median", "from": "test"})
    gates = make_report(study, draw([300, 300, 0], LEVELLED))["verdict"]["gates"]
    assert "at the median score" in gates[1]["text"]


def test_the_page_tells_the_selection_rates_that_few_bins_came_to() -> None:
    """Eight bins have no edge at the median: the page may not say that half of the patients are flagged."""
    study = make_study(rate_match={"rule": "median", "from": "test"}, bins=8)
    drawn = draw([300, 300, 0], {BASE: [0.5, 0.0, 0.0], METHOD: [0.4, 0.4, 0.0]})
    patients = replace(drawn, logits={model: scores + 0.7 for model, scores in drawn.logits.items()})
    report = make_report(study, patients)
    text = report["operating_points"][1]["text"]
    for model in (BASE, METHOD):
        rate = report["models"][model]["points"]["base_rate"]["selection_rate"]
        flagged = (patients.logits[model] >= report["thresholds"][model]["base_rate"]["logit"]).mean()
        assert rate["value"] == pytest.approx(flagged)
        assert f"{estimate_text(rate)} ({model})" in text
    gate = report["verdict"]["gates"][1]
    assert gate["outcome"] == "undecided"
    assert gate["text"].endswith("since selection rates are more than 0.05 from it")


def test_controls_that_decide_nothing_are_told_all_the_same() -> None:
    shifts = {BASE: [1.5, -1.5, 0], METHOD: [0.8, -0.8, 0], "no_mask": [0.0, 0.0, 0]}
    report = make_report(make_study(controls=("no_mask",)), draw([900, 900, 0], shifts))
    assert report["summary"]["others"] == [
        "Its gap is larger than that of no_mask; this control does not count towards the verdict."
    ]


def test_local_models_are_averaged_over_the_sites_that_have_a_number() -> None:
    shifts: dict[str, list[float]] = {
        BASE: [0, -1, 0],
        METHOD: [0, 0, 0],
        "local_only/east": [0, -0.5, 0],
        "local_only/west": [0, -1.5, 0],
    }
    study = make_study(controls=("local_only",))
    report = make_report(study, draw([300, 300, 0], shifts))
    own = report["averages"]["local_only"]["attributes"]["tone"]["points"]["rule"]["equalized_odds_difference"]
    values = [gap(report, name, "equalized_odds_difference")["value"] for name in shifts if name.startswith("local")]
    assert own == {"mean": np.mean(values), "lowest": min(values), "highest": max(values), "models": 2}
    assert not any("local" in c["before"] + c["after"] for c in report["changes"])
    gap(report, "local_only/east", "equalized_odds_difference")["value"] = None
    again = averages(study, report["models"])["local_only"]["attributes"]["tone"]["points"]["rule"]
    assert again["equalized_odds_difference"]["models"] == 1


def test_run_time_adds_up_by_phase_and_by_site() -> None:
    total = run_time([*ROUNDS, {**ROUNDS[1], "seconds": 1.5}])
    assert [(p["arm"], p["phase"], p["releases"]) for p in total["phases"]] == [
        (METHOD, "counts", 1), (METHOD, "extractor", 2), (METHOD, "head", 1)
    ]  # fmt: skip
    assert total["phases"][1]["seconds_per_release"] == 1.0
    assert total["sites"] == [
        {"site": site, "releases": 4, "bytes_down": 4000, "bytes_up": 1_000_000} for site in ("east", "west")
    ]
    assert (total["seconds"], total["bytes_up"]) == (3.0, 2_000_000)
