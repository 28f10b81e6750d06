"""Small cells in the report: none is printed, none can be computed from what is, and curves rest on enough patients."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from equipoise.common.config import validate
from equipoise.common.errors import StudyError
from equipoise.common.evaluation import BASE, POINTS, Measured
from equipoise.common.fairness.contrasts import GAPS
from equipoise.common.fairness.intersections import combined_group
from equipoise.common.fairness.tables import counts_before
from equipoise.common.methods import resolve
from equipoise.common.study import Study
from equipoise.server.report.build import derived_files
from tests.server.reader import Reader
from tests.server.report_case import METHOD, SITES, Patients, draw, make_report, make_study, measure

Json = dict[str, Any]
SCHEMA = json.loads((files("equipoise.server") / "report" / "schema.json").read_text())
AGE = {"name": "age", "levels": ["young", "old"]}
BOTH = {"name": "both", "kind": "intersection", "of": ["tone", "age"]}
MODELS = {BASE: [0.8, -0.8, 0.4, 0.0], METHOD: [0.0, 0.0, 0.0, 0.0]}


def flagged(sizes: list[tuple[int, int, int, int]], groups: tuple[str, ...] = ("light", "dark"), **study: Any) -> Json:
    """A report on groups (last: unknown) with declared TN, FP, FN, TP under both models, and its study."""
    cells = np.ravel(sizes)
    label = np.repeat(np.tile([0, 0, 1, 1], len(sizes)), cells)
    group = np.repeat(np.repeat(np.arange(len(sizes)), 4), cells)
    logit = np.repeat(np.tile([-1.0, 1.0, -1.0, 1.0], len(sizes)), cells)
    spread = np.random.default_rng(0).uniform(0.0, 0.9, len(label))
    logits = {BASE: logit * (1 - spread), METHOD: logit * (1 - spread) + 1e-3}
    return make_report(make_study(groups, (), **study), Patients(label, group.astype(np.int64), logits))


@cache
def few_false_positives() -> tuple[Json, dict[str, str]]:
    """Group dark has 7 false positives of 206 without the disease, and 3 patients with it are missed in group light."""
    report = flagged([(400, 61, 3, 233), (199, 7, 31, 118), (80, 20, 15, 45)], min_cell=11)
    return report, {"report.json": json.dumps(report), **derived_files(report)}


def rates(report: Json, model: str = BASE, point: str = "rule") -> Json:
    found: Json = report["models"][model]["attributes"]["tone"]["points"][point]["by_group"]
    return found


def test_a_small_count_and_its_rate_are_nowhere() -> None:
    report, written = few_false_positives()
    found = rates(report)
    # fpr of dark and, since all patients' is shown, of unknown; tpr of light and of unknown.
    assert [e["status"] for e in found["fpr"]] == ["ok", "suppressed", "suppressed"]
    assert [e["status"] for e in found["tpr"]] == ["suppressed", "ok", "suppressed"]
    assert [e["status"] for e in found["selection_rate"]] == ["suppressed"] * 3
    hidden = found["fpr"][1]
    assert (hidden["value"], hidden["low"], hidden["high"], hidden["n"]) == (None,) * 4
    assert hidden["reason"] == "a count below 11 could be read from it"
    for share in (7 / 206, 199 / 206, 3 / 236, 233 / 236, 118 / 125, 199 / 230):
        full, short = str(share)[:9], f"{share:.3f}"
        for name, text in written.items():
            assert full not in text, (name, share)
            if name != "report.json":
                assert not re.search(rf"(?<![\d.]){re.escape(short)} \[", text), (name, share)
    for name in ("report.html", "model_card.md"):
        assert "suppressed" in written[name]
        assert "a count of 1 to 10 patients is not shown (&lt;11)" in written["report.html"]
    # Nothing that the hidden rates would follow from.
    gaps = report["models"][BASE]["attributes"]["tone"]["points"]["rule"]["gaps"]
    assert {gap["status"] for gap in gaps.values()} == {"suppressed"}
    assert {gap["expected_if_equal"] for gap in gaps.values()} == {None}
    statement = report["decisions"][BASE]["tone"]["statement"]["text"]
    assert statement == "nothing can be said (suppressed: a count below 11 could be read from it)"


def test_numbers_of_patients_too_are_hidden_with_what_gives_them_away() -> None:
    report = flagged([(400, 61, 30, 233), (199, 27, 2, 8), (80, 20, 15, 43)], min_cell=11)
    groups = report["attributes"][0]["groups"]
    assert [(g["n"], g["positives"]) for g in groups] == [(724, 263), ("hidden", "<11"), ("hidden", "hidden")]
    assert (report["attributes"][0]["n"], report["attributes"][0]["positives"]) == (1118, 331)
    assert [n["code"] for n in report["notices"]].count("E205") == 1
    figures = report["models"][BASE]["attributes"]["tone"]
    assert [e["status"] for e in figures["auc_by_group"]] == ["ok", "suppressed", "suppressed"]
    assert figures["worst_group_auc"]["status"] == figures["auc_gap"]["status"] == "suppressed"
    assert figures["points"]["rule"]["gaps"]["fpr_difference"]["status"] == "ok"
    scores = report["scores"][BASE]["tone"]
    assert [row["reliability"] == [] for row in scores["calibration"]] == [False, True, True]
    assert [row["ece_if_calibrated"] is None for row in scores["calibration"]] == [False, True, True]
    assert [e["status"] == "suppressed" for e in scores["brier"]] == [False, True, True]
    assert [e["status"] for e in scores["xauc"]] == ["ok", "suppressed"]  # positives of light, then of dark
    further = report["decisions"][BASE]["tone"]
    assert [x is None for x in further["net_benefit"]["flag_everybody"]] == [False, True, True]
    assert (further["unknown"]["patients"], further["unknown"]["gap_at_most"]) == ("hidden", None)
    assert further["unknown"]["warnings"] == ["the group of some patients is unknown, and how many cannot be shown"]
    assert list(report["roc"]["tone"]) == ["light"]
    assert scores["gap_by_threshold"] == []
    page = derived_files(report)["report.html"]
    assert "<td>hidden</td><td>&lt;11</td><td>suppressed</td>" in page
    assert not re.search(r"\b10 positives\b|<td>(10|236)</td>", page)


def test_ten_patients_are_told_from_nine_by_nothing() -> None:
    def texts(positives: int) -> list[str]:
        report = flagged([(400, 61, 30, 230), (190, 36, 0, positives), (90, 20, 15, 86 - positives)], min_cell=11)
        kept = {key: report[key] for key in ("attributes", "notices", "limits", "summary", "verdict", "level_down")}
        return [*json.dumps(kept).split(), *json.dumps(report["models"][BASE]["attributes"]).split()]

    assert texts(10) == texts(9) == texts(1)


def test_curves_rest_on_enough_patients_of_each_class() -> None:
    patients = draw([500, 300, 40], MODELS)
    study = make_study(controls=(), min_cell=11)
    report, measured = make_report(study, patients), measure(study, patients)
    table = measured.histograms[BASE, "test"]["tone"]
    assert not any("suppressed" in e["status"] for e in report["models"][BASE]["attributes"]["tone"]["auc_by_group"])
    for row, group in enumerate(("light", "dark")):
        curve = np.array(report["roc"]["tone"][group][BASE]) * table[row].sum(axis=1)
        steps = np.diff(curve, axis=0)
        assert ((steps < 0.1) | (steps > 10.9)).all()
        assert len(curve) > 5
        drawn = report["scores"][BASE]["tone"]["calibration"][row]["reliability"]
        positives = np.array([share * n for _, share, *_, n in drawn])
        negatives = np.array([n for *_, n in drawn]) - positives
        for counts in (positives, negatives):
            assert ((counts < 0.1) | (counts > 10.9)).all()
        # Nor does a small count lie between a place on one curve and one on the other.
        cumulated = np.cumsum(positives[::-1])
        apart = np.abs(cumulated[:, None] - curve[:, 1])
        assert ((apart < 0.1) | (apart > 10.9)).all()
    gaps = report["scores"][BASE]["tone"]["gap_by_threshold"]
    assert 2 < len(gaps) < 40
    for threshold, gap in gaps:
        edge = int(np.abs(1 / (1 + np.exp(-measured.edges)) - threshold).argmin())
        flagged_ = table[:2, :, edge + 1 :].sum(axis=-1) / table[:2].sum(axis=-1)
        assert gap == pytest.approx(np.abs(flagged_[0] - flagged_[1]).max(), abs=1e-5)
        for group, place in zip(("light", "dark"), flagged_, strict=True):  # on both curves, so nothing lies between
            assert np.abs(np.array(report["roc"]["tone"][group][BASE]) - place).sum(axis=1).min() < 1e-4
    shown = make_report(make_study(controls=(), min_cell=0), patients)
    steps = np.diff(np.array(shown["roc"]["tone"]["dark"][BASE]) * table[1].sum(axis=1), axis=0)
    assert ((steps > 0.1) & (steps < 10.9)).any()


def crowd(seed: int, n: int, k: int) -> tuple[Study, Patients]:
    """Two attributes and their intersection, two hospitals, small groups and patients of unknown group among them."""
    rng = np.random.default_rng(seed)
    skew, unknown, ill = rng.choice([0.03, 0.1, 0.5]), rng.choice([0.0, 0.05]), rng.choice([0.05, 0.3])
    tone, age = (np.where(rng.random(n) < unknown, 2, rng.random(n) < share).astype(np.int64) for share in (skew, 0.3))
    label = (rng.random(n) < ill).astype(np.int64)
    label[:2] = 0, 1
    spread = rng.choice([2.0, 5.0]) * (label - 0.5)
    logits = {model: rng.normal(0, 1, n) + spread + np.array(shift)[tone] * label for model, shift in MODELS.items()}
    rule = {"rule": str(rng.choice(["fixed:0.5", "fixed:0.1"]))}
    study = make_study(controls=(), further=(AGE, BOTH), by_site=True, min_cell=k, threshold=rule)
    further = {"age": age, "both": combined_group([tone, age], [2, 2])}
    return study, Patients(label, tone, logits, further, rng.integers(0, len(SITES), n))


@example(seed=42, n=1200, k=5)  # two patients of an intersection's group, one at each hospital
@given(seed=st.integers(0, 2**32 - 1), n=st.sampled_from([150, 400, 1200]), k=st.sampled_from([5, 8, 11]))
@settings(max_examples=10, deadline=None, phases=[Phase.explicit, Phase.generate])  # a smaller seed is no simpler crowd
def test_a_reader_who_computes_finds_no_small_count(seed: int, n: int, k: int) -> None:
    study, patients = crowd(seed, n, k)
    report = make_report(study, patients)
    assert [error.message for error in Draft202012Validator(SCHEMA).iter_errors(report)] == []
    assert list(Reader(report, study, measure(study, patients)).computed()) == []
    check_gaps(report)
    check_hospitals(report, measure(study, patients))
    derived_files(report)


def check_hospitals(report: Json, measured: Measured) -> None:
    """At a hospital no small count's rate has a status or a distance, nor tells a 0 where the sum is hidden."""
    k = report["small_cells"]["minimum"]
    for attribute in report["attributes"]:
        name = attribute["attribute"]
        found, tables = report["hospitals"][name], counts_before(measured.site_pairs[name])
        distances = {(far["hospital"], far["group"], far["rate"]): far["z"] for far in found["far"]}
        for site, table in zip(found["coverage"], tables, strict=True):
            for group, cells, pooled in zip(site["groups"], table, attribute["groups"], strict=False):
                for rate, label in (("tpr", 1), ("fpr", 0)):
                    if ((cells[label] > 0) & (cells[label] < k)).any():
                        assert group[rate] == "suppressed"
                        assert distances.get((site["hospital"], group["group"], rate)) is None
                if not isinstance(pooled["positives"], int):
                    assert (group["n"], group["positives"]) == ("hidden", "hidden")
        for contrast in found["contrasts"]:
            rows = [group for site in found["coverage"] for group in site["groups"]]
            pair = [group for group in rows if group["group"] in (contrast["group"], contrast["reference"])]
            if contrast["rate"] == "tpr" and any(group["positives"] == "hidden" for group in pair):
                assert contrast["base"]["hospitals_with_both_groups"] is None


