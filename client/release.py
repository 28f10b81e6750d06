"""The door's last step: from what patients contribute to the integers that leave, bounded and noised by one plan.

Nothing else in a hospital makes integers for the network, and this does nothing without a charge that the ledger gave
for this very release. It takes the query's release plan and no other number, so that what is clipped, what is added
and what is accounted cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from equipoise.client.contribution import Contribution, Fills, Noised, Rows
from equipoise.client.ledger import Charge
from equipoise.common.errors import RefusedError
from equipoise.common.privacy.rounding import clip_and_round
from equipoise.common.query import Arrays, Query

Points = NDArray[np.int64]
NO_LIMIT: Mapping[str, int] = MappingProxyType({})


def release(
    charge: Charge, query: Query, contribution: Contribution, most: Mapping[str, int] = NO_LIMIT
) -> dict[str, Points]:
    """The site's integers for a query, by block.

    Args:
        charge: from `Ledger.reserve`, for this query; used up here.
        query: from the approved plan.
        contribution: what the computation of the query returned.
        most: block -> the largest integer before noise that a secure sum has room for.

    Formal guarantee:
        Unit: patient, with all images; relation: add or remove one. The sum over patients before noise moves by at most
        the plan's sensitivity (in its norm): a patient's vector is clipped and rounded, whatever it holds, and a
        patient fills at most `clip` different cells by one each. Noise is one draw of the plan's own mechanism, from
        the site's cryptographic generator. The event is the plan's event.

    Edge cases:
        No patients: the noise alone. NaN or infinity in a vector: that patient contributes 0. A cell out of range: not
        counted. A private sum beyond `most`, before its noise: cut to it, which moves no two cohorts farther apart; a
        refusal would tell of the sum. A noised update beyond its bound: cut to it, NaN to 0, which is post-processing.
        Plan `none`: exact sums on the lattice, and no guarantee.

    Raises:
        RefusedError: the charge is used up or of another query; a total where patients have to be bounded; vectors or
            cells of another shape than the plan's; a value that is not finite or beyond its bound, without privacy.
    """
    charge.use(query.digest)
    if isinstance(contribution, Fills):
        return _counted(query, contribution, most)
    if isinstance(contribution, Rows):
        return _summed(query, contribution, most)
    if not query.private:
        return query.encode(contribution.values)
    if not (isinstance(contribution, Noised) and query.plan.kind == "dp_sgd"):
        raise RefusedError(f"{query.name}: a total cannot be made private; nothing was sent")
    return query.encode(_within(query, contribution.values, most))


def _within(query: Query, values: Arrays, most: Mapping[str, int]) -> Arrays:
    """A noised update cut to what its blocks have room for."""
    cut = dict(values)
    for name, block in query.blocks.items():
        bound = block.site_bound if name not in most else min(block.site_bound, most[name] * block.step)
        wide = np.nan_to_num(np.asarray(values[name], dtype=np.float64), nan=0.0, posinf=bound, neginf=-bound)
        cut[name] = np.clip(wide, -bound, bound)
    return cut


def _counted(query: Query, fills: Fills, most: Mapping[str, int]) -> dict[str, Points]:
    plan = query.plan
    if set(fills.cells) != set(query.blocks) or plan.kind not in ("counts", "none"):
        raise RefusedError(f"{query.name}: cells {sorted(fills.cells)} under a plan of kind {plan.kind}")
    offsets = dict(zip(query.blocks, np.cumsum([0, *(block.size for block in query.blocks.values())]), strict=False))
    columns = [
        np.where((fills.cells[name] >= 0) & (fills.cells[name] < block.size), fills.cells[name] + offsets[name], -1)
        for name, block in query.blocks.items()
    ]
    cells = np.concatenate(columns, axis=1)
    if query.private and cells.shape[1] > plan.clip:
        raise RefusedError(f"{query.name}: {cells.shape[1]} cells a patient, the plan bounds them by {plan.clip:g}")
    # A cell that a patient fills twice counts once: the accounted event moves different cells by one step each.
    cells = np.sort(cells, axis=1)
    cells[:, 1:][cells[:, 1:] == cells[:, :-1]] = -1
    size = sum(block.size for block in query.blocks.values())
    counted = np.bincount(cells[cells >= 0], minlength=size).astype(np.int64)
    return _blocks(query, _noised(query, counted, most))


def _noised(query: Query, total: Points, most: Mapping[str, int]) -> Points:
    """The sum and one draw of the plan's noise; the sum of a private release within `most`."""
    if query.private and most:
        limits = np.concatenate([np.full(block.size, most[name]) for name, block in query.blocks.items()])
        total = np.clip(total, -limits, limits)
    return total + query.plan.sampler.noise(total.shape)


def _summed(query: Query, rows: Rows, most: Mapping[str, int]) -> dict[str, Points]:
    plan = query.plan
    size = sum(block.size for block in query.blocks.values())
    if not query.private:
        exact = np.zeros(size)
        for part in rows.parts:
            exact += part.sum(axis=0)
        return query.encode({name: values.reshape(query.blocks[name].shape) for name, values in _cut(query, exact)})
    if plan.kind != "vector" or plan.dimensions != size:
        raise RefusedError(f"{query.name}: vectors of {size} entries under a plan of kind {plan.kind}")
    total = np.zeros(size, dtype=np.int64)
    for part in rows.parts:
        # Fewer entries would be spread over all of them, and a patient would count many times.
        if part.ndim != 2 or part.shape[1] != size:
            raise RefusedError(f"{query.name}: vectors of shape {part.shape[1:]}, the plan has {size} entries")
        total += clip_and_round(part, plan.clip, plan.step).sum(axis=0)
    return _blocks(query, _noised(query, total, most))


def _cut(query: Query, flat: NDArray[np.generic]) -> list[tuple[str, NDArray[np.generic]]]:
    bounds = np.cumsum([0, *(block.size for block in query.blocks.values())])
    return [(name, flat[bounds[i] : bounds[i + 1]]) for i, name in enumerate(query.blocks)]


def _blocks(query: Query, flat: Points) -> dict[str, Points]:
    shapes: Mapping[str, tuple[int, ...]] = {name: block.shape for name, block in query.blocks.items()}
    return {name: np.ascontiguousarray(values.reshape(shapes[name])) for name, values in _cut(query, flat)}
