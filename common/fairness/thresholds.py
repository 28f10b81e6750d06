"""The operating point: one threshold for all groups and sites, chosen by a declared rule before test data are read.

Rules, on a pooled histogram (of the validation split) unless they name a number themselves:

    fixed:p      score >= p, a probability such as 0.5
    given:p      the same, for a threshold that the vendor or the clinic prescribes
    decision:p   the same, for the risk at which one would act: the operating point of net benefit (a calibrated score)
    youden       largest TPR - FPR
    sens>=x      the largest threshold with a TPR of at least x
    spec>=x      the smallest threshold with a TNR of at least x
    median       half of the patients are positive
    base_rate    as many patients are positive as under the base model at its own threshold

Thresholds are logits. One that comes from a histogram is an edge of it, so that counts at it are exact. Where several
edges do equally well (bins between them are empty), `youden`, `median` and `base_rate` take the middle one. One that is
named as a probability lies a hair below its logit (`logit_reached_by`): a score that is written alike has to reach it.

A noisy histogram is summed over groups first, which is all that the choice reads, and projected onto non-negative
counts of the same sums, so that rates fall as the threshold rises.

>>> hist = np.array([[[4, 3, 1, 0], [0, 1, 2, 5]]])
>>> choose_threshold("sens>=0.8", hist, np.array([-1.0, 0.0, 1.0]))
0.0
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from equipoise.common.errors import StudyError
from equipoise.common.fairness.noise import HistogramNoise, histogram_noise, needed, projected
from equipoise.common.fairness.tables import Counts, Floats, Table, counts_at, counts_at_every_edge

_WITH_NUMBER = re.compile(r"(fixed:|given:|decision:|sens>=|spec>=)(.+)")
_PLAIN = ("youden", "median", "base_rate")
_NAMED = ("fixed", "given", "decision")  # rules that say the threshold themselves
_TIE = 1e-9  # on the logit; rounding moves a score by less than 1e-12
_FIXED_POINT = 2**30  # projected counts are scaled to this total; the product of two stays below 2^63
_ALLOWED = "fixed:0.5, given:t, decision:t, youden, sens>=x, spec>=x, median, base_rate, with 0 < t, x < 1"


@dataclass(frozen=True)
class Rule:
    """A parsed rule: its kind, and its number (as written, exact; 0 where the kind takes none)."""

    kind: str
    value: Fraction = Fraction(0)

    @property
    def needs_histogram(self) -> bool:
        """False where the rule names the threshold itself."""
        return self.kind not in _NAMED


def parse_rule(text: str) -> Rule:
    """The rule that `text` names.

    Raises:
        StudyError: unknown rule, or a number outside (0, 1).
    """
    plain = text.replace(" ", "")
    if plain in _PLAIN:
        return Rule(plain)
    match = _WITH_NUMBER.fullmatch(plain)
    if match:
        try:
            value = Fraction(match[2])
        except (ValueError, ZeroDivisionError):
            value = Fraction(0)
        if 0 < value < 1:
            return Rule(match[1].rstrip(":>="), value)
    raise StudyError(f"threshold.rule={text!r}: unknown rule; write one of {_ALLOWED}")


def choose_threshold(
    rule: str,
    hist: Table,
    edges: Floats,
    *,
    base_rate: Fraction | None = None,
    noise: float | HistogramNoise = 0.0,
) -> float:
    """The threshold, a logit, that `rule` gives on a pooled histogram.

    Args:
        rule: see the module's text.
        hist: (G + 1, 2, B) patients; all groups together, `unknown` included, make the choice.
        edges: (B - 1,) inner edges of the bins.
        base_rate: for the rule `base_rate`, the base model's share of positive decisions (`selection_rate_at`).
        noise: variance of the noise in one cell of `hist`, or what `noise.anchored` returned with it.

    Raises:
        StudyError: unknown rule; no patients of a class that the rule needs, or no more than the noise makes up; no
            edge reaches the wanted rate.
    """
    parsed = parse_rule(rule)
    if not parsed.needs_histogram:
        return logit_reached_by(parsed.value)
    _check_noise(f"threshold.rule={rule}", hist, noise)
    return float(edges[_choose_edge(parsed, rule, _rising(hist), base_rate)])


def _check_noise(what: str, hist: Table, noise: float | HistogramNoise) -> None:
    """Whether each class counts more patients than its noise makes up; without noise nothing is asked."""
    variance = len(hist) * histogram_noise(noise, hist.shape[-1]).total
    least = needed(0, variance)
    for label, count in zip(("negative", "positive"), hist.sum(axis=(0, 2)), strict=True):
        if count < least:
            raise StudyError(
                f"{what}: {round(float(count))} {label} patients counted with noise of {variance**0.5:.1f}, {least} "
                "needed; choose a rule that needs no histogram, or another split"
            )


def _rising(hist: Table) -> Counts:
    """A histogram of non-negative integers: as it is, or the projected sum over groups in fixed point."""
    if np.issubdtype(hist.dtype, np.integer) and (hist.size == 0 or hist.min() >= 0):
        return hist.astype(np.int64)
    pooled = hist.sum(axis=0)
    nearest = projected(pooled, np.maximum(pooled.sum(axis=-1), 0.0))
    scale = _FIXED_POINT / max(float(nearest.sum()), 1.0)
    return np.rint(nearest * scale).astype(np.int64)[None]


def _choose_edge(parsed: Rule, rule: str, hist: Counts, base_rate: Fraction | None) -> int:
    counts = counts_at_every_edge(hist).sum(axis=1)  # (edge, y, decision)
    negatives, positives = (int(n) for n in hist.sum(axis=(0, 2)))
    lacking = {
        "positive patients": parsed.kind in ("youden", "sens") and positives == 0,
        "negative patients": parsed.kind in ("youden", "spec") and negatives == 0,
        "patients": positives + negatives == 0,
    }
    for what, absent in lacking.items():
        if absent:
            raise StudyError(f"threshold.rule={rule}: the split it is chosen on has no {what}; choose another split")
    if parsed.kind == "youden":
        return _middle(counts[:, 1, 1] * negatives - counts[:, 0, 1] * positives)
    if parsed.kind in ("sens", "spec"):
        n = positives if parsed.kind == "sens" else negatives
        right = counts[:, 1, 1] if parsed.kind == "sens" else counts[:, 0, 0]
        reached = np.flatnonzero(right >= math.ceil(parsed.value * n))
        if reached.size == 0:
            raise StudyError(f"threshold.rule={rule}: no edge of the histogram reaches it; widen the edges")
        return int(reached[-1] if parsed.kind == "sens" else reached[0])
    target = Fraction(1, 2) if parsed.kind == "median" else base_rate
    if target is None:
        raise StudyError(f"threshold.rule={rule}: it needs the base model's selection rate, and none is known")
    # Exact in integers: |selected / n - a / b| is smallest where |selected * b - a * n| is.
    selected = counts[:, :, 1].sum(axis=1)
    return _middle(-np.abs(selected * target.denominator - target.numerator * (positives + negatives)))


def selection_rate_at(hist: Table, edges: Floats, threshold: float, *, noise: float | HistogramNoise = 0.0) -> Fraction:
    """Share of positive decisions over all patients; exact where the threshold is an edge and there is no noise.

    For any other threshold the nearest edge stands in; the edges of an evaluation have every threshold that a study
    names among them. `noise` as in `choose_threshold`.
    """
    _check_noise("threshold", hist, noise)
    counts = counts_at(_rising(hist), nearest_edge(edges, threshold))
    total = int(counts.sum())
    if total == 0:
        raise StudyError("threshold: the split it is chosen on has no patients; choose another split")
    return Fraction(int(counts[:, :, 1].sum()), total)


def match_selection_rate(
    hist: Table,
    edges: Floats,
    base_hist: Table,
    base_threshold: float,
    *,
    noise: float | HistogramNoise = 0.0,
) -> float:
    """The edge at which a model calls as many patients positive as the base model does at its own, or nearly as many.

    At equal selection rates a collapsed or shifted model has no advantage. Few bins may have no edge near: the rates
    that came of it are told and judged (`matching`). `noise` as in `choose_threshold`.
    """
    rate = selection_rate_at(base_hist, edges, base_threshold, noise=noise)
    return choose_threshold("base_rate", hist, edges, base_rate=rate, noise=noise)


def nearest_edge(edges: Floats, threshold: float) -> int:
    """Index of the edge nearest to a threshold (the lower of two)."""
    return int(np.argmin(np.abs(edges - threshold)))


def _middle(values: NDArray[np.int64]) -> int:
    """The middle one of the indices with the largest value (the lower of two middles)."""
    best = np.flatnonzero(values == values.max())
    return int(best[(best.size - 1) // 2])


def logit_reached_by(probability: Fraction) -> float:
    """The threshold on the logit that every score of at least this probability reaches, however it was rounded.

    Two ways to the logit of one probability differ in the last bit, as do the mean of 0.2 and 0.2 and 0.2 itself; with
    the exact logit as the threshold about a fourth of all scores that equal it would fall below.

    >>> float(np.log(0.18 / 0.82)) >= logit_reached_by(Fraction("0.18"))
    True
    """
    return math.log(probability.numerator / (probability.denominator - probability.numerator)) - _TIE
