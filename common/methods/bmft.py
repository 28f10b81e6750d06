"""BMFT: bias-based weight masking fine-tuning, federated (Xue et al., MICCAI FAIMI workshop 2024, arXiv:2408.06890).

Which weights serve the bias and not the task? Those whose ratio of sensitivities is above a percentile of all ratios
outside the head get mask 1, the others 0, the head 0. *Impair*: the weights of mask 1 move on the bias loss alone.
*Repair*: the head starts again at 0 and is trained on the task loss with a share of the bias loss, on balanced cells.

After the public code of BMFT (BioMedIA/vios-s, at 70c83e4); no code of it is here. Its errors are not copied
(docs/methods.md, BMFT): scores are the sigmoid of the logit, once; a tensor of one value gives no NaN; a mask by tensor
keeps what the percentile says; what is masked neither moves nor decays; a cell without patients is no mean of 0.

`mask: permuted` and `mask: ones` are the controls of the same name.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from equipoise.common import catalogue
from equipoise.common.cells import Balance, BiasLoss, Form, bias_weights, task_weights
from equipoise.common.classifier import Classifier
from equipoise.common.config import Strict, validate
from equipoise.common.errors import StudyError
from equipoise.common.layout import Layout
from equipoise.common.mask import Granularity, Scaling, SoftMask, scale, spread, units
from equipoise.common.methods.averaging import (
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
from equipoise.common.methods.masked import tensor_sensitivities
from equipoise.common.methods.method import LOCAL_STEPS, RATE_FACTORS, Method, Outcome, Steps, changed
from equipoise.common.methods.phases import Gaps, Phase, phase_queries, train_phase
from equipoise.common.methods.whitened import (
    Course,
    HeadRounds,
    Whitened,
    WhitenedRounds,
    plan_rounds,
    run_rounds,
    without_bias,
)
from equipoise.common.query import MOST_RELEASES, Query, Sum
from equipoise.common.streams import numpy_stream
from equipoise.common.study import Study

Vector = NDArray[np.float64]

OF_OTHER_ROUNDS = {
    "rounds": "whitened.rounds and whitened_head.rounds",
    "lr": "whitened_head.lr",
    "impair_lr": "whitened.lr",
    "weight_cap": "",
}


SHARES = {"whitened.beta": "", "whitened_head.beta": "bias_share"}


class Rounds(Strict):
    """Rounds of each phase."""

    impair: int = Field(default=5, ge=0, le=MOST_RELEASES)
    repair: int = Field(default=5, ge=0, le=MOST_RELEASES)


class Bmft(LocalSteps):
    """Parameters of BMFT."""

    bias_loss: BiasLoss = "equalized_odds"
    form: Form = "absolute"
    bias_share: float = Field(default=0.1, ge=0)  # in the second phase: task loss + bias_share * bias loss
    smoothing: float = Field(default=0.08, ge=0)
    percentile: float = Field(default=50.0, ge=0, le=100)
    granularity: Granularity = "parameter"
    scaling: Scaling = "mean"
    floor: float = Field(default=0.05, gt=0)
    mask: Literal["hard", "ones", "permuted"] = "hard"
    head_reset: Literal["zero", "none"] = "zero"
    balance: Balance = "cells"
    weight_cap: float = Field(default=4.0, gt=0)
    impair_lr: float = Field(default=1e-3, gt=0)
    lr: float = Field(default=0.1, gt=0)  # of the second phase, in which the head starts at 0
    step: Step | None = None
    rounds: Rounds = Rounds()  # of fedavg and full_gradient
    whitened: Whitened = Whitened()
    whitened_head: HeadRounds = HeadRounds()


def plan(study: Study, model: Classifier) -> list[Query]:
    """Every query of a run, in order.

    Raises:
        StudyError: a parameter is chosen that the rounds do not have, or no tensor is to move in them.
    """
    p = _parameters(study)
    refuse_without_effect(study, p, "phases whose shares are bmft's own", SHARES)
    refuse_other_rounds(study, p, OF_OTHER_ROUNDS)
    if step_of(study, p.step) == "whitened":
        own = {"smoothing": "whitened.smoothing and whitened_head.smoothing"}
        refuse_without_effect(study, p, "whitened rounds", {"form": "", **own})
        if p.mask != "ones" and p.percentile == 100:
            raise StudyError(
                "method.percentile=100: frees no tensor, and whitened rounds need one; write a smaller one"
            )
        mask = [] if p.mask == "ones" else [catalogue.block_sensitivities(study, model.layout("whole"))]
        rounds = [q for w, course in _courses(p) for q in plan_rounds(study, model, w, course)]
        return [catalogue.cell_counts(study), *mask, *rounds]
    mask = [] if p.mask == "ones" else [catalogue.sensitivities(study, model.layout("whole"), p.granularity)]
    gaps = (p.bias_loss, p.form, p.smoothing)
    rounds = [q for phase in _phases(study, p) for q in phase_queries(study, model, phase, gaps)]
    return [catalogue.cell_statistics(study), *mask, *rounds]


def run(study: Study, model: Classifier) -> Steps:
    """Mask, impair, repair."""
    p = _parameters(study)
    if step_of(study, p.step) == "whitened":
        return (yield from _run_whitened(study, model, p))
    cells = yield catalogue.cell_statistics(study).with_inputs(**model.inputs())
    counts, scores = cells.value("patients"), cells.value("scores")
    check_labels(study, counts)
    check_form(study, counts, p.form)
    task = task_weights(counts, p.balance, p.weight_cap)
    mask = _without_head(SoftMask.ones(model.layout("whole")), model)
    if p.mask != "ones":
        bias = bias_weights(counts, scores, p.bias_loss, p.form, p.smoothing)
        query = catalogue.sensitivities(study, model.layout("whole"), p.granularity)
        total = yield query.with_inputs(**model.inputs(), weights=Weighting(task, bias).arrays())
        mask = _mask(study, model, p, total.value("bias"), total.value("task"), p.granularity)
    gaps = Gaps(p.bias_loss, p.form, p.smoothing, counts, counts, scores)
    impair, repair = _phases(study, p)
    model = yield from train_phase(study, model, impair, task, gaps, mask)
    model = _reset(model, p)
    if p.head_reset == "zero":
        gaps.close()
    model = yield from train_phase(study, model, repair, task, gaps)
    return Outcome(model, _notes(mask, gaps.trace))


def _run_whitened(study: Study, model: Classifier, p: Bmft) -> Generator[Query, Sum, Outcome]:
    """The private form: mask by tensor, both phases in whitened rounds."""
    cells = yield catalogue.cell_counts(study)
    counts = cells.value("patients")
    check_labels(study, counts)
    mask = _without_head(SoftMask.ones(model.layout("whole")), model)
    if p.mask != "ones":
        found = yield from tensor_sensitivities(study, model, counts, p.balance, p.bias_loss)
        mask = _mask(study, model, p, found.bias, found.divisor, "tensor")
    (first, impair), (second, repair) = _courses(p)
    model, notes = yield from run_rounds(study, model, first, impair, counts, mask)
    model, after = yield from run_rounds(study, _reset(model, p), second, repair, counts)
    return Outcome(model, _notes(mask, []) | notes | {"repair": after["rounds"]})


def hard_mask(
    layout: Layout,
    head: str,
    bias: Vector,
    task: Vector,
    *,
    granularity: Granularity,
    scaling: Scaling,
    floor: float,
    percentile: float,
) -> SoftMask:
    """1 where the ratio of scaled sensitivities exceeds a percentile of all ratios outside the head, else 0; head 0.

    Args:
        layout: the parameters.
        head: prefix of the head's names.
        bias, task: flat sensitivities in the order of `equipoise.common.mask.units`, at least 0.
        percentile: 50 frees half of the units, 100 none.
    """
    counts = units(layout, granularity)
    ends = np.cumsum(list(counts.values()))[:-1]
    parts = [dict(zip(counts, np.split(values, ends), strict=True)) for values in (bias, task)]
    scaled_bias, scaled_task = (scale(part, scaling) for part in parts)
    ratios = {name: scaled_bias[name] / (scaled_task[name] + floor) for name in counts}
    outside = [ratio for name, ratio in ratios.items() if not name.startswith(head)]
    least = float(np.percentile(np.concatenate(outside), percentile)) if outside else np.inf
    return SoftMask(
        {
            name: spread(
                np.zeros(len(ratio)) if name.startswith(head) else (ratio > least).astype(np.float64),
                layout.shapes[name],
                granularity,
            )
            for name, ratio in ratios.items()
        }
    )


def _mask(study: Study, model: Classifier, p: Bmft, bias: Vector, task: Vector, granularity: Granularity) -> SoftMask:
    layout = model.layout("whole")
    mask = hard_mask(
        layout,
        model.head,
        bias,
        task,
        granularity=granularity,
        scaling=p.scaling,
        floor=p.floor,
        percentile=p.percentile,
    )
    if p.mask == "hard":
        return mask
    stream = numpy_stream(study.seed, "permuted mask")
    extractor = SoftMask({name: value for name, value in mask.values.items() if not name.startswith(model.head)})
    shuffled = extractor.permuted_tensors(stream) if granularity == "tensor" else extractor.permuted(stream)
    return SoftMask({**mask.values, **shuffled.values})


def _without_head(mask: SoftMask, model: Classifier) -> SoftMask:
    return SoftMask({n: np.zeros_like(v) if n.startswith(model.head) else v for n, v in mask.values.items()})


def _reset(model: Classifier, p: Bmft) -> Classifier:
    """The whole head at 0, bias included."""
    if p.head_reset == "none":
        return model
    return model.with_values({name: np.zeros(shape) for name, shape in model.layout("head").shapes.items()})


def _phases(study: Study, p: Bmft) -> tuple[Phase, Phase]:
    """Impair on the bias loss alone; repair on task + bias_share * bias, which is a mix of sum 1 at another rate."""
    step, total = step_of(study, p.step), 1 + p.bias_share
    impair = p.model_copy(update={"lr": p.impair_lr})
    repair = p.model_copy(update={"lr": p.lr * total})
    return (
        Phase("impair", "extractor", 0.0, p.rounds.impair, step, impair),
        Phase("repair", "head", 1 / total, p.rounds.repair, step, repair),
    )


def _courses(p: Bmft) -> tuple[tuple[WhitenedRounds, Course], tuple[WhitenedRounds, Course]]:
    """The same two phases. Weights of whitened rounds are those of twice the bias loss, so it gets half the share."""
    total = 1 + p.bias_share / 2
    impair = p.whitened.model_copy(update={"beta": 0.0})
    repair = p.whitened_head.model_copy(update={"beta": 1 / total, "lr": p.whitened_head.lr * total})
    return (
        (impair, Course("whole", "impair", p.bias_loss, p.balance)),
        (repair, Course("head", "repair", p.bias_loss, p.balance)),
    )


def _notes(mask: SoftMask, trace: list[float]) -> dict[str, Any]:
    notes: dict[str, Any] = {"mask": mask.summary(), "mask_mean": mask.mean}
    return notes | ({"bias_loss_by_round": trace} if trace else {})


def _parameters(study: Study) -> Bmft:
    return validate(Bmft, study.method.parameters, "method")


def _fine_tuning(loss: str, part: str) -> Any:
    def build(study: Study) -> Study:
        p = _parameters(study)
        steps = {name: getattr(p, name) for name in LocalSteps.model_fields if name != "lr"}
        return study.with_method(
            "fine_tune",
            loss=loss,
            part=part,
            **rounds_unless_whitened(p.step, max(p.rounds.impair + p.rounds.repair, 1)),
            step=p.step,
            whitened=without_bias(p.whitened),
            weight_cap=p.weight_cap,
            **steps,
        )

    return build


METHOD = Method(
    name="bmft",
    title="hard-mask fine-tuning: weights above a percentile unlearn the bias, then the head is trained again from 0",
    paper="BMFT: Xue et al., FAIMI at MICCAI 2024, arXiv:2408.06890 (public code at 70c83e4)",
    travels="cell counts, sensitivities, then a round's change of the trained tensors, or (step whitened) a round's "
    "sum of clipped vectors",
    costs="one pass for the mask, 5 rounds of the extractor and 5 of the head; a mask by parameter is as large as the "
    "model",
    private="mask by tensor and whitened rounds",
    parameters=Bmft,
    plan=plan,
    run=run,
    tuned={"lr": RATE_FACTORS, "impair_lr": RATE_FACTORS},
    shared=LOCAL_STEPS - {"lr"},  # its rates are of phases that others do not have
    controls={
        "no_mask": changed(mask="ones"),
        "permuted": changed(mask="permuted"),
        "plain": _fine_tuning("plain", "whole"),
        "balanced": _fine_tuning("cells", "whole"),
        "head": _fine_tuning("cells", "head"),
    },
)
