"""The verdict on a method: four gates and the controls, each with its interval.

A gap that fell is no evidence by itself: a model that calls everybody alike has none. A result counts only if

    gap                    the primary gap fell at the frozen threshold,
    gap_at_base_rate       and at the study's `rate_match`: the base model's selection rate, or the median score,
    worst_group_auc        the worst group's AUC lost no more than declared,
    balanced_accuracy      balanced accuracy is no lower than declared, and
    not_collapsed          the model still tells patients apart;

and if its gap is smaller than that of every required control at every operating point: `plain` (more training alone)
and `auc_noise` (noise on the base model's scores until its AUC is the method's).

Rule, for every gate alike: **pass** only if the whole interval lies on the right side of the bound, **fail** only if it
lies wholly on the wrong side, else **undecided**. Point estimates decide nothing. The interval of the worst group's AUC
is widened by what score bins may hide (`auc_change.hidden_by_binning`); where few bins left the models' selection rates
apart, a gap that is compared at equal ones is undecided. The verdict fails where one part
fails, passes where all pass, and is undecided otherwise, and so without the required controls ("controls missing").

A verdict speaks of one attribute, one test set and declared bounds. It is not a certificate of anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from equipoise.common.fairness.auc import worst_group_auc
from equipoise.common.fairness.auc_change import hidden_by_binning, worst_group_auc_change
from equipoise.common.fairness.change import gap_change, overall_rate_change
from equipoise.common.fairness.estimate import LEVEL, MINIMUM_PATIENTS, Estimate, rounded_up
from equipoise.common.fairness.level_down import level_down, lost
from equipoise.common.fairness.matching import Matching, flagged
from equipoise.common.fairness.noise import CellNoise, HistogramNoise, cell_variances
from equipoise.common.fairness.rates import overall_rate
from equipoise.common.fairness.tables import Counts, Floats, Table, counts_after
from equipoise.common.study_evaluation import Evaluation

__all__ = ["Bounds", "Evidence", "Gate", "Verdict", "judge", "lost", "verdict"]

Outcome = Literal["pass", "fail", "undecided"]
# What may be shown of a figure, given the control that it is compared with ("": none) and its operating point.
Shown = Callable[[Estimate, str, int], Estimate]

REQUIRED_CONTROLS = ("plain", "auc_noise")
FROZEN = "the frozen threshold"
MATCHED = {"base_rate": "the base model's selection rate", "median": "the median score"}  # by rule of `rate_match`
HALF = 0.5  # of the patients are flagged at the median score
CONSTANT = 0.5  # balanced accuracy of a constant decision
SIGNAL_LOST_BELOW = 0.65  # worst-group AUC of the base model; 0.55 where a private update could not repair it (bench B)
NOT_REPAIRABLE = "not repairable by a small update"


@dataclass(frozen=True)
class Bounds:
    """What a study declares before it runs.

    Attributes:
        primary: the gap that is judged.
        worst_group_auc_loss: largest loss of the worst group's AUC.
        balanced_accuracy: smallest balanced accuracy, or (`relative`) smallest change of it.
        relative: whether `balanced_accuracy` is a change against the base model.
        matched: the second operating point in words.
        rate: the selection rate there, or None where it is the base model's.
    """

    primary: str = "equalized_odds_difference"
    worst_group_auc_loss: float = 0.01
    balanced_accuracy: float = -0.02
    relative: bool = True
    matched: str = MATCHED["base_rate"]
    rate: float | None = None

    @classmethod
    def of(cls, evaluation: Evaluation) -> Bounds:
        """The bounds in a study's `evaluation`; `balanced_accuracy: base-0.02` is relative, a number is a floor."""
        gates, matched = evaluation.gates, MATCHED[evaluation.rate_match.rule]
        rate = HALF if evaluation.rate_match.rule == "median" else None
        if isinstance(gates.balanced_accuracy, str):
            margin = gates.balanced_accuracy.partition("-")[2]
            return cls(evaluation.primary, gates.worst_group_auc_loss, -float(margin or 0.0), True, matched, rate)
        return cls(evaluation.primary, gates.worst_group_auc_loss, gates.balanced_accuracy, False, matched, rate)


