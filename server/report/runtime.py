"""What a run took: seconds and bytes, from rounds.jsonl.

The only part of the report that is no function of the released sums; it stands under one key, `run_time`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]


def run_time(rows: Sequence[Json]) -> Json:
    """Releases, seconds and bytes by arm and phase, and bytes by site and direction.

    `phases` keeps the order in which phases began. Bytes are those of the whole messages as they were sent.
    """
    phases: dict[tuple[str, str], Json] = {}
    sites: dict[str, Json] = {}
    for row in rows:
        key = (row["run"].partition("/")[2], row["phase"])
        entry = phases.setdefault(
            key, {"arm": key[0], "phase": key[1], "releases": 0, "seconds": 0.0, "bytes_down": 0, "bytes_up": 0}
        )
        entry["releases"] += 1
        entry["seconds"] = round(entry["seconds"] + row["seconds"], 4)
        for direction in ("bytes_down", "bytes_up"):
            entry[direction] += sum(row[direction].values())
            for site, count in row[direction].items():
                own = sites.setdefault(site, {"site": site, "releases": 0, "bytes_down": 0, "bytes_up": 0})
                own[direction] += count
        for site in row["sites"]:
            sites.setdefault(site, {"site": site, "releases": 0, "bytes_down": 0, "bytes_up": 0})["releases"] += 1
    entries = list(phases.values())
    for entry in entries:
        entry["seconds_per_release"] = round(entry["seconds"] / entry["releases"], 4)
    return {
        "phases": entries,
        "sites": [sites[site] for site in sorted(sites)],
        "seconds": round(sum(entry["seconds"] for entry in entries), 4),
        "bytes_down": sum(entry["bytes_down"] for entry in entries),
        "bytes_up": sum(entry["bytes_up"] for entry in entries),
    }
