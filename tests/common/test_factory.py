"""What a study's factory may do wrong, each told in one line that names the factory and the remedy."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

from equipoise.common.errors import ModelError
from equipoise.common.factory import load_factory, refuse_unsaveable

MLP = "equipoise.common.models:mlp"


def refused(factory: str, arguments: dict[str, Any]) -> str:
    with pytest.raises(ModelError) as error:
        load_factory(factory, arguments)
    assert error.value.exit_code == 4
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        (
            "tests.wrong:raises",
            {},
            "tests.wrong:raises: with model.arguments={} it fails (ValueError: boom)",
        ),
        ("tests.wrong:exits", {}, "it fails (SystemExit: 3)"),
        ("tests.wrong:none", {}, "returns NoneType, expected a torch.nn.Module"),
        ("tests.wrong:odd", {}, "is no model factory"),
        ("tests.wrong:good", {"features": -1}, "model.arguments={'features': -1} it fails (RuntimeError: "),
        ("tests.wrong:good", {"features": "6"}, "model.arguments={'features': '6'} it fails (TypeError: "),
        (MLP, {"features": "26"}, "mlp: features='26', hidden=(64, 32): expected a whole number"),
        (MLP, {"features": 2.5}, "mlp: features=2.5"),
        (MLP, {"features": 26, "hidden": 3}, "hidden=3: expected a whole number and a list of them"),
        (MLP, {"features": 26, "hidden": "64"}, "hidden='64'"),
    ],
)
def test_a_factory_that_fails_says_why(factory: str, arguments: dict[str, Any], message: str) -> None:
    assert message in refused(factory, arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("raise RuntimeError('no licence\\nhere')", "importing PLACE fails (RuntimeError: no licence)"),
        ("def f(:", "importing PLACE fails (SyntaxError: "),
        ("import sys\nsys.exit(3)", "importing PLACE fails (SystemExit: 3)"),
        ("import no_such_package.deep", "no module 'no_such_package' is installed"),
        ("raise ModuleNotFoundError", "no module 'PLACE' is installed"),
    ],
)
def test_a_module_that_cannot_be_imported_says_why(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    place = f"module_of_{tmp_path.name}"  # one name a case: what Python found in a folder it remembers
    (tmp_path / f"{place}.py").write_text(content)
    assert message.replace("PLACE", place) in refused(f"{place}:build", {})


def test_a_module_of_the_working_folder_is_found_by_a_path() -> None:
    assert "PYTHONPATH=. for the working folder" in refused("mymodels:build", {})


def test_weights_that_are_one_are_named_before_a_file_is_written() -> None:
    message = refused("tests.wrong:Tied", {})
    assert message == "model tensors first.weight and again.weight are one; untie them: give each its own values"


def test_a_view_of_another_tensor_is_the_same_memory() -> None:
    model = nn.Linear(4, 4)
    model.register_buffer("row", model.weight.detach()[1])
    with pytest.raises(ModelError, match="weight and row are one"):
        refuse_unsaveable(model)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("tests.wrong:on_meta", "body.0.weight lies on the device meta"),
        ("tests.wrong:Lazy", "body.0.weight has no shape before the first batch"),
        ("tests.wrong:Strided", "is not contiguous"),
        ("tests.wrong:Stateful", "model state _extra_state is a str"),
    ],
)
def test_tensors_that_no_file_can_hold_are_named(factory: str, message: str) -> None:
    assert message in refused(factory, {})


def test_what_passes_can_be_saved() -> None:
    """Tensors side by side in one memory are each their own, and empty ones have none."""
    model = nn.Linear(2, 2)
    flat = torch.zeros(6)
    model.weight.data, model.bias.data = flat[:4].view(2, 2), flat[4:]
    model.register_buffer("none", torch.zeros(0))
    model.register_buffer("also_none", torch.zeros(0))
    refuse_unsaveable(model)
    assert save(model.state_dict())


@pytest.mark.parametrize("name", ["load_factory", "load_weights", "build"])
def test_a_function_of_ours_that_is_no_factory_imports_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`caps.models` lets in `equipoise.common.models:*`, which must not stand for any module there is."""
    (tmp_path / "planted_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    message = refused(f"equipoise.common.models:{name}", {"factory": "planted_module:X", "arguments": ""})
    assert "planted_module" not in sys.modules
    assert "is defined in" in message or "is no factory of equipoise" in message or "is no model factory" in message


@pytest.mark.parametrize("module", ["models", "vision_transformer"])
def test_each_factory_of_ours_is_offered(module: str) -> None:
    """What takes no more than numbers and gives a network."""
    content = vars(importlib.import_module(f"equipoise.common.{module}"))
    made = {
        name
        for name, value in content.items()
        if inspect.isfunction(value)
        and value.__annotations__.get("return") == "nn.Module"
        and "ModelSpec" not in value.__annotations__.values()
        and value.__module__.endswith(module)
    }
    assert made == {factory.__name__ for factory in content["FACTORIES"]}