def check_gaps(report: Json) -> None:
    """A gap, before, after or as a change, only where every rate that it compares is shown."""
    for attribute in report["attributes"]:
        name = attribute["attribute"]
        for point in POINTS:
            for metric, form in GAPS.items():
                shown = {
                    model: report["models"][model]["attributes"][name]["points"][point] for model in (BASE, METHOD)
                }
                silent = {
                    model: any(
                        e["status"] == "suppressed" and f"{e['group']}: fewer than" not in at["gaps"][metric]["reason"]
                        for rate in form.rates
                        for e in at["by_group"][rate][:-1]
                    )
                    for model, at in shown.items()
                }
                for model, at in shown.items():
                    assert not (silent[model] and at["gaps"][metric]["value"] is not None)
                change = report["changes"][0]["attributes"][name]["points"][point]["gaps"][metric]
                assert not (any(silent.values()) and change["value"] is not None)


def graded(k: int, last: int) -> Json:
    """A report on a score of three grades, of which `last` healthy patients of group dark have the third."""
    cells = np.array([[[449, 302, 76], [18, 61, 102]], [[120, 32 - last, last], [11, 17, 12]]])
    where = np.repeat(np.arange(cells.size), cells.ravel())
    tone, label, grade = np.unravel_index(where, cells.shape)
    age = np.random.default_rng(0).integers(0, 2, len(where))
    logits = {model: np.array([-2.0, -0.5, 1.0])[grade] for model in MODELS}
    patients = Patients(label.astype(np.int64), tone.astype(np.int64), logits, {"age": age})
    return make_report(make_study(controls=(), further=(AGE,), min_cell=k), patients)


