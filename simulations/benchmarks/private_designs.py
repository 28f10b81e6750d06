"""What `private_outcome` runs: designs, and the sweeps that they make up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Mode = Literal["none", "once", "local", "distributed", "pooled", "alone"]
MODES: dict[str, str] = {"once": "local", "pooled": "none", "alone": "local"}
"""What the study's privacy mode is, where it is not the design's own; none where there is no epsilon."""


@dataclass(frozen=True)
class Design:
    """One design, run for every seed and draw."""

    name: str
    method: str
    mode: Mode
    epsilon: float | None = None
    bench: Literal["A", "B", "C"] = "A"
    patients: int = 300
    pool: Literal["diverse", "vendor"] = "diverse"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    planted: str = ""  # the part of the base model that its shortcut is in; else wherever training puts it
    unseen: bool = False  # whether it is also scored on patients of two devices that no hospital has


def _both(mode: Mode, epsilon: float | None, suffix: str = "", **changes: Any) -> list[Design]:
    text = mode if epsilon is None else f"{mode} {epsilon:g}"
    return [Design(f"{m} {text}{suffix}", m, mode, epsilon, **changes) for m in ("private_head", "swift")]


# Chosen on seed 100.
DP_SGD: Mapping[str, Any] = {"step": "fedavg", "lr": 0.005, "momentum": 0.5, "batch": 100, "local_epochs": 1}

REGIMES: dict[str, Any] = {
    "40 patients": {"mode": "none", "patients": 40},
    "100 patients, epsilon 3": {"mode": "local", "epsilon": 3, "patients": 100},
    "300 patients, epsilon 0.5": {"mode": "local", "epsilon": 0.5},
    **{
        f"shortcut in {part}": {"mode": "none", "patients": 100, "planted": f"extractor.{number}."}
        for part, number in {"the stem": 0, "the first block": 3, "the last block": 5}.items()
    },
    "bench C, 40 patients": {"mode": "none", "patients": 40, "bench": "C"},
}
NOISY: tuple[Mode, ...] = ("distributed", "local")
SWEEPS: dict[str, list[Design]] = {
    # The two methods at every budget, mode, size, bench and pool.
    "utility": [
        *_both("local", 3),
        *_both("once", 3),
        *_both("once", 1),
        *_both("local", 1),
        *_both("once", 3, " n=100", patients=100),
        *_both("local", 3, " n=100", patients=100),
        *_both("once", 3, " bench C", bench="C"),
        *_both("local", 3, " bench C", bench="C"),
        *_both("local", 3, " pool U1", pool="vendor"),
        *_both("none", None),
    ],
    # Does the mask do anything? The same rounds with the mask permuted, constant, or left out.
    "mask": [
        Design(f"{mask} {mode} 3", "swift", mode, 3, parameters={"mask": mask})
        for mode in ("local", "once")
        for mask in ("soft", "permuted", "constant", "ones")
    ],
    # Where might the mask matter? Every cell with the soft mask and two that know nothing of the bias.
    "regimes": [
        Design(f"{mask} {cell}", "swift", parameters={"mask": mask}, unseen=True, **settings)
        for cell, settings in REGIMES.items()
        for mask in ("soft", "permuted", "constant")
    ],
    # Federated averaging of local DP-SGD, beside the whitened rounds of the other sweeps.
    "dp-sgd": [
        Design(f"{method} fedavg local {epsilon:g}", method, "local", epsilon, parameters={**DP_SGD, **rounds})
        for epsilon in (8, 3)
        for method, rounds in (
            ("fine_tune", {"rounds": 5}),
            ("swift", {"rounds": {"extractor": 3, "head": 2}, "head_reset": "none"}),
        )
    ],
    # A base model that has lost the disease signal in a group.
    "bench-b": _both("local", 3, bench="B"),
    # From all patients in one place without noise to every hospital by itself.
    "frontier": [
        *_both("pooled", None),
        *_both("none", None),
        *(design for mode in NOISY for epsilon in (8, 3, 1) for design in _both(mode, epsilon)),
        *_both("alone", None),
        *_both("alone", 3),
    ],
}
