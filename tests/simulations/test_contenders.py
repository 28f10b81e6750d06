"""What the methods of a comparison take over from the study's own, and what is refused before anything runs."""

from __future__ import annotations

from typing import Any

import pytest

from equipoise.common.errors import StudyError
from equipoise.common.methods import METHODS, resolve
from equipoise.simulations.contenders import Comparison, variant
from tests.tiny import make_study

OTHERS = [name for name in METHODS if name not in ("audit", "fine_tune")]  # fine_tune is a control of the own method


@pytest.mark.parametrize(
    ("own", "taken"),
    [
        ({"name": "swift", "lr": 0.02, "batch": 16, "beta": 0.3}, {"lr": 0.02, "batch": 16}),
        ({"name": "private_head", "lr": 1.5, "momentum": 0.8}, {}),  # of whitened rounds
        ({"name": "afl", "lr": 0.1}, {}),  # of one gradient a round
        ({"name": "bmft", "lr": 0.1, "momentum": 0.5}, {"momentum": 0.5}),  # of a head that starts at 0
        ({"name": "q_ffl", "lr": 0.02, "momentum": 0.0}, {"lr": 0.02}),
        ({"name": "fedprox", "lr": 0.02, "local_epochs": 4}, {"lr": 0.02}),
        ({"name": "fairtune", "lr": {"low": 1e-3, "high": 1e-1, "start": 1e-2}, "batch": 16}, {"batch": 16}),
    ],
    ids=lambda part: part.get("name", "") if isinstance(part, dict) else "",
)
def test_a_key_is_taken_over_where_it_means_the_same_in_both(own: dict[str, Any], taken: dict[str, Any]) -> None:
    study = make_study(own)
    for name in OTHERS:
        if name == own["name"]:
            continue
        method = METHODS[name]
        found = variant(study, name)
        resolve(found)
        expected = {k: v for k, v in taken.items() if k in method.shared and k in method.parameters.model_fields}
        assert found.method.parameters == expected, name


def test_every_setting_of_a_tuned_comparison_is_checked_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    hospitals = {"kind": "synthetic", "bench": "A", "count": 3, "patients": 60}
    study = make_study({"name": "swift"}, factory="conv", simulation={"hospitals": hospitals})
    bad = study.with_method("fairprune", ratio=1.2)
    monkeypatch.setattr("equipoise.simulations.contenders.settings", lambda own: [own, bad])
    Comparison(study, ("swift",), (0,)).check()
    with pytest.raises(StudyError, match="ratio"):
        Comparison(study, ("swift",), (0,), tune=True).check()