def test_a_score_of_few_grades_gives_no_small_count_away_by_its_auc() -> None:
    """With the first two grades known, an AUC has one unknown number: the patients of the third."""
    report = graded(11, last=3)
    base = report["models"][BASE]
    for name in ("tone", "age"):
        figures, scores = base["attributes"][name], report["scores"][BASE][name]
        shown = [*figures["auc_by_group"], figures["auc_gap"], figures["worst_group_auc"]]
        shown += [*scores["brier"], *scores["auprc"], *scores["xauc"]]
        shown += [row[key] for row in scores["calibration"] for key in ("ece", "citl")]
        assert all(e["value"] is None and e["n"] is None for e in shown)
        assert not any(row["reliability"] or row["ece_debiased_sq"] for row in scores["calibration"])
        assert not scores["gap_by_threshold"]
        assert not report["roc"][name]
    assert base["auc"]["value"] is not None  # of all patients, who are many at each grade
    for open_ in (graded(0, last=3), graded(11, last=15)):
        found = open_["models"][BASE]["attributes"]["tone"]["auc_by_group"]
        assert all(e["value"] is not None for e in found[:2])
        assert set(open_["roc"]["tone"]) == {"light", "dark"}


def test_an_intersections_group_is_left_out_by_what_is_shown_of_it_alone() -> None:
    label = np.array([0] * 460 + [1] * 140)
    tone = np.array([0] * 400 + [1] * 60 + [0] * 120 + [1] * 20)
    age = np.array([0] * 300 + [1] * 100 + [0] * 30 + [1] * 30 + [0] * 60 + [1] * 60 + [0] * 4 + [1] * 16)
    logits = {model: np.random.default_rng(0).normal(0, 1, 600) + 2.0 * (label - 0.5) for model in MODELS}
    patients = Patients(label, tone, logits, {"age": age, "both": combined_group([tone, age], [2, 2])})
    report = make_report(make_study(controls=(), further=(AGE, BOTH), min_cell=11), patients)
    row = next(row for row in report["attributes"] if row["attribute"] == "both")
    shown = {group["group"]: (group["n"], group["positives"]) for group in row["groups"]}
    assert shown["dark & young"] == ("hidden", "<11")  # 30 without the disease: at most 40
    found = report["models"][BASE]["attributes"]["both"]["points"]["rule"]["by_group"]
    for rate in ("tpr", "fpr", "selection_rate"):
        by_group = {e["group"]: e for e in found[rate]}
        assert by_group["dark & young"]["reason"] == "fewer than 50 patients in the intersection"
        assert "50 patients" not in by_group["dark & old"]["reason"]
    hidden = [group for group, counts in shown.items() if counts == ("hidden", "hidden")]
    assert hidden  # how many these are, and whether 50, nothing says
    assert not any(e["group"] in hidden and "50 patients" in e["reason"] for rate in found.values() for e in rate)


