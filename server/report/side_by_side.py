"""Several methods over several seeds as one table: means, intervals over seeds, and changes paired by seed.

A seed is a replicate: its own shuffles, and in a simulation that makes them its own splits, patients and base model.
Within a seed every method starts from the same base model and is measured on the same test patients, so differences are
taken within seeds first. Intervals are t-intervals over seeds; they hold what differs from seed to seed, and nothing of
hospitals that are not here. Where seeds split the same patients anew, runs share patients, and the intervals are too
narrow for a statement on other patients: `findings` says what is left with a variance that allows for it. Hospitals in
folders keep one split for all seeds: there intervals show the randomness of training alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from equipoise.common.evaluation import BASE, Measured
from equipoise.common.fairness.t_interval import half_width
from equipoise.common.study import Study
from equipoise.server.report import tables
from equipoise.server.report.build import judged
from equipoise.server.report.suppression import Suppression

Json = dict[str, Any]
PLAIN = "plain"
GROUP_THRESHOLDS = "group_thresholds"
MATCHED = "_matched"  # suffix of gaps at the study's `rate_match`
GAPS = ("equalized_odds_mean", "equalized_odds_difference")
FIGURES = (*GAPS, "worst_group_auc", "auc", "balanced_accuracy", *(gap + MATCHED for gap in GAPS))
GATES = ("gap", "gap_at_base_rate", "worst_group_auc", "balanced_accuracy", "not_collapsed")
REFERENCES = (BASE, PLAIN)
FEWEST_SEEDS = 3  # for an interval: two points say next to nothing of their spread


def seed_figures(study: Study, measured: Measured) -> Json:
    """Per model: its figures (None where not estimable) and, but for the base, the outcome of each gate."""
    hidden = Suppression.of(study, measured)
    models, primary = tables.models(study, measured, hidden), study.primary.name
    found: Json = {}
    for name, figures in models.items():
        own = figures["attributes"][primary]
        points = {"": own["points"]["rule"]["gaps"], MATCHED: own["points"]["base_rate"]["gaps"]}
        row = {gap + suffix: gaps[gap]["value"] for suffix, gaps in points.items() for gap in GAPS}
        row["worst_group_auc"] = own["worst_group_auc"]["value"]
        row["auc"] = figures["auc"]["value"]
        row["balanced_accuracy"] = figures["points"]["rule"]["balanced_accuracy"]["value"]
        found[name] = {"figures": row}
        if name != BASE:
            gates = judged(study, measured, name, hidden).gates
            found[name]["gates"] = {gate.name: gate.outcome for gate in gates}
    return found


def over_seeds(values: Sequence[float | None]) -> Json:
    """Mean and t-interval of the values that are there.

    Edge cases: without a value all is None; the interval is None with fewer than three, and where all are equal: then
    the seed changes nothing, and says nothing of what another would give.

    >>> over_seeds([0.1, 0.2, 0.3])
    {'mean': 0.2, 'low': -0.0484, 'high': 0.4484, 'seeds': 3}
    """
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    n = len(known)
    result: Json = {"mean": None, "low": None, "high": None, "seeds": n}
    if n:
        result["mean"] = round(float(known.mean()), 4)
    if n >= FEWEST_SEEDS and np.ptp(known) > 0:
        half = half_width(known)
        result |= {"low": round(float(known.mean()) - half, 4), "high": round(float(known.mean()) + half, 4)}
    return result


def summarise(per_seed: Mapping[str, Json], names: Sequence[str]) -> Json:
    """Model -> figure -> `value`, and `versus_base` and `versus_plain` where they say something.

    Args:
        per_seed: seed -> what `seed_figures` gave; a model may be missing in a seed.
        names: the models, in the order of the table.
    """
    table: Json = {}
    for name in names:
        own: Json = {}
        for figure in FIGURES:
            cell = {"value": over_seeds([_figure(seed, name, figure) for seed in per_seed.values()])}
            for reference in REFERENCES:
                if name not in (BASE, reference):
                    pairs = [
                        (_figure(seed, name, figure), _figure(seed, reference, figure)) for seed in per_seed.values()
                    ]
                    changes = [None if a is None or b is None else a - b for a, b in pairs]
                    cell[f"versus_{reference}"] = over_seeds(changes)
            own[figure] = cell
        table[name] = {"figures": own, "gates": _gates(per_seed, name)}
    return table


def _figure(seed: Json, name: str, figure: str) -> float | None:
    found: float | None = seed[name]["figures"][figure] if name in seed else None
    return found


def _gates(per_seed: Mapping[str, Json], name: str) -> Json:
    """Gate -> outcome -> number of seeds."""
    outcomes = [seed[name]["gates"] for seed in per_seed.values() if name in seed and "gates" in seed[name]]
    return {
        gate: {word: sum(found[gate] == word for found in outcomes) for word in ("pass", "fail", "undecided")}
        for gate in GATES
    }


def findings(value: Json) -> list[str]:
    """What the table shows, in sentences: who has a smaller gap than plain fine-tuning, and at what loss."""
    gap, bound = value["study"]["evaluation"]["primary"], value["study"]["evaluation"]["gates"]["worst_group_auc_loss"]
    others = [row["name"] for row in value["methods"] if row["name"] not in REFERENCES]
    if len(value["seeds"]) < FEWEST_SEEDS:
        return [f"{len(value['seeds'])} seed(s): too few for an interval; nothing is concluded."]
    smaller = [name for name in others if _below(_versus(value, name, gap), 0.0)]
    both = [name for name in smaller if _below(_versus(value, name, gap + MATCHED), 0.0)]
    kept = [name for name in both if _above(_versus(value, name, "worst_group_auc", BASE), -bound)]
    larger = [name for name in others if _above(_versus(value, name, gap), 0.0)]
    text = [
        f"{gap} smaller than under plain fine-tuning, the paired interval below 0: {_listed(smaller)}.",
        f"Of these also at the matched selection rate: {_listed(both)}; and with an interval that rules out a loss of "
        f"more than {bound:g} of the worst group's AUC against the base model: {_listed(kept)}.",
    ]
    if GROUP_THRESHOLDS in kept:
        text.append(f"{GROUP_THRESHOLDS} orders nobody anew within a group and cannot lose AUC; see its other figures.")
    if larger:
        text.append(f"{gap} larger than under plain fine-tuning: {_listed(larger)}.")
    factor, often = widening(value["study"].get("resplit"), len(value["seeds"])), "about"
    if factor > 1:
        often = "at least"
        apart = {name: _wider(_versus(value, name, gap), factor) for name in (*smaller, *larger)}
        text.append(
            "Each seed splits the same patients anew, so runs share patients and these intervals are too narrow for a "
            f"statement on others. With the variance of Nadeau & Bengio (2003), which makes them {factor:.1f} times as "
            f"wide, smaller: {_listed([name for name in smaller if _below(apart[name], 0.0)])}; larger: "
            f"{_listed([name for name in larger if _above(apart[name], 0.0)])}."
        )
    if value["study"].get("same_split"):
        text.append(
            "All seeds have the same patients in the same split: intervals show the randomness of training alone, and "
            "nothing of what other patients or another split would give."
        )
    text.append(
        f"Intervals are not widened for the {len(others)} methods that are looked at: {often} one in twenty lies "
        "wholly on one side of 0 by chance."
    )
    return text


def widening(resplit: Mapping[str, int] | None, seeds: int) -> float:
    """By how much a t-interval over splits of the same patients is too narrow; 1 where seeds draw patients.

    The corrected resampled t-test of Nadeau & Bengio (2003, Machine Learning 52) takes s^2 (1/J + n_test/n_train) for
    the variance of a mean over J splits, in place of s^2 / J.

    Args:
        resplit: patients in the `train` and in the `test` split, all hospitals together; None for drawn ones.
    """
    return 1.0 if resplit is None else float((1 + seeds * resplit["test"] / resplit["train"]) ** 0.5)


def _wider(cell: Json, factor: float) -> Json:
    return {**cell, **{end: cell["mean"] + factor * (cell[end] - cell["mean"]) for end in ("low", "high")}}


def seeds_text(name: str, value: Json) -> str:
    """The model's name, with the number of seeds that it has where some are missing.

    >>> seeds_text("dfr", {"seeds": [0, 1], "per_seed": {"0": {"dfr": {}}, "1": {}}})
    'dfr (1 of 2 seeds)'
    """
    there = sum(name in seed for seed in value["per_seed"].values())
    return name if there == len(value["seeds"]) else f"{name} ({there} of {len(value['seeds'])} seeds)"


def to_csv(value: Json) -> str:
    """The table, one row a model and figure."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    parts = ("value", *(f"versus_{reference}" for reference in REFERENCES))
    keys = ("mean", "low", "high")
    writer.writerow(["model", "figure", "seeds", *(f"{part}_{key}" for part in parts for key in keys)])
    for name, row in value["table"].items():
        for figure, cell in row["figures"].items():
            cells = [cell.get(part, {}).get(key) for part in parts for key in keys]
            writer.writerow([name, figure, cell["value"]["seeds"], *("" if x is None else x for x in cells)])
    return out.getvalue()


def _versus(value: Json, name: str, figure: str, reference: str = PLAIN) -> Json:
    found: Json = value["table"][name]["figures"][figure][f"versus_{reference}"]
    return found


def _below(cell: Json, bound: float) -> bool:
    return cell["high"] is not None and cell["high"] < bound


def _above(cell: Json, bound: float) -> bool:
    return cell["low"] is not None and cell["low"] > bound


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
