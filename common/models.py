"""The classifiers that a study can name, and how a classifier's weights are loaded.

Every factory here returns a module whose `forward` maps a normalised float batch to one logit per row, shape (m,).
The last layer is one `torch.nn.Linear` called `head`; all other parameters form the extractor.

>>> mlp(features=6)(torch.zeros(2, 6)).shape
torch.Size([2])

Design notes:

* Normalisation is by groups of channels (Wu & He 2018, arXiv:1803.08494), never over a batch, which mixes patients
  (`equipoise.common.factory`).
* No operation works in place, since per-patient gradients (`torch.func`, Opacus hooks) need the inputs of each layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from equipoise.common.canonical import sha256 as sha256_of
from equipoise.common.errors import ModelError
from equipoise.common.factory import load_factory
from equipoise.common.study import ImageInputs, Inputs, ModelSpec


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group normalisation, added to the input (He et al. 2015, arXiv:1512.03385, fig. 2).

    Where the shape changes the input passes a 1x1 convolution, without a norm of its own.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(m, channels_in, h, w) to (m, channels_out, h / stride, w / stride)."""
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class ImageClassifier(nn.Module):
    """An extractor that ends in a feature map, the mean over its positions, and a linear head."""

    def __init__(self, extractor: nn.Module, width: int) -> None:
        super().__init__()
        self.extractor = extractor
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images, float (m, channels, h, w), to logits (m,)."""
        logit: Tensor = self.head(self.extractor(x).mean(dim=(2, 3)))
        return logit.squeeze(1)


class TableClassifier(nn.Module):
    """Fully connected layers with ReLU between them, and a linear head."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        self.extractor = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scaled values and missing flags, float (m, F), to logits (m,)."""
        logit: Tensor = self.head(self.extractor(x))
        return logit.squeeze(1)


def resnet_small() -> nn.Module:
    """A residual network of 174,265 parameters for 32 x 32 colour images; the synthetic benchmark's classifier."""
    stem = [nn.Conv2d(3, 24, 5, 2, padding=2, bias=False), nn.GroupNorm(8, 24), nn.ReLU()]
    blocks = [
        ResidualBlock(24, 24, 1, groups=8),
        ResidualBlock(24, 48, 2, groups=8),
        ResidualBlock(48, 96, 2, groups=8),
    ]
    return ImageClassifier(nn.Sequential(*stem, *blocks), 96)