def _all_of_it(estimate: Estimate, control: str, point: int) -> Estimate:
    return estimate


@dataclass(frozen=True)
class Evidence:
    """The released tables of one attribute that a verdict is made from.

    Attributes:
        names: the declared groups.
        pair: (P, G + 1, 2, 2, 2), base model before and method after; the first two operating points are the frozen
            threshold and the study's `rate_match`, further ones are not judged.
        hist_before, hist_after: (G + 1, 2, B) test histograms of base model and method.
        placement_sums: (G + 1, 2, 5) of base model and method, or None (AUC changes are then paired by `joint`).
        controls: by name, (P, G + 1, 2, 2, 2) with the control before and the method after; those beyond
            `REQUIRED_CONTROLS` are shown and decide nothing.
        joint: (G + 1, 2, I, J) patients by interval of the score before and after, or None (AUC changes without
            placement sums are then unpaired).
        pair_noise: variance of the noise in one cell of `pair`, or an array that broadcasts to its shape.
        hist_noise: variance of the noise in one cell of either histogram, or what `noise.anchored` returned with both.
        control_noise: by control, as `pair_noise`; one that is not named carries none.
        shown: what may be shown of each figure; outcomes are those of the figures themselves.
    """

    names: tuple[str, ...]
    pair: Counts
    hist_before: Table
    hist_after: Table
    placement_sums: Floats | None
    controls: Mapping[str, Counts]
    joint: Counts | None = None
    pair_noise: CellNoise = 0.0
    hist_noise: float | HistogramNoise = 0.0
    control_noise: Mapping[str, CellNoise] = field(default_factory=dict)
    shown: Shown = _all_of_it


@dataclass(frozen=True)
class Gate:
    """One judged bound.

    Attributes:
        name: which gate.
        outcome: pass, fail or undecided.
        estimate: the figure judged, or `suppressed` where it may not be shown.
        bound: what it is compared with.
        right: the side of the bound on which the figure should lie: strictly `below`, or `above` or on it.
        text: one sentence with the figure and its interval.
    """

    name: str
    outcome: Outcome
    estimate: Estimate
    bound: float
    right: Literal["below", "above"]
    text: str

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {**vars(self), "estimate": self.estimate.to_json()}


@dataclass(frozen=True)
class Verdict:
    """What can be said of a method on one attribute.

    Attributes:
        outcome, reason: overall, and what decided it.
        gates: the gates, in order.
        comparisons: one for each control and operating point.
        level_down: TPR and AUC changes of the declared groups that are `lost`.
        base_signal: the base model's worst-group AUC.
        warnings: sentences that belong beside the verdict.
    """

    outcome: Outcome
    reason: str
    gates: tuple[Gate, ...]
    comparisons: tuple[Gate, ...]
    level_down: tuple[Estimate, ...]
    base_signal: Estimate
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {
            "outcome": self.outcome,
            "reason": self.reason,
            "gates": [gate.to_json() for gate in self.gates],
            "comparisons": [gate.to_json() for gate in self.comparisons],
            "level_down": [estimate.to_json() for estimate in self.level_down],
            "base_signal": self.base_signal.to_json(),
            "warnings": list(self.warnings),
        }


def judge(estimate: Estimate, bound: float, right: Literal["below", "above"], unseen: float = 0.0) -> Outcome:
    """Pass if the whole interval lies on the right side of the bound, fail if it wholly lies on the other side.

    `below` is strict: an interval that touches the bound from above fails. `unseen` widens the interval to either side.
    """
    if estimate.low is None or estimate.high is None:
        return "undecided"
    low, high = estimate.low - unseen, estimate.high + unseen
    passes, fails = (high < bound, low >= bound) if right == "below" else (low >= bound, high < bound)
    return "pass" if passes else "fail" if fails else "undecided"


