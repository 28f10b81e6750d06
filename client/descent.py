"""Masked gradient descent at a site, which exact and private local training share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class MaskedDescent:
    """Stochastic gradient descent with momentum, as `torch.optim.SGD`, with a mask on the whole step.

    `proximal` is FedProx's mu: a pull towards the weights at the start, (mu / 2) |w - w_0|^2 in the loss.

    Written out, since the first optimiser of `torch.optim` loads torch's compiler: a second and 80 MB at every site.
    """

    def __init__(
        self,
        trained: list[nn.Parameter],
        factors: list[Tensor] | None,
        bases: list[Tensor | None],
        *,
        lr: float,
        momentum: float,
        decay: float,
        proximal: float,
    ) -> None:
        self._trained, self._factors, self._bases = trained, factors, bases
        self._lr, self._momentum, self._decay, self._proximal = lr, momentum, decay, proximal
        self._anchor = [parameter.detach().clone() for parameter in trained] if proximal else None
        self.param_groups = [{"params": trained}]  # where Opacus looks for what an optimiser moves
        self._velocity = [torch.zeros_like(left(p, basis)) for p, basis in zip(trained, bases, strict=True)]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Move every parameter that the loss depends on."""
        for index, gradient in enumerate(gradients):
            if gradient is None:
                continue
            parameter, force = self._trained[index], gradient
            if self._decay:
                force = force.add(parameter, alpha=self._decay)
            if self._anchor is not None:
                force = force.add(parameter - self._anchor[index], alpha=self._proximal)
            if self._factors is not None:
                force = force * self._factors[index]
            basis = self._bases[index]
            step = left(force, basis)
            if self._momentum:
                step = self._velocity[index].mul_(self._momentum).add_(step)
            # dL/dA = dL/dW B^T, and a step of A moves W = A B by (step) B.
            parameter.sub_(step if basis is None else (step @ basis).reshape(parameter.shape), alpha=self._lr)


def left(value: Tensor, basis: Tensor | None) -> Tensor:
    """A tensor (m, ...) as it is, or times the transpose of its right factor, (m, r)."""
    return value if basis is None else value.flatten(1) @ basis.T


def like(value: NDArray[np.floating], parameter: nn.Parameter) -> Tensor:
    """An array as a tensor of a parameter's type on its device."""
    return torch.from_numpy(np.array(value)).to(parameter.device, parameter.dtype)
