"""FairTune: a federated search for what to fine-tune, judged by fairness on validation patients.

A model that fits its training patients perfectly is perfectly fair on them, so bias shows in generalisation. FairTune
therefore chooses the parts that are fine-tuned by the fairness that validation patients see (Dutt et al., ICLR 2024):

    outer:  omega* = argmin_omega  L_fair(validation; theta0 + dphi*(omega))
    inner:  dphi*(omega) = argmin_dphi  L(train; theta0 + omega . dphi)

omega is a mask of bits over the model's parts (`equipoise.common.parts`), searched together with the learning rate by
a tree-structured Parzen estimator (`equipoise.common.searcher`) in successive halving (`equipoise.common.halving`). The
inner loop is federated rounds; the outer objective comes from one histogram of validation scores, summed over all sites
(`equipoise.common.objective`). Written after the public code (76539bc); where it errs, docs/methods.md says what is
done here. What only the paper's text has (its number of trials, epochs and variant) is not known here and not claimed.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from equipoise.common import catalogue
from equipoise.common.cells import WITHOUT_GROUPS, Balance, Cells
from equipoise.common.classifier import Classifier
from equipoise.common.config import Strict, validate
from equipoise.common.errors import StudyError
from equipoise.common.factory import load_factory
from equipoise.common.halving import Judgement, Rung, rungs_of
from equipoise.common.layout import Layout
from equipoise.common.mask import SoftMask
from equipoise.common.methods.averaging import check_labels, refuse_without_effect
from equipoise.common.methods.candidates import TRIAL, Candidate, Judge, Search
from equipoise.common.methods.method import LOCAL_STEPS, Method, Outcome, Steps, changed
from equipoise.common.methods.trials import Averaging, Trainer, Whitening
from equipoise.common.methods.whitened import Whitened, without_bias
from equipoise.common.objective import Name
from equipoise.common.parts import Bit, Tying, bits_of, fixed_masks, parts_of, tensors_of
from equipoise.common.query import MOST_RELEASES, Query, Sum
from equipoise.common.searcher import Kind, Proposal, Searcher
from equipoise.common.study import Study

FINAL = "final"  # phase of the plan
CANDIDATES, PRIVATE_CANDIDATES = 27, 9
PRIVATE_BINS = 8
OF_THE_SEARCH = ("objective", "fewest", "floor", "search", "masks", "candidates", "reduction", "bins", "final")


class Rates(Strict):
    """Learning rates: the range that is searched, and where the fixed masks start."""

    low: float = Field(gt=0)
    high: float = Field(gt=0)
    start: float = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Rates:
        if not self.low <= self.start <= self.high or self.low == self.high:
            raise ValueError("lr needs low <= start <= high, and low < high")
        return self


class Chosen(Strict):
    """A mask that was found elsewhere, for instance by a search on public data: nothing is searched then."""

    bits: list[str]
    lr: float = Field(gt=0)


AVERAGED_RATES = Rates(low=5e-4, high=5e-2, start=5e-3)
WHITENED_RATES = Rates(low=0.1, high=1.6, start=0.4)


class FairTune(Strict):
    """Parameters of FairTune; all defaults are ours (docs/methods.md)."""

    objective: Name = "worst_group_auc"
    fewest: int = Field(default=20, ge=1)  # validation patients of each label, for a group to be compared by its AUC
    floor: float = Field(default=0.02, ge=0)  # how far the validation AUC may fall below the vendor's model's
    search: Kind = "tpe"
    masks: Literal["searched", "all"] = "searched"  # all: every bit is on and only the learning rate is searched
    tying: Tying = "stages"
    stages: int = Field(default=4, ge=1)
    outside: bool = False
    blocks: str | None = None
    candidates: int | None = Field(default=None, ge=5, le=MOST_RELEASES)
    reduction: int = Field(default=3, ge=2)
    rounds: int = Field(default=27, ge=1, le=MOST_RELEASES)
    lr: Rates | None = None
    bins: int | None = Field(default=None, ge=8)
    final: Literal["kept", "retrained"] | None = None
    chosen: Chosen | None = None
    balance: Balance = "classes"
    weight_cap: float = Field(default=4.0, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    local_epochs: int = Field(default=1, ge=1)
    batch: int = Field(default=64, ge=1)
    flips: bool = False
    whitened: Whitened = Whitened()

    @model_validator(mode="after")
    def _own_rounds(self) -> FairTune:
        taken = sorted({"rounds", "lr", "beta"} & self.whitened.model_fields_set)
        if taken:
            raise ValueError(f"whitened.{taken[0]}: the search sets it; write `rounds` and `lr` beside it")
        return self


@dataclass(frozen=True)
class Setting:
    """What a study and its model make of the parameters, before any data.

    Attributes:
        bits: of a mask.
        rungs: the ladder of the search.
        rates: learning rates.
        retrain: the result is trained anew from the vendor's model; otherwise it is kept as the search left it.
        bins: of the validation histogram.
        trainer: the inner loop.
    """

    study: Study
    model: Classifier
    p: FairTune
    bits: tuple[Bit, ...]
    rungs: tuple[Rung, ...]
    rates: Rates
    retrain: bool
    bins: int
    trainer: Trainer

    @classmethod
    def of(cls, study: Study, model: Classifier) -> Setting:
        """Resolve what the study leaves open.

        Raises:
            StudyError: no blocks, too few rounds for the candidates, a chosen bit that the model does not have, or a
                key of the search beside a chosen mask.
        """
        p = validate(FairTune, study.method.parameters, "method")
        private = study.privacy.private
        parts = parts_of(load_factory(study.model.factory, study.model.arguments), study.model.head, p.blocks)
        bits = tuple(bits_of(parts, p.tying, p.stages, p.outside))
        rates = p.lr or (WHITENED_RATES if private else AVERAGED_RATES)
        largest = rates.high if p.chosen is None else p.chosen.lr
        trainer: Trainer
        if private:
            trainer = Whitening(
                study, model, p.whitened.model_copy(update={"rounds": p.rounds, "beta": 1.0}), p.balance
            )
        else:
            movable = {name for bit in bits for name in bit.tensors}
            shapes = model.layout().shapes
            layout = Layout({n: s for n, s in shapes.items() if n in movable or n.startswith(model.head)})
            local = {"momentum": p.momentum, "weight_decay": p.weight_decay, "epochs": p.local_epochs}
            local |= {"batch": p.batch, "flips": p.flips}
            trainer = Averaging(study, model, layout, largest, local, p.balance, p.weight_cap)
        if p.chosen is not None:
            refuse_without_effect(study, p, "a run of a chosen mask", dict.fromkeys(OF_THE_SEARCH, ""))
            unknown = sorted(set(p.chosen.bits) - {bit.name for bit in bits})
            if unknown:
                raise StudyError(
                    f"method.chosen.bits: no bit {unknown[0]!r}; this model has {', '.join(bit.name for bit in bits)}"
                )
        candidates = p.candidates or (PRIVATE_CANDIDATES if private else CANDIDATES)
        return cls(
            study,
            model,
            p,
            bits,
            () if p.chosen is not None else tuple(rungs_of(candidates, p.reduction, p.rounds)),
            rates,
            not private if p.final is None else p.final == "retrained",
            p.bins or (PRIVATE_BINS if private else study.score_bins),
            trainer,
        )

    def searcher(self) -> Searcher:
        """Who proposes; the fixed masks come first, but not where chance is to be shown."""
        first: list[Proposal] = []
        bits = len(self.bits) if self.p.masks == "searched" else 0
        if bits and self.p.search == "tpe":
            first = [(mask, self.rates.start) for mask in fixed_masks(self.bits).values()]
        elif not bits:
            first = [((), self.rates.start)]
        first = first[: self.rungs[0].candidates]
        return Searcher(self.p.search, bits, self.rates.low, self.rates.high, self.study.seed, first)

    def tensors(self, mask: Sequence[int]) -> tuple[str, ...]:
        """What a proposal switches on, beside the head."""
        return tensors_of(self.bits, mask if self.p.masks == "searched" else [1] * len(self.bits))


def plan(study: Study, model: Classifier) -> list[Query]:
    """Every query of a run, in order: of all candidates on all rungs, and of the final run."""
    setting = Setting.of(study, model)
    p, trainer = setting.p, setting.trainer
    histogram = catalogue.candidate_histogram(study, setting.bins)
    queries = [catalogue.cell_counts(study)]
    if p.chosen is not None:
        return queries + trainer.plan(FINAL, 0, p.rounds)
    queries.append(histogram)
    for rung in setting.rungs:
        queries += [*trainer.plan(TRIAL, rung.before, rung.rounds), histogram] * rung.candidates
    if setting.retrain:
        queries += [*trainer.plan(FINAL, 0, p.rounds), histogram]
    return queries


def run(study: Study, model: Classifier) -> Steps:
    """Cell counts, the search, the final run."""
    setting = Setting.of(study, model)
    p = setting.p
    counts = (yield catalogue.cell_counts(study)).value("patients")
    check_labels(study, counts, by_group=p.balance not in WITHOUT_GROUPS)
    if p.chosen is not None:
        tensors = tensors_of(setting.bits, [int(bit.name in p.chosen.bits) for bit in setting.bits])
        trial = setting.trainer.start(FINAL, tensors, p.chosen.lr, counts)
        yield from trial.advance(p.rounds)
        return Outcome(trial.model, {**trial.notes, **_mask_notes(setting, tensors)})
    judge = yield from Judge.begin(study, model, setting.bins, p.objective, p.fewest, p.floor)
    search = Search(setting.rungs, setting.trainer, judge, counts)
    yield from search.climb(setting.searcher(), setting.tensors)
    return (yield from _finish(setting, judge, search, counts))


def _finish(setting: Setting, judge: Judge, search: Search, counts: Cells) -> Generator[Query, Sum, Outcome]:
    """The result: the winner, kept or trained anew; the vendor's model where no candidate kept the floor."""
    found = search.winner
    notes = _search_notes(setting, judge, search)
    if found is None:
        notes["search"]["winner"] = None
        return Outcome(setting.model, notes)
    level, number = found
    winner, rounds = search.candidates[number], setting.rungs[level].rounds
    model, rounds_notes = search.best[level]
    bits = _names(setting, winner)
    notes["search"]["winner"] = {"candidate": number, "bits": bits, "lr": winner.lr, "rounds": rounds}
    if setting.retrain:
        anew = setting.trainer.start(FINAL, winner.tensors, winner.lr, counts)
        yield from anew.advance(rounds)
        again = yield from judge.judge(anew.model)
        notes["search"]["final"] = _judgement_notes(rounds, again)
        if again.held:
            model, rounds_notes = anew.model, dict(anew.notes)
    return Outcome(model, {**notes, **rounds_notes, **_mask_notes(setting, winner.tensors)})