def verdict(evidence: Evidence, bounds: Bounds, *, level: float = LEVEL, minimum: int = MINIMUM_PATIENTS) -> Verdict:
    """Judge a method on one attribute; see the module's text for the rule.

    Edge cases: what is not estimable is undecided; a model with constant scores or decisions fails whatever its gap.
    """
    names, pair = evidence.names, evidence.pair
    histograms = evidence.hist_before, evidence.hist_after
    sums, joint, blur, shown = evidence.placement_sums, evidence.joint, evidence.hist_noise, evidence.shown
    noise = cell_variances(evidence.pair_noise, pair)
    points = (FROZEN, bounds.matched)

    def gap_gate(name: str, control: str, point: int, table: Counts, variances: Floats) -> Gate:
        change = gap_change(bounds.primary, table, names, level=level, minimum=minimum, noise=variances)
        what, unlike = f"the gap ({bounds.primary}) at {points[point]}", ""
        if point == 1:
            matching = Matching.of(table, bounds.rate, level=level, minimum=minimum, noise=variances)
            unlike = matching.unlike
            what += flagged(*(shown(rate, control, point) for rate in (matching.before, matching.after)))
        what += f", compared with the control {control}," if control else ""
        return _gate(name, change, shown(change, control, point), 0.0, "below", what, unlike=unlike)

    named = enumerate(("gap", "gap_at_base_rate"))
    gates = [gap_gate(name, "", i, pair[i], noise[i]) for i, name in named]
    worst = worst_group_auc_change(*histograms, names, sums=sums, joint=joint, level=level, minimum=minimum, noise=blur)
    limit, unseen = -bounds.worst_group_auc_loss, 0.0 if worst.value is None else hidden_by_binning(*histograms, blur)
    gates.append(_gate("worst_group_auc", worst, shown(worst, "", 0), limit, "above", "the worst group's AUC", unseen))
    decided, decided_noise = counts_after(pair[0]), counts_after(noise[0])
    accuracy = overall_rate("balanced_accuracy", decided, level=level, minimum=minimum, noise=decided_noise)
    judged = accuracy
    if bounds.relative:
        judged = overall_rate_change("balanced_accuracy", pair[0], level=level, minimum=minimum, noise=noise[0])
    gates.append(
        _gate("balanced_accuracy", judged, shown(judged, "", 0), bounds.balanced_accuracy, "above", "balanced accuracy")
    )
    noisy = bool(noise.any())
    gates.append(_collapse(accuracy, shown(accuracy, "", 0), decided, evidence.hist_after, noisy=noisy))

    comparisons: list[Gate] = []
    for control, tables in evidence.controls.items():
        blurs = cell_variances(evidence.control_noise.get(control, 0.0), tables)
        comparisons += [
            gap_gate(f"beats_{control}", control, i, *cells)
            for i, cells in enumerate(zip(tables[: len(points)], blurs, strict=False))
        ]
    lower = level_down(
        pair[0],
        *histograms,
        names,
        sums=sums,
        joint=joint,
        level=level,
        minimum=minimum,
        pair_noise=noise[0],
        hist_noise=blur,
    )
    lower = tuple(shown(change, "", 0) for change in lower)
    signal = worst_group_auc(evidence.hist_before, names, level=level, minimum=minimum, noise=blur)
    base_signal = shown(signal, "", 0)
    outcome, reason = _overall(gates, tuple(comparisons), evidence.controls)
    warnings = [*_level_down_words(lower), *_signal_words(base_signal), *_left_out_words(gates)]
    return Verdict(outcome, reason, tuple(gates), tuple(comparisons), lower, base_signal, tuple(warnings))


def _overall(gates: list[Gate], comparisons: tuple[Gate, ...], controls: Mapping[str, Counts]) -> tuple[Outcome, str]:
    required = tuple(f"beats_{name}" for name in REQUIRED_CONTROLS)
    deciding = [*gates, *(gate for gate in comparisons if gate.name in required)]
    for outcome, words in (("fail", "failed"), ("undecided", "undecided")):
        found = list(dict.fromkeys(gate.name for gate in deciding if gate.outcome == outcome))
        missing = [name for name in REQUIRED_CONTROLS if name not in controls] if outcome == "undecided" else []
        reasons = [f"{words}: {', '.join(found)}"] if found else []
        reasons += [f"controls missing: {', '.join(missing)}"] if missing else []
        if reasons:
            return ("fail" if outcome == "fail" else "undecided"), "; ".join(reasons)
    return "pass", "the gap fell within the declared bounds and below the controls' gaps"


