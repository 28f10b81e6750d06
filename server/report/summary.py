"""The summary: one honest sentence, then plain words.

The first sentence states the verdict before anything else: whether the gap fell, whether the declared gates passed and
whether the controls were beaten. A fall of the gap that a gate or a control takes back never stands alone.
"""

from __future__ import annotations

from typing import Any

from equipoise.common.evaluation import BASE
from equipoise.common.fairness.verdict import REQUIRED_CONTROLS
from equipoise.server.report.level_down import by_chance, who_got_worse
from equipoise.server.report.words import (
    LEVEL_TEXT,
    POINT_LABELS,
    estimate_text,
    listed,
    number,
    of_hundred,
)

Json = dict[str, Any]

LEAD = {
    "pass": "The declared test is passed",
    "fail": "The declared test is failed",
    "undecided": "The declared test is undecided",
}


def summary(report: Json) -> Json:
    """`headline`, the first sentence; `plain`, rates in words; `worse`, who got worse; `cannot`; `warnings`."""
    judged = report["verdict"] is not None
    return {
        "headline": headline(report),
        "plain": _plain_words(report),
        "worse": who_got_worse(report, _change(report)) if judged else [],
        "cannot": cannot_speak(report),
        "others": [*_margin_words(report), *_other_controls(report), *_noise_words(report)] if judged else [],
        "warnings": _warnings(report),
    }


def headline(report: Json) -> str:
    """Verdict, change of the gap, gates, controls: one sentence; of one model, what its gap shows."""
    if report["verdict"] is None:
        return _one_model(report)
    lead = LEAD[report["verdict"]["outcome"]]
    if report["level_down"]:
        losers = list(dict.fromkeys(f"{row['group']} ({row['attribute']})" for row in report["level_down"]))
        chance = by_chance(report["looked_at"]["level_down"])
        lead += f", and sensitivity or AUC fell for {listed(losers)} ({len(report['level_down'])} of {chance})"
    return f"{lead}: {_gap_clause(report)}; {_gates_clause(report)}; {_controls_clause(report)}."


def method_name(report: Json) -> str:
    """The name of the study's method."""
    name: str = report["study"]["method"]["name"]
    return name


def sides(report: Json) -> list[tuple[str, str]]:
    """(marker, model) of what is shown side by side: the base model, and the method where there is one."""
    return [("before", BASE)] + ([] if report["kind"] == "one_model" else [("after", method_name(report))])


def primary_change(report: Json, point: str = "rule") -> Json:
    """Change of the primary gap from the base to the method."""
    gaps: Json = _change(report)[report["study"]["primary"]]["points"][point]["gaps"]
    found: Json = gaps[report["study"]["evaluation"]["primary"]]
    return found


def _change(report: Json) -> Json:
    """attribute -> changes from the base to the method."""
    found: Json = change_between(report, BASE, method_name(report))["attributes"]
    return found


def change_between(report: Json, before: str, after: str) -> Json:
    """The paired change between two models.

    Raises:
        KeyError: they were not compared.
    """
    for change in report["changes"]:
        if (change["before"], change["after"]) == (before, after):
            found: Json = change
            return found
    raise KeyError((before, after))


def primary_gap(report: Json, model: str, point: str = "rule") -> Json:
    """The primary gap of a model."""
    gaps = report["models"][model]["attributes"][report["study"]["primary"]]["points"][point]["gaps"]
    found: Json = gaps[report["study"]["evaluation"]["primary"]]
    return found


def _one_model(report: Json) -> str:
    metric, attribute = report["study"]["evaluation"]["primary"], report["study"]["primary"]
    gap = primary_gap(report, BASE)
    what = f"between the groups of {attribute}"
    if gap["value"] is None:
        return f"Whether there is a gap {what} cannot be said: {metric} is {estimate_text(gap)} ({gap['reason']})."
    figure = f"{metric} {number(gap['value'])} ({LEVEL_TEXT} interval {number(gap['low'])} to {number(gap['high'])}"
    by_chance = f"; equal groups would show {number(gap['expected_if_equal'])} by chance)"
    said = f"A gap {what} is shown" if gap["low"] > 0 else f"No gap {what} is shown, which is not the same as none"
    partial = f" Not every group is compared: {gap['reason']}." if gap["reason"] else ""
    return f"{said}: {figure}{by_chance}.{partial}"


def cannot_speak(report: Json) -> list[str]:
    """Declared groups whose rates nobody can estimate from these patients: one sentence each attribute."""
    lines = []
    for row in report["attributes"]:
        point = report["models"][BASE]["attributes"][row["attribute"]]["points"]["rule"]["by_group"]
        found = [
            (group["group"], {rate["status"] for rate in rates if rate["value"] is None})
            for group, *rates in zip(row["groups"], point["tpr"], point["fpr"], strict=True)
            if group["declared"]
        ]
        silent = [group for group, statuses in found if statuses - {"suppressed"}]
        if silent:
            lines.append(f"{row['attribute']}: {listed(silent)}; too few patients with or without the disease.")
        withheld = [group for group, statuses in found if statuses == {"suppressed"}]
        if withheld:
            lines.append(
                f"{row['attribute']}: {listed(withheld)}; suppressed, since a count below "
                f"{report['small_cells']['minimum']} could be read from the rates."
            )
    return lines


