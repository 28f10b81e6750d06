"""The table of docs/privacy.md says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from equipoise.simulations.benchmarks import private_cost

ROOT = Path(__file__).parents[2]
LABELS = {
    "one forward and backward pass": "forward and backward",
    "sensitivity pass": "sensitivity pass",
    "private step in the space `whole`": "private step, space whole",
    "private step in the space `head`": "private step, space head",
    "DP-SGD step of a site (`private_training`)": "DP-SGD step of a site",
    "Opacus' hooks, as shipped": "Opacus' hooks, as shipped",
    "Opacus' ghost clipping, as shipped": "Opacus' ghost clipping, as shipped",
}


def test_the_cost_of_privacy_stands_in_the_page_as_it_was_measured() -> None:
    value = json.loads((Path(private_cost.__file__).parent / "results" / "private-cost.json").read_text())
    lines = (ROOT / "docs" / "privacy.md").read_text().partition("## What it costs in time")[2].splitlines()
    rows = {cells[1]: cells[2:5] for line in lines if len(cells := [cell.strip() for cell in line.split("|")]) == 6}
    assert set(LABELS) <= set(rows)
    for label, name in LABELS.items():
        ratio, (time, bound, memory) = value["ratio"][name], rows[label]
        repeated = len(value["cpu_s"][name]) > 1 and name != "forward and backward"
        digits = 2 if repeated else 0 if ratio["median"] > 10 else 1
        median = "1" if name == "forward and backward" else f"{ratio['median']:.{digits}f}"
        assert time == (f"{median} ({ratio['least']:.2f} to {ratio['most']:.2f})" if repeated else median)
        assert memory == f"{value['extra_mib'][name]} MiB"
        known = value["bounds"].get("private step, space whole" if name.startswith("private step") else name)
        assert bound == ("" if known is None else str(known))
    text = " ".join(" ".join(lines).split())
    noise = [f"{seconds:.2f} s ({name[0].lower()}{name[1:]})" for name, seconds in value["noise_s"].items()]
    assert f"Noise for a million coordinates: {', '.join(noise)}" in text
    assert f"is missed: {value['extra_memory']['sensitivity pass']:.1f} times in this run" in text
