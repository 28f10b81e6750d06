"""A hospital whose rate lies far from the others', each left out in turn: something to ask there, no verdict.

z is the hospital's rate less that of all others pooled, over the standard error of this difference. Rates take one
success and one failure more for their variance (Agresti and Caffo 2000), so that 0 of 10 does not look certain. A
hospital beyond 3 may have other patients, another device, another coding or a false table (evaluation specification,
section 8, E160); honest hospitals with many patients get there by being different.

>>> honest, odd = [[0, 0], [30, 70]], [[0, 0], [2, 98]]
>>> z = leave_one_out("tpr", np.array([honest, honest, odd]))
>>> [round(float(one), 1) for one in z]
[-2.7, -2.7, 7.7]
"""

from __future__ import annotations

import numpy as np

from equipoise.common.fairness.estimate import MINIMUM_PATIENTS
from equipoise.common.fairness.shares import fraction
from equipoise.common.fairness.tables import Counts, Floats

FAR = 3.0  # standard errors


def leave_one_out(rate: str, tables: Counts, minimum: int = MINIMUM_PATIENTS) -> Floats:
    """z of each hospital against the others.

    Args:
        rate: a name of `shares.RATES`.
        tables: (sites, 2, 2) exact counts of one group by label and decision.
        minimum: smallest denominator of the hospital and of the others together.

    Returns:
        (sites,); nan where a side has fewer patients than `minimum`.
    """
    above, below = (np.asarray(part, dtype=np.float64) for part in fraction(tables, rate))
    sides = [(above, below), (above.sum() - above, below.sum() - below)]
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [hits / n for hits, n in sides]
        smooth = [(hits + 1) / (n + 2) for hits, n in sides]
        spread = sum(p * (1 - p) / (n + 2) for p, (_, n) in zip(smooth, sides, strict=True))
        z: Floats = (shares[0] - shares[1]) / np.sqrt(spread)
    return np.where(np.minimum(sides[0][1], sides[1][1]) >= minimum, z, np.nan)
