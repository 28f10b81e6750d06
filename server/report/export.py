"""report.csv: every estimate of report.json in a row of its own, for a spreadsheet or a second pair of eyes.

UTF-8, one header. A number that is not there is `NA`, never empty and never 0, and its row says why.

>>> row = {"metric": "tpr", "value": None, "status": "not_estimable", "reason": "3 positives, 10 needed"}
>>> [cells["value"] for cells in estimates({"models": {"base": {"auc": row}}})]
['NA']
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

Json = dict[str, Any]
ABSENT = "NA"
PLACE = ("part", "model", "attribute", "operating_point", "hospital")
FIGURES = (
    "metric", "group", "value", "low", "high", "level", "method", "n", "status", "reason", "binning_bound", "noise_sd",
    "expected_if_equal",
)  # fmt: skip
# Parts of report.json that hold estimates of their own; verdict, level_down and more_false_alarms repeat some of them.
PARTS = ("attributes", "models", "changes", "scores", "decisions", "hospitals")
# What the keys below a part stand for: the name of a place, or (None) a word of the report itself.
_KEYS: Mapping[str, Mapping[str, str]] = {
    "attributes": {},
    "models": {"models": "model", "attributes": "attribute", "points": "operating_point"},
    "changes": {"attributes": "attribute", "points": "operating_point"},
    "scores": {"scores": "model"},
    "decisions": {"decisions": "model"},
    "hospitals": {"hospitals": "attribute"},
}


def report_csv(report: Json) -> str:
    """The whole file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, (*PLACE, *FIGURES), lineterminator="\n")
    writer.writeheader()
    writer.writerows(estimates(report))
    return text.getvalue()


def estimates(report: Json) -> Iterator[dict[str, str]]:
    """Every estimate as text by column, in the order of report.json."""
    for part in PARTS:
        yield from _walk(report.get(part), part, part, {"part": part})


def _walk(value: object, part: str, key: str, place: Mapping[str, str]) -> Iterator[dict[str, str]]:
    if isinstance(value, list):
        for item in value:
            yield from _walk(item, part, "", place)
    elif isinstance(value, dict):
        if "metric" in value and "status" in value:
            yield {**{name: place.get(name, ABSENT) for name in PLACE}, **_figures(value)}
            return
        here = {**place, **_named(value)}
        stands_for = _KEYS[part].get(key)
        for name, item in value.items():
            inside = here if stands_for is None else {**here, stands_for: name}
            if part in ("scores", "decisions") and stands_for == "model":
                for attribute, found in item.items():
                    yield from _walk(found, part, "", {**inside, "attribute": attribute})
            else:
                yield from _walk(item, part, "" if stands_for else name, inside)


def _named(value: Json) -> dict[str, str]:
    """What an entry says of itself: which two models are compared, which attribute or which hospital it is about."""
    named = {}
    if isinstance(value.get("attribute"), str):
        named["attribute"] = value["attribute"]
    if isinstance(value.get("before"), str):
        named["model"] = f"{value['before']} to {value['after']}"
    if isinstance(value.get("hospital"), str):
        named["hospital"] = value["hospital"]
    return named


def _figures(estimate: Json) -> dict[str, str]:
    return {name: _cell(estimate.get(name)) for name in FIGURES}


def _cell(value: object) -> str:
    if value is None or value == "":
        return ABSENT
    # A spreadsheet takes a text that begins like this for a formula.
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text[0] in "=+-@" else text
