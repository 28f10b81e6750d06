"""Patients of unknown group alone: a method that looks at groups says so in one line, and others train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.common.errors import DataError
from equipoise.common.methods.averaging import check_labels
from tests.driving import private_town, town
from tests.tiny import draw_people

PEOPLE = draw_people(60, 3)
UNKNOWN = {
    "nobody's group is known": (replace(PEOPLE, sex=np.full(60, 2)), "patient"),
    "no positive's group is known": (
        replace(PEOPLE, sex=np.where(PEOPLE.label == 1, 2, PEOPLE.sex)),
        "positive patient",
    ),
}
LAYERS = {"layers": ["extractor.0.weight"]}
BY_GROUP: list[tuple[str, dict[str, Any]]] = [
    ("swift", {}),
    ("bmft", {}),
    ("fine_tune", {"loss": "cells"}),
    ("zhang_zhou", LAYERS),
    ("fairprune", {}),
    ("dfr", {}),
    ("reweighing", {}),
    ("group_dro", {}),
    ("fedfb", {}),
    ("fedprox", {"loss": "cells"}),
    ("fairfed", {}),
    ("fairtune", {"candidates": 5, "rounds": 3, "balance": "cells"}),
]
PLAIN: list[tuple[str, dict[str, Any]]] = [
    ("fine_tune", {"loss": "plain"}),
    ("fine_tune", {"loss": "classes"}),
    ("fedprox", {"loss": "plain"}),
    ("q_ffl", {}),
    ("afl", {}),
]


@pytest.mark.parametrize("case", UNKNOWN)
@pytest.mark.parametrize(("name", "how"), BY_GROUP, ids=[name for name, _ in BY_GROUP])
def test_a_method_that_looks_at_groups_needs_both_labels_among_the_known(name: str, how: Any, case: str) -> None:
    people, lacking = UNKNOWN[case]
    with pytest.raises(DataError, match=f"no {lacking} of known sex .* method.name={name} looks at groups") as e:
        town(name, people=people, **how).run(range(30), range(30, 60))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("case", UNKNOWN)
@pytest.mark.parametrize(("name", "how"), PLAIN, ids=[f"{name} {how}" for name, how in PLAIN])
def test_a_method_that_does_not_trains_without_them(name: str, how: Any, case: str) -> None:
    place = town(name, people=UNKNOWN[case][0], **how)
    layout = place.model.layout()
    moved = layout.flatten(place.run().outcome.classifier.state) - layout.flatten(place.model.state)
    assert np.isfinite(moved).all()
    assert np.abs(moved).max() > 1e-4


def test_noise_is_no_reason_to_refuse_what_can_be_trained(tmp_path: Path) -> None:
    study = private_town(tmp_path, "fine_tune").study
    # One cell of each label has a weight, whatever the noise took from the others.
    check_labels(study, np.array([[-9.0, 4.0], [20.0, -7.0], [6.0, 5.0]]))
    nobody = np.array([[-9.0, -4.0], [20.0, -7.0], [6.0, 50.0]])
    with pytest.raises(DataError, match=r"the noisy counts find no positive patient of known sex .* is spent"):
        check_labels(study, nobody)
    check_labels(study, nobody, by_group=False)
