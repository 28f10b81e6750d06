"""The tables of the control `auc_noise`, which a simulation keeps beside its run (see simulations/auc_noise.py).

No hospital is asked for them: they are made from the scores themselves, so they stand in no transcript and do not
follow from released sums. They are integer tables of the same kind as every other model's, and enter the report in the
same way, once they agree with the tables that do follow: same patients, same decisions of base model and method.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from equipoise.common.errors import TranscriptError
from equipoise.common.evaluation import BASE, ByAttribute, Measured
from equipoise.common.fairness.rates import gap
from equipoise.common.fairness.tables import Counts, Floats, counts_after, counts_before
from equipoise.common.study import Study
from equipoise.server.rundir import RunFolder

NAME = "auc_noise"
FILE = "tables.json"
FACTS = ("noise_sd_logit", "draws", "gap_by_draw")


def add_auc_noise(run: RunFolder, measured: Measured, method: str) -> dict[str, Any] | None:
    """Add the kept tables to `measured`; gives the size of the noise and its draws, or None where there are none.

    Raises:
        TranscriptError: the file is not what the simulation wrote, or disagrees with itself or the released sums.
    """
    file = run.path / "controls" / NAME / FILE
    if not file.exists():
        return None
    try:
        value = json.loads(file.read_text())
        histograms = {split: _arrays(tables) for split, tables in value["histograms"].items()}
        joints = {pair: _arrays(value["joints"][role]) for role, pair in pairs_of(method).items()}
        hist_noise, joint_noise = (float(value["noise"][kind]) for kind in ("histograms", "joints"))
        facts = {key: value[key] for key in FACTS}
        gaps = np.array(facts["gap_by_draw"], dtype=np.float64)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TranscriptError(f"{file}: not the tables of the control {NAME}; restore the file") from None
    study = run.task().study
    measured.histograms.update({(NAME, split): tables for split, tables in histograms.items()})
    measured.histogram_noise.update({(NAME, split): hist_noise for split in histograms})
    try:
        measured.choose_thresholds(study, NAME)
        for pair, tables in joints.items():
            measured.add_joint(*pair, tables, joint_noise)
    except (KeyError, ValueError):
        raise TranscriptError(f"{file}: other tables than the study asks for; restore the file") from None
    # Noisy tables of the same patients differ from each other; exact ones must not.
    found = None if study.privacy.private else next(_disagreements(study, measured, method, gaps), None)
    if found is not None:
        raise TranscriptError(f"{file}: {found}; restore the file")
    return facts


def pairs_of(method: str) -> dict[str, tuple[str, str]]:
    """What the control is compared with: role -> (before, after)."""
    return {"base": (BASE, NAME), "method": (NAME, method)}


def _disagreements(study: Study, measured: Measured, method: str, gaps: Floats) -> Iterator[str]:
    """What of the kept tables contradicts the released sums or itself."""
    pairs = {pair: measured.pairs[pair] for pair in pairs_of(method).values()}
    for model, split in list(measured.histograms):
        if model == BASE:
            kept, base = measured.histograms.get((NAME, split), {}), measured.histograms[BASE, split]
            yield from (
                f"the {split} histogram of {name} does not hold the base model's patients by group and label"
                for name in base
                if name not in kept or not _same_patients(kept[name], base[name])
            )
    own = measured.pairs[BASE, method]
    for name, released in own.items():
        against_base, against_method = (tables.get(name) for tables in pairs.values())
        if against_base is None or against_method is None:
            yield f"{name} has no decision tables"
            return
        if against_base.shape != released.shape or against_method.shape != released.shape:
            yield f"the decision tables of {name} have another shape than the released ones"
            return
        for what, one, other in (
            ("the base model's decisions", counts_before(against_base), counts_before(released)),
            (f"the decisions of {method}", counts_after(against_method), counts_after(released)),
            (
                "the control's own decisions in its two tables",
                counts_after(against_base),
                counts_before(against_method),
            ),
        ):
            if not np.array_equal(one, other):
                yield f"{what} by {name} disagree"
    primary = study.primary
    found = gap(study.evaluation.primary, counts_after(pairs[BASE, NAME][primary.name][0]), primary.groups).value
    if gaps.ndim != 1 or len(gaps) == 0 or not np.isclose(np.median(gaps), found or 0.0, rtol=0, atol=1e-12):
        yield "the gap of its tables is not the median of gap_by_draw"


def _same_patients(one: Counts, other: Counts) -> bool:
    return one.shape == other.shape and bool(one.min() >= 0) and np.array_equal(one.sum(axis=2), other.sum(axis=2))


def _arrays(tables: Mapping[str, object]) -> ByAttribute:
    return {name: np.array(table, dtype=np.int64) for name, table in tables.items()}
