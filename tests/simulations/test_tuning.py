"""Tuning: the settings of every method are valid and different, and the best is the best of the worst group."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from equipoise.common.methods import METHODS, resolve
from equipoise.simulations.auc_noise import decided_scores
from equipoise.simulations.tuning import best, settings, tuned_values, validation_auc
from tests.driving import town
from tests.tiny import draw_people


@pytest.mark.parametrize("name", [name for name in METHODS if name != "audit"])
def test_settings_are_valid_and_each_is_another(name: str) -> None:
    found = settings(town(name).study)
    for setting in found:
        resolve(setting)
    values = [tuned_values(setting) for setting in found]
    assert len({str(value) for value in values}) == len(values)
    factors = METHODS[name].tuned
    assert len(found) == (3 if factors else 1)
    for key in factors:
        assert [value[key] / values[0][key] for value in values[1:]] == pytest.approx(list(factors[key]))


@pytest.mark.parametrize(
    ("name", "rates"),
    [("swift", ["whitened.lr"]), ("fine_tune", ["whitened.lr"]), ("bmft", ["whitened.lr", "whitened_head.lr"])],
)
def test_in_whitened_rounds_their_own_rate_is_tuned(name: str, rates: list[str]) -> None:
    place = town(name, step="whitened", whitened={"rounds": 3, "lr": 0.2})
    found = settings(place.study)
    values = [tuned_values(setting) for setting in found]
    assert list(values[0]) == rates
    for key in rates:
        assert [value[key] / values[0][key] for value in values] == pytest.approx([1, 1 / 3, 3])
    # The rest stays as the study has it, and what is asked of a hospital is the same.
    assert [setting.method.parameters["whitened"]["rounds"] for setting in found] == [3, 3, 3]
    assert len({len(METHODS[name].plan(setting, place.model)) for setting in found}) == 1


@pytest.mark.parametrize(("ratio", "tried"), [(0.3, [0.3, 0.1, 0.6]), (0.6, [0.6, 0.2, 0.8])])
def test_a_number_stays_within_its_range(ratio: float, tried: list[float]) -> None:
    found = settings(town("fairprune", ratio=ratio).study)
    for setting in found:
        resolve(setting)
    assert [tuned_values(setting)["ratio"] for setting in found] == pytest.approx(tried)


def test_the_methods_with_settings_have_as_many() -> None:
    assert {len(factors) for method in METHODS.values() for factors in method.tuned.values()} == {2}


def test_the_own_setting_wins_where_nothing_differs() -> None:
    assert best([(0.7, 0.8), (0.7, 0.9)]) == 0
    assert best([(None, 0.5), (0.6, 0.5)]) == 1


def test_the_auc_is_that_of_all_hospitals_validation_patients() -> None:
    place = town("fine_tune", 400, people=draw_people(400, 7))
    sites = place.sites(range(150), range(150, 400))
    worst, pooled = validation_auc(place.study, sites, place.model)  # type: ignore[arg-type]
    scores, labels, groups = [], [], []
    for site in sites.values():
        split = site.split("validation")
        scores.append(decided_scores(place.study, place.model, split))
        labels.append(split.label.numpy())
        groups.append(split.groups["sex"].numpy())
    score, label, group = (np.concatenate(parts) for parts in (scores, labels, groups))
    assert pooled == pytest.approx(roc_auc_score(label, score), abs=0.02)  # the town's bins are few
    expected = min(roc_auc_score(label[group == g], score[group == g]) for g in (0, 1))
    assert worst == pytest.approx(expected, abs=0.02)  # the town's bins are few
