"""The candidates of a search: how they are judged, and their climb over the rungs of successive halving."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from equipoise.common import catalogue
from equipoise.common.cells import Cells
from equipoise.common.classifier import Classifier
from equipoise.common.errors import DataError
from equipoise.common.fairness.tables import Floats, hybrid_edges, quantile_edges
from equipoise.common.halving import Judgement, Rung, ranked, winner_of
from equipoise.common.methods.trials import Trainer, Trial
from equipoise.common.objective import Name, Objective, auc_noise, auc_of
from equipoise.common.pool import Pool, network_of
from equipoise.common.query import Query, Sum
from equipoise.common.searcher import Searcher
from equipoise.common.study import Study

TRIAL = "trial"  # phase of the plan
DEVIATIONS = 2.0  # of the noise, by which an AUC must miss the floor to count as below it
BELOW = 1e3  # taken from the value of a candidate below the floor before the searcher hears of it


@dataclass(frozen=True)
class Judge:
    """Judges models by one histogram of the scores of all sites' validation patients.

    Attributes:
        bins: of the histogram.
        objective: what is compared, its groups fixed.
        base: the vendor's model's judgement.
        spread: standard deviation of the noise on the vendor's model's AUC.
        floor: the AUC that a candidate must keep, declared as a distance from the vendor's model's.
    """

    study: Study
    bins: int
    objective: Objective
    base: Judgement
    spread: float
    floor: float

    @classmethod
    def begin(
        cls, study: Study, model: Classifier, bins: int, wanted: Name, fewest: int, floor: float
    ) -> Generator[Query, Sum, Judge]:
        """Fix the objective's groups and the floor on the vendor's model, before the first candidate.

        Raises:
            DataError: no site has a validation patient of one of the labels.
        """
        table, edges, variance = yield from _measure(study, model, bins)
        if table.sum(axis=(0, 2)).min() < 1:
            if study.privacy.private:
                raise DataError(
                    "fairtune: the noisy histogram finds no validation patient of one of the labels; so few patients "
                    "need a larger privacy.epsilon, fewer candidates or a larger validation share. What was released "
                    "is spent"
                )
            raise DataError(
                "fairtune: candidates are judged on validation patients, and one of the labels has none at any site; "
                "give the sites' splits a validation share"
            )
        objective, pooled = Objective.of(wanted, table, fewest), table.sum(axis=0)
        base = Judgement(objective.value(table, edges), auc_of(pooled), held=True)
        return cls(study, bins, objective, base, auc_noise(pooled, variance * len(table)), base.auc - floor)

    def judge(self, model: Classifier) -> Generator[Query, Sum, Judgement]:
        """The objective, the AUC, and whether it keeps the floor, as far as the noise lets one tell."""
        table, edges, variance = yield from _measure(self.study, model, self.bins)
        pooled = table.sum(axis=0)
        auc = auc_of(pooled)
        noise = DEVIATIONS * float(np.hypot(auc_noise(pooled, variance * len(table)), self.spread))
        return Judgement(self.objective.value(table, edges), auc, auc + noise >= self.floor)


@dataclass
class Candidate:
    """A mask and a learning rate, and how they fared.

    Attributes:
        number: from 0, in the order of proposal.
        tensors: what the mask switches on, beside the head.
        lr: learning rate.
        judged: rounds that it had had, and what was said of it then.
    """

    number: int
    tensors: tuple[str, ...]
    lr: float
    judged: list[tuple[int, Judgement]] = field(default_factory=list)


@dataclass
class Search:
    """The climb: each rung is judged whole before a round of the next is spent.

    Attributes:
        candidates: by number.
        judged: by rung, the judgement of every candidate on it.
        best: by rung, the best candidate's classifier there, and what the report shows of its rounds.
    """

    rungs: Sequence[Rung]
    trainer: Trainer
    judge: Judge
    counts: Cells
    candidates: dict[int, Candidate] = field(default_factory=dict)
    judged: list[dict[int, Judgement]] = field(default_factory=list)
    best: list[tuple[Classifier, dict[str, Any]]] = field(default_factory=list)

    def climb(
        self, searcher: Searcher, tensors_of: Callable[[tuple[int, ...]], tuple[str, ...]]
    ) -> Generator[Query, Sum, None]:
        """All rungs. `searcher` proposes for the first one, and hears of each before it proposes the next."""
        trials: dict[int, Trial] = {}
        self.judged.append({})
        for number in range(self.rungs[0].candidates):
            mask, lr = searcher.ask()
            self.candidates[number] = Candidate(number, tensors_of(mask), lr)
            trials[number] = self.trainer.start(TRIAL, self.candidates[number].tensors, lr, self.counts)
            found = yield from self._step(number, trials[number])
            searcher.tell(found.value - (0.0 if found.held else BELOW))
        for rung in self.rungs[1:]:
            trials = {number: trials[number] for number in self._end_of_rung(trials)[: rung.candidates]}
            self.judged.append({})
            for number, trial in trials.items():
                yield from self._step(number, trial)
        self._end_of_rung(trials)

    def _step(self, number: int, trial: Trial) -> Generator[Query, Sum, Judgement]:
        """One candidate's rounds on the present rung, and its judgement."""
        rung = self.rungs[len(self.judged) - 1]
        yield from trial.advance(rung.rounds - rung.before)
        found = yield from self.judge.judge(trial.model)
        self.candidates[number].judged.append((rung.rounds, found))
        self.judged[-1][number] = found
        return found

    def _end_of_rung(self, trials: Mapping[int, Trial]) -> list[int]:
        """The present rung's candidates from the best to the worst; the best's classifier is put by."""
        order = ranked(self.judged[-1], self.judge.objective.auc_within)
        first = trials[order[0]]
        self.best.append((first.model, dict(first.notes)))
        return order

    @property
    def winner(self) -> tuple[int, int] | None:
        """(rung, candidate) of the result; None where no candidate of any rung kept the floor."""
        return winner_of(self.judged, self.judge.objective.auc_within)


def _measure(study: Study, model: Classifier, bins: int) -> Generator[Query, Sum, tuple[Floats, Floats, float]]:
    """Summed validation histogram (G + 1, 2, bins), its inner edges, and the variance of the noise on a cell."""
    if study.privacy.private:
        # Bins that hold patients: quantiles of what the model makes of the public pool.
        edges = quantile_edges(Pool.of(study).scores(network_of(study, model)).numpy(), bins)
    else:
        edges = hybrid_edges(None, bins)
    query = catalogue.candidate_histogram(study, bins)
    total = yield query.with_inputs(**model.inputs(), edges={"edges": edges})
    return total.value(study.primary.name), edges, total.noise_variance
