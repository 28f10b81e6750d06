"""Named tensors as one flat vector and back."""

import numpy as np
import pytest
import torch

from equipoise.common.layout import Layout

LAYOUT = Layout({"filters": (2, 3, 4, 4), "bias": (2,), "scale": ()})


def test_there_and_back_whatever_the_memory_layout() -> None:
    filters = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    tensors = {"filters": filters.contiguous(memory_format=torch.channels_last), "bias": np.ones(2), "scale": 3.0}
    vector = LAYOUT.flatten({**tensors, "scale": np.array(3.0)})
    assert (vector.dtype, vector.shape) == (np.float64, (LAYOUT.size,))
    assert np.array_equal(vector, np.concatenate([filters.numpy().ravel(), [1, 1], [3]]).astype(np.float64))
    parts = LAYOUT.split(vector)
    assert {name: part.shape for name, part in parts.items()} == dict(LAYOUT.shapes)
    assert np.array_equal(parts["filters"], filters.numpy())


@pytest.mark.parametrize("bias", [np.ones(1), np.array(1.0), np.ones((2, 2))])
def test_a_tensor_of_another_size_is_an_error_and_not_repeated(bias: np.ndarray) -> None:
    with pytest.raises(ValueError, match="reshape"):
        LAYOUT.flatten({"filters": np.zeros((2, 3, 4, 4)), "bias": bias, "scale": np.array(1.0)})
