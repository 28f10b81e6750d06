"""The interval of an estimate as a pair, for tests of coverage."""

from __future__ import annotations

from equipoise.common.fairness.estimate import Estimate


def interval(estimate: Estimate) -> tuple[float, float] | None:
    """(low, high), or None where nothing could be estimated."""
    return None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)
