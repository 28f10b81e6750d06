"""SWiFT: soft-mask weight fine-tuning, federated.

Each hospital's annotated patients say how much each part of the model serves the bias and the task; the sum over
hospitals gives one soft mask; masked fine-tuning of the extractor lowers the bias, and fine-tuning of the head restores
the task. Federated after the public code of SWiFT (see docs/methods.md), with global-coefficient losses, weights in
place of resampling, the mask on the update, and the absolute form of equalised odds.

`published: true` is not a switch here: the published choices are parameters (`importance: mini_batch`,
`scaling: minmax`, `floor: 1.0e-10`, `granularity: parameter`, `form: signed`, `beta: 0.1`), so that each can be
compared alone.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from equipoise.common import catalogue
from equipoise.common.cells import Balance, BiasLoss, Cells, Form, task_weights
from equipoise.common.classifier import Classifier
from equipoise.common.config import Strict, validate
from equipoise.common.fairness.auc import auc_by_group
from equipoise.common.fairness.tables import hybrid_edges
from equipoise.common.mask import Granularity, Scaling, SoftMask
from equipoise.common.methods.averaging import (
    OF_BATCHES,
    LocalSteps,
    Step,
    Weighting,
    check_form,
    check_labels,
    refuse_other_rounds,
    refuse_without_effect,
    rounds_unless_whitened,
    step_of,
)
from equipoise.common.methods.masked import MaskedRounds, mask_queries, plan_masked, private_mask, run_masked
from equipoise.common.methods.method import Method, Outcome, Steps, changed
from equipoise.common.methods.phases import Gaps, Phase, phase_queries, train_phase
from equipoise.common.methods.private_averaging import Averages, DpSgd
from equipoise.common.methods.private_averaging import Rounds as PrivateRounds
from equipoise.common.methods.whitened import Whitened, without_bias
from equipoise.common.query import MOST_RELEASES, Query, Sum
from equipoise.common.streams import numpy_stream
from equipoise.common.study import Study

NO_PRIVATE_FORM = ("losses", "levels", "importance", "granularity", "scaling", "form")
OF_OTHER_ROUNDS = {"rounds": "whitened.rounds", "weight_cap": "", "head_reset": ""}
OF_EXACT_AVERAGES = {"weight_cap": "", "smoothing": "dp_sgd.smoothing"}


class Rounds(Strict):
    """Rounds of each phase."""

    extractor: int = Field(default=5, ge=0, le=MOST_RELEASES)
    head: int = Field(default=5, ge=0, le=MOST_RELEASES)


class Swift(LocalSteps):
    """Parameters of SWiFT; defaults are those of docs/methods.md."""

    bias_loss: BiasLoss = "equalized_odds"
    form: Form = "absolute"
    beta: float = Field(default=0.5, ge=0, le=1)  # share of the task loss in the extractor's phase
    smoothing: float = Field(default=0.08, ge=0)
    losses: Literal["global", "batch"] = "global"  # batch: each mini-batch weighs its own cells, as published
    balance: Balance = "cells"
    weight_cap: float = Field(default=4.0, gt=0)
    levels: Literal["all", "extremes"] = "all"
    importance: Literal["per_patient", "mini_batch"] = "per_patient"
    granularity: Granularity = "tensor"
    scaling: Scaling = "mean"
    floor: float = Field(default=0.05, gt=0)
    mask: Literal["soft", "ones", "constant", "permuted"] = "soft"
    head_reset: Literal["above_mean", "none"] = "above_mean"
    step: Step | None = None  # left out: whitened where noise protects the patients, else fedavg
    rounds: Rounds = Rounds()  # of fedavg and full_gradient
    whitened: Whitened = Whitened()
    dp_sgd: DpSgd = DpSgd()  # of fedavg where noise protects the patients

    @model_validator(mode="after")
    def _agree(self) -> Swift:
        if self.step == "full_gradient" and self.losses == "batch":
            raise ValueError("step=full_gradient has no batches; losses=batch needs step=fedavg")
        return self


def parameters_of(study: Study) -> Swift:
    """The study's method keys, checked."""
    return validate(Swift, study.method.parameters, "method")


