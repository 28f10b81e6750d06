"""The tables of the control `auc_noise`, which a simulation keeps beside its run (see simulations/auc_noise.py).

No hospital is asked for them: they are made from the scores themselves, so they stand in no transcript. They are
integer tables of the same kind as every other model's, and enter the report in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from equipoise.common.errors import TranscriptError
from equipoise.common.evaluation import BASE, ByAttribute, Measured
from equipoise.server.rundir import RunFolder

NAME = "auc_noise"
FILE = "tables.json"
FACTS = ("noise_sd_logit", "draws", "gap_by_draw")


def add_auc_noise(run: RunFolder, measured: Measured, method: str) -> dict[str, Any] | None:
    """Add the kept tables to `measured`; gives the size of the noise and its draws, or None where there are none.

    Raises:
        TranscriptError: the file is not what the simulation wrote.
    """
    file = run.path / "controls" / NAME / FILE
    if not file.exists():
        return None
    try:
        value = json.loads(file.read_text())
        histograms = {split: _arrays(tables) for split, tables in value["histograms"].items()}
        pairs = {(BASE, NAME): _arrays(value["pairs"]["base"]), (NAME, method): _arrays(value["pairs"]["method"])}
        thresholds = np.array(value["thresholds"], dtype=np.float64)
        facts = {key: value[key] for key in FACTS}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TranscriptError(f"{file}: not the tables of the control {NAME}; restore the file") from None
    measured.thresholds[NAME] = thresholds
    measured.histograms.update({(NAME, split): tables for split, tables in histograms.items()})
    measured.pairs.update(pairs)
    return facts


def _arrays(tables: Mapping[str, object]) -> ByAttribute:
    return {name: np.array(table, dtype=np.int64) for name, table in tables.items()}