def resnet18(in_channels: int = 3) -> nn.Module:
    """ResNet-18 (He et al. 2015, table 1) with group normalisation in 32 groups: 11.2 million parameters.

    The stem is a 7x7 convolution of stride 2 and a 3x3 maximum of stride 2, so images of 64 pixels or more are wanted.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, 64, 7, 2, padding=3, bias=False),
        nn.GroupNorm(32, 64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
    ]
    channels = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [
            ResidualBlock(channels, width, stride, groups=32),
            ResidualBlock(width, width, 1, groups=32),
        ]
        channels = width
    return ImageClassifier(nn.Sequential(*layers), channels)


def mlp(features: int, hidden: Sequence[int] = (64, 32)) -> nn.Module:
    """A small fully connected network for tables.

    Args:
        features: width of an input row: twice the number of the study's table columns, since each column brings a
            value and a missing flag.
        hidden: widths of the hidden layers.

    Raises:
        ModelError: a width is no whole number, or not positive.
    """
    # Both come from a study file, where a quoted number is a text and a list cannot be given.
    widths = (features, *hidden) if isinstance(hidden, Sequence) else ()
    if not widths or not all(isinstance(width, int) and width >= 1 for width in widths):
        raise ModelError(
            f"mlp: features={features!r}, hidden={hidden!r}: expected a whole number and a list of them, all >= 1; "
            "correct model.arguments"
        )
    return TableClassifier(widths)


def densenet121(in_channels: int = 3) -> nn.Module:
    """MONAI's DenseNet-121 (Huang et al. 2016, arXiv:1608.06993), with group instead of batch normalisation.

    The published network normalises over the batch, which mixes patients (see the module's design notes); Opacus'
    `ModuleValidator.fix` puts group normalisation in the place of each such layer. Weights that were trained with batch
    normalisation have no counterpart for its running statistics and must be trained anew.

    Raises:
        ModelError: MONAI is not installed.
    """
    try:
        from monai.networks.nets import DenseNet121
    except ImportError:
        raise ModelError(
            "densenet121: the package monai is missing; install equipoise with its extra, "
            "`pip install 'equipoise[monai]'`"
        ) from None
    from opacus.validators import ModuleValidator

    network = DenseNet121(spatial_dims=2, in_channels=in_channels, out_channels=1)
    features: nn.Module = ModuleValidator.fix(network.features)
    for module in features.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return ImageClassifier(nn.Sequential(features, nn.ReLU()), network.class_layers.out.in_features)


class GivenScores(nn.Module):
    """Stands for a model that nobody here has: its scores are columns of the hospitals' manifests, never computed.

    Its two weights exist so that a study has a file of weights, an extractor and a head like any other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.extractor, self.head = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        for layer in (self.extractor, self.head):
            nn.init.ones_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (m, 1) of the rows' given scores, to logits (m,)."""
        logit: Tensor = self.head(self.extractor(x))
        return logit.squeeze(1)


def given_scores() -> nn.Module:
    """The stand-in of a study whose inputs are scores."""
    return GivenScores()


# What a study may name of this module.
FACTORIES = (resnet_small, resnet18, mlp, densenet121, given_scores)


def normalise(inputs: Inputs, batch: Tensor) -> Tensor:
    """What a model sees of a decoded batch: images uint8 (m, C, H, W) as (u / 255 - mean) / std, others as they are."""
    if isinstance(inputs, ImageInputs):
        return (batch.float() / 255 - inputs.mean) / inputs.std
    return batch


def load_weights(model: nn.Module, path: Path, sha256: str | None) -> None:
    """Put the tensors of a safetensors file into `model`; the bytes that are checked are the bytes that are used.

    Args:
        model: changed in place; untouched where this raises.
        path: a safetensors file with exactly the model's tensors.
        sha256: the file's declared digest in hexadecimal, or None to accept any.

    Raises:
        ModelError: no such file, another digest, no safetensors, a tensor that is missing, unexpected or not
            finite, or has another shape or type.
    """
    try:
        content = path.read_bytes()
    except OSError:
        raise ModelError(f"{path}: no readable weights file; name a safetensors file") from None
    digest = sha256_of(content)
    if sha256 not in (None, digest):
        raise ModelError(f"{path}: sha256 is {digest}, the study declares {sha256}; get the declared file")
    try:
        found = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ModelError(f"{path}: not a safetensors file ({error}); convert the weights") from None
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in found:
            raise ModelError(f"{path}: tensor {name!r} of the model is missing from the file")
        _check_tensor(f"{path}: tensor {name!r}", found[name], tensor)
    unexpected = sorted(found.keys() - expected.keys())
    if unexpected:
        raise ModelError(
            f"{path}: tensor {unexpected[0]!r} is not in the model ({len(unexpected)} unexpected); "
            "check model.factory and model.arguments"
        )
    model.load_state_dict(found)


def _check_tensor(where: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise ModelError(f"{where} has shape {tuple(found.shape)}, the model expects {tuple(expected.shape)}")
    if found.dtype != expected.dtype:
        raise ModelError(f"{where} has type {found.dtype}, the model expects {expected.dtype}")
    if found.is_floating_point() and not bool(found.isfinite().all()):
        raise ModelError(f"{where} holds values that are not finite; the file is damaged")


def split_parameters(model: nn.Module, head: str) -> tuple[list[str], list[str]]:
    """Names of the extractor's and of the head's trainable parameters, each in the model's order.

    Raises:
        ModelError: no parameter, or every parameter, begins with `head`.
    """
    names = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
    inside = [name for name in names if name.startswith(head)]
    outside = [name for name in names if not name.startswith(head)]
    if not inside or not outside:
        kind = "no" if not inside else "every"
        last = names[-1] if names else "none"
        raise ModelError(
            f"model.head={head!r}: {kind} trainable parameter begins with it; give the prefix of the last layer "
            f"(the last parameter is {last!r})"
        )
    return outside, inside


def build(spec: ModelSpec) -> nn.Module:
    """The study's classifier on its device, in evaluation mode, with its weights where the study names a file.

    Without weights the parameters come from torch's global generator; a caller that needs them repeated seeds it.

    Raises:
        ModelError: the factory, the weights, the head or the device do not fit.
    """
    model = load_factory(spec.factory, spec.arguments)
    if spec.device.startswith("meta"):  # to which torch moves a network, and its weights are gone
        raise ModelError(f"model.device={spec.device}: holds no values; try cpu")
    split_parameters(model, spec.head)
    if spec.weights is not None:
        load_weights(model, Path(spec.weights.path), spec.weights.sha256)
    try:
        return model.to(torch.device(spec.device)).eval()
    except (RuntimeError, AssertionError):  # torch asserts where it was built without the device
        raise ModelError(f"model.device={spec.device}: not usable on this machine; try cpu") from None
