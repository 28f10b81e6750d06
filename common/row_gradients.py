"""The gradient of each row's logit by each parameter, layer by layer.

In a model that does not mix rows, the gradient of the summed logits at a layer's output holds each row's own part, and
with the layer's input it gives each row's parameter gradient by one matrix product (Rochette et al. 2019,
arXiv:1912.06015, as Opacus does). That takes two thirds of the time of `torch.func.vmap` and does not load torch's
compiler; `vmap` is still there for models with other layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Rule = Callable[[Any, Tensor, Tensor], dict[str, Tensor]]
Named = Iterator[tuple[str, Tensor]]
_Call = tuple[str, nn.Module, Tensor, Tensor]  # prefix of the layer's names, layer, input, output


def _linear(layer: nn.Linear, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    x, g = x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1])
    return {"weight": g.transpose(1, 2) @ x, "bias": g.sum(dim=1)}


def _conv2d(layer: nn.Conv2d, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    (high, wide), (down, right), (top, left) = layer.kernel_size, layer.stride, _pair(layer.padding)
    # Channels last, so that what a kernel sees is copied in long runs: several times faster than functional.unfold.
    padded = functional.pad(x, (left, left, top, top)).permute(0, 2, 3, 1).contiguous()
    seen = padded.unfold(1, high, down).unfold(2, wide, right)  # (m, rows, columns, C, high, wide)
    seen = seen.permute(0, 1, 2, 4, 5, 3).reshape(len(x), -1, high * wide * layer.in_channels)
    flat = g.flatten(2)
    weight = (flat @ seen).reshape(len(x), layer.out_channels, high, wide, layer.in_channels)
    return {"weight": weight.permute(0, 1, 4, 2, 3), "bias": flat.sum(dim=2)}


def _group_norm(layer: nn.GroupNorm, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    normed = functional.group_norm(x, layer.num_groups, eps=layer.eps)
    return {"weight": (g * normed).flatten(2).sum(dim=2), "bias": g.flatten(2).sum(dim=2)}


# By exact class: a subclass may compute something else.
_RULES: dict[type[nn.Module], Rule] = {nn.Linear: _linear, nn.Conv2d: _conv2d, nn.GroupNorm: _group_norm}


class RowGradients:
    """Row gradients of one model by some of its parameters.

    Args:
        model: gives one logit a row, does not mix rows; in eval mode.
        names: the parameters.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._model = model
        self._names = list(names)
        self._layers = _layers(model, set(names))
        self._agreed = False

    @torch.enable_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, Named]:
        """Logits (m,) and, for each parameter in some order, its name and (m, *shape) gradients.

        Only one layer's gradients are alive at a time where the consumer lets go of them.
        """
        if self._layers is not None and not self._agreed:
            # A layer that is called twice would need its parts added, a parameter that is used outside its layer would
            # be missed. A few rows tell: their sum must be the gradient that autograd gives. They are made up, since
            # which way is taken, hence every patient's last bits, must not depend on a patient.
            generator = torch.Generator().manual_seed(0)
            self._agreed = self._agree(self._layers, torch.randn(2, *x.shape[1:], generator=generator).to(x))
            self._layers = self._layers if self._agreed else None
        if self._layers is None:
            return self._by_vmap(x)
        logits, found = self._traced(self._layers, x)
        gradients = torch.autograd.grad(logits.sum(), [output for _, _, _, output in found])
        return logits.detach(), self._by_layer(found, gradients)

    def _traced(self, layers: dict[str, nn.Module], x: Tensor) -> tuple[Tensor, list[_Call]]:
        """Logits, and every call of a layer on the way."""
        found: list[_Call] = []
        handles = [layer.register_forward_hook(_note(found, prefix)) for prefix, layer in layers.items()]
        try:
            with torch.enable_grad():
                return self._model(x), found
        finally:
            for handle in handles:
                handle.remove()

    def _by_layer(self, found: Sequence[_Call], gradients: Sequence[Tensor]) -> Named:
        wanted = set(self._names)
        for (prefix, layer, x, _), g in zip(found, gradients, strict=True):
            for name, value in _RULES[type(layer)](layer, x.detach(), g).items():
                if prefix + name in wanted:
                    yield prefix + name, value

    def _agree(self, layers: dict[str, nn.Module], x: Tensor) -> bool:
        logits, found = self._traced(layers, x)
        if len(found) != len(layers):
            return False
        outputs = [output for _, _, _, output in found]
        parameters = [self._model.get_parameter(name) for name in self._names]
        both = torch.autograd.grad(logits.sum(), [*parameters, *outputs], allow_unused=True, materialize_grads=True)
        direct = dict(zip(self._names, both, strict=False))
        rows = dict(self._by_layer(found, both[len(parameters) :]))
        tolerance = 1e3 * torch.finfo(logits.dtype).eps
        return all(
            float((rows[name].sum(dim=0) - whole).norm()) <= tolerance * float(rows[name].norm() + whole.norm())
            for name, whole in direct.items()
        )

    def _by_vmap(self, x: Tensor) -> tuple[Tensor, Named]:
        # Imported where it is needed: it brings torch's compiler, a second and 80 MB.
        from torch.func import functional_call, grad_and_value, vmap

        state = {name: tensor.detach() for name, tensor in self._model.state_dict().items()}

        def logit(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
            output: Tensor = functional_call(self._model, {**state, **parameters}, (row.unsqueeze(0),))
            return output.squeeze()

        gradients, logits = vmap(grad_and_value(logit), in_dims=(None, 0))({n: state[n] for n in self._names}, x)
        return logits, iter(gradients.items())


def _note(found: list[_Call], prefix: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if len(inputs) == 1:
            found.append((prefix, layer, inputs[0], output))

    return hook


def _layers(model: nn.Module, names: set[str]) -> dict[str, nn.Module] | None:
    """Prefix -> layer for the layers that hold `names`; None where one has no rule."""
    layers: dict[str, nn.Module] = {}
    for path, layer in model.named_modules():
        prefix = f"{path}." if path else ""
        own = {prefix + name for name, _ in layer.named_parameters(recurse=False)}
        if own & names:
            if type(layer) not in _RULES or (isinstance(layer, nn.Conv2d) and not _plain(layer)):
                return None
            layers[prefix] = layer
    covered = {prefix + name for prefix, layer in layers.items() for name, _ in layer.named_parameters(recurse=False)}
    return layers if names <= covered else None


def _plain(layer: nn.Conv2d) -> bool:
    return (
        layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def _pair(padding: str | tuple[int, ...]) -> tuple[int, int]:
    if isinstance(padding, str):
        raise TypeError(f"padding={padding!r}: expected numbers")
    return padding[0], padding[1]