def _search_notes(setting: Setting, judge: Judge, search: Search) -> dict[str, Any]:
    objective = judge.objective
    names = setting.study.primary.groups
    return {
        "search": {
            "objective": objective.name,
            "objective_asked": objective.wanted,
            "groups": [names[g] for g in objective.groups],
            "floor": judge.floor,
            "base": _judgement_notes(0, judge.base),
            "rounds_of_a_full_run": setting.p.rounds,
            "rounds_planned": sum(rung.spent for rung in setting.rungs),
            "bits": [bit.name for bit in setting.bits],
            "candidates": [
                {
                    "candidate": one.number,
                    "bits": _names(setting, one),
                    "lr": one.lr,
                    "rungs": [_judgement_notes(rounds, judged) for rounds, judged in one.judged],
                }
                for one in search.candidates.values()
            ],
        }
    }


def _names(setting: Setting, candidate: Candidate) -> list[str]:
    """The bits that a candidate's mask switches on."""
    return [bit.name for bit in setting.bits if set(bit.tensors) <= set(candidate.tensors)]


def _judgement_notes(rounds: int, judged: Judgement) -> dict[str, Any]:
    return {"rounds": rounds, "value": judged.value, "auc": judged.auc, "held": judged.held}


def _mask_notes(setting: Setting, tensors: tuple[str, ...]) -> dict[str, Any]:
    """The mask as the report shows it, 0 or 1 for every tensor."""
    head, on = setting.model.head, set(tensors)
    shapes = setting.model.layout().shapes
    mask = SoftMask({n: np.full(s, float(n in on or n.startswith(head))) for n, s in shapes.items()})
    return {"mask": mask.summary(), "mask_mean": mask.mean}


