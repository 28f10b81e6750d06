"""Figures as text: one way to write a number, an interval, a change, a count and the absence of a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from equipoise.common.fairness.estimate import LEVEL

Json = dict[str, Any]

LEVEL_TEXT = f"{100 * LEVEL:.0f} %"
NOT_ESTIMABLE = "not estimable"
NOT_PROVIDED = "NOT PROVIDED"
MINUS = "\N{MINUS SIGN}"

LABELS = {
    "tpr": "true positive rate",
    "fpr": "false positive rate",
    "selection_rate": "selection rate",
    "balanced_accuracy": "balanced accuracy",
}
POINT_LABELS = {
    "rule": "declared rule",
    "base_rate": "equal selection rate",
    "base_threshold": "base model's threshold",
}


def number(value: float | None, digits: int = 3) -> str:
    """A number with a true minus sign; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def as_declared(value: float) -> str:
    """A bound as the study has it, unrounded."""
    return f"{value:g}".replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    """A change, with its sign."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def estimate_text(estimate: Json, *, change: bool = False, digits: int = 3) -> str:
    """A figure, its interval and its status: `0.071 [0.012, 0.140]`, `not estimable`, `not released`."""
    if estimate["value"] is None:
        return str(estimate["status"]).replace("_", " ")
    write = signed if change else number
    value, low, high = (write(estimate[key], digits) for key in ("value", "low", "high"))
    mark = " (imprecise)" if estimate["status"] == "imprecise" else ""
    return f"{value} [{low}, {high}]{mark}"


def count_text(count: int | str | None) -> str:
    """A number of patients, or the word in its place; a dash where it is not known or may not be shown."""
    return "–" if count is None else str(count)


def known(count: int | str) -> int | None:
    """A number of patients; None where it is hidden, and then it is not 0."""
    return count if isinstance(count, int) else None


def of_hundred(estimate: Json) -> str:
    """A rate as patients of a hundred: `64 (54 to 73)`."""
    if estimate["value"] is None:
        return f"cannot be said ({estimate['reason']})"
    value, low, high = (f"{100 * estimate[key]:.0f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def side_columns(report: Json) -> tuple[str, ...]:
    """Headers of the models that are shown side by side: one, or before and after."""
    return ("measured",) if report["kind"] == "one_model" else ("before", "after")


def side_legend(report: Json) -> list[tuple[str, str]]:
    """What the markers of the models stand for."""
    if report["kind"] == "one_model":
        return [("before", "the model as it is")]
    name = report["study"]["method"]["name"]
    return [
        ("before", "before: the model as delivered"),
        ("after", "after: the second model" if report["kind"] == "two_models" else f"after: {name}"),
    ]


def listed(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return ", ".join(items[:-1]) + (" and " if len(items) > 1 else "") + items[-1] if items else ""


def size(count: float) -> str:
    """Bytes with a unit, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
