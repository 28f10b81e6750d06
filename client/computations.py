"""What a site computes for each query of the catalogue. All of it runs behind the door, in the site agent.

A computation returns what patients contribute (`equipoise.client.contribution`); it neither adds over them, where noise
has to protect them, nor adds noise: `equipoise.client.release` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.client import evaluation_tables, group_sums, site_figures
from equipoise.client.alike import PLACES, alike_places, batches
from equipoise.client.contribution import Contribution, Fills, Noised, Rows, Totals
from equipoise.client.training import train_locally
from equipoise.client.workbench import View, cells_of, network, of_compared
from equipoise.client.workplace import Workplace, nothing, patients_by_cell, sums_by_cell
from equipoise.common.block_energies import BlockEnergies
from equipoise.common.catalogue import sites_of
from equipoise.common.classifier import state_from_inputs
from equipoise.common.equalisation import contributions as contributions_of_energies
from equipoise.common.errors import RefusedError
from equipoise.common.losses import row_losses, row_shares
from equipoise.common.private_step import contributions
from equipoise.common.query import MOVED
from equipoise.common.sensitivities import batch_sensitivities, patient_sensitivities
from equipoise.common.space import Space

GRADIENT_BATCH = 64


def cell_counts(place: Workplace) -> Contribution:
    """The cell of each patient."""
    return Fills({"patients": cells_of(place.study, place.split).numpy()[:, None]})


def cell_statistics(place: Workplace) -> Contribution:
    """Patients and sums of the patients' mean scores by cell."""
    study, split = place.study, place.split
    cells = 2 * (len(study.primary.groups) + 1)
    cell = cells_of(study, split)
    scores = sums_by_cell(torch.sigmoid(place.view().logits()), split, cell, cells)
    return Totals({"patients": patients_by_cell(cell, cells), "scores": scores})


def sensitivities(place: Workplace) -> Contribution:
    """Per-patient sensitivities; see `equipoise.common.sensitivities`."""
    study, split = place.study, place.split
    if not split.patients:
        return nothing(place.query)
    view = place.view()
    bias, task = patient_sensitivities(
        view.model,
        place.layout,
        view.rows,
        split.patient,
        split.label,
        cells_of(study, split),
        *place.cell_weights(),
        place.query.parameters["granularity"],
    )
    return Totals({"bias": bias, "task": task})


def batch_squares(place: Workplace) -> Contribution:
    """The published sensitivities over shuffled mini-batches of this site's rows of the groups that are compared."""
    study, split, parameters = place.study, place.split, place.query.parameters
    cell = cells_of(study, split)
    chosen = torch.nonzero(of_compared(cell, place.query.inputs["weights"]["patients"])[split.patient]).flatten()
    if not len(chosen):
        return nothing(place.query)
    view = place.view()

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        order = chosen[torch.randperm(len(chosen), generator=place.generator("batches"))]
        for rows in torch.split(order, parameters["batch"]):
            owner = split.patient[rows]
            yield view.rows(rows), split.label[owner], cell[owner]

    bias, task, count = batch_sensitivities(
        view.model,
        place.layout,
        batches(),
        len(study.primary.groups) + 1,
        parameters["loss"],
        parameters["form"],
        parameters["granularity"],
    )
    return Totals({"bias": bias, "task": task, "batches": np.array([count])})


def gradient_sum(place: Workplace) -> Contribution:
    """Gradient of the patients' losses, summed, and patients and sums of scores by cell."""
    study, split, layout = place.study, place.split, place.layout
    view = place.view_for(layout.shapes)
    cell, share = cells_of(study, split), row_shares(split.patient, split.patients)
    task, bias = place.cell_weights()
    parameters = [view.model.get_parameter(name) for name in layout.shapes]
    total, logits = np.zeros(layout.size), []
    for start in range(0, len(split.patient), GRADIENT_BATCH):
        rows = slice(start, start + GRADIENT_BATCH)
        owner = split.patient[rows]
        z = view.model(view.rows(rows))
        losses = row_losses(z, split.label[owner], cell[owner], task, bias, place.query.parameters["beta"])
        gradient = torch.autograd.grad((losses * share[rows].to(losses)).sum(), parameters)
        total += layout.flatten(dict(zip(layout.shapes, gradient, strict=True)))
        logits.append(z.detach().cpu())
    p = torch.sigmoid(torch.cat(logits)) if logits else torch.zeros(0)
    scores = sums_by_cell(p, split, cell, len(task))
    return Totals({"gradient": total, "patients": patients_by_cell(cell, len(task)), "scores": scores})