def _searching(control: str, **parameters: Any) -> Any:
    def build(study: Study) -> Study:
        if study.method.parameters.get("chosen") is not None:
            raise StudyError(
                f"method.controls: {control!r} is another search, and method.chosen searches nothing; leave it out"
            )
        return changed(**parameters)(study)

    return build


def _fine_tuning(loss: str, part: str) -> Any:
    def build(study: Study) -> Study:
        p = validate(FairTune, study.method.parameters, "method")
        rates = p.lr or (WHITENED_RATES if study.privacy.private else AVERAGED_RATES)
        steps = {name: getattr(p, name) for name in ("momentum", "weight_decay", "local_epochs", "batch", "flips")}
        rounds = {"rounds": p.rounds, "lr": rates.start}
        whitened = without_bias(p.whitened.model_copy(update=rounds))
        # A full run of one candidate; what the search spent on the others has no counterpart here.
        return study.with_method(
            "fine_tune",
            loss=loss,
            part=part,
            weight_cap=p.weight_cap,
            whitened=whitened,
            **({"rounds": p.rounds} if study.privacy.private else rounds),
            **steps,
        )

    return build


METHOD = Method(
    name="fairtune",
    title="searches which parts to fine-tune, and how fast, by the fairness that validation patients see",
    paper="FairTune: Dutt et al., ICLR 2024 (public code at 76539bc)",
    travels="cell counts; for every candidate a round's change of the tensors that its mask switches on (under privacy "
    "one sum of clipped vectors a round), and a histogram of validation scores a rung",
    costs="27 candidates by default, in rungs of 1, 3, 9 and 27 rounds with a pass over the validation patients each, "
    "then 27 rounds: four full trainings in all; under privacy 9 candidates in three rungs, and no further training",
    private="every trial's whitened rounds and noisy histograms, all composed and reserved first",
    parameters=FairTune,
    plan=plan,
    run=run,
    tuned={},  # its rates are among what it searches
    shared=LOCAL_STEPS - {"lr"},  # which it searches
    controls={
        "no_mask": _searching("no_mask", masks="all"),
        "permuted": _searching("permuted", search="random"),
        "plain": _fine_tuning("plain", "whole"),
        "balanced": _fine_tuning("cells", "whole"),
        "head": _fine_tuning("cells", "head"),
    },
)