def plan(study: Study, model: Classifier) -> list[Query]:
    """Every query of a run, in order.

    Raises:
        StudyError: a parameter is chosen that the rounds do not have.
    """
    p = parameters_of(study)
    read = ("batch",) if p.importance == "mini_batch" else ()
    refuse_other_rounds(study, p, OF_OTHER_ROUNDS, OF_EXACT_AVERAGES, read)
    if step_of(study, p.step) == "whitened":
        return plan_masked(study, model, _masked(study, p))
    if _averages_noise(study, p):
        private = [part.query(study, model, r) for part in _private(p) for r in range(part.rounds)]
        return [catalogue.cell_counts(study), *mask_queries(study, model, p.mask), *private]
    queries = [catalogue.cell_statistics(study)]
    if p.levels == "extremes":
        queries.append(catalogue.score_histogram(study, "train", "base"))
    if p.mask != "ones":
        queries.append(_mask_query(study, model, p))
    for phase in _phases(p, step_of(study, p.step)):
        queries += phase_queries(study, model, phase, (p.bias_loss, p.form, p.smoothing))
    return queries


def run(study: Study, model: Classifier) -> Steps:
    """The method, from the paper's setting to its result."""
    p = parameters_of(study)
    step = step_of(study, p.step)
    if step == "whitened":
        return (yield from run_masked(study, model, _masked(study, p)))
    if _averages_noise(study, p):
        return (yield from _run_private(study, model, p))
    cells = yield catalogue.cell_statistics(study).with_inputs(**model.inputs())
    counts, scores = cells.value("patients"), cells.value("scores")
    check_labels(study, counts)
    if p.levels == "extremes":
        counts = yield from _extreme_groups(study, model, counts)
    check_form(study, counts, p.form)
    task = task_weights(counts, p.balance, p.weight_cap)
    gaps = Gaps(p.bias_loss, p.form, p.smoothing, counts, counts, scores)

    mask = SoftMask.ones(model.layout("whole"))
    if p.mask != "ones":
        mask = yield from _soft_mask(study, model, p, Weighting(task, gaps.weights), counts)
    for phase in _phases(p, step):
        # The published second step fine-tunes the head freely, with the shares of the losses swapped.
        acting = mask if phase.part == "extractor" else SoftMask.ones(model.layout(phase.part))
        if phase.part == "head" and p.head_reset == "above_mean" and phase.rounds:
            model = reset_head(model, mask)
        model = yield from train_phase(study, model, phase, task, gaps, acting)
    return Outcome(model, {"mask": mask.summary(), "mask_mean": mask.mean, "bias_loss_by_round": gaps.trace})


def _phases(p: Swift, step: Step) -> list[Phase]:
    return [
        Phase("extractor", "extractor", p.beta, p.rounds.extractor, step, p, p.losses),
        Phase("head", "head", 1 - p.beta, p.rounds.head, step, p, p.losses),
    ]


def _masked(study: Study, p: Swift) -> MaskedRounds:
    """What whitened rounds take of the parameters.

    Raises:
        StudyError: a parameter is chosen that they do not have.
    """
    if step_of(study, p.step) == "whitened":
        own = {"beta": "whitened.beta", "smoothing": "whitened.smoothing"}
        refuse_without_effect(study, p, "whitened rounds", {**dict.fromkeys(NO_PRIVATE_FORM, ""), **own})
    return MaskedRounds(p.mask, p.bias_loss, p.balance, p.floor, p.whitened)


def _averages_noise(study: Study, p: Swift) -> bool:
    """Whether the averages are of DP-SGD.

    Raises:
        StudyError: a parameter is chosen that they do not have.
    """
    if not study.privacy.private or p.step != "fedavg":
        return False
    refuse_without_effect(study, p, "averages of DP-SGD", dict.fromkeys(NO_PRIVATE_FORM, ""))
    return True


def _private(p: Swift) -> list[PrivateRounds]:
    kind = (p, p.dp_sgd, p.bias_loss, p.balance)
    return [
        PrivateRounds("extractor", p.rounds.extractor, p.beta, *kind),
        PrivateRounds("head", p.rounds.head, 1 - p.beta, *kind),
    ]


def _run_private(study: Study, model: Classifier, p: Swift) -> Steps:
    """The same two phases with a private mask and averages of DP-SGD."""
    cells = yield catalogue.cell_counts(study)
    counts = cells.value("patients")
    check_labels(study, counts)
    mask, notes = yield from private_mask(study, model, counts, _masked(study, p))
    averages = Averages(study, model, counts)
    extractor, head = _private(p)
    yield from averages.advance(extractor, mask)
    if mask is not None and p.head_reset == "above_mean" and head.rounds and not averages.collapsed:
        averages.model = reset_head(averages.model, mask)
    yield from averages.advance(head)
    return Outcome(averages.model, {**notes, "dp_sgd": averages.notes})