def block_sensitivities(place: Workplace) -> Contribution:
    """Each patient's equalised squared gradient norms by tensor, of the score and of the cross-entropy."""
    study, query = place.study, place.query
    weights, units = query.inputs["weights"], query.inputs["units"]
    tensors, of_cells = query.blocks["bias"].shape[0], (len(study.primary.groups) + 1, 2)
    shapes = (weights["bias"].shape, weights["task"].shape, units["unit"].shape, units["kept"].shape)
    if shapes != (of_cells, of_cells, (2, tensors), (2,)):
        raise RefusedError(f"{query.name}: weights and units of shapes {shapes} for {tensors} tensors")
    view = place.view()
    energies = BlockEnergies(view.model, query.parameters["tensors"])

    def alone(x: Tensor) -> list[Tensor]:
        nobody = torch.zeros(PLACES, dtype=torch.int64)
        return [torch.from_numpy(found) for found in energies.patients(x, torch.arange(PLACES), nobody)]

    places = alike_places(view, (query.name, *energies.names), alone)

    def parts() -> Iterator[NDArray[np.float64]]:
        for batch in batches(view, places):
            bias, task = energies.patients(batch.x, batch.owner, batch.label)
            vectors = contributions_of_energies(
                units["unit"], units["kept"], bias, task, batch.cell.numpy(), weights["bias"], weights["task"]
            )
            yield vectors[batch.real.numpy()]

    return Rows(parts())


def whitened_gradient(place: Workplace) -> Contribution:
    """Each patient's clipped gradient in whitened directions, in units of the clip bound, and the score that rides.

    Without noise the patient's cell rides too.
    """
    study, query = place.study, place.query
    parameters, weights, basis = query.parameters, query.inputs["weights"], query.inputs["basis"]
    of_cells, of_directions = query.blocks["scores"].shape, query.blocks["gradient"].shape
    shapes = (weights["task"].shape, weights["bias"].shape, basis["basis"].shape[1:])
    if shapes != (of_cells, of_cells, of_directions):
        # Found out later, it would be an error or none by which cells have patients.
        raise RefusedError(f"{query.name}: weights and basis of shapes {shapes}, expected {(of_cells, of_directions)}")
    # The space belongs to the vendor's weights; where the model is now does not change its filters.
    base = {name: value for name, value in query.inputs.items() if name == "model.base"}
    space = Space.of(
        network(study, state_from_inputs(base)),
        parameters["space"],
        head=study.model.head,
        seed=study.seed,
        rank=parameters["rank"],
    )
    if "filters" in query.inputs:
        space = space.with_filters(query.inputs["filters"])
    if "mask" in query.inputs:
        space = space.masked(query.inputs["mask"])
    view = place.view_for(space.blocks)
    directions, clip = torch.from_numpy(basis["basis"]), float(basis["clip"][0])
    if not (0 < clip < np.inf and all(np.isfinite(weights[key]).all() for key in ("task", "bias"))):
        raise RefusedError(f"{query.name}: clip bound {clip} or weights that are no numbers")
    places = _places_of_projections(view, query.name, space, directions)
    cells = query.blocks["scores"].size

    def parts() -> Iterator[NDArray[np.float64]]:
        for batch in batches(view, places):
            logits, dz = space.logit_gradients(view.model, batch.x)
            vectors = contributions(
                logits,
                _projected(dz, directions),
                batch.owner,
                batch.label,
                batch.cell,
                weights["task"],
                weights["bias"],
                beta=parameters["beta"],
                clip=clip,
            )
            vectors = vectors / clip
            if not query.private:
                vectors = np.hstack([vectors, np.eye(cells)[batch.cell.numpy()]])
            yield vectors[batch.real.numpy()]

    return Rows(parts())


