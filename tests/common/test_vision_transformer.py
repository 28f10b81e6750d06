"""The vision transformer: one logit a row, no mixing of rows, gradients by patient, sizes."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, grad, vmap

from equipoise.common.errors import ModelError
from equipoise.common.factory import load_factory, refuse_mixing
from equipoise.common.models import split_parameters
from equipoise.common.vision_transformer import Attention, positions, vit, vit_small

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_it_has_the_declared_size_and_one_logit_a_row() -> None:
    model = vit_small()
    assert sum(parameter.numel() for parameter in model.parameters()) == 146_433
    assert model(IMAGES).shape == (4,)
    assert split_parameters(model, "head.")[1] == ["head.weight", "head.bias"]
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_rows_do_not_mix_and_have_gradients_of_their_own() -> None:
    torch.manual_seed(0)
    model = vit_small().eval()
    refuse_mixing(model)
    together = model(IMAGES)
    assert torch.allclose(together[1:2], model(IMAGES[1:2]), atol=1e-5)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    of_row = vmap(grad(lambda p, x: functional_call(model, p, (x[None],))[0]), in_dims=(None, 0))(parameters, IMAGES)
    direct = torch.autograd.grad(model(IMAGES[2:3]).sum(), list(model.parameters()))
    for (name, rows), expected in zip(of_row.items(), direct, strict=True):
        assert torch.allclose(rows[2], expected, atol=1e-5), name


def test_attention_by_hand() -> None:
    attention = Attention(2, 1).double()
    with torch.no_grad():
        attention.qkv.weight.copy_(torch.tensor([[1, 0], [0, 1], [1, 0], [0, 1], [2, 0], [0, 3.0]]))
        attention.qkv.bias.zero_()
        attention.projection.weight.copy_(torch.eye(2))
        attention.projection.bias.zero_()
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    # Scores are x x^T / sqrt(2): 0.7071 for itself, 0 for the other; weights e^.7071 / (1 + e^.7071).
    own = torch.tensor(2**-0.5).double().sigmoid()
    expected = torch.tensor([[[2 * own, 3 * (1 - own)], [2 * (1 - own), 3 * own]]])
    assert torch.allclose(attention(x), expected, atol=1e-7)


def test_positions_differ_between_patches() -> None:
    table = positions(8, 64)
    assert table.shape == (64, 64)
    assert torch.unique(table, dim=0).shape[0] == 64


def test_a_study_can_name_it_with_arguments() -> None:
    model = load_factory("equipoise.common.vision_transformer:vit", {"size": 40, "patch": 8, "depth": 2})
    assert model(torch.zeros(2, 3, 40, 40)).shape == (2,)


@pytest.mark.parametrize("wrong", [{"patch": 5}, {"width": 30}, {"heads": 3}, {"depth": 0}])
def test_sizes_that_do_not_go_together_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ModelError, match="sizes must"):
        vit(**wrong)
