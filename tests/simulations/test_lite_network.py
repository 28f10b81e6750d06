"""EfficientNet-Lite0 with folded normalisation computes what the published form does."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, pad, relu6

from equipoise.common.factory import load_factory
from equipoise.simulations.benchmarks.lite_network import EPSILON, STAGES, folded, lite0

FACTORY = "equipoise.simulations.benchmarks.lite_network:lite0"


class Published:
    """The published form, by its own names: convolutions without bias, each with batch normalisation."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(4)

    def layer(self, x: Tensor, conv: str, norm: str, width: int, kernel: int, stride: int, depthwise: bool) -> Tensor:
        """One convolution and its normalisation; makes their weights at the first call."""
        groups = x.shape[1] if depthwise else 1
        shape = (width, x.shape[1] // groups, kernel, kernel)
        if f"{conv}.weight" not in self.state:
            self.state[f"{conv}.weight"] = self._normal(*shape) / (shape[1] * kernel**2) ** 0.5
            self.state[f"{norm}.weight"] = 1 + 0.1 * self._normal(width)
            self.state[f"{norm}.bias"] = 0.5 + 0.1 * self._normal(width)
            self.state[f"{norm}.running_mean"] = 0.1 * self._normal(width)
            self.state[f"{norm}.running_var"] = 0.5 + torch.rand(width, generator=self._generator)
        s = self.state
        # TensorFlow's SAME: at stride 2 the odd pixel is below and right.
        gap = max((-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1], 0)
        x = pad(x, (gap // 2, gap - gap // 2, gap // 2, gap - gap // 2))
        y = conv2d(x, s[f"{conv}.weight"], stride=stride, groups=groups)
        statistics = (s[f"{norm}.running_mean"], s[f"{norm}.running_var"], s[f"{norm}.weight"], s[f"{norm}.bias"])
        return batch_norm(y, *statistics, eps=EPSILON)

    def features(self, x: Tensor) -> Tensor:
        """(m, 1280) means of the last feature map."""
        x = relu6(self.layer(x, "_conv_stem", "_bn0", 32, 3, 2, depthwise=False))
        number = 0
        for expansion, kernel, first_stride, width, blocks in STAGES:
            for place in range(blocks):
                name, y = f"_blocks.{number}.", x
                stride = first_stride if place == 0 else 1
                if expansion > 1:
                    inside = expansion * x.shape[1]
                    y = relu6(self.layer(y, name + "_expand_conv", name + "_bn0", inside, 1, 1, depthwise=False))
                conv, norm = name + "_depthwise_conv", name + "_bn1"
                y = relu6(self.layer(y, conv, norm, y.shape[1], kernel, stride, depthwise=True))
                y = self.layer(y, name + "_project_conv", name + "_bn2", width, 1, 1, depthwise=False)
                x = x + y if stride == 1 and width == x.shape[1] else y
                number += 1
        return relu6(self.layer(x, "_conv_head", "_bn1", 1280, 1, 1, depthwise=False)).mean(dim=(2, 3))

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator)


def test_folding_changes_nothing_and_loses_no_weight() -> None:
    published = Published()
    for size in (64, 97):
        images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(size)) * 2 - 1
        wanted = published.features(images)
        network = lite0().eval()
        state = folded(published.state)
        state["head.weight"] = torch.linspace(-1, 1, 1280)[None]
        network.load_state_dict(state)
        assert wanted.std() > 0.05
        torch.testing.assert_close(network(images), wanted @ torch.linspace(-1, 1, 1280), rtol=1e-4, atol=1e-4)


def test_the_network_is_one_that_a_study_can_name() -> None:
    network = load_factory(FACTORY, {})
    assert sum(parameter.numel() for parameter in network.parameters()) == 3_351_281
