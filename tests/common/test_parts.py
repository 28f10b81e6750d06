"""Parts and bits: what is a block, what a part, what a bit switches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from equipoise.common.errors import StudyError
from equipoise.common.models import mlp, resnet18, resnet_small
from equipoise.common.parts import bits_of, fixed_masks, parts_of, tensors_of
from equipoise.common.vision_transformer import vit, vit_small


class Foreign(nn.Module):
    """A user's own transformer, with other names, a class token and a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.encoder = nn.Sequential(*(self.layer() for _ in range(3)))
        self.classifier = nn.Linear(4, 1)

    @staticmethod
    def layer() -> nn.Module:
        inner = {"ln_1": nn.LayerNorm(4), "attn": nn.Linear(4, 4), "ln_2": nn.LayerNorm(4), "fc": nn.Linear(4, 4)}
        return nn.ModuleDict(inner)


def test_a_transformer_has_three_parts_a_block_and_the_rest_outside() -> None:
    model = vit_small()
    parts = parts_of(model, "head.")
    inside = [part for part in parts if part.block]
    assert [part.name for part in inside] == [
        f"blocks.{i}.{kind}" for i in range(4) for kind in ("norm", "attention", "mlp")
    ]
    assert inside[0].tensors == tuple(f"blocks.0.norm{n}.{leaf}" for n in (1, 2) for leaf in ("weight", "bias"))
    assert all(".attention." in tensor for tensor in inside[1].tensors)
    assert len(inside[1].tensors) == len(inside[2].tensors) == 4
    outside = {tensor for part in parts if not part.block for tensor in part.tensors}
    assert outside == {"embedding.weight", "embedding.bias", "norm.weight", "norm.bias"}


@pytest.mark.parametrize("model", [vit_small(), resnet_small(), resnet18(), mlp(6), Foreign()])
def test_every_trainable_tensor_but_the_heads_is_in_one_part(model: nn.Module) -> None:
    head = "classifier." if isinstance(model, Foreign) else "head."
    named = [tensor for part in parts_of(model, head) for tensor in part.tensors]
    assert len(named) == len(set(named))
    assert set(named) == {name for name, _ in model.named_parameters() if not name.startswith(head)}


def test_residual_networks_and_perceptrons_by_parts() -> None:
    names = [part.name for part in parts_of(resnet_small(), "head.")]
    blocks = [f"extractor.{i}" for i in (3, 4, 5)]
    assert names == ["outside.norm", "outside.conv", *(f"{b}.{kind}" for b in blocks for kind in ("norm", "conv"))]
    assert len([part for part in parts_of(resnet18(), "head.") if part.block]) == 16
    assert [part.name for part in parts_of(mlp(6), "head.")] == ["extractor.0.linear", "extractor.2.linear"]


def test_a_users_own_transformer() -> None:
    parts = parts_of(Foreign(), "classifier.")
    assert [part.name for part in parts if part.block] == [
        f"encoder.{i}.{kind}" for i in range(3) for kind in ("norm", "attention", "mlp")
    ]
    assert [part.tensors for part in parts if not part.block] == [("token",)]


def test_blocks_can_be_named_by_a_pattern() -> None:
    parts = parts_of(resnet_small(), "head.", r"extractor\.[345]\.conv\d")
    assert {part.block for part in parts} == {"", *(f"extractor.{i}.conv{n}" for i in (3, 4, 5) for n in (1, 2))}
    with pytest.raises(StudyError, match="no trainable tensor"):
        parts_of(resnet_small(), "head.", "layers")
    with pytest.raises(StudyError, match="no regular expression"):
        parts_of(resnet_small(), "head.", "(")


def test_frozen_tensors_are_in_no_part() -> None:
    model = mlp(6)
    model.get_parameter("extractor.0.bias").requires_grad_(False)
    assert next(part.tensors for part in parts_of(model, "head.")) == ("extractor.0.weight",)


def test_the_published_bits_are_three_a_block_and_stages_tie_them() -> None:
    parts = parts_of(vit(depth=12), "head.")
    assert len(bits_of(parts, "parts")) == 36
    tied = bits_of(parts, "stages", stages=4)
    assert len(tied) == 12
    assert [bit.name for bit in tied[:3]] == ["stage0.norm", "stage0.attention", "stage0.mlp"]
    blocks = {tensor.split(".")[1] for tensor in tied[4].tensors}
    assert blocks == {"3", "4", "5"}
    assert tied[4].kinds == {"attention"}
    assert len(bits_of(parts, "blocks")) == 12
    assert {bit.name for bit in bits_of(parts, "kinds")} == {"norm", "attention", "mlp"}
    everything = [t for bit in tied for t in bit.tensors]
    assert sorted(everything) == sorted(t for part in parts if part.block for t in part.tensors)


def test_fewer_blocks_than_stages_make_a_stage_of_each() -> None:
    assert len(bits_of(parts_of(vit(depth=2), "head."), "stages", stages=4)) == 6


def test_what_lies_outside_rests_unless_it_is_asked_for() -> None:
    parts = parts_of(resnet_small(), "head.")
    assert not any("extractor.0" in tensor for bit in bits_of(parts, "parts") for tensor in bit.tensors)
    assert {"outside.norm", "outside.conv"} <= {bit.name for bit in bits_of(parts, "parts", outside=True)}


def test_the_fixed_masks_are_all_norm_attention_and_head() -> None:
    bits = bits_of(parts_of(vit_small(), "head."), "parts")
    fixed = fixed_masks(bits)
    assert list(fixed) == ["all", "norm", "attention", "head"]
    assert all(".norm" in tensor for tensor in tensors_of(bits, fixed["norm"]))
    assert all(".attention." in tensor for tensor in tensors_of(bits, fixed["attention"]))
    assert len(tensors_of(bits, fixed["attention"])) == 16
    assert tensors_of(bits, fixed["head"]) == ()
    assert len(tensors_of(bits, fixed["all"])) == 48
    assert list(fixed_masks(bits_of(parts_of(resnet_small(), "head."), "parts"))) == ["all", "norm", "head"]
    assert list(fixed_masks(bits_of(parts_of(mlp(6), "head."), "parts"))) == ["all", "head"]
    assert list(fixed_masks(bits_of(parts_of(vit_small(), "head."), "blocks"))) == ["all", "head"]
