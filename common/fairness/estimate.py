"""An estimate: a number with its interval, or the reason why there is none.

Precision rule (spec of the evaluation, section 4): fewer than ten patients in a denominator give no number; an interval
wider than +-0.10 marks the number as imprecise.

>>> Estimate.of("tpr", 0.75, 0.70, 0.80, n=400, method="wilson").status
'ok'
>>> Estimate.missing("tpr", "women: 3 positives, 10 needed", n=3).value is None
True
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

MINIMUM_PATIENTS = 10
LARGEST_HALF_WIDTH = 0.10
LEVEL = 0.95

Status = Literal["ok", "imprecise", "not_estimable", "suppressed", "not_released"]
ESTIMATED: tuple[Status, ...] = ("ok", "imprecise")


@dataclass(frozen=True)
class Estimate:
    """One number about one set of patients.

    Attributes:
        metric: exact metric name, e.g. `equalized_odds_difference`.
        value, low, high: the estimate and its interval; all None unless `status` is `ok` or `imprecise`.
        n: patients in the denominator (in all compared denominators, for a gap); None where it may not be shown.
        status: `ok`; `imprecise`, half-width above 0.10; `not_estimable`, too few patients; `suppressed`, a small cell
            could be read from it; `not_released`, nobody was asked or somebody refused.
        reason: why there is no number or what it leaves out; empty if nothing is to be said.
        level: confidence level of the interval.
        method: how the interval was made.
        group: the group that the number speaks of; None for all patients or a comparison of groups.
        binning_bound: largest error that binning the scores can have caused; None where nothing was binned.
        noise_sd: standard deviation that the noise in the tables alone gives the estimate; 0 without noise, None where
            nothing could be estimated. Printed `rounded_up`.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    status: Status
    reason: str = ""
    level: float = LEVEL
    method: str = ""
    group: str | None = None
    binning_bound: float | None = None
    noise_sd: float | None = None

    def __post_init__(self) -> None:
        numbers = (self.value, self.low, self.high)
        if self.status not in ESTIMATED:
            if any(number is not None for number in numbers) or not self.reason:
                raise ValueError(f"{self.metric}: {self.status} takes no number and needs a reason")
        elif any(number is None or not math.isfinite(number) for number in numbers):
            raise ValueError(f"{self.metric}: status {self.status} needs a finite value, low and high, got {numbers}")
        if self.noise_sd is not None and not (math.isfinite(self.noise_sd) and self.noise_sd >= 0):
            raise ValueError(f"{self.metric}: noise_sd={self.noise_sd}, expected a finite number of at least 0")

    @classmethod
    def of(
        cls,
        metric: str,
        value: float,
        low: float,
        high: float,
        *,
        n: int,
        method: str,
        level: float = LEVEL,
        reason: str = "",
        group: str | None = None,
        binning_bound: float | None = None,
        noise_sd: float = 0.0,
    ) -> Estimate:
        """A number with its interval; `status` follows from the interval's width."""
        status: Status = "imprecise" if (high - low) / 2 > LARGEST_HALF_WIDTH else "ok"
        numbers = float(value), float(low), float(high)
        return cls(metric, *numbers, n, status, reason, level, method, group, binning_bound, float(noise_sd))

    @classmethod
    def missing(
        cls,
        metric: str,
        reason: str,
        *,
        n: int | None,
        level: float = LEVEL,
        method: str = "",
        group: str | None = None,
        binning_bound: float | None = None,
        status: Status = "not_estimable",
    ) -> Estimate:
        """No number, and why."""
        return cls(metric, None, None, None, n, status, reason, level, method, group, binning_bound)

    def marked_imprecise(self) -> Estimate:
        """The same number, `imprecise` for the reason that it gives whatever the interval's width."""
        return replace(self, status="imprecise") if self.status in ESTIMATED else self

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values; None stays null."""
        return asdict(self)


def rounded_up(value: float, decimals: int = 3) -> float:
    """`value` rounded away from 0, so that a printed size of noise is never too small."""
    return math.copysign(math.ceil(abs(value) * 10**decimals - 1e-9) / 10**decimals, value)
