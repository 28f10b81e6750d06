"""A small vision transformer, whose blocks can be fine-tuned part by part.

The plain form of Beyer et al. 2022 (arXiv:2205.01580): fixed sine and cosine positions and the mean over the patches,
so that every parameter belongs to a convolution, a linear layer or a normalisation. A class token or learned positions
would be parameters of no layer, whose gradients by patient need a rule of their own.

>>> model = vit_small()
>>> model(torch.zeros(2, 3, 32, 32)).shape
torch.Size([2])

Design notes:

* Normalisation is over the channels of one patch (LayerNorm), which mixes no patients.
* Attention is written out in linear layers. `torch.nn.MultiheadAttention` keeps its weights outside any layer.
* No operation works in place (see `equipoise.common.models`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.common.errors import ModelError

TEMPERATURE = 10_000.0  # of the positions' wavelengths


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(m, patches, width) to the same shape."""
        m, patches, width = x.shape
        query, key, value = self.qkv(x).reshape(m, patches, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = query @ key.mT / math.sqrt(width // self.heads)
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(m, patches, width)
        result: Tensor = self.projection(mixed)
        return result


class Mlp(nn.Module):
    """Two linear layers with a Gaussian error linear unit between them, patch by patch."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(m, patches, width) to the same shape."""
        result: Tensor = self.outer(functional.gelu(self.inner(x)))
        return result


class TransformerBlock(nn.Module):
    """Attention and MLP, each normalised first and added to its input (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(m, patches, width) to the same shape."""
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class VisionTransformer(nn.Module):
    """Patches, blocks, a final norm, the mean over the patches, and a linear head."""

    positions: Tensor

    def __init__(self, size: int, patch: int, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)
        # A function of shapes alone, so it is no part of the weights that a vendor ships.
        self.register_buffer("positions", positions(size // patch, width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images, float (m, 3, size, size), to logits (m,)."""
        x = self.embedding(x).flatten(2).mT + self.positions
        for block in self.blocks:
            x = block(x)
        logit: Tensor = self.head(self.norm(x).mean(dim=1))
        return logit.squeeze(1)


def positions(side: int, width: int) -> Tensor:
    """Sine and cosine of each patch's row and column at width / 4 wavelengths: (side * side, width) float32."""
    wavelengths = TEMPERATURE ** (torch.arange(width // 4) / max(width // 4 - 1, 1))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [place.reshape(-1, 1) / wavelengths for place in (columns, rows)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def vit(size: int = 32, patch: int = 8, width: int = 64, depth: int = 4, heads: int = 4, ratio: int = 2) -> nn.Module:
    """A vision transformer for square colour images.

    Args:
        size: width of an image in pixels.
        patch: width of a patch; the sides of an image are whole patches.
        width: channels of a patch, a multiple of 4 (for the positions) and of `heads`.
        depth: blocks.
        heads: attention heads.
        ratio: hidden width of the MLP, in widths.

    Raises:
        ModelError: sizes that do not go together.
    """
    if min(size, patch, width, depth, heads, ratio) < 1 or size % patch or width % 4 or width % heads:
        raise ModelError(
            f"vit: size={size}, patch={patch}, width={width}, depth={depth}, heads={heads}, ratio={ratio}: sizes must "
            "be >= 1, size a multiple of patch, and width one of 4 and of heads"
        )
    return VisionTransformer(size, patch, width, depth, heads, ratio * width)


def vit_small() -> nn.Module:
    """A vision transformer of 146,433 parameters for 32 x 32 colour images: 4 blocks of 64 channels."""
    return vit()


# What a study may name of this module.
FACTORIES = (vit, vit_small)
