"""`equipoise plan` in words: queries, what they cost, and how wide intervals become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Row = Mapping[str, Any]


def plan_lines(plan: Row) -> Iterator[str]:
    """The lines that are printed, from `equipoise.server.plan.describe_plan`."""
    private = plan["epsilon"] is not None
    head = f"{'arm':<14} {'times':>5}  {'phase':<11} {'query':<20} {'split':<10} {'up, bytes':>12}  "
    yield head + ("epsilon  noise (bound)" if private else "epsilon")
    for row in plan["queries"]:
        # A table of one row a hospital has none before the hospitals are known.
        size = f"{row['bytes_up']:,}" if row["bytes_up"] else "by hospitals"
        line = (
            f"{row['arm']:<14} {row['times']:>5}  {row['phase']:<11} {row['query']:<20} {row['split']:<10} {size:>12}  "
        )
        if row["epsilon"] is None:
            yield line + "not private"
        else:
            yield line + f"{row['epsilon']:7.3f}  {row['law']} {row['noise']:.4g} ({row['bound']:.4g})"
    if not private:
        return
    yield ""
    yield f"unit: {plan['unit']}; delta {plan['delta']:g}; asked: epsilon {plan['epsilon']:g}"
    for cost in plan["costs"]:
        if cost["split"] != "all" and cost["account"] != "study":
            continue
        whose = "each hospital" if cost["charged"] else f"control {cost['account']}, charged to nobody"
        what = "all splits, which are disjoint patients" if cost["split"] == "all" else f"on {cost['split']}"
        yield (
            f"  {whose}, {what}: epsilon {cost['epsilon']:.4f}, "
            f"{cost['epsilon_if_others_collude']:.4f} if all others collude; needs a lifetime cap of {cost['cap']:.2f}"
        )
    if plan["widths"]:
        sites = plan["widths"][0]["sites"]
        yield f"expected half-width of a gap in true positive rate (rates 0.8, groups 1 : 3, {sites} hospitals):"
        for row in plan["widths"]:
            yield (
                f"  {row['positives_of_the_smaller_group']:>4} positives in the smaller group: "
                f"±{row['with_noise']:.3f} with the noise, ±{row['without_noise']:.3f} without"
            )