def _gap_clause(report: Json) -> str:
    metric, attribute = report["study"]["evaluation"]["primary"], report["study"]["primary"]
    method = method_name(report)
    change = primary_change(report)
    judged = " that can be judged" if change["reason"] and change["value"] is not None else ""
    what = f"with {method}, the {metric} between the groups of {attribute}{judged}"
    if change["value"] is None:
        return f"{what} cannot be compared ({change['reason']})"
    ends = [primary_gap(report, model)["value"] for model in (BASE, method)]
    span = f"from {number(ends[0])} to {number(ends[1])}" if None not in ends else ""
    low, high = change["low"], change["high"]
    if high < 0:
        fall = f"{LEVEL_TEXT} interval {number(-high)} to {number(-low)}"
        return f"{what} fell by {number(-change['value'])} ({fall}), {span}"
    if low > 0:
        rise = f"{LEVEL_TEXT} interval {number(low)} to {number(high)}"
        return f"{what} rose by {number(change['value'])} ({rise}), {span}"
    return f"{what} shows no clear change ({span}; {LEVEL_TEXT} interval of the change {number(low)} to {number(high)})"


def _gates_clause(report: Json) -> str:
    gates = report["verdict"]["gates"]
    failed = [gate["name"] for gate in gates if gate["outcome"] == "fail"]
    open_ = [gate["name"] for gate in gates if gate["outcome"] == "undecided"]
    if not failed and not open_:
        return f"it passed all {len(gates)} gates"
    parts = [f"it failed {len(failed)} of {len(gates)} gates ({listed(failed)})"] if failed else []
    if open_:
        parts.append(f"{len(open_)} of {len(gates)} gates stayed undecided ({listed(open_)})")
    return ", and ".join(parts)


def control_outcomes(report: Json) -> dict[str, str]:
    """control -> pass, fail or undecided over all operating points, for the controls that were compared."""
    outcomes: dict[str, list[str]] = {}
    for gate in report["verdict"]["comparisons"]:
        outcomes.setdefault(gate["name"].removeprefix("beats_"), []).append(gate["outcome"])
    return {
        control: "fail" if "fail" in found else "undecided" if "undecided" in found else "pass"
        for control, found in outcomes.items()
    }


def _controls_clause(report: Json) -> str:
    outcomes = control_outcomes(report)
    by_outcome = {
        outcome: [name for name in REQUIRED_CONTROLS if outcomes.get(name) == outcome]
        for outcome in ("fail", "undecided", "pass")
    }
    missing = [name for name in REQUIRED_CONTROLS if name not in outcomes]
    parts = []
    if by_outcome["fail"]:
        parts.append(f"its gap is larger than that of the {_controls(by_outcome['fail'])}")
    if by_outcome["undecided"]:
        parts.append(f"whether it beats the {_controls(by_outcome['undecided'])} is undecided")
    if by_outcome["pass"]:
        hurdles = [name for name in by_outcome["pass"] if name != "auc_noise" or not _without_noise(report)]
        parts += [f"it beat the {_controls(hurdles)}"] if hurdles else []
        if len(hurdles) < len(by_outcome["pass"]):
            parts.append("the control auc_noise added no noise and is no hurdle")
    if missing:
        parts.append(f"the {_controls(missing)} {'are' if len(missing) > 1 else 'is'} missing")
    return ", and ".join(parts)


def _other_controls(report: Json) -> list[str]:
    """What the controls that decide nothing show, such as whether the mask matters; empty where there are none."""
    words = {
        "fail": "larger than that of",
        "undecided": "not clearly different from that of",
        "pass": "smaller than that of",
    }
    outcomes = {name: found for name, found in control_outcomes(report).items() if name not in REQUIRED_CONTROLS}
    parts = [
        f"{text} {listed([name for name, found in outcomes.items() if found == outcome])}"
        for outcome, text in words.items()
        if outcome in outcomes.values()
    ]
    these = "these controls do" if len(outcomes) > 1 else "this control does"
    return [f"Its gap is {'; '.join(parts)}; {these} not count towards the verdict."] if parts else []


def _margin_words(report: Json) -> list[str]:
    """That the gap after is small, where its whole interval says so: the only way to say it (no gap is ever 0).

    Not where a declared group is left out, whose distance from the others nobody knows.
    """
    margin = report["study"]["evaluation"]["margin"]
    gap = primary_gap(report, method_name(report))
    if gap["value"] is None or gap["reason"] or gap["high"] > margin:
        return []
    return [
        f"After {method_name(report)} the whole interval of {gap['metric']} ({number(gap['low'])} to "
        f"{number(gap['high'])}) lies within the declared margin of {margin:g}."
    ]


def _noise_words(report: Json) -> list[str]:
    """A control that is the base model itself must not pass for a hurdle."""
    if not _without_noise(report):
        return []
    return [
        "The method's AUC is not below the delivered model's, so the control auc_noise adds no noise and is the "
        "delivered model itself: to beat it says no more than that the gap fell."
    ]


