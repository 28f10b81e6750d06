"""Queries without a private form, which are refused where noise has to protect the patients."""

from __future__ import annotations

from equipoise.common.catalogue.size import GRADIENT_BOUND, TABLES, declared_total, groups_of, sites_of
from equipoise.common.layout import Layout
from equipoise.common.mask import Granularity, units
from equipoise.common.query import Block, Query
from equipoise.common.study import Study

SQUARE_BOUND = 2.0**8  # of the squared gradient of one mini-batch's mean loss

# Queries whose sum shows a figure of each hospital: a secure sum conceals nothing of it, and no noise protects it. A
# hospital answers them only where its own file says `caps.site_results: true`.
SITE_LEVEL = ("site_gradient", "site_deviation", "site_table")


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
    """Published sensitivities: squares of mini-batch gradients, which one patient changes whole.

    Inputs: the model, `weights` with the `patients` by cell of the groups that are compared; batches are of them alone.
    """
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
