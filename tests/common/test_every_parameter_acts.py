"""Every parameter of every method changes what is asked or what comes out.

In the public codes some do not: class weights that are computed and left out of the loss, a sweep over parameters that
a hard-coded switch turns off, a learning rate that is searched and then lost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from equipoise.common.methods import METHODS
from tests.driving import Driven, Town, parts_of, town

STEPS: dict[str, Any] = {"lr": 0.05, "momentum": 0.3, "weight_decay": 0.1, "local_epochs": 2, "batch": 8}
LAYER = "extractor.0.weight"
# What each method starts from, so that every parameter has something to act on.
START: dict[str, dict[str, Any]] = {
    "swift": {"rounds": {"extractor": 2, "head": 1}, "batch": 16, "lr": 0.01, "weight_cap": 1.5,
              "granularity": "parameter"},
    "bmft": {"rounds": {"impair": 2, "repair": 1}, "batch": 16, "impair_lr": 0.05, "weight_cap": 1.5},
    "fine_tune": {"rounds": 2, "batch": 16, "lr": 0.01, "weight_cap": 1.5},
    "zhang_zhou": {"rounds": 2, "batch": 16, "lr": 0.01, "layers": [LAYER], "ranks": [0.25, 0.5], "loss": "cells",
                   "weight_cap": 1.5, "energy": 0.5, "floor": 1e-3},
    "fairprune": {"better_off": "male"},
    "dfr": {"inverse_penalties": [0.03], "newton_steps": 2, "weight_cap": 1.5},
    "reweighing": {"rounds": 2, "batch": 16, "lr": 0.01, "weight_cap": 1.05},
    "group_dro": {"rounds": 3, "batch": 16, "lr": 0.01, "weight_cap": 1.5, "loss_cap": 0.5},
    "fedfb": {"rounds": 3, "batch": 16, "lr": 0.01, "weight_cap": 1.02, "loss_cap": 0.5, "alpha": 0.5},
    "fedprox": {"rounds": 2, "batch": 16, "lr": 0.01, "local_epochs": 1, "weight_cap": 1.5},
    "fairfed": {"rounds": 3, "batch": 16, "lr": 0.01, "loss": "cells", "weight_cap": 1.5},
    "q_ffl": {"rounds": 2, "batch": 16, "lr": 0.01},
    "afl": {"rounds": 3},
    "group_thresholds": {"allow_group_thresholds": True},
}  # fmt: skip
# Another value of each parameter; those of local steps are in STEPS.
OTHER: dict[str, dict[str, Any]] = {
    "swift": {"bias_loss": "demographic_parity", "form": "signed", "beta": 0.9, "smoothing": 0.5, "losses": "batch",
              "balance": "classes", "weight_cap": 4.0, "importance": "mini_batch", "granularity": "tensor",
              "scaling": "minmax", "floor": 1.0, "mask": "constant", "head_reset": "none", "step": "full_gradient",
              "rounds": {"extractor": 1, "head": 1}},
    "bmft": {"bias_loss": "demographic_parity", "form": "signed", "bias_share": 0.9, "smoothing": 0.5,
             "percentile": 90, "granularity": "tensor", "scaling": "minmax", "floor": 1.0, "mask": "permuted",
             "head_reset": "none", "balance": "classes", "weight_cap": 4.0, "impair_lr": 0.01, "step": "full_gradient",
             "rounds": {"impair": 1, "repair": 1}},
    "fine_tune": {"loss": "plain", "part": "head", "weight_cap": 4.0, "step": "full_gradient", "rounds": 1},
    "zhang_zhou": {"layers": ["extractor.2.weight"], "neutraliser": "max", "ranks": [0.125], "energy": 0.99999,
                   "floor": 2.0, "importance": "permuted", "loss": "plain", "weight_cap": 4.0, "rounds": 1},
    "fairprune": {"ratio": 0.1, "beta": 3.0, "better_off": "female", "scores": "permuted"},
    "dfr": {"penalty": "l2", "inverse_penalties": [1.0], "weight_cap": 10.0, "newton_steps": 1},
    "reweighing": {"weight_cap": 4.0, "step": "full_gradient", "rounds": 1},
    "group_dro": {"eta": 3.0, "update": "projected", "adjustment": 5.0, "weight_cap": 10.0, "loss_cap": 4.0,
                  "step": "full_gradient", "rounds": 2},
    "fedfb": {"alpha": 5.0, "weight_cap": 4.0, "loss_cap": 4.0, "step": "full_gradient", "rounds": 2},
    "fedprox": {"mu": 5.0, "loss": "plain", "weight_cap": 4.0, "rounds": 1},
    "fairfed": {"metric": "demographic_parity", "beta": 5.0, "loss": "plain", "weight_cap": 4.0, "rounds": 2},
    "q_ffl": {"q": 3.0, "rounds": 1},
    "afl": {"lr": 0.01, "eta": 3.0, "rounds": 2},
    "group_thresholds": {"aim": "equalized_odds"},
}  # fmt: skip
# Looked at elsewhere: images alone can be mirrored; noise alone asks for whitened rounds and few bins; two groups have
# no extremes; without the permission there is no run; DP-SGD has tests of its own (test_private_averaging.py).
ELSEWHERE = {"flips", "whitened", "whitened_head", "dp_sgd", "levels", "bins", "allow_group_thresholds"}
CASES = [
    (name, key, value)
    for name, own in OTHER.items()
    for key, value in {**{k: v for k, v in STEPS.items() if k in METHODS[name].parameters.model_fields}, **own}.items()
]


def place_of(name: str, **changes: Any) -> Town:
    parameters = {**START[name], **changes}
    if parameters.get("step") == "full_gradient":
        parameters.pop("batch")  # it has none, and refuses one
    return town(name, 300 if name == "group_thresholds" else 60, **parameters)


def trained(place: Town) -> Driven:
    return place.run(*parts_of(len(place.people)))


def result(done: Driven) -> tuple[np.ndarray, str]:
    model = done.outcome.classifier
    state = model.state
    flat = np.concatenate([np.asarray(state[name], dtype=np.float64).ravel() for name in sorted(state)])
    return flat, "" if model.alignment is None else str(model.alignment.to_json())


@pytest.fixture(scope="module")
def started() -> dict[str, tuple[np.ndarray, str]]:
    return {name: result(trained(place_of(name))) for name in START}


@pytest.mark.parametrize(("name", "key", "value"), CASES, ids=lambda part: part if isinstance(part, str) else "")
def test_a_parameter_acts(name: str, key: str, value: Any, started: dict[str, tuple[np.ndarray, str]]) -> None:
    weights, operating = result(trained(place_of(name, **{key: value})))
    before, operating_before = started[name]
    assert not np.array_equal(weights, before) or operating != operating_before


@pytest.mark.parametrize("name", START)
def test_the_same_parameters_give_the_same(name: str, started: dict[str, tuple[np.ndarray, str]]) -> None:
    weights, operating = result(trained(place_of(name)))
    np.testing.assert_array_equal(weights, started[name][0])
    assert operating == started[name][1]


@pytest.mark.parametrize("name", START)
def test_none_is_forgotten(name: str) -> None:
    tried = {key for method, key, _ in CASES if method == name} | ELSEWHERE
    assert set(METHODS[name].parameters.model_fields) <= tried


def test_the_methods_that_are_not_here_are_tested_by_parameter_elsewhere() -> None:
    # fairtune: test_fairtune.py, by objective, search, masks, tying, chosen; private_head: test_whitened_rounds.py.
    assert set(METHODS) - set(START) == {"fairtune", "private_head", "audit"}


@pytest.mark.parametrize("name", [name for name in OTHER if "weight_cap" in METHODS[name].parameters.model_fields])
def test_a_control_trains_under_the_cap_of_its_method(name: str) -> None:
    place = town(name, weight_cap=1.75)
    assert METHODS[name].controls["balanced"](place.study).method.parameters["weight_cap"] == 1.75
