"""A network is tried with a few ordinary rows before anybody is asked: one that does not fit costs seconds then."""

from __future__ import annotations

import torch
from torch import nn

from equipoise.common.errors import ModelError
from equipoise.common.models import build, normalise
from equipoise.common.study import ImageInputs, Inputs, ScoreInputs, Study

PROBED = 2  # rows in the batch


def check_network(study: Study) -> None:
    """Whether the study's network takes its inputs and gives each row a logit of its own.

    Raises:
        ModelError: no such factory, weights that do not fit it, or a network that does not take the study's inputs,
            mixes their rows or gives no finite logits.
    """
    model = build(study.model)
    rows = _plain_rows(study.inputs)
    together = _logits(study, model, rows)
    alone = torch.cat([_logits(study, model, row) for row in torch.split(rows, 1)])
    where = f"model.factory={study.model.factory}: the network"
    if not bool(torch.cat([together, alone]).isfinite().all()):
        raise ModelError(
            f"{where} gives {_shown(alone)} for ordinary rows alone and {_shown(together)} for them together, "
            "expected finite logits; correct the factory or the weights"
        )
    # Half of the digits: kernels round otherwise for another batch size, and mixing is far larger.
    tolerance = torch.finfo(together.dtype).eps ** 0.5 if together.is_floating_point() else 0.0
    if float((together - alone).abs().max()) > tolerance * max(1.0, float(together.abs().max())):
        raise ModelError(
            f"{where} gives {_shown(alone)} for rows alone and {_shown(together)} for them together: a logit depends "
            "on the other rows of its batch or on chance, so no patient's contribution can be bounded; make it depend "
            "on its own row only"
        )


def _shown(logits: torch.Tensor) -> str:
    return f"({', '.join(f'{value:.4g}' for value in logits.tolist())})"


def _plain_rows(inputs: Inputs) -> torch.Tensor:
    """A few ordinary rows of the study's inputs, the same ones at every call, each unlike the others."""
    draw = torch.Generator().manual_seed(0)
    if isinstance(inputs, ImageInputs):
        shape = (PROBED, inputs.channels, inputs.size, inputs.size)
        return torch.randint(256, shape, generator=draw, dtype=torch.uint8)
    width = 1 if isinstance(inputs, ScoreInputs) else 2 * len(inputs.features)
    return torch.rand(PROBED, width, generator=draw)


def _logits(study: Study, model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """One logit a row.

    Raises:
        ModelError: the network fails, or gives something else.
    """
    given = f"for a batch {tuple(rows.shape)}, which is what `inputs` gives,"
    where = f"model.factory={study.model.factory}: {given} the network"
    first = next(model.parameters())
    try:
        with torch.no_grad():
            logits = model(normalise(study.inputs, rows).to(first.device, first.dtype))
    except Exception as error:  # a factory is the user's own code and may raise anything
        reason = str(error).split("\n", maxsplit=1)[0]
        raise ModelError(f"{where} fails ({reason}); correct model.arguments or `inputs`") from error
    expected = (len(rows),)
    if not isinstance(logits, torch.Tensor) or logits.shape != expected:
        returned = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(f"{where} returns {returned}, expected one logit a row: {expected}; correct the factory")
    return logits
