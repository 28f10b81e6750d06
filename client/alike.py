"""Batches in which a patient's numbers hang on that patient alone, to the last bit.

A library chooses its instructions, and with them its rounding, by the size of the batch and by the place of a row in
it: the odd rows of a narrow matrix product can be summed in another order than the even ones. A model made for it
(large weights that cancel) would turn such a difference in the last bit of other patients' numbers into a sign that one
patient is there. So all batches have one size, filled up with rows of zeros, and rows stand only at places that have
been seen to compute alike.

Which instructions a place meets hangs on shapes and not on values, so this is seen on made-up rows and weights: one
row at all places of a batch has to give the same bits in every layer and in all that is computed from it. The rows of a
patient who has several are a batch of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.client.workbench import View, cells_of
from equipoise.common.errors import ModelError

PLACES = 32  # rows of a batch; measured: as fast as 128, to a tenth
_PROBES = 4  # made-up rows; each has as many chances to show a difference as a layer has outputs
_CHANCES = 512  # at least, of each layer: four rows overlooked eight places of a layer of two numbers
_LANES = 64  # numbers; a multiple of what any processor's vector instructions take at once

Step = tuple[Callable[[Tensor], Tensor], tuple[int, ...]]
"""A function of rows, and the shape of a row that it takes."""

_known: dict[Hashable, Tensor] = {}


@dataclass(frozen=True)
class Batch:
    """All rows of some patients, and of made-up ones that fill the batch.

    Attributes:
        x: (m, ...) inputs as the network wants them.
        owner: (m,) int64 in 0..n-1, non-decreasing: whose each row is.
        label, cell: (n,) int64; 0 for who is made up.
        real: (k,) int64: which of the n are patients of the site.
        patient: (k,) int64: these patients' indices in the split.
    """

    x: Tensor
    owner: Tensor
    label: Tensor
    cell: Tensor
    real: Tensor
    patient: Tensor


def batches(view: View, places: Tensor, rows: Tensor | None = None) -> Iterator[Batch]:
    """All patients of a view, or those whose rows are named: who has one row at `places`, every other one alone.

    Args:
        places: of `alike_places`.
        rows: indices of rows, whole patients, ascending; None for all.
    """
    split = view.split
    rows = torch.arange(len(split.patient)) if rows is None else rows
    of_cell, owner = cells_of(view.study, split), split.patient[rows]
    single = torch.bincount(owner, minlength=split.patients)[owner] == 1
    for piece in torch.split(rows[single], len(places)) if single.any() else ():
        at, patient = places[: len(piece)], split.patient[piece]
        label, cell = torch.zeros(2, PLACES, dtype=torch.int64)
        label[at], cell[at] = split.label[patient], of_cell[patient]
        yield Batch(view.rows_at(piece, at, PLACES), torch.arange(PLACES), label, cell, at, patient)
    several, alone = rows[~single], torch.zeros(1, dtype=torch.int64)
    many = torch.unique_consecutive(split.patient[several], return_counts=True)[1].tolist()
    for piece in torch.split(several, many) if many else ():
        x, patient = view.rows(piece), split.patient[piece[:1]]
        yield Batch(x, alone.expand(len(piece)), split.label[patient], of_cell[patient], alone, patient)


def alike_places(
    view: View,
    what: Hashable,
    compute: Callable[[Tensor], Iterable[Tensor]],
    after: Sequence[Step] = (),
) -> Tensor:
    """The places of a batch at which a row's results have the bits that they have at place 0.

    Args:
        view: the model, and what shape a row has; no row of it is looked at.
        what: names the computation; with the network and the shape, all that its instructions hang on.
        compute: tensors with one entry a row, of a batch, at the model's present weights. What else it depends on may
            not come from the server, but for its shape.
        after: what is done with such tensors and gives few numbers a row: on the network's own results alone it would
            have too few chances to show a difference.

    Returns:
        (k,) int64 in 0..PLACES-1, ascending, 0 among them. The model is left as it was.

    Raises:
        ModelError: a row's results change with the other rows.
    """
    model, shape = view.model, tuple(view.split.inputs.shape[1:])
    key = (network_key(view), shape, what)
    if key not in _known:
        generator = torch.Generator().manual_seed(0)
        same = torch.ones(PLACES, dtype=torch.bool)

        def draw(rows: int, *sizes: int) -> Tensor:
            drawn = torch.randn(rows, *sizes, dtype=torch.float64, generator=generator)
            return drawn.to(view.study.model.device, view.precision)

        with made_up(model, generator):
            for _ in range(_PROBES):
                row, others = draw(1, *shape), draw(PLACES, *shape)
                found, narrow = _results(model, compute, row.expand(PLACES, *shape).clone())
                for one in found:
                    same &= _as_at_the_first(one)
                others[:1] = row
                among, _ = _results(model, compute, others)
                if not all(_first_alike(one, other) for one, other in zip(found, among, strict=True)):
                    raise ModelError(
                        f"{view.study.model.factory}: what it computes of a row changes with the other rows of its "
                        "batch; a network may not mix patients"
                    )
            with torch.no_grad():
                steps: list[Step] = [*after, *((layer, sizes) for (layer, _), sizes in narrow.items())]
                for step, sizes in steps:
                    size = step(draw(PLACES, *sizes)).numel() // PLACES
                    for _ in range(_CHANCES // max(size, 1) + 1):
                        same &= _as_at_the_first(step(draw(1, *sizes).expand(PLACES, *sizes).clone()))
        _known[key] = torch.nonzero(same).flatten()
    return _known[key]


def _results(
    model: nn.Module, compute: Callable[[Tensor], Iterable[Tensor]], x: Tensor
) -> tuple[list[Tensor], dict[tuple[nn.Module, int], tuple[int, ...]]]:
    """What every layer gives, and what is computed, of a batch; and the layers of few numbers a row.

    Two orders of a sum often give the same bits: a layer of few numbers has few chances to show that they are two.
    """
    seen: list[Tensor] = []
    narrow: dict[tuple[nn.Module, int], tuple[int, ...]] = {}

    def note(layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        if not isinstance(output, Tensor) or output.ndim == 0 or len(output) != PLACES:
            return
        seen.append(output.detach())
        size, own = output.numel() // PLACES, [*layer.children()] == [] and [*layer.parameters()] != []
        if own and size < _CHANCES and len(inputs) == 1 and isinstance(inputs[0], Tensor):
            narrow[layer, size] = tuple(inputs[0].shape[1:])

    handles = [layer.register_forward_hook(note) for layer in model.modules()]
    try:
        results = list(compute(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x))
    finally:
        for handle in handles:
            handle.remove()
    return [*results, *seen], narrow


def by_entry(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """A function of each number, where every number meets the same instructions: the last ones of an array would not.

    Args:
        values: (m,).
    """
    return function(functional.pad(values, (0, -len(values) % _LANES)))[: len(values)]


def _as_at_the_first(found: Tensor) -> Tensor:
    rows = found.detach().reshape(PLACES, -1)
    return _same(rows, rows[:1])


def _first_alike(one: Tensor, other: Tensor) -> bool:
    return bool(_same(one.detach()[:1].reshape(1, -1), other.detach()[:1].reshape(1, -1)))


def _same(rows: Tensor, others: Tensor) -> Tensor:
    return ((rows == others) | (rows.isnan() & others.isnan())).all(dim=1).cpu()


def network_key(view: View) -> Hashable:
    """What the instructions of a view's model hang on, with the shape of its rows."""
    spec = view.study.model
    arguments = tuple(sorted(spec.arguments.items()))
    return spec.factory, arguments, spec.head, spec.device, view.precision, view.head


@contextmanager
def made_up(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """The model with random weights, since one made to hide its rounding would hide it here too; then as it was.

    Buffers that a state dict leaves out are put back too: nothing else would.
    """
    own = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    try:
        with torch.no_grad():
            for parameter in model.parameters():
                wide = max(parameter[0].numel() if parameter.ndim > 1 else 1, 1)
                parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator) / wide**0.5)
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(0.5 + torch.rand(buffer.shape, dtype=torch.float64, generator=generator))
        yield
    finally:
        with torch.no_grad():
            for tensor, before in own:
                tensor.copy_(before)