def reset_head(model: Classifier, mask: SoftMask) -> Classifier:
    """Head entries whose mask is above their tensor's mean start again at 0 (docs/methods.md, SWiFT 1.4, step 9)."""
    state = model.state
    return model.with_values(
        {name: np.where(mask.above_mean(name), 0.0, state[name]) for name in model.layout("head").shapes}
    )


def _soft_mask(
    study: Study, model: Classifier, p: Swift, weighting: Weighting, counts: Cells
) -> Generator[Query, Sum, SoftMask]:
    query = _mask_query(study, model, p)
    if p.importance == "per_patient":
        total = yield query.with_inputs(**model.inputs(), weights=weighting.arrays())
        units = 1
    else:
        total = yield query.with_inputs(**model.inputs(), weights={"patients": counts})
        units = int(total.count("batches")[0])  # the published importance is a mean, and its epsilons are absolute
    mask = SoftMask.from_sensitivities(
        model.layout("whole"),
        total.value("bias") / units,
        total.value("task") / units,
        p.granularity,
        p.scaling,
        p.floor,
    )
    if p.mask == "constant":
        return mask.constant()
    if p.mask == "permuted":
        return mask.permuted(numpy_stream(study.seed, "permuted mask"))
    return mask


def _extreme_groups(study: Study, model: Classifier, counts: Cells) -> Generator[Query, Sum, Cells]:
    """Counts with every group but the best and the worst by AUC set to zero (the published reduction to two).

    Where no two groups have AUCs that differ, there is no such pair, and all stay.
    """
    edges = hybrid_edges(None, study.score_bins)
    query = catalogue.score_histogram(study, "train", "base")
    total = yield query.with_inputs(**model.inputs(), edges={"edges": edges})
    aucs = np.array([np.nan if e.value is None else e.value for e in auc_by_group(total.count(study.primary.name))])
    aucs = aucs[:-1]
    known = aucs[np.isfinite(aucs)]
    if not len(known) or known.min() == known.max():
        return counts
    kept = {int(np.nanargmin(aucs)), int(np.nanargmax(aucs))}
    keep = np.array([group in kept for group in range(len(counts))])
    reduced: Cells = np.where(keep[:, None], counts, 0.0)
    return reduced


def _mask_query(study: Study, model: Classifier, p: Swift) -> Query:
    layout = model.layout("whole")
    if p.importance == "per_patient":
        return catalogue.sensitivities(study, layout, p.granularity)
    return catalogue.batch_sensitivities(study, layout, p.granularity, p.batch, p.bias_loss, p.form)


def _fine_tuning(loss: str, part: str) -> Any:
    def build(study: Study) -> Study:
        p = parameters_of(study)
        # Full gradients have no batches; SWiFT's may be of its importance alone.
        unknown = OF_BATCHES if p.step == "full_gradient" else ()
        steps = {name: getattr(p, name) for name in LocalSteps.model_fields if name not in unknown}
        # As many rounds as SWiFT has in both phases: the same effort for the control.
        rounds = p.rounds.extractor + p.rounds.head
        return study.with_method(
            "fine_tune",
            loss=loss,
            part=part,
            **rounds_unless_whitened(p.step, rounds),
            step=p.step,
            whitened=without_bias(p.whitened),
            dp_sgd=p.dp_sgd.model_dump(exclude={"smoothing"}),
            weight_cap=p.weight_cap,
            **steps,
        )

    return build


METHOD = Method(
    name="swift",
    title="soft-mask fine-tuning: parts that serve the bias and not the task move, then the head is re-fitted",
    paper="SWiFT (BioMedIA/vios-s, public code at 937e9fd)",
    travels="cell counts, sensitivities by tensor, then a round's change of the trained tensors, or (step whitened) a "
    "round's sum of clipped vectors",
    costs="one pass for the mask, 5 rounds of the extractor and 5 of the head",
    private="mask by tensor, then whitened rounds or averages of local DP-SGD",
    parameters=Swift,
    plan=plan,
    run=run,
    controls={
        "no_mask": changed(mask="ones"),
        "constant": changed(mask="constant"),
        "permuted": changed(mask="permuted"),
        "plain": _fine_tuning("plain", "whole"),
        "balanced": _fine_tuning("cells", "whole"),
        "head": _fine_tuning("cells", "head"),
    },
)
