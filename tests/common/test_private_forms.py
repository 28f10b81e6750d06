"""Which methods have a private form: each is priced within its epsilon, and is sums over patients but for its noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.common.classifier import Classifier
from equipoise.common.config import Strict
from equipoise.common.errors import StudyError
from equipoise.common.methods import METHODS, resolve
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from tests.driving import Driven, drive, parts_of, private_town, town
from tests.tiny import Memory, declare, make_study

LAYER = "extractor.0.weight"
W: dict[str, Any] = {"rounds": 3, "directions": 8, "rank": 2, "accept_poor_pool": True}
HEAD: dict[str, Any] = {"rounds": 3, "directions": 5, "accept_poor_pool": True}
SMALL: dict[str, dict[str, Any]] = {
    "swift": {"whitened": W},
    "bmft": {"whitened": W, "whitened_head": HEAD},
    "zhang_zhou": {"whitened": W, "layers": [LAYER], "ranks": [0.25, 0.5]},
    "dfr": {"whitened": HEAD},
    "reweighing": {"whitened": W},
    "group_dro": {"whitened": W},
    "fedfb": {"whitened": W},
    "fine_tune": {"whitened": W},
    "private_head": HEAD,
}
PRIVATE = [name for name, method in METHODS.items() if not method.private.startswith("none")]


def sites_of(place: Any, *parts: Any) -> tuple[Study, dict[str, Memory]]:
    sites = place.sites(*parts)
    return declare(place.study, {s: len(p) for s, p in zip(sites, parts, strict=True)}), sites


def test_a_method_says_whether_it_has_a_private_form() -> None:
    assert all(method.private and method.costs for method in METHODS.values())


@pytest.mark.parametrize("name", [name for name in METHODS if name not in PRIVATE])
def test_one_without_refuses_and_names_another(name: str, tmp_path: Path) -> None:
    place = private_town(tmp_path, name)
    with pytest.raises(StudyError, match="no private form") as found:
        METHODS[name].plan(place.study, place.model)
    assert any(other in str(found.value) for other in PRIVATE)


@pytest.mark.parametrize(
    ("name", "key", "value", "remedy"),
    [
        *[
            ("swift", key, value, f"write {key}: ")
            for key, value in {
                "losses": "batch",
                "levels": "extremes",
                "importance": "mini_batch",
                "granularity": "channel",
                "scaling": "minmax",
                "form": "signed",
            }.items()
        ],
        ("swift", "beta", 0.1, "write whitened.beta"),
        ("swift", "smoothing", 0.2, "write whitened.smoothing"),
        ("bmft", "form", "signed", "write form: absolute"),
        ("bmft", "smoothing", 0.2, "write whitened.smoothing and whitened_head.smoothing"),
    ],
)
def test_what_the_private_form_does_not_have_is_refused_and_not_dropped(
    name: str, key: str, value: Any, remedy: str, tmp_path: Path
) -> None:
    place = private_town(tmp_path, name, **SMALL[name], **{key: value})
    with pytest.raises(StudyError, match=f"method.{key}={value}: has no effect in whitened rounds") as found:
        METHODS[name].plan(place.study, place.model)
    assert remedy in str(found.value)


OF_OTHER_ROUNDS: dict[str, tuple[Any, str]] = {
    "rounds": ({"extractor": 2, "head": 1}, "write whitened.rounds"),
    "lr": (0.1, "write whitened.lr"),
    "momentum": (0.5, "write whitened.momentum"),
    "weight_decay": (0.1, "write weight_decay: 0.0"),
    "local_epochs": (2, "write local_epochs: 1"),
    "batch": (8, "write batch: 64"),
    "flips": (True, "write flips: False"),
    "weight_cap": (2.0, "write weight_cap: 4.0"),
    "head_reset": ("none", "write head_reset: above_mean"),
}


@pytest.mark.parametrize("key", OF_OTHER_ROUNDS)
def test_a_declared_step_refuses_what_other_rounds_read_and_one_left_out_serves_both(key: str, tmp_path: Path) -> None:
    value, remedy = OF_OTHER_ROUNDS[key]
    place = private_town(tmp_path, "swift", **SMALL["swift"], **{key: value})
    METHODS["swift"].plan(place.study, place.model)
    METHODS["swift"].plan(town("swift", **{key: value}).study, place.model)
    for declared in (
        private_town(tmp_path, "swift", step="whitened", **SMALL["swift"], **{key: value}),
        town("swift", step="whitened", **{key: value}),
    ):
        with pytest.raises(StudyError, match=rf"method\.{key}=.*whitened rounds \(method\.step=whitened") as found:
            METHODS["swift"].plan(declared.study, declared.model)
        assert remedy in str(found.value)


@pytest.mark.parametrize(
    ("name", "key", "value", "remedy"),
    [
        *[
            (name, key, value, remedy)
            for name in ("fine_tune", "reweighing", "group_dro", "fedfb", "bmft")
            for key, (value, remedy) in OF_OTHER_ROUNDS.items()
            if key not in ("rounds", "weight_cap", "head_reset", *(["lr"] if name == "bmft" else []))
        ],
        *[(name, "rounds", 7, "write whitened.rounds") for name in ("fine_tune", "reweighing", "group_dro", "fedfb")],
        ("fine_tune", "weight_cap", 2.0, "write weight_cap: 4.0"),
        ("bmft", "rounds", {"impair": 2, "repair": 1}, "write whitened.rounds and whitened_head.rounds"),
        ("bmft", "lr", 0.2, "write whitened_head.lr"),
        ("bmft", "impair_lr", 0.2, "write whitened.lr"),
        ("bmft", "weight_cap", 2.0, "write weight_cap: 4.0"),
    ],
)
def test_so_does_that_of_the_other_methods(name: str, key: str, value: Any, remedy: str, tmp_path: Path) -> None:
    for step, refused in ((None, False), ("whitened", True)):
        place = private_town(tmp_path, name, step=step, **SMALL[name], **{key: value})
        if not refused:
            METHODS[name].plan(place.study, place.model)
            continue
        with pytest.raises(StudyError, match=rf"method\.{key}=.*whitened rounds \(method\.step=whitened") as found:
            METHODS[name].plan(place.study, place.model)
        assert remedy in str(found.value)


@pytest.mark.parametrize("name", ["swift", "bmft", "reweighing", "group_dro", "fedfb"])
def test_controls_of_a_declared_step_are_planned(name: str, tmp_path: Path) -> None:
    study = private_town(tmp_path, name, step="whitened", **SMALL[name])
    for control in METHODS[name].controls.values():
        variant = control(study.study)
        assert METHODS[variant.method.name].plan(variant, study.model)


@pytest.mark.parametrize("name", [name for name in PRIVATE if name in SMALL])
def test_every_release_is_noised_and_all_of_them_cost_no_more_than_epsilon(name: str, tmp_path: Path) -> None:
    place = private_town(tmp_path, name, epsilon=3.0, **SMALL[name])
    study, _ = sites_of(place, *parts_of(60))
    plan = StudyPlan.single(name, METHODS[name].plan(study, place.model))
    assert all(entry.query.private for entry in plan.entries)
    calibrated = plan.calibrated(study)
    for split in ("train", "validation"):
        if calibrated.plans(split):
            assert 2.8 < calibrated.cost(split, 1e-5).epsilon <= 3.0
    # What the door clips to is what is accounted: no block is left out of the vector's bound.
    for entry in calibrated.entries:
        assert entry.query.plan.dimensions == sum(block.size for block in entry.query.blocks.values())


@pytest.mark.parametrize("name", [name for name in PRIVATE if name in SMALL])
def test_it_runs_and_every_partition_gives_the_same_where_noise_is_negligible(name: str, tmp_path: Path) -> None:
    # So few patients hide behind so little noise only for a test: at epsilon 3 their counts would drown.
    place = private_town(tmp_path, name, epsilon=50.0, count=150, **SMALL[name])

    def run(*parts: Any, noise: bool) -> Driven:
        study, sites = sites_of(place, *parts)
        return drive(study, sites, place.model, noise=noise)

    noisy = run(*parts_of(150), noise=True).outcome.classifier
    exact = [run(*parts, noise=False).outcome.classifier for parts in ([range(150)], parts_of(150, 4))]
    vector = [flat(model) for model in (place.model, noisy, *exact)]
    assert all(np.isfinite(v).all() for v in vector)
    assert np.linalg.norm(vector[1] - vector[2]) > 1e-4  # noise does something
    np.testing.assert_allclose(vector[2], vector[3], atol=2e-3)
    assert np.linalg.norm(vector[2] - vector[0]) > 20 * np.linalg.norm(vector[2] - vector[3])


def flat(model: Classifier) -> np.ndarray:
    return model.layout().flatten(model.state)


PARTS = [
    (name, part)
    for name, method in METHODS.items()
    for part, field in method.parameters.model_fields.items()
    if isinstance(field.default, Strict)
]


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_one_key_of_a_part_leaves_the_method_its_own_defaults_of_the_others(name: str, part: str) -> None:
    parameters = METHODS[name].parameters
    whole = parameters.model_fields[part].default
    assert whole == type(whole)()  # defaults of the class: an instance's would be lost to the first key
    assert getattr(parameters.model_validate({part: {}}), part) == whole
    if name != "fairtune":  # its search sets three of the keys, and takes none of them
        assert getattr(parameters.model_validate({part: whole.model_dump()}), part) == whole


@pytest.mark.parametrize(
    ("name", "rate", "beta"), [("dfr", 1.5, 1.0), ("zhang_zhou", 0.4, 1.0), ("reweighing", 0.4, 1.0)]
)
def test_a_written_number_of_rounds_puts_no_bias_loss_into_a_task_loss(
    name: str, rate: float, beta: float, tmp_path: Path
) -> None:
    place = private_town(
        tmp_path, name, whitened={"rounds": 5}, **({"layers": [LAYER]} if name == "zhang_zhou" else {})
    )
    given = METHODS[name].parameters.model_validate(place.study.method.parameters).model_dump()["whitened"]
    assert (given["rounds"], given["lr"], given["beta"]) == (5, rate, beta)
    rounds = [q for q in METHODS[name].plan(place.study, place.model) if q.name == "whitened_gradient"]
    assert [query.parameters["beta"] for query in rounds] == [beta] * 5


def test_a_head_has_no_filters_to_choose() -> None:
    for method in ({"name": "private_head", "rank": 2}, {"name": "dfr", "whitened": {"rank": 2}}):
        with pytest.raises(StudyError, match=r"unknown key '.*rank'"):
            resolve(make_study(method))


@pytest.mark.parametrize(
    ("name", "path", "value", "remedy"),
    [
        ("fine_tune", "whitened.beta", 0.5, r"leave it out, or write whitened.beta: 1\.0"),
        ("fine_tune", "whitened.smoothing", 0.2, r"leave it out, or write whitened.smoothing: 0\.08"),
        ("fine_tune", "dp_sgd.smoothing", 0.2, r"leave it out, or write dp_sgd.smoothing: 0\.08"),
        ("bmft", "whitened.beta", 0.5, r"leave it out, or write whitened.beta: 0\.9"),
        ("bmft", "whitened_head.beta", 0.5, "write bias_share"),
    ],
)
@pytest.mark.parametrize("step", ["fedavg", "whitened", None])
def test_a_share_of_a_loss_that_is_not_there_is_refused(
    name: str, path: str, value: Any, remedy: str, step: str | None
) -> None:
    part, key = path.split(".")
    place = town(name, step=step, **{part: {key: value}})
    with pytest.raises(StudyError, match=rf"method\.{path}={value}: has no effect in .*; {remedy}$"):
        METHODS[name].plan(place.study, place.model)


OWN_SHARES: dict[str, dict[str, Any]] = {
    "swift": {"whitened": {"beta": 0.5, "smoothing": 0.2}, "dp_sgd": {"smoothing": 0.2}},
    "bmft": {"whitened": {"smoothing": 0.2}},
    "zhang_zhou": {"whitened": {"beta": 0.5, "smoothing": 0.2}, "layers": [LAYER]},
    "dfr": {"whitened": {"beta": 0.5, "smoothing": 0.2}},
    "reweighing": {"whitened": {"beta": 0.5}},
    "private_head": {"beta": 0.5, "smoothing": 0.2},
}


@pytest.mark.parametrize("name", OWN_SHARES)
def test_a_control_without_a_bias_loss_takes_the_rounds_and_not_the_share(name: str, tmp_path: Path) -> None:
    place = private_town(tmp_path, name, **OWN_SHARES[name])
    variant = METHODS[name].controls["plain"](place.study)
    rounds = METHODS["fine_tune"].plan(variant, place.model)
    assert {q.parameters["beta"] for q in rounds if q.name == "whitened_gradient"} == {1.0}


WITH_A_STEP = [name for name, method in METHODS.items() if "step" in method.parameters.model_fields]
NO_BATCHES: dict[str, Any] = {"weight_decay": 0.1, "local_epochs": 2, "batch": 8, "flips": True}


@pytest.mark.parametrize("name", WITH_A_STEP)
@pytest.mark.parametrize("key", NO_BATCHES)
def test_full_gradients_refuse_what_is_of_batches(name: str, key: str) -> None:
    place = town(name, step="full_gradient", **{key: NO_BATCHES[key]})
    with pytest.raises(StudyError, match=rf"method\.{key}=.*full-gradient rounds \(method\.step=full_gradient"):
        METHODS[name].plan(place.study, place.model)


def test_a_batch_of_the_importance_is_read_beside_full_gradients_and_its_controls_have_none() -> None:
    place = town("swift", step="full_gradient", importance="mini_batch", batch=8)
    assert METHODS["swift"].plan(place.study, place.model)
    for control in METHODS["swift"].controls.values():
        variant = control(place.study)
        assert METHODS[variant.method.name].plan(variant, place.model)


@pytest.mark.parametrize("name", WITH_A_STEP)
@pytest.mark.parametrize("step", ["fedavg", "full_gradient", "whitened"])
def test_a_declared_step_refuses_the_parts_of_others(name: str, step: str) -> None:
    fields = METHODS[name].parameters.model_fields
    of_whitened = {part: {"directions": 5} for part in ("whitened", "whitened_head") if part in fields}
    of_noise = {part: {"memory": 0.2} for part in ("dp_sgd",) if part in fields}
    refused = of_noise if step == "whitened" else of_whitened | of_noise
    for part, value in refused.items():
        place, (key, number) = town(name, step=step, **{part: value}), next(iter(value.items()))
        with pytest.raises(StudyError, match=rf"method\.{part}\.{key}={number}: has no effect .*method\.step={step}"):
            METHODS[name].plan(place.study, place.model)
        place = town(name, **{part: value})  # a step left out serves both worlds
        assert METHODS[name].plan(place.study, place.model)


@pytest.mark.parametrize(
    ("name", "key", "value", "remedy"),
    [
        ("swift", "weight_cap", 2.0, "write weight_cap: 4.0"),
        ("swift", "smoothing", 0.2, "write dp_sgd.smoothing"),
        ("swift", "whitened", {"memory": 0.2}, r"write whitened\.memory: 0\.5"),
        ("fine_tune", "weight_cap", 2.0, "write weight_cap: 4.0"),
        ("fine_tune", "whitened", {"memory": 0.2}, r"write whitened\.memory: 0\.5"),
    ],
)
def test_noisy_averages_refuse_what_exact_ones_and_whitened_rounds_read(
    name: str, key: str, value: Any, remedy: str, tmp_path: Path
) -> None:
    place = private_town(tmp_path, name, step="fedavg", **{key: value})
    with pytest.raises(StudyError, match=rf"method\.{key}.*averages of DP-SGD \(method\.step=fedavg.*{remedy}"):
        METHODS[name].plan(place.study, place.model)


@pytest.mark.parametrize("name", WITH_A_STEP)
@pytest.mark.parametrize("step", ["fedavg", "full_gradient"])
def test_controls_of_exact_steps_are_planned(name: str, step: str) -> None:
    place = town(name, step=step, lr=0.2, momentum=0.5, weight_cap=2.0)
    for control in METHODS[name].controls.values():
        variant = control(place.study)
        assert METHODS[variant.method.name].plan(variant, place.model)


@pytest.mark.parametrize("name", ["swift", "fine_tune"])
def test_controls_of_noisy_averages_are_planned(name: str, tmp_path: Path) -> None:
    dp_sgd = {"memory": 0.2, **({"smoothing": 0.2} if name == "swift" else {})}
    place = private_town(tmp_path, name, step="fedavg", dp_sgd=dp_sgd, batch=8, local_epochs=2)
    study = declare(place.study, {"a": 60})
    for control in METHODS[name].controls.values():
        variant = control(study)
        assert METHODS[variant.method.name].plan(variant, place.model)
