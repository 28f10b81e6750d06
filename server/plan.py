"""`equipoise plan`: what a study asks of every site and what it costs, before anything is read."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan


def describe_plan(study: Study) -> list[dict[str, Any]]:
    """The plan as rows: arm, phase, query, split, how many times, bytes that a site sends, and what it costs."""
    plan = StudyPlan.of(study).calibrated(study)
    rows = []
    for (arm, phase, name, split), found in groupby(
        plan.entries, key=lambda entry: (entry.arm, entry.query.phase, entry.query.name, entry.query.split)
    ):
        asked = [entry.query for entry in found]
        rows.append(
            {
                "arm": arm,
                "phase": phase,
                "query": name,
                "split": split,
                "times": len(asked),
                "bytes_up": sum(8 * block.size for query in asked for block in query.blocks.values()),
                "epsilon": "not private",
            }
        )
    return rows
