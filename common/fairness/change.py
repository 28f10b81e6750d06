"""Paired changes: what a rate or a gap of the same patients became, each with its interval.

`pair[g, y, before, after]` counts patients by both models' decisions at one operating point. Whatever "before" and
"after" are: the base model and the repaired one, or a control and a method (then the difference says which gap is the
smaller). The pairing narrows the interval by about half, because most decisions do not change.

Official intervals (alternatives were tried and lost, see `maximum`):

    one rate (tpr, fnr, fpr, tnr, selection_rate, accuracy)   Newcombe's paired score interval, method 10
    balanced_accuracy                                         MOVER of the paired intervals of TPR and TNR
    ppv, npv                                                  delta method over the eight cells (their denominators move)
    every gap                                                 least favourable multinomial bootstrap, fixed seed

A comparison of a method with a control needs their own pair table, which a simulation can make (the query takes any two
models). Where only both tables against the base model exist, `through_base` gives the table that they imply if method
and control were independent given the base decision. Models that are tuned from one base on the same patients agree
more than that, so the interval is too wide rather than too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from equipoise.common.errors import StudyError
from equipoise.common.fairness.contrasts import find_gap, gap_contrasts
from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate
from equipoise.common.fairness.intervals import mover, normal_quantile, paired_correlation, wilson_limits
from equipoise.common.fairness.maximum import DRAWS, change_limits
from equipoise.common.fairness.rates import Strata, fraction, strata, too_few
from equipoise.common.fairness.tables import Counts, Floats, counts_after, counts_before, group_names

Pair = NDArray[np.int64] | NDArray[np.float64]  # float only from `through_base`

# For each rate: the label it is about (None for both) and, by label, whether a positive decision counts.
_PAIRED = {
    "tpr": (1, (0, 1)),
    "fnr": (1, (1, 0)),
    "fpr": (0, (0, 1)),
    "tnr": (0, (1, 0)),
    "selection_rate": (None, None),
    "accuracy": (None, None),
}
_SMOOTHING = 0.25  # patients added to each of the four cells, so that an unseen disagreement stays possible


def rate_table(rate: str, pair: Pair) -> Pair:
    """The 2 x 2 table [before, after] of a paired proportion from pair[y, before, after]; 1 counts for the rate.

    Raises:
        StudyError: the rate is no proportion of the same patients before and after.
    """
    if rate in ("tpr", "fpr"):
        return pair[1 if rate == "tpr" else 0]
    if rate in ("fnr", "tnr"):
        return pair[1 if rate == "fnr" else 0, ::-1, ::-1]
    if rate == "selection_rate":
        return pair[0] + pair[1]
    if rate == "accuracy":
        return pair[0, ::-1, ::-1] + pair[1]
    raise StudyError(f"metric={rate}: no paired proportion; choose one of {', '.join(_PAIRED)}")