def _gate(
    name: str,
    estimate: Estimate,
    shown: Estimate,
    bound: float,
    right: Literal["below", "above"],
    what: str,
    unseen: float = 0.0,
    unlike: str = "",
) -> Gate:
    outcome = "undecided" if unlike else judge(estimate, bound, right, unseen)
    side = "below" if right == "below" else "no lower than"
    wider = f", widened by {rounded_up(unseen):.3f} that bins may hide" if unseen and shown.value is not None else ""
    text = f"{_words(what, shown)}{wider}; declared: {side} {bound:g}; {outcome}"
    return Gate(name, outcome, shown, bound, right, f"{text}, since {unlike}" if unlike else text)


def _words(what: str, estimate: Estimate) -> str:
    """One clause: the figure, in words for its direction, and its interval."""
    if estimate.value is None:
        return f"{what} is {_lacking(estimate)} ({estimate.reason})"
    interval = f"interval {estimate.low:+.3f} to {estimate.high:+.3f}"
    if not estimate.metric.endswith("_change"):
        return f"{what} is {estimate.value:.3f}, interval {estimate.low:.3f} to {estimate.high:.3f}"
    if abs(estimate.value) < 0.0005:
        return f"{what} stayed, {interval}"
    return f"{what} {'fell' if estimate.value < 0 else 'rose'} by {abs(estimate.value):.3f}, {interval}"


def _lacking(estimate: Estimate) -> str:
    return "suppressed" if estimate.status == "suppressed" else "not estimable"


def _collapse(accuracy: Estimate, shown: Estimate, counts: Counts, hist: Table, *, noisy: bool) -> Gate:
    """The gate `not_collapsed`: fails for constant scores or decisions; else judges balanced accuracy as any gate.

    Edge case: a noisy table cannot show that a cell is empty, so with noise balanced accuracy alone is judged. The
    interval of a model that calls everybody alike holds 0.5 then, and the gate is undecided.
    """
    decisions, bins = counts.sum(axis=(0, 1)), hist.sum(axis=(0, 1))
    if not noisy and decisions.any() and (decisions.min() == 0 or (bins > 0).sum() == 1):
        what = "all scores are alike" if (bins > 0).sum() == 1 else "all patients get the same decision"
        text = f"{what}: the model has collapsed, and its gap says nothing; fail"
        return Gate("not_collapsed", "fail", shown, CONSTANT, "above", text)
    outcome = judge(accuracy, CONSTANT, "above")
    text = f"{_words('balanced accuracy', shown)}; a constant decision has {CONSTANT:g}; {outcome}"
    return Gate("not_collapsed", outcome, shown, CONSTANT, "above", text)


def _level_down_words(level_down: tuple[Estimate, ...]) -> list[str]:
    metrics = [estimate.metric.removesuffix("_change").upper() for estimate in level_down]
    return [
        f"level-down: {_words(f'{metric} of {estimate.group}', estimate)}"
        for metric, estimate in zip(metrics, level_down, strict=True)
    ]


def _signal_words(base: Estimate) -> list[str]:
    if base.value is None or base.low is None:
        return [f"whether the base model has the disease signal in every group is {_lacking(base)} ({base.reason})"]
    said = _words("the base model: its worst-group AUC", base)
    if base.value < SIGNAL_LOST_BELOW:
        return [f"{said}: {NOT_REPAIRABLE}"]
    if base.low <= 0.5:
        return [f"{said}: it reaches 0.5, so whether a group has lost the disease signal cannot be told"]
    return []


def _left_out_words(gates: list[Gate]) -> list[str]:
    told = [gate for gate in gates if gate.estimate.reason and gate.estimate.status != "suppressed"]
    coarse = [gate for gate in told if gate.estimate.value is not None and gate.estimate.binning_bound is not None]
    left_out = dict.fromkeys(f"{gate.name}: {gate.estimate.reason}" for gate in told if gate not in coarse)
    return [*(f"the worst group's AUC: {gate.estimate.reason}" for gate in coarse), *left_out]
