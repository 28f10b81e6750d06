"""Sums over patients that single methods ask for; they run behind the door, as all computations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from equipoise.client.alike import PLACES, alike_places, batches
from equipoise.client.contribution import Contribution, Rows, Totals
from equipoise.client.workbench import cells_of
from equipoise.client.workplace import Workplace, nothing, patients_by_cell
from equipoise.common.errors import RefusedError
from equipoise.common.group_fisher import PatientFisher, Scale
from equipoise.common.layout import Layout
from equipoise.common.losses import row_losses, row_shares
from equipoise.common.mask import units
from equipoise.common.space import Space

ROWS = 128


def cell_losses(place: Workplace) -> Contribution:
    """Each patient's mean cross-entropy over their rows, cut at the cap and divided by it, in the patient's cell."""
    study, split, query = place.study, place.split, place.query
    view = place.view()
    cut = torch.zeros(split.patients, dtype=torch.float64)
    with torch.no_grad():
        places = alike_places(view, "scores", lambda x: [view.model(x)])
        for batch in batches(view, places):
            label = batch.label[batch.owner].double()
            entropy = functional.binary_cross_entropy_with_logits(
                view.model(batch.x).double().cpu(), label, reduction="none"
            )
            mean = torch.zeros(len(batch.label), dtype=torch.float64)
            mean.index_add_(0, batch.owner, entropy * row_shares(batch.owner, len(mean)))
            cut[batch.patient] = (mean / query.parameters["cap"]).clamp(0.0, 1.0)[batch.real]
    cell = cells_of(study, split)
    cells = query.blocks["losses"].size
    if not query.private:
        sums = torch.zeros(cells, dtype=torch.float64).index_add_(0, cell, cut)
        shape = query.blocks["losses"].shape
        return Totals({"losses": sums.numpy().reshape(shape), "patients": patients_by_cell(cell, cells)})
    vectors = np.zeros((split.patients, cells))
    vectors[np.arange(split.patients), cell.numpy()] = cut.numpy()
    return Rows([vectors])


def group_fisher(place: Workplace) -> Contribution:
    """Squared gradients of each patient's task loss, pooled by unit, at the patient's group."""
    query, view = place.query, place.view()
    layout = Layout({name: tuple(view.model.get_parameter(name).shape) for name in query.parameters["tensors"]})
    fisher = PatientFisher(view.model, layout, query.parameters["granularity"])
    groups = query.blocks["energies"].shape[0]

    def alone(x: Tensor) -> Iterator[Tensor]:
        nobody = torch.zeros(PLACES, dtype=torch.int64)
        return (energies for _, energies in fisher.patients(x, torch.arange(PLACES), nobody))

    places = alike_places(view, (query.name, query.parameters["granularity"], *layout.shapes), alone)

    def parts() -> Iterator[tuple[Tensor, Iterator[tuple[str, Tensor]]]]:
        for batch in batches(view, places):
            found = fisher.patients(batch.x, batch.owner, batch.label)
            yield batch.cell[batch.real] // 2, ((name, energies[batch.real]) for name, energies in found)

    if query.private:
        scale = Scale.from_arrays(query.inputs["units"])
        sound = scale.unit.shape == (len(layout.shapes),) and np.isfinite(scale.unit).all() and scale.unit.min() > 0
        if not (sound and 0 < scale.clip < np.inf):
            # Found out at a patient, it would be an error or none by whether there is one.
            raise RefusedError(f"{query.name}: units of shape {scale.unit.shape} or a clip bound that are none")

        def vectors() -> Iterator[NDArray[np.float64]]:
            for own, found in parts():
                energies = dict(found)
                ordered = {name: energies[name] for name in layout.shapes}
                yield scale.contributions(ordered, own.numpy(), groups)

        return Rows(vectors())
    sizes = units(layout, query.parameters["granularity"])
    totals = {name: torch.zeros((groups, size), dtype=torch.float64) for name, size in sizes.items()}
    for own, found in parts():
        for name, energies in found:
            totals[name].index_add_(0, own, energies)
    return Totals({"energies": torch.cat(list(totals.values()), dim=1).numpy()})


def head_moments(place: Workplace) -> Contribution:
    """Sums over patients of the head's inputs, averaged over the patient's rows, and of their squares."""
    split = place.split
    if not split.patients:
        return nothing(place.query)
    share = row_shares(split.patient, split.patients)
    sums, squares = torch.zeros(()), torch.zeros(())
    for rows, _, inputs in _head_inputs(place):
        features = inputs[:, :-1]
        sums = sums + (share[rows, None] * features).sum(dim=0)
        squares = squares + (share[rows, None] * features**2).sum(dim=0)
    return Totals({"sums": sums.numpy(), "squares": squares.numpy(), "patients": np.array([split.patients])})


def head_curve(place: Workplace) -> Contribution:
    """The patients' weighted cross-entropy, its gradient and Hessian by the head, averaged over each patient's rows."""
    split, query = place.split, place.query
    if not split.patients:
        return nothing(query)
    task, bias = place.cell_weights()
    cell, share = cells_of(place.study, split), row_shares(split.patient, split.patients)
    d = query.blocks["gradient"].size
    loss, gradient, hessian = 0.0, torch.zeros(d, dtype=torch.float64), torch.zeros((d, d), dtype=torch.float64)
    for rows, z, inputs in _head_inputs(place):
        owner = split.patient[rows]
        weight = share[rows] * task[cell[owner]]
        p = torch.sigmoid(z)
        loss += float((share[rows] * row_losses(z, split.label[owner], cell[owner], task, bias, 1.0)).sum())
        gradient += (weight * (p - split.label[owner].double())) @ inputs
        hessian += (inputs * (weight * p * (1 - p))[:, None]).T @ inputs
    upper = torch.triu_indices(d, d)
    return Totals(
        {
            "loss": np.array([loss]),
            "gradient": gradient.numpy(),
            "hessian": hessian[upper[0], upper[1]].numpy(),
            "weight": task[cell].sum().reshape(1).numpy(),
        }
    )


def _head_inputs(place: Workplace) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Slices of the rows with their logits (m,) and the gradients of these by the head (m, d): its inputs, and 1."""
    view = place.view_for(place.query.parameters["tensors"])
    space = Space.of(view.model, "head", head=place.study.model.head)
    for start in range(0, len(place.split.patient), ROWS):
        rows = slice(start, start + ROWS)
        logits, gradients = space.logit_gradients(view.model, view.rows(rows))
        yield rows, logits.double().cpu(), gradients.double().cpu()
