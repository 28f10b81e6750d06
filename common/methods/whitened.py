"""Whitened full-gradient rounds: a few public directions in which the model moves, by one private sum a round.

The rounds of `private_head`, and of `swift` and `fine_tune` under `step: whitened`. What moves is a small linear space
of weight changes (`equipoise.common.space`), in directions that an unlabelled public pool makes alike
(`equipoise.common.whitening`); what a patient sends is one clipped vector (`equipoise.common.private_step`). They run
without noise too.

Where a site drops out, sums over the others are divided by the patients of the others. Without noise these come with
the sum, by cell. Under noise they would cost a release, so their number is taken from the declared shares, and nobody
knows which cells are missing: a gap from such a sum may have the wrong sign. The bias weights then stay those of the
last round that all sites answered.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from equipoise.common import catalogue
from equipoise.common.cells import Balance, BiasLoss, Cells
from equipoise.common.classifier import Classifier
from equipoise.common.config import Strict
from equipoise.common.errors import DataError
from equipoise.common.mask import SoftMask
from equipoise.common.methods.averaging import attendance
from equipoise.common.pool import Pool, network_of
from equipoise.common.private_step import CollapseGuard, Descent, Scores, acting, round_weights, split_total
from equipoise.common.query import MOST_RELEASES, Arrays, Query, Sum
from equipoise.common.space import RANK, Kind, Space
from equipoise.common.study import Study
from equipoise.common.whitening import CANNOT_SEE, CLIP_PERCENTILE, check_pool, pool_gradients, whiten

Vector = NDArray[np.float64]
Weigh = Callable[[Classifier], Generator[Query, Sum, tuple[Cells, Cells]]]
"""Task and bias weights of a round by cell, (G + 1, 2) each, at the model there; it may ask for sums of its own."""


class WhitenedRounds(Strict):
    """Parameters of the rounds; the defaults are those of the space `whole` (docs/decisions, measured).

    A method with other defaults has a class of its own: a default instance would lose them all to the first key that
    a study writes.
    """

    rounds: int = Field(default=10, ge=1, le=MOST_RELEASES)
    lr: float = Field(default=0.4, gt=0)
    momentum: float = Field(default=0.8, ge=0, lt=1)
    beta: float = Field(default=0.9, ge=0, le=1)  # share of the task loss
    directions: int = Field(default=32, ge=1)
    damp: float = Field(default=0.1, gt=0)
    clip_percentile: float = Field(default=CLIP_PERCENTILE, gt=0, le=100)
    smoothing: float = Field(default=0.08, gt=0)
    memory: float = Field(default=0.5, gt=0, le=1)  # weight of a round's own score sums against those before
    collapse_share: float = Field(default=0.5, gt=0, lt=1)  # of the separation at the start; below it the rounds end
    accept_poor_pool: bool = False

    @property
    def filters(self) -> int:
        """Random filters a layer; a head has none, and is told the usual number."""
        return RANK


class Whitened(WhitenedRounds):
    """Parameters of rounds in the space `whole`."""

    rank: int = Field(default=RANK, ge=1)

    @property
    def filters(self) -> int:
        """Random filters a layer."""
        return self.rank


class TaskRounds(Whitened):
    """The same on the task loss alone."""

    beta: float = Field(default=1.0, ge=0, le=1)


class HeadRounds(WhitenedRounds):
    """Parameters of rounds in the space `head`; the defaults were chosen on seeds that are never reported."""

    lr: float = Field(default=1.5, gt=0)
    directions: int = Field(default=24, ge=1)
    damp: float = Field(default=0.01, gt=0)


class HeadTaskRounds(HeadRounds):
    """The same on the task loss alone."""

    beta: float = Field(default=1.0, ge=0, le=1)


def without_bias(p: WhitenedRounds) -> dict[str, Any]:
    """The parameters for `fine_tune`, which has no bias loss and refuses what is of one."""
    return p.model_dump(exclude={"beta", "smoothing"})


@dataclass(frozen=True)
class Course:
    """What rounds are about.

    Attributes:
        kind: the space that moves.
        phase: what the progress display and the plan call the rounds.
        loss: the bias loss.
        balance: weights of the cells in the task loss.
        weigh: in the place of `loss` and `balance`, weights that a method makes for each round.
        filters: in the place of the space's random filters, those of some tensors (`Space.with_filters`).
    """

    kind: Kind
    phase: str
    loss: BiasLoss = "equalized_odds"
    balance: Balance = "cells"
    weigh: Weigh | None = None
    filters: Mapping[str, Vector] | None = None


def plan_rounds(
    study: Study, model: Classifier, p: WhitenedRounds, course: Course, asked: Sequence[Query] = ()
) -> list[Query]:
    """The queries of the rounds, planned; `asked` are those of `course.weigh` in each round."""
    return [*asked, _query(study, model, p, course)] * p.rounds


def run_rounds(
    study: Study, model: Classifier, p: WhitenedRounds, course: Course, counts: Cells, mask: SoftMask | None = None
) -> Generator[Query, Sum, tuple[Classifier, dict[str, Any]]]:
    """The classifier after the rounds, and what the report shows of them.

    Args:
        model: where the rounds start: the vendor's classifier, or what an earlier phase made of it.
        counts: released patients by cell, (G + 1, 2).
        mask: factors of the space's directions (`Space.masked`); None for 1.

    Raises:
        DataError: the public pool is too small or too uniform to whiten with.
        ModelError: the model has a layer that the space does not know.
    """
    walk = Prospect.of(study, model, p, course).walk(study, model, p, course, counts, mask)
    yield from walk.advance(p.rounds)
    return walk.result, walk.notes


@dataclass(frozen=True)
class Prospect:
    """The space without a mask and what the public pool shows of it: the same for every walk from one model.

    Attributes:
        space: unmasked.
        logits, gradients: of the pool's rows where the walks start, (n,) and (n, D).
        rows: the pool as the model sees it, (n, ...).
    """

    space: Space
    logits: Vector
    gradients: Vector
    rows: Tensor

    @classmethod
    def of(cls, study: Study, model: Classifier, p: WhitenedRounds, course: Course) -> Prospect:
        """Look at the pool once."""
        # The filters belong to the vendor's weights, which every site has; the gradients to where the rounds start.
        pool, base = Pool.of(study), network_of(study, model, base=True)
        space = Space.of(base, course.kind, head=study.model.head, seed=study.seed, rank=p.filters)
        if course.filters is not None:
            space = space.with_filters(course.filters)
        return cls(space, *pool_gradients(space, network_of(study, model), pool.batches()), pool.normalised())

    def walk(
        self, study: Study, model: Classifier, p: WhitenedRounds, course: Course, counts: Cells, mask: SoftMask | None
    ) -> Walk:
        """Rounds from the model under a mask, none of them done; see `run_rounds`."""
        query = _query(study, model, p, course)
        space, gradients, inputs = self.space, self.gradients, dict[str, Arrays]()
        if course.filters is not None:
            inputs["filters"] = course.filters
        if mask is not None:
            # The very numbers that travel, so that a site's masked space is this one.
            factors = {part.name: mask.values[part.name].astype(np.float32) for part in space.parts}
            space, inputs["mask"] = space.masked(factors), factors
            gradients = self.space.seen_masked(gradients, space)
        directions = query.blocks["gradient"].size
        whitening = whiten(self.logits, gradients, directions=directions, damp=p.damp, percentile=p.clip_percentile)
        check = check_pool(self.rows, self.logits, gradients, whitening.directions)
        if check.problems and not p.accept_poor_pool:
            raise DataError(f"{check.problems[0]} (or set accept_poor_pool: true)")
        # A pool that knows fewer directions leaves the last ones empty; the plan fixed their number.
        basis = np.zeros((space.size, directions))
        basis[:, : whitening.directions] = whitening.basis
        inputs["basis"] = {"basis": basis, "clip": np.array([whitening.clip])}
        start = _Start(space, basis, whitening.clip, inputs, len(self.rows), check.problems)
        descent = Descent.start(directions, rounds=p.rounds, lr=p.lr, momentum=p.momentum)
        return Walk(study, model, p, course, counts, query, start, descent, CollapseGuard(share=p.collapse_share))


@dataclass
class Walk:
    """Rounds on their way: they can stop after any of them, and go on."""

    _study: Study
    _model: Classifier
    _p: WhitenedRounds
    _course: Course
    _counts: Cells
    _query: Query
    _start: _Start
    _descent: Descent
    _guard: CollapseGuard
    _scores: Scores | None = None  # for the guard
    _gaps: Scores | None = None  # for the bias weights: of rounds that tell the groups apart
    _separations: list[float] = field(default_factory=list)

    def advance(self, rounds: int) -> Generator[Query, Sum, None]:
        """Take `rounds` more rounds, or fewer where the model collapses: the guard then ends the walk."""
        for _ in range(rounds):
            if self._guard.collapsed:
                return
            yield from self._round()

    def _round(self) -> Generator[Query, Sum, None]:
        p, course, counts, query = self._p, self._course, self._counts, self._query
        moved = self._start.moved(self._model, self._descent.u)
        if course.weigh is None:
            sums = None if self._gaps is None else self._gaps.sums
            task, bias = round_weights(counts, sums, course.loss, smoothing=p.smoothing, balance=course.balance)
        else:
            task, bias = yield from course.weigh(moved)
        weights: Arrays = {"task": task, "bias": bias}
        total = yield query.with_inputs(**moved.inputs(), weights=weights, **self._start.inputs)
        answer = _Answer.of(total, self._start.clip, counts, attendance(self._study, total.cohort), self._scores)
        self._scores = answer.scores.blended(self._scores, p.memory)
        if answer.tells_gaps:
            self._gaps = answer.scores.blended(self._gaps, p.memory)
        self._guard = self._guard.watched(len(self._separations), self._scores)
        self._separations.append(self._scores.separation)
        gradient = answer.gradient if acting(p.beta, task, bias) else np.zeros_like(answer.gradient)
        if not self._guard.collapsed:
            self._descent = self._descent.stepped(gradient, answer.patients)

    @property
    def collapsed(self) -> bool:
        """Whether the guard ended the walk."""
        return self._guard.collapsed

    @property
    def result(self) -> Classifier:
        """The classifier where the walk stands: the mean of its last points, or after a collapse the last good one."""
        return self._start.moved(self._model, self._guard.outcome(self._descent))

    @property
    def notes(self) -> dict[str, Any]:
        """What the report shows."""
        start = self._start
        return {
            "rounds": {
                "space": self._course.kind,
                "directions": self._query.blocks["gradient"].size,
                "coordinates": start.space.size,
                "clip_bound": start.clip,
                "separation_by_round": list(self._separations),
                "collapsed": self._guard.collapsed,
                "guard_blind": self._guard.blind,
                "pool": {"rows": start.pool_rows, "problems": list(start.problems), "cannot_see": CANNOT_SEE},
            }
        }


def _query(study: Study, model: Classifier, p: WhitenedRounds, course: Course) -> Query:
    # The head has its own number of coordinates at most; a wider basis would release noise alone.
    directions = min(p.directions, model.layout("head").size) if course.kind == "head" else p.directions
    return catalogue.whitened_gradient(study, course.phase, course.kind, p.filters, directions, p.beta)


@dataclass(frozen=True)
class _Answer:
    """What a round's sum says.

    Attributes:
        gradient: (k,), the sum over the patients of the sites that answered.
        patients: their number.
        scores: of all patients, as if those of the other sites scored like them.
        tells_gaps: whether gaps between groups can be taken from the scores.
    """

    gradient: Vector
    patients: float
    scores: Scores
    tells_gaps: bool

    @classmethod
    def of(cls, total: Sum, clip: float, counts: Cells, present: float, before: Scores | None) -> _Answer:
        """From a sum in units of the clip bound.

        Args:
            counts: released patients by cell, of all sites.
            present: declared share of the patients at the sites that answered.
            before: the scores that a cell keeps of which nobody answered.
        """
        flat = np.concatenate([total.value("gradient"), total.value("scores").reshape(-1)])
        directions = total.query.blocks["gradient"].size
        gradient, scores = split_total(flat, directions, 1.0, counts, float(np.sqrt(total.noise_variance)))
        if "patients" not in total.query.blocks:
            # By who is missing, the scores of a group may be far off like this; those of a label, all that the guard
            # compares, less.
            scores = replace(scores, offsets=scores.offsets / present, noise_sd=scores.noise_sd / present)
            return cls(gradient * clip, float(np.maximum(counts * present, 0.0).sum()), scores, present == 1.0)
        patients = total.value("patients")
        scale = np.divide(counts, patients, out=np.zeros_like(counts), where=patients > 0)
        kept = np.zeros_like(counts) if before is None else before.offsets
        scores = replace(scores, offsets=np.where(patients > 0, scores.offsets * scale, kept))
        return cls(gradient * clip, float(patients.sum()), scores, bool((patients > 0)[counts > 0].all()))


@dataclass(frozen=True)
class _Start:
    """What is public before the first round."""

    space: Space
    basis: Vector
    clip: float
    inputs: Mapping[str, Arrays]
    pool_rows: int
    problems: tuple[str, ...]

    def moved(self, model: Classifier, u: Vector) -> Classifier:
        """The classifier at which the rounds start, moved to the point u."""
        state = model.state
        changes = self.space.weight_changes(self.basis @ u)
        return model.with_values({name: state[name] + change for name, change in changes.items()})
