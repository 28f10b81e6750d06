"""Every query there is: a closed list, since a free callable could break a proof.

Each function gives the template of one query; the site-side computation of the same name is in
`equipoise.client.computations`. `groups` counts the declared levels and `unknown`.

    tables     cell_counts, score_histogram, decision_table     integers; exact, or discrete Laplace noise
    vectors    block_sensitivities, whitened_gradient,          one clipped vector a patient; exact, or Gaussian noise
               cell_losses, group_fisher
    training   private_training                                 a site's own DP-SGD steps
    exact      cell_statistics, sensitivities, batch_sensitivities, gradient_sum, head_moments, head_curve,
               local_training, placement_sums, site_gradient, fair_training, cell_decisions, site_deviation, site_table
               have no private form and are refused where noise has to protect the patients
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from equipoise.common.errors import StudyError
from equipoise.common.layout import Layout
from equipoise.common.mask import Granularity, units
from equipoise.common.privacy.plan import ReleasePlan
from equipoise.common.private_step import joint_bound
from equipoise.common.query import MOVED, TEMPLATE_STEPS, Block, Query, SplitName
from equipoise.common.space import Kind
from equipoise.common.study import Study
from equipoise.common.study_simulation import SyntheticHospitals

# Largest L2 norm of one patient's weighted gradient, and largest change of a weight in one local training. Without
# privacy they bound the lattice and catch a site whose numbers run away; nothing is clipped.
GRADIENT_BOUND = 2.0**12
SQUARE_BOUND = 2.0**8  # of the squared gradient of one mini-batch's mean loss
UPDATE_BOUND = 2.0**8

# Queries whose sum shows a figure of each hospital: a secure sum conceals nothing of it, and no noise protects it. A
# hospital answers them only where its own file says `caps.site_results: true`.
SITE_LEVEL = ("site_gradient", "site_deviation", "site_table")

# Phases that a study's budget is shared among, by split.
COUNTS, MASK, ROUNDS, HISTOGRAM, TABLES = "counts", "mask", "rounds", "histogram", "tables"
SEARCH = "search"  # of candidates that are compared on validation patients
LOSSES = "losses"


def groups_of(study: Study, attribute: str | None = None) -> int:
    """Number of groups of an attribute (of the primary one), `unknown` included."""
    chosen = study.primary if attribute is None else study.attribute(attribute)
    return len(chosen.groups) + 1


def declared_total(study: Study) -> int:
    """Patients over all sites, as declared in public."""
    return max(sum(study.sites.declared_patients.values()), 1)


def expected_patients(study: Study) -> list[int]:
    """Declared training patients of each site; before a simulation has declared them, those it is going to draw.

    Raises:
        StudyError: nothing says how many they are.
    """
    declared = list(study.sites.declared_patients.values())
    simulated = None if study.simulation is None else study.simulation.hospitals
    if not declared and isinstance(simulated, SyntheticHospitals):
        declared = [simulated.patients] * simulated.count
    if sum(declared) == 0:
        raise StudyError(
            "sites.declared_patients is missing: the sampling rate of DP-SGD follows from it; name every hospital with "
            "its number of training patients"
        )
    return declared


def _table(
    study: Study,
    name: str,
    split: SplitName,
    phase: str,
    budget: str,
    parameters: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    cells: int,
) -> Query:
    """A query of integer tables of which a patient fills at most `cells` cells in all, one in each that it fills."""
    blocks = {block: Block.counts(shape, per_patient=cells) for block, shape in shapes.items()}
    query = Query(name, "patient_sum", split, phase, parameters, blocks, budget=budget)
    if not study.privacy.private:
        return query
    size = sum(block.size for block in blocks.values())
    return query.under(ReleasePlan.counts(cells, size, noise=TEMPLATE_STEPS, honest=study.honest_shares))


def _vector(
    study: Study,
    name: str,
    phase: str,
    budget: str,
    parameters: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    clip: float,
) -> Query:
    """A query of one vector a patient over the train split, of L2 norm at most `clip`, cut into blocks."""
    if not study.privacy.private:
        blocks = {block: Block.real(shape, clip, declared_total(study)) for block, shape in shapes.items()}
        return Query(name, "patient_sum", "train", phase, parameters, blocks, budget=budget)
    size = sum(math.prod(shape) for shape in shapes.values())
    plan = ReleasePlan.vector(clip, size, noise=clip, honest=study.honest_shares)
    blocks = {block: Block.noisy(shape, plan) for block, shape in shapes.items()}
    return Query(name, "patient_sum", "train", phase, parameters, blocks, budget=budget).under(plan)


def cell_counts(study: Study) -> Query:
    """Patients by cell (group x label). No inputs."""
    shapes = {"patients": (groups_of(study), 2)}
    return _table(study, "cell_counts", "train", "counts", COUNTS, {"attribute": study.primary.name}, shapes, cells=1)


def cell_statistics(study: Study) -> Query:
    """Patients and sums of scores by cell (group x label). Inputs: the model."""
    shape = (groups_of(study), 2)
    return Query(
        name="cell_statistics",
        kind="patient_sum",
        split="train",
        phase="counts",
        parameters={"attribute": study.primary.name},
        blocks={
            "patients": Block.counts(shape),
            "scores": Block.real(shape, 1.0, declared_total(study)),
        },
    )


def sensitivities(study: Study, layout: Layout, granularity: Granularity) -> Query:
    """Per-patient sensitivities of the bias and of the task. Inputs: the model, `weights`."""
    shape = (sum(units(layout, granularity).values()),)
    block = Block.real(shape, GRADIENT_BOUND, declared_total(study))
    return Query(
        name="sensitivities",
        kind="patient_sum",
        split="train",
        phase="mask",
        parameters={
            "attribute": study.primary.name,
            "granularity": granularity,
            "tensors": list(layout.shapes),
        },
        blocks={"bias": block, "task": block},
    )


def batch_sensitivities(
    study: Study, layout: Layout, granularity: Granularity, batch: int, loss: str, form: str
) -> Query:
    """Published sensitivities: squares of mini-batch gradients, which one patient changes whole. Inputs: the model."""
    shape = (sum(units(layout, granularity).values()),)
    # Contributors are batches: the fewer they are, the finer the lattice, on which the small squares count too.
    batches = -(-declared_total(study) // batch) + len(study.sites.declared_patients)
    block = Block.real(shape, SQUARE_BOUND, batches)
    return Query(
        name="batch_sensitivities",
        kind="site_update",
        split="train",
        phase="mask",
        parameters={
            "attribute": study.primary.name,
            "granularity": granularity,
            "tensors": list(layout.shapes),
            "batch": batch,
            "loss": loss,
            "form": form,
        },
        blocks={"bias": block, "task": block, "batches": Block.counts((1,))},
    )


def gradient_sum(study: Study, layout: Layout, phase: str, beta: float) -> Query:
    """The gradient of the global loss over patients, and patients and sums of scores by cell.

    Inputs: the model, `weights`. The patients are those of the sites that answer: where a site drops out, its cells
    must not look like groups whose scores are 0.
    """
    return Query(
        name="gradient_sum",
        kind="patient_sum",
        split="train",
        phase=phase,
        parameters={"attribute": study.primary.name, "tensors": list(layout.shapes), "beta": beta},
        blocks={
            "gradient": Block.real((layout.size,), GRADIENT_BOUND, declared_total(study)),
            "patients": Block.counts((groups_of(study), 2)),
            "scores": Block.real((groups_of(study), 2), 1.0, declared_total(study)),
        },
    )


def cell_losses(study: Study, phase: str, cap: float) -> Query:
    """Sums of the patients' cross-entropies by cell, each cut at `cap` and divided by it. Inputs: the model.

    Without noise the patients of the sites that answer come with it.
    """
    shape = (groups_of(study), 2)
    query = _vector(
        study, "cell_losses", phase, LOSSES, {"attribute": study.primary.name, "cap": cap}, {"losses": shape}, clip=1.0
    )
    if not study.privacy.private:
        query = replace(query, blocks={**query.blocks, "patients": Block.counts(shape)})
    return query


def group_fisher(study: Study, layout: Layout, granularity: Granularity) -> Query:
    """Sums by group of the patients' squared gradients of the task loss. Inputs: the model; under noise, `units`.

    Under noise one vector a patient, in public units and clipped (`equipoise.common.group_fisher.Scale`), so that the
    plan depends on shapes alone.
    """
    shape = (groups_of(study), sum(units(layout, granularity).values()))
    parameters = {"attribute": study.primary.name, "granularity": granularity, "tensors": list(layout.shapes)}
    query = _vector(study, "group_fisher", "importance", MASK, parameters, {"energies": shape}, clip=1.0)
    if study.privacy.private:
        return query
    return replace(query, blocks={"energies": Block.real(shape, GRADIENT_BOUND, declared_total(study))})


def head_moments(study: Study, head: Layout) -> Query:
    """Sums over patients of the head's inputs and of their squares (patients' means over rows). Inputs: the model."""
    features = Block.real((head.size - 1,), GRADIENT_BOUND, declared_total(study))
    blocks = {"sums": features, "squares": features, "patients": Block.counts((1,))}
    return Query("head_moments", "patient_sum", "train", "head", {"tensors": list(head.shapes)}, blocks)


def head_curve(study: Study, head: Layout) -> Query:
    """Weighted loss of the patients, its gradient and Hessian by the head's weights. Inputs: the model, `weights`.

    The Hessian is its upper triangle, row by row; `weight` is the sum of the patients' weights.
    """
    patients, d = declared_total(study), head.size
    return Query(
        name="head_curve",
        kind="patient_sum",
        split="train",
        phase="head",
        parameters={"attribute": study.primary.name, "tensors": list(head.shapes)},
        blocks={
            "loss": Block.real((1,), GRADIENT_BOUND, patients),
            "gradient": Block.real((d,), GRADIENT_BOUND, patients),
            "hessian": Block.real((d * (d + 1) // 2,), GRADIENT_BOUND, patients),
            "weight": Block.real((1,), GRADIENT_BOUND, patients),
        },
    )


def block_sensitivities(study: Study, layout: Layout) -> Query:
    """Squared gradient norms by tensor, of the score and of the cross-entropy. Inputs: the model, `weights`, `units`.

    One vector a patient: weighted by cell, equalised by public units and clipped to norm 1
    (`equipoise.common.equalisation`), so that the plan depends on shapes alone.
    """
    tensors = len(layout.shapes)
    return _vector(
        study,
        "block_sensitivities",
        "mask",
        MASK,
        {"attribute": study.primary.name, "tensors": list(layout.shapes)},
        {"bias": (tensors,), "task": (tensors,)},
        clip=1.0,
    )


def whitened_gradient(study: Study, phase: str, space: Kind, rank: int, directions: int, beta: float) -> Query:
    """The gradient of the global loss in whitened directions, in units of the clip bound, and the scores by cell.

    Inputs: the model, `weights`, `basis` (basis V (D, k) and clip bound C, both public); `filters`, where some tensors
    have filters of their own; `mask`, where the space is masked. One clipped vector a patient
    (`equipoise.common.private_step.contributions`), divided by C: the plan depends on shapes alone.
    """
    return _vector(
        study,
        "whitened_gradient",
        phase,
        ROUNDS,
        {"attribute": study.primary.name, "space": space, "rank": rank, "beta": beta},
        {"gradient": (directions,), "scores": (groups_of(study), 2)},
        clip=joint_bound(1.0),
    )


def local_training(study: Study, layout: Layout, phase: str, parameters: Mapping[str, Any]) -> Query:
    """A site's weighted change of the trained tensors after local epochs. Inputs: the model, `weights`, `mask`.

    `parameters`: beta, lr, momentum, weight_decay, epochs, batch, flips, round, and what some methods add. With
    `stream`, sites draw their shuffles from the public stream of that name, so that candidates that are compared meet
    the patients in the same order. With `sizes`, tensors whose mask is 0 do not travel (`Query.with_inputs`). The site
    multiplies its change by its declared share of the patients, or by its own of the input `shares` (one a hospital, in
    the order of `sites_of`), so that the sum is the federated average. `patients` and `scores` are the site's patients
    and their sums of scores by cell after its steps (`equipoise.client.moving_bias`), from which the next round's gaps
    are taken.
    """
    return Query(
        name="local_training",
        kind="site_update",
        split="train",
        phase=phase,
        parameters={"attribute": study.primary.name, "tensors": list(layout.shapes), **parameters},
        blocks={
            "change": Block.real((layout.size,), UPDATE_BOUND, 1),
            "patients": Block.counts((groups_of(study), 2)),
            "scores": Block.real((groups_of(study), 2), 1.0, declared_total(study)),
        },
    )


def private_training(
    study: Study, layout: Layout, phase: str, parameters: Mapping[str, Any], batch: int, epochs: int
) -> Query:
    """A site's weighted change of the trained tensors after steps of DP-SGD, and its noised sums of scores by cell.

    Inputs: the model, `weights` (`task` and `bias` by cell), `clip` (C, public), `mask`. `parameters`: beta, lr,
    momentum, weight_decay, flips, round. A step takes each patient with the same probability at every site, by which
    an average site's step has `batch` patients and a round takes each patient `epochs` times; both are in the plan, in
    units of C, so that it depends on shapes alone. The site multiplies its change by its declared share. `scores` are
    summed over the steps (`equipoise.client.private_training`).

    Raises:
        StudyError: noise in shares, which do not compose through a site's own steps, or no declared patients.
    """
    if study.privacy.mode == "distributed":
        raise StudyError(
            "privacy.mode=distributed: federated averaging has noise in every step of a hospital, and shares of noise "
            "do not add up through them; write mode: local, or step: whitened"
        )
    shape = (groups_of(study), 2)
    declared = expected_patients(study)
    rate = min(1.0, batch * len(declared) / sum(declared))
    plan = ReleasePlan.dp_sgd(
        joint_bound(1.0), layout.size + math.prod(shape), noise=1.0, rate=rate, steps=max(1, round(epochs / rate))
    )
    names = list(layout.shapes)
    return Query(
        name="private_training",
        kind="site_update",
        split="train",
        phase=phase,
        parameters={
            "attribute": study.primary.name,
            "tensors": names,
            "sizes": [math.prod(layout.shapes[name]) for name in names],
            **parameters,
        },
        blocks={MOVED: Block.real((layout.size,), UPDATE_BOUND, 1), "scores": Block.noisy(shape, plan)},
        budget=ROUNDS,
    ).under(plan)


def sites_of(study: Study) -> list[str]:
    """The hospitals in the order of vectors that have a place for each."""
    return list(study.sites.declared_patients)


def site_gradient(study: Study, layout: Layout) -> Query:
    """Sum over hospitals of share * mean gradient of the hospital's own task loss, and each hospital's mean loss.

    Inputs: the model, `shares` (one a hospital, in the order of `sites_of`). The losses show every hospital's own
    figure: each fills its own place and adds 0 to the others.
    """
    blocks = {
        "gradient": Block.real((layout.size,), GRADIENT_BOUND, len(sites_of(study))),
        "losses": Block.real((len(sites_of(study)),), GRADIENT_BOUND, 1),
    }
    return Query("site_gradient", "site_update", "train", "rounds", {"tensors": list(layout.shapes)}, blocks)


def fair_training(study: Study, layout: Layout, parameters: Mapping[str, Any]) -> Query:
    """q-FFL's two sums over hospitals: p F^q (change after local epochs), and p (q F^(q-1) |change|^2 / lr + F^q).

    p is the hospital's declared share and F its mean task loss at the received model. Inputs: the model, `weights`.
    `parameters` are those of `local_training`, and q. No hospital's own figure is shown.
    """
    blocks = {
        "change": Block.real((layout.size,), UPDATE_BOUND, 1),
        "curvature": Block.real((1,), GRADIENT_BOUND, 1),
    }
    names = {"attribute": study.primary.name, "tensors": list(layout.shapes), **parameters}
    return Query("fair_training", "site_update", "train", "rounds", names, blocks)


def cell_decisions(study: Study) -> Query:
    """Training patients by group, label and decision at a score of one half. Inputs: the model."""
    shape = (groups_of(study), 2, 2)
    blocks = {"patients": Block.counts(shape)}
    return Query("cell_decisions", "patient_sum", "train", "rounds", {"attribute": study.primary.name}, blocks)


def site_deviation(study: Study, metric: str) -> Query:
    """How far each hospital's own gap is from the global one. Inputs: the model, `reference` (gap, accuracy).

    Shows every hospital's own figure, as `site_gradient` does.
    """
    blocks = {"deviation": Block.real((len(sites_of(study)),), 2.0, 1)}
    parameters = {"attribute": study.primary.name, "metric": metric}
    return Query("site_deviation", "site_update", "train", "rounds", parameters, blocks)


def score_histogram(study: Study, split: SplitName, model: str, bins: int | None = None) -> Query:
    """Patients by group, label and bin of the score. Inputs: the model, `edges`.

    For every attribute; under noise for the primary one alone, which the gates judge. `bins` are the study's unless a
    method needs others.
    """
    attributes = [study.primary] if study.privacy.private else study.attributes
    return _table(
        study,
        "score_histogram",
        split,
        "evaluation",
        HISTOGRAM,
        {"model": model, "attributes": [a.name for a in attributes]},
        {a.name: (len(a.groups) + 1, 2, bins or study.score_bins) for a in attributes},
        cells=len(attributes),
    )


def candidate_histogram(study: Study, bins: int) -> Query:
    """A `score_histogram` of a search's candidate on the validation patients, of the primary attribute alone.

    Searches release many, so their noise is Gaussian, whose cost adds up more slowly than Laplace's.
    """
    attribute = study.primary
    block = Block.counts((len(attribute.groups) + 1, 2, bins))
    parameters = {"model": "candidate", "attributes": [attribute.name]}
    query = Query(
        "score_histogram", "patient_sum", "validation", SEARCH, parameters, {attribute.name: block}, budget=SEARCH
    )
    if not study.privacy.private:
        return query
    plan = ReleasePlan.counts(
        1, block.size, noise=TEMPLATE_STEPS, mechanism="discrete_gaussian", honest=study.honest_shares
    )
    return query.under(plan)


def decision_table(study: Study, before: str, after: str, points: int) -> Query:
    """Patients by group, label and the interval of their score before and after, cut at the operating points.

    One cell a patient; the pair tables of all operating points are margins of it (`equipoise.common.fairness.joint`).
    Inputs: two models, `thresholds` (points, 2).
    """
    return _table(
        study,
        "decision_table",
        "test",
        "evaluation",
        TABLES,
        {"before": before, "after": after, "attributes": [a.name for a in study.attributes]},
        {a.name: (len(a.groups) + 1, 2, points + 1, points + 1) for a in study.attributes},
        cells=len(study.attributes),
    )


def site_table(study: Study, before: str, after: str) -> Query:
    """Each hospital's own pair table at the declared operating point, in a place of its own.

    Shows every hospital's own counts, as `site_gradient` does, and has no private form: noise of every hospital would
    fall on the places of all others. Inputs: two models, `thresholds` (1, 2).
    """
    names = {"before": before, "after": after, "attributes": [a.name for a in study.attributes]}
    blocks = {
        a.name: Block.counts((len(sites_of(study)), len(a.groups) + 1, 2, 2, 2), per_patient=len(study.attributes))
        for a in study.attributes
    }
    return Query("site_table", "patient_sum", "test", "evaluation", names, blocks, budget=TABLES)


def placement_sums(study: Study, before: str, after: str) -> Query:
    """Sums of placements and their products, for the paired variance of an AUC change (DeLong).

    By attribute, group and label: sum Va, sum Vb, sum Va^2, sum Vb^2, sum VaVb. Inputs: two models, `edges`, and for
    each attribute the pooled histograms of both models.
    """
    return Query(
        name="placement_sums",
        kind="patient_sum",
        split="test",
        phase="evaluation",
        parameters={"before": before, "after": after, "attributes": [a.name for a in study.attributes]},
        blocks={
            a.name: Block.real((len(a.groups) + 1, 2, 5), 5.0**0.5, declared_total(study)) for a in study.attributes
        },
    )
