"""The classifiers, and what is refused when one is loaded."""

from __future__ import annotations

import hashlib
import sys
from copy import deepcopy
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call, grad, vmap

from equipoise.common.errors import ModelError
from equipoise.common.factory import load_factory, refuse_mixing
from equipoise.common.models import (
    build,
    load_weights,
    mlp,
    normalise,
    resnet18,
    resnet_small,
    split_parameters,
)
from equipoise.common.study import Feature, ImageInputs, ModelSpec, TableInputs, Weights

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_resnet_small_has_the_parameters_of_the_benchmark() -> None:
    assert size(resnet_small()) == 174_265


def test_resnet18_has_the_size_of_resnet18_with_one_output() -> None:
    # He et al.'s network has 11,176,512 without its classifier, of which batch norms behind three shortcuts are 1,792.
    assert size(resnet18()) == 11_176_512 - 1_792 + 513
    assert size(resnet18(in_channels=1)) == size(resnet18()) - 2 * 49 * 64


def test_mlp_has_the_declared_widths() -> None:
    assert size(mlp(26)) == 26 * 64 + 64 + 64 * 32 + 32 + 32 + 1
    assert size(mlp(4, hidden=(2,))) == 4 * 2 + 2 + 2 + 1
    with pytest.raises(ModelError, match="features=0"):
        mlp(0)


@pytest.mark.parametrize(
    ("model", "batch"),
    [(resnet_small(), IMAGES), (resnet18(), IMAGES.repeat(1, 1, 2, 2)), (mlp(5), IMAGES[:, 0, 0, :5])],
    ids=["resnet_small", "resnet18", "mlp"],
)
class TestEveryModel:
    def test_gives_one_logit_a_row_and_a_head_of_one_layer(self, model: nn.Module, batch: torch.Tensor) -> None:
        assert model(batch).shape == (4,)
        extractor, head = split_parameters(model, "head.")
        assert head == ["head.weight", "head.bias"]
        assert extractor + head == [name for name, _ in model.named_parameters()]

    def test_does_not_mix_the_rows_of_a_batch(self, model: nn.Module, batch: torch.Tensor) -> None:
        model.train()
        changed = torch.cat([batch[:3], batch[3:] + 100])
        torch.testing.assert_close(model(changed)[:3], model(batch)[:3])

    def test_has_gradients_of_each_row(self, model: nn.Module, batch: torch.Tensor) -> None:
        # In double precision: at random weights a max pool may hold ties within float32's rounding.
        model, batch = deepcopy(model).double(), batch.double()
        parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}

        def logit(values: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
            return functional_call(model, values, (row[None],))[0]

        of_rows = vmap(grad(logit), in_dims=(None, 0))(parameters, batch[:2])
        one = grad(logit)(parameters, batch[1])
        for name, gradient in of_rows.items():
            torch.testing.assert_close(gradient[1], one[name], rtol=1e-6, atol=1e-9)

    def test_works_in_no_layer_in_place(self, model: nn.Module, batch: torch.Tensor) -> None:
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []

        def keep(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen.append((inputs[0], inputs[0].clone()))

        hooks = [module.register_forward_pre_hook(keep) for module in model.modules()]
        model(batch)
        for hook in hooks:
            hook.remove()
        assert all(torch.equal(after, before) for after, before in seen)


def test_normalise_centres_images_and_leaves_tables() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    torch.testing.assert_close(normalise(ImageInputs(size=32), pixels), torch.tensor([-2.0, -1.2, 2.0]))
    table = torch.tensor([[0.5, 0.0]])
    assert normalise(TableInputs(features=[Feature(name="age", range=(0, 1))]), table) is table


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        ("no_such_package.models:net", {}, "no module 'no_such_package' is installed"),
        ("equipoise.common.models:nope", {}, "has no function 'nope'"),
        ("equipoise.common.models:__doc__", {}, "has no function"),
        ("equipoise.common.models:mlp", {"feature": 3}, "missing a required argument: 'features'"),
        ("equipoise.common.models:mlp", {"features": 3, "depth": 2}, "unexpected keyword argument 'depth'"),
        ("fractions:Fraction", {"numerator": 1}, "is no model factory"),
        ("builtins:dict", {"a": 1}, "is no model factory"),
        ("torch.nn.modules.batchnorm:BatchNorm1d", {"num_features": 3}, "batch statistics mix patients"),
        ("torch.nn:Linear", {"in_features": 3, "out_features": 1}, "write torch.nn.modules.linear:Linear"),
        ("equipoise.common.models:ImageClassifier", {}, "is no factory of equipoise"),
        ("equipoise.common.models:build", {"spec": 1}, "is no factory of equipoise"),
    ],
)
def test_a_factory_that_does_not_fit_is_refused_in_one_line(
    factory: str, arguments: dict[str, int], message: str
) -> None:
    with pytest.raises(ModelError) as error:
        load_factory(factory, arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_hidden_batch_norm_is_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.SyncBatchNorm(2)))
    with pytest.raises(ModelError, match=r"layer '1\.0' is a SyncBatchNorm"):
        refuse_mixing(model)
    with pytest.raises(ModelError, match="InstanceNorm2d"):
        refuse_mixing(nn.InstanceNorm2d(2, track_running_stats=True))
    refuse_mixing(nn.Sequential(nn.InstanceNorm2d(2), nn.GroupNorm(1, 2), nn.LayerNorm(2)))


