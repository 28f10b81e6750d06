"""The table of a comparison: means and intervals over seeds by hand, what may be concluded, the page."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import numpy as np
import pytest

from equipoise.common.evaluation import BASE
from equipoise.server.report.side_by_side import (
    FIGURES,
    GATES,
    PLAIN,
    findings,
    over_seeds,
    seed_figures,
    seeds_text,
    summarise,
    to_csv,
    widening,
)
from equipoise.server.report.side_by_side_page import cell_text, render, summary_lines, tuned_by
from tests.server.report_case import METHOD, draw, make_study, measure
from tests.server.test_report_page import HOSTILE, Page

PRIMARY = "equalized_odds_difference"
Json = dict[str, Any]


def seed(**gaps: tuple[float, float]) -> Json:
    """Figures of one seed: model -> (every gap, every accuracy)."""
    found: Json = {}
    for name, (gap, accuracy) in gaps.items():
        found[name] = {"figures": {f: gap if f.startswith("equalized") else accuracy for f in FIGURES}}
        if name != BASE:
            found[name]["gates"] = dict.fromkeys(GATES, "pass" if gap < 0.2 else "undecided")
    return found


def comparison(seeds: list[Json]) -> Json:
    """A comparison.json of these seeds."""
    per_seed = {str(number): value for number, value in enumerate(seeds)}
    names = list(seeds[0])
    value: Json = {
        "software": {"equipoise": "0"},
        "study": {
            "name": "s",
            "primary": "sex",
            "privacy": {"mode": "none", "epsilon": None, "delta": 1e-5},
            "evaluation": {"primary": PRIMARY, "gates": {"worst_group_auc_loss": 0.01}},
            "own_base_model": True,
        },
        "seeds": list(range(len(seeds))),
        "methods": [{"name": name, "title": HOSTILE, "parameters": {"lr": 0.1, "w": {"k": [1]}}} for name in names],
        "skipped": [],
        "tuning": [],
        "per_seed": per_seed,
        "table": summarise(per_seed, names),
    }
    return value | {"findings": findings(value)}


@pytest.fixture
def value() -> Json:
    """`good` is better than plain in every seed, `bad` has a smaller gap and has lost the disease, `same` is plain."""
    rng = np.random.default_rng(0)
    seeds = []
    for _ in range(5):
        level, jitter = rng.normal(0.4, 0.1), rng.normal(0, 0.005, 4)
        seeds.append(
            seed(
                base=(level, 0.8),
                plain=(level - 0.1 + jitter[0], 0.82 + jitter[0]),
                good=(level - 0.25 + jitter[1], 0.82 + jitter[1]),
                bad=(level - 0.3 + jitter[2], 0.6 + jitter[2]),
                same=(level - 0.1 + jitter[0] + 2 * jitter[3], 0.82),
            )
        )
    return comparison(seeds)


def test_a_t_interval_by_hand() -> None:
    found = over_seeds([0.1, 0.2, 0.3, 0.4])
    half = 3.182446 * math.sqrt(0.05 / 3) / 2
    assert found["mean"] == 0.25
    assert found["low"] == pytest.approx(0.25 - half, abs=6e-5)
    assert found["high"] == pytest.approx(0.25 + half, abs=6e-5)
    assert over_seeds([0.1, None, 0.3])["low"] is None
    assert over_seeds([0.1, None, 0.3]) | {"low": 0} == {"mean": 0.2, "low": 0, "high": None, "seeds": 2}
    assert over_seeds([None])["mean"] is None


def test_seeds_that_change_nothing_give_no_interval() -> None:
    # Three equal values are one value, not a certain one.
    assert over_seeds([0.3, 0.3, 0.3]) == {"mean": 0.3, "low": None, "high": None, "seeds": 3}


def test_differences_are_taken_within_seeds(value: Json) -> None:
    own = value["table"]["good"]["figures"][PRIMARY]
    per_seed = [s["good"]["figures"][PRIMARY] - s[PLAIN]["figures"][PRIMARY] for s in value["per_seed"].values()]
    assert own["versus_plain"] == over_seeds(per_seed)
    # The seeds' own levels differ far more than the methods within a seed: unpaired nothing would be seen.
    assert own["versus_plain"]["high"] < -0.1
    spread = own["value"]["high"] - own["value"]["low"]
    assert own["versus_plain"]["high"] - own["versus_plain"]["low"] < spread / 3
    assert "versus_plain" not in value["table"][PLAIN]["figures"][PRIMARY]
    assert set(value["table"][BASE]["figures"][PRIMARY]) == {"value"}


def test_a_model_that_is_missing_in_a_seed_is_paired_in_the_others() -> None:
    seeds = [seed(base=(0.4, 0.8), plain=(0.3, 0.8), m=(0.2 + k / 100, 0.8)) for k in range(4)]
    del seeds[1]["m"]
    cell = comparison(seeds)["table"]["m"]["figures"]["auc"]["value"], comparison(seeds)["table"]["m"]["gates"]["gap"]
    assert cell[0]["seeds"] == 3
    assert sum(cell[1].values()) == 3


def test_what_is_concluded_names_the_loss(value: Json) -> None:
    first, second, *rest = findings(value)
    assert first.endswith("interval below 0: good, bad.")
    assert second.endswith("a loss of more than 0.01 of the worst group's AUC against the base model: good.")
    assert "3 methods" in rest[-1]


def test_splits_of_the_same_patients_conclude_less(value: Json) -> None:
    assert widening(None, 5) == 1.0
    # s^2 (1/5 + 30/60) in place of s^2 / 5: three and a half times the variance.
    assert widening({"train": 60, "test": 30}, 5) == pytest.approx(3.5**0.5)
    differences = [-0.01, -0.02, -0.03, -0.04, -0.05]  # the t-interval ends at -0.010, the wider one at +0.007
    seeds = [seed(base=(0.4, 0.8), plain=(0.3, 0.8), m=(0.3 + d, 0.8)) for d in differences]
    drawn, split = comparison(seeds), comparison(seeds)
    split["study"]["resplit"] = {"train": 60, "test": 30}
    assert findings(drawn)[0].endswith("interval below 0: m.")
    assert len(findings(drawn)) == 3
    assert "about one in twenty" in findings(drawn)[-1]
    first, _, corrected, last = findings(split)
    assert first.endswith("interval below 0: m.")
    assert corrected.endswith("1.9 times as wide, smaller: none; larger: none.")
    assert "at least one in twenty" in last
    # A difference that is as clear as these stays.
    value["study"]["resplit"] = {"train": 60, "test": 30}
    assert findings(value)[2].endswith("smaller: good, bad; larger: none.")
    assert "of the same patients" in render(value)


def test_hospitals_in_folders_have_one_split_and_only_training_varies(value: Json) -> None:
    value["study"] |= {"resplit": None, "same_split": True, "own_base_model": False}
    text = " ".join(findings(value))
    assert "the same split: intervals show the randomness of training alone" in text
    assert "anew" not in text
    assert "Nadeau" not in text
    assert "a seed changes shuffles alone: patients and splits stay." in render(value)
    value["study"]["same_split"] = False
    assert "randomness of training alone" not in " ".join(findings(value))


def test_a_model_that_some_seeds_lack_says_so() -> None:
    seeds = [seed(base=(0.4, 0.8), plain=(0.3, 0.8), m=(0.2 + k / 100, 0.8)) for k in range(4)]
    del seeds[1]["m"]
    found = comparison(seeds)
    assert seeds_text("m", found) == "m (3 of 4 seeds)"
    assert seeds_text("plain", found) == "plain"
    assert "m (3 of 4 seeds)" in render(found)


def test_two_seeds_conclude_nothing() -> None:
    seeds = [seed(base=(0.4, 0.8), plain=(0.3, 0.8), m=(0.1 + k / 100, 0.8)) for k in range(2)]
    assert findings(comparison(seeds)) == ["2 seed(s): too few for an interval; nothing is concluded."]


def test_the_csv_holds_the_table(value: Json) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(value))))
    assert len(rows) == len(value["table"]) * len(FIGURES)
    row = next(row for row in rows if (row["model"], row["figure"]) == ("good", PRIMARY))
    assert float(row["versus_plain_high"]) == value["table"]["good"]["figures"][PRIMARY]["versus_plain"]["high"]
    assert next(row for row in rows if row["model"] == BASE)["versus_base_mean"] == ""


def test_the_page_is_escaped_whole_and_fetches_nothing(value: Json) -> None:
    page = render(value)
    assert HOSTILE not in page
    assert "http" not in page.replace("http-equiv", "")
    parsed = Page(page)
    assert not parsed.open
    assert not parsed.of("script")
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    # Every model is drawn twice, once in each panel.
    assert page.count('class="mark after"') == 2 * 3 + 1  # and the key
    assert page == render(value)
    assert "Tuning effort: none" in page


def test_what_was_tuned_is_stated(value: Json) -> None:
    tried = [{"lr": 0.1}, {"lr": 0.3}]
    row = {"name": "good", "tried": tried, "validation": [{"worst_group_auc": 0.7, "auc": 0.8}] * 2, "chosen": 1}
    idle = {"name": "same", "tried": [{}], "validation": [], "chosen": 0}
    page = render(value | {"tuning": [row, idle]})
    assert "2 settings for each of 1 models" in page
    assert "Taken: good lr=0.3. Without settings: same." in page
    assert "The largest worst-group AUC on validation patients was taken." in page


@pytest.mark.parametrize(
    ("judged", "said"),
    [
        ({"good": (0.7, 0.8), "bad": (0.7, 0.8)}, ["The largest worst-group AUC"]),
        ({"good": (None, 0.8), "bad": (None, 0.7)}, ["looks at no group, was taken for all."]),
        ({"good": (0.7, 0.8), "bad": (None, 0.7)}, ["The largest worst-group AUC", "was taken for bad."]),
        ({"good": (None, 0.8), "bad": (None, 0.0)}, ["was taken for all.", "the first was kept, for bad."]),
    ],
)
def test_by_what_was_tuned_is_what_was_there(judged: dict[str, tuple[float | None, float]], said: list[str]) -> None:
    rows = [
        {"name": name, "tried": [{}, {}], "validation": [{"worst_group_auc": worst, "auc": auc}] * 2, "chosen": 0}
        for name, (worst, auc) in judged.items()
    ]
    text = tuned_by({"tuning": rows})
    assert all(one in text for one in said)
    assert text.count(".") == len(said)


def test_text_where_there_is_no_interval(value: Json) -> None:
    assert cell_text({"mean": None, "low": None, "high": None, "seeds": 0}) == "not estimable"
    assert cell_text({"mean": 0.25, "low": None, "high": None, "seeds": 2}) == "0.250"
    lines = summary_lines(value)
    assert lines[0].startswith("model")
    assert len(lines) == 1 + len(value["table"]) + len(value["findings"])


def test_figures_of_a_seed_are_those_of_the_report() -> None:
    study = make_study()
    patients = draw([300, 300, 20], {BASE: [1.0, -1.0, 0.0], METHOD: [0.0, 0.0, 0.0]})
    found = seed_figures(study, measure(study, patients))
    assert found[BASE]["figures"][PRIMARY] > found[METHOD]["figures"][PRIMARY] + 0.1
    assert set(found[METHOD]["gates"]) == set(GATES)
    assert "gates" not in found[BASE]
