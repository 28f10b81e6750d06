"""Every query there is: a closed list, since a free callable could break a proof.

Each function gives the public part of one query; the site-side computation of the same name is in
`equipoise.client.computations`. `groups` counts the declared levels and `unknown`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from equipoise.common.layout import Layout
from equipoise.common.mask import Granularity, units
from equipoise.common.query import Block, Query
from equipoise.common.study import Study

# Largest L2 norm of one patient's weighted gradient, and largest change of a weight in one local training. Without
# privacy they bound the lattice and catch a site whose numbers run away; nothing is clipped.
GRADIENT_BOUND = 2.0**12
SQUARE_BOUND = 2.0**8  # of the squared gradient of one mini-batch's mean loss
UPDATE_BOUND = 2.0**8


def groups_of(study: Study, attribute: str | None = None) -> int:
    """Number of groups of an attribute (of the primary one), `unknown` included."""
    chosen = study.primary if attribute is None else study.attribute(attribute)
    return len(chosen.groups) + 1


def declared_total(study: Study) -> int:
    """Patients over all sites, as declared in public."""
    return max(sum(study.sites.declared_patients.values()), 1)


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


def local_training(study: Study, layout: Layout, phase: str, parameters: Mapping[str, Any]) -> Query:
    """A site's weighted change of the trained tensors after local epochs. Inputs: the model, `weights`, `mask`.

    `parameters`: beta, lr, momentum, weight_decay, epochs, batch, flips, round. The site multiplies its change by its
    declared share of the patients, so that the sum is the federated average. `patients` and `scores` are the site's
    patients and their sums of scores by cell after its steps (`equipoise.client.moving_bias`), from which the next
    round's gaps are taken.
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


def score_histogram(study: Study, split: str, model: str) -> Query:
    """Patients by group, label and bin of the score, for every attribute. Inputs: the model, `edges`."""
    return Query(
        name="score_histogram",
        kind="patient_sum",
        split=split,  # type: ignore[arg-type]
        phase="evaluation",
        parameters={"model": model, "attributes": [a.name for a in study.attributes]},
        blocks={a.name: Block.counts((len(a.groups) + 1, 2, study.evaluation.bins)) for a in study.attributes},
    )


def decision_table(study: Study, before: str, after: str, points: int) -> Query:
    """Patients by operating point, group, label and both decisions. Inputs: two models, `thresholds` (points, 2)."""
    return Query(
        name="decision_table",
        kind="patient_sum",
        split="test",
        phase="evaluation",
        parameters={"before": before, "after": after, "attributes": [a.name for a in study.attributes]},
        blocks={
            a.name: Block.counts((points, len(a.groups) + 1, 2, 2, 2), per_patient=points) for a in study.attributes
        },
    )


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