def test_outcomes_and_losses_are_judged_though_their_figures_are_hidden() -> None:
    base, method = [1.5, 1.5, 0.0], [1.5, -3.0, 0.0]
    patients = draw([600, 400, 0], {BASE: base, METHOD: method}, spread=4.0)
    open_, closed = (make_report(make_study(controls=(), min_cell=k), patients) for k in (0, 11))
    change = closed["changes"][0]["attributes"]["tone"]["points"]["rule"]["by_group"]["tpr"][1]
    assert change["status"] == "suppressed"
    for key in ("level_down", "more_false_alarms"):
        named = [[(row["attribute"], row["group"], row["metric"]) for row in report[key]] for report in (open_, closed)]
        assert named[0] == named[1]
    assert ("tone", "dark", "tpr_change") in [(r["attribute"], r["group"], r["metric"]) for r in closed["level_down"]]
    assert closed["verdict"]["level_down"] == [
        {key: value for key, value in row.items() if key != "attribute"} for row in closed["level_down"]
    ]
    outcomes = [[(gate["name"], gate["outcome"]) for gate in r["verdict"]["gates"]] for r in (open_, closed)]
    assert outcomes[0] == outcomes[1]
    gap = closed["verdict"]["gates"][0]
    assert (gap["estimate"]["value"], gap["estimate"]["status"]) == (None, "suppressed")
    assert re.fullmatch(
        r"the gap \(.*\) at .* is suppressed \(a count below 11 .*\); declared: below 0; \w+", gap["text"]
    )
    assert any("suppressed" in line and "dark" in line for line in closed["summary"]["worse"])