def _projected(dz: Tensor, directions: Tensor) -> Tensor:
    return dz.double().cpu() @ directions


def _places_of_projections(view: View, name: str, space: Space, directions: Tensor) -> Tensor:
    """Places that compute alike in a space and directions of these shapes, whose numbers the server has chosen."""
    generator = torch.Generator().manual_seed(0)
    other = space.made_up(generator)
    across = torch.randn(directions.shape, dtype=torch.float64, generator=generator)

    def alone(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, dz = other.logit_gradients(view.model, x)
        return logits, dz, _projected(dz, across)

    what = (name, space.shapes, tuple(directions.shape))
    return alike_places(view, what, alone, [(lambda dz: _projected(dz, across), (space.size,))])


def local_training(place: Workplace) -> Contribution:
    """This site's change after local epochs, times its declared share of all patients."""
    study, query = place.study, place.query
    if not place.split.patients:
        return nothing(query)
    declared = study.sites.declared_patients
    share = declared[place.site] / max(sum(declared.values()), 1)
    if "shares" in query.inputs:
        share = float(query.inputs["shares"]["shares"][sites_of(study).index(place.site)])
    change, scores = train_locally(
        place.view_for(query.parameters["tensors"], query.parameters["flips"]),
        place.layout,
        query.parameters,
        query.inputs["weights"],
        query.inputs.get("mask"),
        place.generator("local training"),
        query.inputs.get("model.right"),
    )
    patients = patients_by_cell(cells_of(study, place.split), scores.size)
    return Totals({"change": share * change, "patients": patients, "scores": scores})


def private_training(place: Workplace) -> Contribution:
    """This site's change after steps of DP-SGD, times its declared share, and the noised scores by cell."""
    study, query, layout = place.study, place.query, place.layout
    clip, weights, mask = query.inputs["clip"]["clip"], query.inputs["weights"], query.inputs.get("mask")
    of_cells = query.blocks["scores"].shape
    shapes = (weights["task"].shape, weights["bias"].shape, clip.shape, layout.size)
    if shapes != (of_cells, of_cells, (1,), query.blocks[MOVED].size) or query.plan.kind != "dp_sgd":
        raise RefusedError(f"{query.name}: weights, clip bound and tensors of shapes {shapes} for {of_cells} cells")
    if not (0 < clip[0] < np.inf and all(np.isfinite(weights[key]).all() for key in ("task", "bias"))):
        raise RefusedError(f"{query.name}: clip bound {clip[0]} or weights that are no numbers")
    # Opacus takes seconds to load, which a site without DP-SGD is spared.
    from equipoise.client.private_training import train_privately

    declared = study.sites.declared_patients
    change, scores = train_privately(
        place.view_for(layout.shapes, query.parameters["flips"]),
        layout,
        query.parameters,
        query.plan,
        float(clip[0]),
        weights,
        mask,
        max(query.plan.rate * declared[place.site], 1.0),
    )
    return Noised({MOVED: declared[place.site] / max(sum(declared.values()), 1) * change, "scores": scores})


COMPUTATIONS: dict[str, Callable[[Workplace], Contribution]] = {
    "cell_counts": cell_counts,
    "cell_statistics": cell_statistics,
    "sensitivities": sensitivities,
    "batch_sensitivities": batch_squares,
    "gradient_sum": gradient_sum,
    "cell_losses": group_sums.cell_losses,
    "group_fisher": group_sums.group_fisher,
    "head_moments": group_sums.head_moments,
    "head_curve": group_sums.head_curve,
    "block_sensitivities": block_sensitivities,
    "whitened_gradient": whitened_gradient,
    "local_training": local_training,
    "private_training": private_training,
    "site_gradient": site_figures.site_gradient,
    "fair_training": site_figures.fair_training,
    "cell_decisions": site_figures.cell_decisions,
    "site_deviation": site_figures.site_deviation,
    "score_histogram": evaluation_tables.score_histogram,
    "decision_table": evaluation_tables.decision_table,
    "site_table": evaluation_tables.site_table,
    "placement_sums": evaluation_tables.placement_sums,
}