def _without_noise(report: Json) -> bool:
    """Whether the control auc_noise is the base model itself."""
    return "auc_noise" in report and report["auc_noise"]["noise_sd_logit"] == 0


def _controls(names: list[str]) -> str:
    return f"control{'s' if len(names) > 1 else ''} {listed(names)}"


def _plain_words(report: Json) -> list[str]:
    """The primary attribute's rates at the declared rule, before and after, as patients of a hundred."""
    attribute, label = report["study"]["primary"], report["study"]["label"]["column"]
    groups = next(row for row in report["attributes"] if row["attribute"] == attribute)["groups"]
    names = [row["group"] for row in groups if row["declared"]]
    lines = []
    for rate, who, verb in (
        ("tpr", f"with the disease ({label})", "finds"),
        ("fpr", "without it", "wrongly flags"),
    ):
        for model, subject in _subjects(report):
            point = report["models"][model]["attributes"][attribute]["points"]["rule"]
            cells = dict(zip(names, point["by_group"][rate], strict=False))
            first, *others = names
            text = f"Of 100 patients of group {first} ({attribute}) {who}, {subject} {verb} {of_hundred(cells[first])}"
            text += "".join(f"; of 100 of group {name}, {of_hundred(cells[name])}" for name in others)
            lines.append(text + ".")
    return lines


def _subjects(report: Json) -> list[tuple[str, str]]:
    """(model, what a sentence calls it)."""
    if report["kind"] == "one_model":
        return [(BASE, "the model")]
    method = method_name(report)
    second = "the second model" if report["kind"] == "two_models" else f"the model after {method}"
    return [(BASE, "the model as delivered"), (method, second)]


def _warnings(report: Json) -> list[str]:
    """The verdict's warnings; those that `worse` says already are left out, and those of several gates are joined."""
    unknown = [
        _sentence(f"{name}: {text}")
        for name, found in report["decisions"][BASE].items()
        if found["unknown"] is not None
        for text in found["unknown"]["warnings"]
    ]
    if report["verdict"] is None:
        return unknown
    gates: dict[str, list[str]] = {}
    for gate in report["verdict"]["gates"]:
        if gate["estimate"]["reason"] and gate["estimate"]["status"] != "suppressed" and not _binned(gate["estimate"]):
            gates.setdefault(gate["estimate"]["reason"], []).append(gate["name"])
    said = {f"{name}: {reason}" for reason, names in gates.items() for name in names}
    others = [text for text in report["verdict"]["warnings"] if text not in said and not text.startswith("level-down")]
    joined = [f"not every group is judged by {listed(names)} ({reason})" for reason, names in gates.items()]
    withheld = [gate["name"] for gate in report["verdict"]["gates"] if gate["estimate"]["status"] == "suppressed"]
    if withheld:
        joined.append(f"suppressed figures of gates: {listed(withheld)}")
    return [_sentence(text) for text in (*report["method_warnings"], *others, *joined)] + unknown


def _binned(estimate: Json) -> bool:
    """Whether a figure's reason is that its score bins are coarse, which a warning of the verdict says."""
    return estimate["value"] is not None and estimate["binning_bound"] is not None


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def summary_lines(report: Json) -> list[str]:
    """The report for a terminal, without control characters: the headline, the primary figures, gates, controls."""
    study, alone = report["study"], report["kind"] == "one_model"
    primary, metric = study["primary"], study["evaluation"]["primary"]
    names = ("",) if alone else ("before ", "after ")
    lines = [report["summary"]["headline"], ""]
    for point in ("rule",) if alone else ("rule", "base_rate"):
        gaps = [primary_gap(report, model, point) for _, model in sides(report)]
        texts = ", ".join(name + estimate_text(gap) for name, gap in zip(names, gaps, strict=True))
        lines.append(
            f"{metric} by {primary}, {POINT_LABELS[point]} (0 = equal): {texts}, expected if equal "
            f"{number(gaps[-1]['expected_if_equal'])}"
        )
    for key, label in (("worst_group_auc", "worst-group AUC"), ("auc_gap", "AUC gap")):
        found = [report["models"][model]["attributes"][primary][key] for _, model in sides(report)]
        texts = ", ".join(name + estimate_text(figure) for name, figure in zip(names, found, strict=True))
        lines.append(f"{label} by {primary}: {texts}")
    lines.append("")
    if report["verdict"] is not None:
        lines += [f"gate {gate['name']}: {gate['text']}" for gate in report["verdict"]["gates"]]
        lines += [
            f"control {name}: smaller gap than the control's: {outcome}"
            for name, outcome in control_outcomes(report).items()
        ]
        lines.append("")
    lines += [
        *(f"Cannot speak for {line}" for line in report["summary"]["cannot"]),
        *(line for key in ("others", "worse", "warnings") for line in report["summary"][key]),
        *(f"{notice['code']} {notice['text']}" for notice in report["notices"]),
        report["privacy"]["text"],
        *([report["small_cells"]["text"]] if report["small_cells"]["minimum"] else []),
    ]
    if report["data"]["synthetic"]:
        lines.append("Synthetic data.")
    return lines