def test_zero_shows_everything_and_changes_nothing() -> None:
    patients = draw([300, 300, 8, 20], {**MODELS, "plain": MODELS[BASE]})
    report = make_report(make_study(("light", "dark", "rare"), min_cell=0), patients)
    assert '"suppressed"' not in json.dumps(report)
    groups = report["attributes"][0]["groups"]
    assert [(g["n"], g["positives"]) for g in groups] == [(300, 150), (300, 150), (8, 4), (20, 10)]
    assert report["small_cells"]["minimum"] == 0
    large = draw([3000, 3000, 0], {name: shift[:3] for name, shift in MODELS.items()})
    whole, hidden = (make_report(make_study(controls=(), min_cell=k), large) for k in (0, 5))
    for key in ("attributes", "models", "changes", "decisions", "verdict", "level_down", "notices"):
        assert whole[key] == hidden[key], key  # nothing small, nothing hidden


def test_the_default_is_the_places_own() -> None:
    study = make_study()
    declared = study.model_dump(mode="json", by_alias=True)
    del declared["evaluation"]["min_cell"]
    exact = Study.model_validate(declared)
    noisy = Study.model_validate({**declared, "privacy": {"mode": "local", "epsilon": 3}})
    simulated = Study.model_validate({**declared, "simulation": {"hospitals": {"kind": "synthetic"}}})
    assert [s.smallest_cell for s in (exact, noisy, simulated)] == [11, 0, 0]
    assert exact.hash == simulated.hash != study.hash
    for k in (0, 5, 8, 10, 11):
        assert make_study(min_cell=k).smallest_cell == k
    wrong = {**declared, "evaluation": {**declared["evaluation"], "min_cell": 7}}
    with pytest.raises(StudyError, match=r"^study: evaluation.min_cell=7: choose one of 0, 5, 8, 10, 11$"):
        validate(Study, wrong, "study")
    asked = {**declared, "evaluation": {**declared["evaluation"], "min_cell": 5}}
    with pytest.raises(StudyError, match=r"evaluation.min_cell=5: under privacy.mode=local counts carry noise"):
        resolve(Study.model_validate({**asked, "privacy": {"mode": "local", "epsilon": 3}}))
