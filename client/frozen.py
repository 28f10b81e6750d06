"""What the head sees of every row while the extractor stands still.

Where only the head is trained, one pass through the extractor serves all steps and epochs of a release: the head's
inputs stay the same, and they are small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise.client.cohort import Split
from equipoise.client.workbench import row_logits
from equipoise.common.study import Study


@dataclass(frozen=True)
class HeadInputs:
    """The head and its inputs under a frozen extractor.

    Attributes:
        head: the trained layer.
        values: (m, ...), its input for each row.
        logits: (m,), the model's logits with the weights as received.
    """

    head: nn.Module
    values: Tensor
    logits: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """The model's logits of some rows, with the head as it is now."""
        logits: Tensor = self.head(self.values[rows])
        return logits.reshape(-1)


def head_inputs(study: Study, model: nn.Module, split: Split) -> HeadInputs | None:
    """One pass over the split; None where the model is not an extractor followed by its head and nothing else."""
    path = study.model.head.removesuffix(".")
    head = dict(model.named_modules()).get(path)
    if not path or head is None:
        return None
    met: list[tuple[Tensor, ...]] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: met.append(inputs))
    try:
        logits = row_logits(study, model, split)
    finally:
        handle.remove()
    if any(len(inputs) != 1 for inputs in met) or sum(len(value) for (value,) in met) != len(logits):
        return None
    found = HeadInputs(head, torch.cat([value for (value,) in met]), logits)
    # Whatever the model does after its head would be left out: then the head's output is not the logits.
    with torch.no_grad():
        again = found(torch.arange(len(logits)))
    return found if again.shape == logits.shape and torch.allclose(again, logits, rtol=1e-4, atol=1e-5) else None
