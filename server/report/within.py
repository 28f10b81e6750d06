"""The section on gaps within hospitals: what the pooled gap is made of, and how much hospitals differ."""

from __future__ import annotations

from typing import Any

from equipoise.server.report.blocks import Figure, Panel, Section, Table
from equipoise.server.report.plots.forest import forest
from equipoise.server.report.plots.svg import identifier
from equipoise.server.report.words import LABELS, LEVEL_TEXT, count_text, estimate_text, number, signed

Json = dict[str, Any]
NOT_MEASURED = (
    "Not measured: the gaps here are pooled over hospitals. How much of a gap lies within hospitals, and how much "
    "comes from groups being treated at different hospitals, needs each hospital's own table (`evaluation.by_site` "
    "in the study, `caps.site_results` in each site file)."
)
MEANING = (
    "Pooled = within + composition. Within: at one and the same hospital the model treats the groups differently. "
    "Composition: the groups are treated at hospitals where the model performs differently, a matter of devices and "
    "sites. Neither names a cause. A negative difference: the group is lower than the reference."
)


def within_section(report: Json) -> Section:
    """The section of the page."""
    if report["hospitals"] is None:
        return Section("within", "Gaps within hospitals", (NOT_MEASURED,))
    role = "base" if report["kind"] == "one_model" else "method"
    blocks: list[Figure | Table] = []
    for index, (attribute, found) in enumerate(report["hospitals"].items()):
        blocks += [_parts(attribute, found["contrasts"]), _figure(index, attribute, found["contrasts"], role)]
    return Section("within", "Gaps within hospitals", (MEANING,), blocks)


def _parts(attribute: str, contrasts: list[Json]) -> Table:
    rows = []
    for entry in contrasts:
        for role, label in (("base", "before"), ("method", "after")):
            if role not in entry:
                continue
            found = entry[role]
            lacking = "suppressed" if found["within"]["status"] == "suppressed" else "not estimable"
            composition = between = lacking
            if found["composition"] is not None:
                low, high = found["composition_interval"]
                composition = f"{signed(found['composition'])} [{signed(low)}, {signed(high)}]"
            if found["tau"] is not None:
                ends = found["tau_interval"]
                between = number(found["tau"]) + (f" [{number(ends[0])}, {number(ends[1])}]" if ends else "")
            rows.append([
                f"{entry['group']} less {entry['reference']}", LABELS[entry["rate"]], label if "method" in entry else
                "measured", estimate_text(found["pooled"], change=True), estimate_text(found["within"], change=True),
                composition, between, count_text(found["hospitals_with_both_groups"]),
            ])  # fmt: skip
    columns = (
        "groups", "rate", "model", "pooled", "within hospitals", "composition", "between hospitals (SD)",
        "with both groups",
    )  # fmt: skip
    caption = f"Differences by {attribute}, with {LEVEL_TEXT} intervals"
    return Table(caption, columns, rows, frozenset({0, 1, 2}))


def _figure(index: int, attribute: str, contrasts: list[Json], role: str) -> Figure:
    panels, rows = [], []
    for place, entry in enumerate(contrasts):
        found = entry[role]
        heading = f"{LABELS[entry['rate']]}: {entry['group']} less {entry['reference']}"
        drawing = forest(identifier("forest", index, place), heading, "difference (0: equal)", found)
        panels.append(Panel(heading, drawing))
        for row in found["hospitals"]:
            drawn = number(row["shrunken"]) if row["shrunken"] is not None else "–"
            rows.append([
                heading, row["hospital"], estimate_text(row["difference"], change=True), _weight(row),
                drawn,
            ])  # fmt: skip
        ahead = found["prediction"]
        lacking = "suppressed" if found["mean"]["status"] == "suppressed" else "not estimable"
        between = f"{signed(ahead[0])} to {signed(ahead[1])}" if ahead else lacking
        rows.append([heading, "a further hospital (prediction)", between, "", ""])
    columns = ("difference", "hospital", "value", "weight", "drawn to the mean")
    note = contrasts[0][role]["note"]
    caption = (
        "Boxes: each hospital, larger with more weight. Filled diamond: within hospitals (Mantel and Haenszel); open "
        f"diamond: pooled. Last row: where a further hospital of this kind would lie. {note[:1].upper()}{note[1:]}."
    )
    table = Table(f"Differences by hospital, {attribute}", columns, rows, frozenset({0, 1}))
    return Figure(caption, panels, table)


def _weight(row: Json) -> str:
    return "–" if row["weight"] is None else f"{100 * row['weight']:.0f} %"