class TestWeights:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "vendor.safetensors"
        save_file(mlp(3).state_dict(), path)
        return path

    def refused(self, path: Path, message: str, sha256: str | None = None) -> None:
        model = mlp(3)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(ModelError) as error:
            load_weights(model, path, sha256)
        assert message in str(error.value)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def changed(self, path: Path, **tensors: torch.Tensor | None) -> Path:
        state = {**mlp(3).state_dict(), **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}
        save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path)
        return path

    def test_are_loaded_and_the_digest_is_checked(self, file: Path) -> None:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        spec = ModelSpec(
            factory="equipoise.common.models:mlp",
            arguments={"features": 3},
            weights=Weights(path=str(file), sha256=digest),
        )
        models = [build(spec), build(spec)]
        assert torch.equal(models[0](torch.ones(1, 3)), models[1](torch.ones(1, 3)))
        assert not models[0].training

    def test_another_digest(self, file: Path) -> None:
        self.refused(file, "the study declares " + "0" * 64, sha256="0" * 64)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "none.safetensors", "no readable weights file")

    def test_a_file_of_another_kind(self, tmp_path: Path) -> None:
        path = tmp_path / "model.pt"
        torch.save(mlp(3).state_dict(), path)
        self.refused(path, "not a safetensors file")

    def test_a_missing_tensor(self, tmp_path: Path) -> None:
        self.refused(self.changed(tmp_path / "w", head__bias=None), "'head.bias' of the model is missing")

    def test_an_unexpected_tensor(self, tmp_path: Path) -> None:
        self.refused(self.changed(tmp_path / "w", tail=torch.zeros(1)), "tensor 'tail' is not in the model")

    def test_another_shape(self, tmp_path: Path) -> None:
        path = self.changed(tmp_path / "w", head__weight=torch.zeros(1, 31))
        self.refused(path, "'head.weight' has shape (1, 31), the model expects (1, 32)")

    def test_another_type(self, tmp_path: Path) -> None:
        path = self.changed(tmp_path / "w", head__bias=torch.zeros(1, dtype=torch.float64))
        self.refused(path, "has type torch.float64")

    def test_values_that_are_not_finite(self, tmp_path: Path) -> None:
        path = self.changed(tmp_path / "w", head__bias=torch.tensor([float("nan")]))
        self.refused(path, "not finite")


@pytest.mark.parametrize(("head", "kind"), [("classifier.", "no"), ("h", "no"), ("", "every")])
def test_a_head_prefix_that_does_not_split_is_refused(head: str, kind: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with pytest.raises(ModelError, match=f"{kind} trainable parameter begins with it"):
        split_parameters(model, head)


@pytest.mark.parametrize("device", ["nothing", "meta", "meta:0"])
def test_a_device_that_cannot_be_used_is_named(device: str) -> None:
    with pytest.raises(ModelError, match=rf"model\.device={device}: .*try cpu"):
        build(ModelSpec(factory="equipoise.common.models:resnet_small", device=device))


def test_densenet_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    monkeypatch.setitem(sys.modules, "monai", ModuleType("monai"))
    with pytest.raises(ModelError, match=r"pip install 'equipoise\[monai\]'"):
        load_factory("equipoise.common.models:densenet121", {})


def test_densenet_normalises_no_batch_and_splits_into_extractor_and_head() -> None:
    pytest.importorskip("monai", reason="needs the extra equipoise[monai]")
    model = load_factory("equipoise.common.models:densenet121", {})
    assert size(model) == 6_954_881
    assert model(IMAGES.repeat(1, 1, 2, 2)).shape == (4,)
    assert split_parameters(model, "head.")[1] == ["head.weight", "head.bias"]
    assert not any(getattr(module, "inplace", False) for module in model.modules())


def test_what_does_not_declare_that_it_makes_a_network_is_not_even_called(tmp_path: Path) -> None:
    planted = tmp_path / "called"
    with pytest.raises(ModelError, match="os:system: is no model factory"):
        load_factory("os:system", {"command": f"touch {planted}"})
    assert not planted.exists()
