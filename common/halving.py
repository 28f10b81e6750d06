"""Successive halving: many candidates get few rounds, the best of them more, and one gets them all.

Every candidate of a rung is judged before a round of the next rung is spent, and the next rung goes on from where the
candidate stands, so nothing is trained twice. With n candidates, reduction r and R rounds in all, rung j holds
n / r^j candidates at R r^j / n rounds each: 27 candidates with r = 3 cost 3 R rounds, 16 with r = 4 cost 2.5 R.

Reference: Jamieson and Talwalkar, AISTATS 2016 (arXiv:1502.07943), in the synchronous form: promotions wait for the
whole rung, so that what a search may ask, and what it costs in privacy, is known before it begins.

>>> [(rung.candidates, rung.rounds) for rung in rungs_of(27, 3, 27)]
[(27, 1), (9, 3), (3, 9), (1, 27)]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from equipoise.common.errors import StudyError
from equipoise.common.query import MOST_RELEASES


@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    Attributes:
        candidates: how many stand on it.
        before: rounds that each has had when it arrives.
        rounds: rounds that each has had when it is judged.
    """

    candidates: int
    before: int
    rounds: int

    @property
    def spent(self) -> int:
        """Rounds that the rung takes, over all its candidates."""
        return self.candidates * (self.rounds - self.before)


def rungs_of(candidates: int, reduction: int, rounds: int) -> list[Rung]:
    """The ladder.

    Args:
        candidates: on the first rung.
        reduction: of r candidates one goes on.
        rounds: a candidate has had at the top.

    Raises:
        StudyError: too few rounds for the first rung to have one, or more releases than a plan may have.
    """
    levels = 0
    while candidates >= reduction ** (levels + 1):
        levels += 1
    if rounds < reduction**levels:
        raise StudyError(
            f"method: {candidates} candidates with reduction {reduction} need at least {reduction**levels} rounds, "
            f"found rounds={rounds}; take more rounds or fewer candidates"
        )
    ladder: list[Rung] = []
    for level in range(levels + 1):
        before = ladder[-1].rounds if ladder else 0
        ladder.append(Rung(candidates // reduction**level, before, rounds // reduction ** (levels - level)))
    releases = sum(rung.spent + rung.candidates for rung in ladder)
    if releases > MOST_RELEASES:  # told before anybody lists them
        raise StudyError(
            f"method: {candidates} candidates in {rounds} rounds take {releases} releases, and a study at most "
            f"{MOST_RELEASES}; take fewer of either"
        )
    return ladder


@dataclass(frozen=True)
class Judgement:
    """What the validation patients of all sites said of one candidate on one rung.

    Attributes:
        value: of the objective; larger is better.
        auc: over all patients.
        held: whether the AUC kept the floor that was declared before the search.
    """

    value: float
    auc: float
    held: bool


def ranked(judged: Mapping[int, Judgement], auc_within: float | None = None) -> list[int]:
    """Candidates of one rung from the best to the worst; equal ones in the order of their numbers.

    Those below the floor come last. With `auc_within`, so do those whose AUC is further below the best than that: a gap
    alone is smallest for a model that knows nothing.
    """
    best = max((one.auc for one in judged.values() if one.held), default=0.0)

    def key(number: int) -> tuple[bool, bool, float, int]:
        one = judged[number]
        far = auc_within is not None and one.auc < best - auc_within
        return (not one.held, far, -one.value, number)

    return sorted(judged, key=key)


def winner_of(rungs: Sequence[Mapping[int, Judgement]], auc_within: float | None = None) -> tuple[int, int] | None:
    """(rung, candidate) of the result: the best of the highest rung on which a candidate keeps the floor.

    Values of different rungs are not compared. None where no candidate of any rung keeps the floor.
    """
    for level in range(len(rungs) - 1, -1, -1):
        if not rungs[level]:
            continue
        best = ranked(rungs[level], auc_within)[0]
        if rungs[level][best].held:
            return level, best
    return None
