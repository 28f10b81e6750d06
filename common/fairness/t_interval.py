"""The t-interval of a figure over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # the quantile itself: scipy.stats takes half a second to load

from equipoise.common.fairness.estimate import LEVEL


def half_width(values: Sequence[float] | NDArray[np.float64]) -> float:
    """Half the width of the 95 % interval of the mean; not a number for one value alone.

    >>> round(half_width([0.1, 0.2, 0.3]), 4)
    0.2484
    """
    n = len(values)
    return float(stdtrit(n - 1, 0.5 + LEVEL / 2) * np.std(values, ddof=1) / n**0.5) if n > 1 else float("nan")
