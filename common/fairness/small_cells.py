"""What a page may show of small counts: a policy of display, applied to sums and never inside them.

Suppressing small cells at each hospital before they are summed destroys the result, and minorities first: ten hospitals
of 500, cells below 11, lose all positives of the smaller group (evaluation specification, section 3.4). So the policy
acts on the released, summed table alone. Without differential privacy it protects patients and is mandatory; with it
the noisy counts are safe to print and the policy is a courtesy, judged on the noisy counts, never on others.

    counts    1 to k - 1 is shown as "<k"; 0 is shown unless the policy forbids it
    totals    a hidden count must not follow from the rest of its row or column and the totals: further counts are
              hidden until it does not (`complemented`), in the order that the caller names
    rates     hidden where the numerator, the rest or the denominator is 1 to k - 1, since a rate and its n give both;
              a single hidden group next to an overall rate takes another one with it (`complemented`)

Rules in use: no cell of 1 to 10 nor derivable (CMS); below 10 including 0 (UK LLC); 1 to 7 (NHS Digital).

>>> groups, policy = np.array([300, 4, 60, 364]), Policy(11)  # the last is the sum of the others, and is shown
>>> adds_up = np.array([[1.0, 1.0, 1.0, -1.0]])
>>> complemented(groups, adds_up, policy.small(groups), policy, np.array([0, 1, 2, -1]), groups.tolist()).tolist()
[False, True, True, False]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # of which parts are loaded when they are first used
from numpy.typing import NDArray

from equipoise.common.errors import StudyError
from equipoise.common.fairness.estimate import MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.tables import Counts, Floats
from equipoise.common.study_evaluation import SMALLEST_CELLS

HIDDEN = "hidden"
NOTHING, SOMEBODY, SMALL = 0, 1, 2  # what a reader is told of a hidden count; the first two are its least value, too
_IDLE = 3  # solutions in a row that move no further cell
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Policy:
    """The smallest count that is shown.

    Attributes:
        minimum: k; 0 shows everything.
        zero_shown: whether a count of 0 is shown.
    """

    minimum: int = 11
    zero_shown: bool = True

    def __post_init__(self) -> None:
        if self.minimum not in SMALLEST_CELLS:
            raise StudyError(f"evaluation.min_cell={self.minimum}: choose one of {', '.join(map(str, SMALLEST_CELLS))}")

    def small(self, counts: Counts) -> Mask:
        """Which counts are hidden for their own sake; noise may have made some negative, which are small too."""
        below: Mask = counts < self.minimum
        return below & (counts != 0) if self.zero_shown else below


def suppressed(estimate: Estimate, policy: Policy) -> Estimate:
    """The estimate without its numbers, n included."""
    reason = f"a count below {policy.minimum} could be read from it"
    return Estimate.missing(
        estimate.metric, reason, n=None, level=estimate.level, group=estimate.group, status="suppressed"
    )


def complemented(
    values: Counts,
    lines: Floats,
    hidden: Mask,
    policy: Policy,
    units: Counts,
    order: Sequence[Any],
    *,
    told: Counts | None = None,
) -> Mask:
    """What is hidden where counts are linked by more sums than those of one table.

    Args:
        values: (n,) exact counts, each cell and each total once.
        lines: (m, n) what a reader knows of them: the sum `lines @ values`, for each line.
        hidden: (n,) hidden at first; every small count has to be.
        policy: what is small.
        units: (n,) counts with the same number of 0 or more are hidden together; a negative one is never hidden.
        order: (n,) sortable; among the units that could protect a count the least is hidden.
        told: (n,) what a reader is told of a hidden count: `NOTHING`, `SOMEBODY` (it is not 0), or whether it is
            `SMALL`; None: the last, of all.

    Returns:
        (n,) with as many further units hidden as it takes until each small count keeps two possible values at least,
        for a reader who knows what is told. Where no unit is left to hide, it stays as it is.
    """
    told = np.full(len(values), SMALL) if told is None else told
    system, found = _System(values, lines, policy, told), hidden.copy()
    # A count that does not follow from what is shown does not follow from less.
    open_ = system.left_open(policy.small(values), found)
    for cell in np.flatnonzero(policy.small(values)):
        while not open_[cell] and system.gives(int(cell), found):
            near = (lines[lines[:, cell] != 0] != 0).any(axis=0)
            left = ~found & (units >= 0)
            choice = np.flatnonzero(left & near) if (left & near).any() else np.flatnonzero(left)
            if not choice.size:
                break
            found[units == units[min(choice, key=lambda place: order[int(place)])]] = True
            open_ |= system.left_open(policy.small(values) & ~open_, found)
    return found


@dataclass(frozen=True)
class _System:
    """Counts (n,) with known sums over `lines` (m, n), some of them small."""

    values: Counts
    lines: Floats
    policy: Policy
    told: Counts

    def gives(self, cell: int, hidden: Mask) -> bool:
        """Whether a hidden small count has one possible value only: its least is its greatest."""
        least, most = (self._extreme(sign * (np.arange(len(hidden)) == cell), hidden)[cell] for sign in (1.0, -1.0))
        return bool(most - least < 1 - 1e-6)

    def left_open(self, cells: Mask, hidden: Mask) -> Mask:
        """Some of the cells that have a second possible value: a few solutions find one for most cells at once."""
        found, generator, idle = np.zeros(len(cells), dtype=bool), np.random.default_rng(0), 0
        while (cells & ~found).any() and idle < _IDLE:
            direction = np.where(cells & ~found, generator.uniform(0.5, 1.0, len(cells)), 0.0)
            other = self._extreme(direction * generator.choice([-1.0, 1.0], len(cells)), hidden)
            moved = cells & ~found & (np.abs(other - self.values) > 1 - 1e-6)
            found |= moved
            idle = 0 if moved.any() else idle + 1
        return found

    def _extreme(self, direction: Floats, hidden: Mask) -> Floats:
        """(n,) values that a reader cannot exclude, at which `direction` is least."""
        inside = np.flatnonzero(hidden)
        coefficients = self.lines[:, inside]
        used = (coefficients != 0).any(axis=1)
        known = self.lines[used] @ np.where(hidden, self.values, 0)
        bounds = [self._known(int(self.values[place]), int(self.told[place])) for place in inside]
        solved = scipy.optimize.linprog(
            direction[inside], A_eq=scipy.sparse.csr_array(coefficients[used]), b_eq=known, bounds=bounds
        )
        values = self.values.astype(np.float64)
        values[inside] = solved.x
        return values

    def _known(self, count: int, told: int) -> tuple[int, int]:
        """Between which values a reader knows a hidden count to lie.

        `<k` says so of a small one; of another, whether a figure of so many patients would be estimable. There is an
        end, far off, to what has none.
        """
        k, most = self.policy.minimum, 2 * int(np.abs(self.values).max()) + 1000
        if told != SMALL:
            return told, most
        if self.policy.small(np.array(count)):
            return (1 if self.policy.zero_shown else 0), k - 1
        if 0 < count < MINIMUM_PATIENTS:
            return k, MINIMUM_PATIENTS - 1
        return (max(k, MINIMUM_PATIENTS) if count else 0), most
