"""The network of a query: loaded, kept, and laid out as the images are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise.client import workbench
from tests.tiny import make_study


class Mixed(nn.Module):
    """Parameters of five, four, two and one dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.arange(24.0).reshape(1, 2, 3, 2, 2))
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        logit: Tensor = self.head(self.conv(x).mean(dim=(2, 3)))
        return logit.squeeze(1) + self.places.sum()


def mixed() -> nn.Module:
    return Mixed()


@pytest.mark.parametrize("double", [False, True])
def test_filters_lie_as_the_images_do_and_any_other_parameter_is_left_alone(double: bool) -> None:
    torch.manual_seed(5)
    source = Mixed().double() if double else Mixed()
    study = make_study(model={"factory": f"{__name__}:mixed", "head": "head."})
    state = {name: np.asarray(tensor) for name, tensor in source.state_dict().items()}
    model = workbench.network(study, state)
    assert model.get_parameter("conv.weight").is_contiguous(memory_format=torch.channels_last)
    assert model.get_parameter("places").is_contiguous()
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64 if double else torch.float32)
    torch.testing.assert_close(model(x), source(x))
