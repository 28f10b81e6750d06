"""The study: its hash, its weights, its method and controls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from equipoise.common.attribute import Attribute
from equipoise.common.canonical import sha256
from equipoise.common.errors import ModelError, StudyError
from equipoise.common.methods import METHOD_CONTROLS, SIMULATION_CONTROLS, control_of, resolve
from equipoise.common.streams import numpy_stream, stream_seed, torch_stream
from equipoise.common.study import Study
from equipoise.common.study_file import load_study, pin_weights
from equipoise.common.study_plan import StudyPlan
from tests.tiny import make_study, private_study, weights_file, write_study

STUDY = make_study()


def test_the_hash_covers_all_but_the_coordinators_own() -> None:
    value = STUDY.model_dump(mode="json", by_alias=True)
    same = [
        {**value, "simulation": {"hospitals": {"kind": "heart"}}},
        {**value, "model": {**value["model"], "weights": {**value["model"]["weights"], "path": "elsewhere"}}},
    ]
    for one in same:
        assert Study.model_validate(one).hash == STUDY.hash
    other: list[dict[str, Any]] = [
        {"study": "other"},
        {"seed": 8},
        {"model": {**value["model"], "head": "extractor."}},
        {"model": {**value["model"], "arguments": {"x": 1}}},
        {"model": {**value["model"], "weights": {"path": "vendor", "sha256": "0" * 64}}},
        {"inputs": {**value["inputs"], "features": value["inputs"]["features"][::-1]}},
        {"label": {"column": "disease", "positive": ["2"]}},
        {"label": {**value["label"], "negative": ["other"]}},
        {"attributes": value["attributes"][:1]},
        {"method": {**value["method"], "lr": 0.5}},
        {"method": {**value["method"], "controls": ["plain"]}},
        {"evaluation": {**value["evaluation"], "bins": 65}},
        {"sites": {**value["sites"], "declared_patients": {"a": 3}}},
    ]
    hashes = {Study.model_validate({**value, **change}).hash for change in other}
    assert len(hashes | {STUDY.hash}) == len(other) + 1


def test_defaults_that_are_written_out_are_the_same_study() -> None:
    value = json.loads(STUDY.model_dump_json(by_alias=True))
    assert Study.model_validate(value).hash == STUDY.hash
    del value["privacy"], value["seed"]
    assert Study.model_validate({**value, "seed": 7}).hash == STUDY.hash


@pytest.mark.parametrize(
    ("key", "value"), [("epsilon", 3), ("delta", 1e-6), ("split", {"train": {"counts": 1}}), ("controls", "shared")]
)
def test_what_says_something_of_noise_is_refused_without_it(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"mode none has no {key}; write mode: local, or leave it out"):
        make_study(privacy={"mode": "none", key: value})
    make_study(privacy={"mode": "local", "epsilon": 3, key: value})


def test_bins_stand_in_one_place() -> None:
    given = {"kind": "score", "before": "risk", "edges": [0.2, 0.5]}
    value = STUDY.model_dump(mode="json", by_alias=True, exclude={"model"}) | {"method": {"name": "audit"}}
    with pytest.raises(ValueError, match=r"evaluation\.bins=64: inputs.edges say which bins there are; leave one"):
        Study.model_validate({**value, "inputs": given})
    for one in ({"inputs": {**given, "edges": None}}, {"inputs": given, "evaluation": {}}):
        assert Study.model_validate({**value, **one})


def test_a_second_model_is_of_an_audit_alone() -> None:
    second = STUDY.model.model_copy(update={"after": STUDY.model.weights})
    study = STUDY.model_copy(update={"model": second})
    with pytest.raises(StudyError, match=r"model\.after\.path=vendor: only method audit .*method\.name=swift; leave"):
        resolve(study)
    assert resolve(study.with_method("audit")).name == "audit"


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_share_on_patients_of_whom_nothing_is_asked_is_refused(split: str) -> None:
    study = private_study(privacy={"split": {split: {"histogram": 1}}})
    plan = StudyPlan.of(study)
    others = StudyPlan(tuple(entry for entry in plan.entries if entry.query.split == "train"))
    with pytest.raises(StudyError, match=rf"privacy\.split\.{split}: the study asks nothing of its {split} patients"):
        others.calibrated(study)
    assert others.calibrated(private_study()).entries


def test_a_study_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        STUDY.seed = 3


@pytest.mark.parametrize(
    ("cuts", "groups"),
    [([60], ("<60", ">=60")), ([40, 60], ("<40", "40-<60", ">=60")), ([0.5, 1.25], ("<0.5", "0.5-<1.25", ">=1.25"))],
)
def test_names_of_cut_groups(cuts: list[float], groups: tuple[str, ...]) -> None:
    assert Attribute(name="age", kind="cut", column="age", cuts=cuts).groups == groups


def test_weights_are_pinned_by_digest_and_path(tmp_path: Path) -> None:
    path = write_study(tmp_path, tmp_path / "hospitals", {"name": "swift"})
    weights = load_study(path).model.weights
    assert weights is not None
    assert weights.sha256 == sha256(weights_file())
    assert weights.path == str(tmp_path / "vendor.safetensors")
    assert load_study(path, ["method.lr=0.5"]).hash != load_study(path).hash
    with pytest.raises(ModelError, match=r"model.weights.sha256: .* has digest .* the study declares"):
        load_study(path, [f"model.weights.sha256='{'0' * 64}'"])
    with pytest.raises(ModelError, match=r"model.weights.path=nothing: no readable file"):
        load_study(path, ["model.weights.path=nothing"])
    with pytest.raises(StudyError, match="weights is missing"):
        load_study(path, ["model.weights=null", "simulation=null"])
    with pytest.raises(StudyError, match="weights is missing"):
        pin_weights(STUDY.model_copy(update={"model": STUDY.model.model_copy(update={"weights": None})}), tmp_path)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"name": "magic"}, "method.name=magic: no such method; there are: "),
        ({"name": "swift", "learning_rate": 1}, "method: unknown key 'learning_rate'"),
        ({"name": "swift", "momentun": 0.9}, "did you mean 'momentum'?"),
        ({"name": "swift", "lr": "fast"}, "method: lr='fast'"),
        ({"name": "swift", "lr": -1}, "method: lr=-1"),
        ({"name": "swift", "lr": float("nan")}, "method: lr=nan"),
        ({"name": "swift", "lr": float("inf")}, "method: lr=inf"),
        ({"name": "swift", "beta": 1.5}, "method: beta=1.5"),
        ({"name": "swift", "momentum": 1}, "method: momentum=1"),
        ({"name": "swift", "granularity": "layer"}, "method: granularity='layer'"),
        ({"name": "swift", "rounds": 3}, "method: rounds=3"),
        ({"name": "swift", "rounds": {"head": -1}}, "method: rounds.head=-1"),
        ({"name": "swift", "rounds": {"tail": 1}}, "unknown key 'rounds.tail'"),
        ({"name": "swift", "step": "full_gradient", "losses": "batch"}, "step=full_gradient has no batches"),
        ({"name": "fine_tune", "beta": 0.5}, "method: unknown key 'beta'"),
        ({"name": "fine_tune", "rounds": 0}, "method: rounds=0"),
        ({"name": "swift", "controls": ["placebo"]}, "method.controls: no control 'placebo'; there are: "),
        ({"name": "fine_tune", "controls": ["permuted"]}, "'permuted' has no meaning for method 'fine_tune'"),
    ],
)
def test_a_wrong_method_is_one_line(method: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError) as caught:
        resolve(make_study(method))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("control", METHOD_CONTROLS)
def test_a_control_is_a_study_of_its_own(control: str) -> None:
    study = make_study({"name": "swift", "controls": [control], "lr": 0.25, "rounds": {"extractor": 2, "head": 3}})
    variant = control_of(study, control)
    assert variant is not None
    assert variant.hash != study.hash
    assert variant.method.controls == []
    assert resolve(variant).name == variant.method.name
    assert variant.method.parameters["lr"] == 0.25  # the same effort
    if variant.method.name == "fine_tune":
        assert variant.method.parameters["rounds"] == 5
    assert variant.model == study.model
    assert variant.sites == study.sites


def test_controls_that_need_all_data_are_no_queries() -> None:
    study = make_study({"name": "swift", "controls": list(SIMULATION_CONTROLS)})
    resolve(study)
    assert all(control_of(study, control) is None for control in SIMULATION_CONTROLS)


def test_streams_are_fixed_by_seed_and_names_alone() -> None:
    assert stream_seed(1, "a", 2) == stream_seed(1, "a", 2) < 2**63
    seeds = [
        stream_seed(1, "a", 2),
        stream_seed(2, "a", 2),
        stream_seed(1, "a", 3),
        stream_seed(1, "a2"),
        stream_seed(1, "2", "a"),
    ]
    assert len(set(seeds)) == 5
    assert (numpy_stream(1, "x").random(3) == numpy_stream(1, "x").random(3)).all()
    assert torch_stream(1, "x").initial_seed() == torch_stream(1, "x").initial_seed()
    assert stream_seed(1, "a", 2) == 5440388798209787277  # half of the first eight bytes of SHA-256, little-endian
