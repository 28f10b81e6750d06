"""The sections of docs/evidence.md on privacy: what is left of the gap, what the mask does, how well it is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ttest_1samp

from equipoise.simulations.benchmarks import frontier

Json = dict[str, Any]
UTILITY = """## Under privacy: bench A, and bench C where named

Six hospitals of 300 training patients (or as named), a public pool of unlabelled images; the whole budget is accounted
at delta 1e-5, for one patient with all images. *local*: each hospital adds its own noise. *once*: all patients at one
site, whose noise is added once: what no federation reaches, for comparison. Methods are `private_head` and `swift` with
masked whitened rounds of the whole network. Models are scored without noise on 1,600 test patients of the same
hospitals, so the figures speak of training alone. Falls are shares of the base model's `equalized_odds_mean`; intervals
are over the seeds' means, *least* is the worst single run. No control is in this table: it says what is left of the gap
under privacy, and not that the mask, or either method, is what made it fall.
"""
MASK = """## Under privacy: does the mask do anything?

The same rounds with the mask of the private sensitivities (*soft*), with its values dealt to other tensors
(*permuted*), with their mean everywhere (*constant*) and without one (*ones*); epsilon 3. The second table has the gap
under the soft mask minus that under the other, paired by seed; p is of a paired t-test over the seeds, and nothing is
claimed from p >= 0.05 or from fewer than ten seeds.
"""
REGIMES = """## Where might the mask matter?

A search for a setting in which the soft mask is worth its name: `swift` with masked whitened rounds, six hospitals, few
patients or harsh noise (mode local), a base model whose shortcut was planted in one part of the network (a model that
was trained without it, whose one part then was trained on the vendor's biased images), and tests on two devices that no
hospital has (*unseen*). The gap under the soft mask minus that under the permuted and the constant one, paired by seed;
p of a paired t-test, and after it p by Holm's method over all comparisons of the table. Nothing is claimed from a
corrected p >= 0.05, or from fewer than ten seeds.
"""
DP_SGD = """## Under privacy: federated averaging of local DP-SGD

Opacus at every hospital, patients drawn at random, mode local, in place of the whitened rounds above.
"""
BENCH_B = """## Under privacy: bench B, whose base model has lost the disease in a group

Here a gap can close although the model is no better for anybody; see the AUC, and the runs that a guard ended.
"""
SENSITIVITIES = """## Under privacy: how well the sensitivities are told

Bench A; Spearman's correlation over tensors between the private sensitivity of the bias and the clean one. *raw*: as
they are, over orders of magnitude, which a public pool tells by itself; *beyond the pool*: both divided by the pool's
mean energies, which is 0 for the pool alone. *mask*: of the masks that follow. *share* is that of the budget. Pool U2
is unlabelled images of all hospitals' devices, U1 the vendor's; *light*, *dark* and *noise* are pools whose bias has
another structure: light skin and no disease alone, dark skin and disease alone through a bad camera, white noise (which
a study refuses).
"""
COLUMNS = {
    "fall of the gap": ("equalized_odds_mean_fall", True),
    "rate-matched": ("equalized_odds_mean_rate_matched_fall", True),
    "change of AUC": ("auc_change", False),
    "of the worst group's": ("worst_group_auc_change", False),
    "balanced accuracy": ("balanced_accuracy", False),
}
CORRELATIONS = {"raw": "raw", "equalised": "beyond the pool", "mask": "mask"}
ALPHA = 0.05
GAP = "equalized_odds_mean"


def private_sections(results: Path) -> list[str]:
    """Those whose results files are there."""
    makers: dict[str, Callable[[Json], list[str]]] = {
        "private-outcome-utility": lambda value: [UTILITY, outcome_table(value)],
        "private-outcome-frontier": lambda _: [frontier.section(results)],
        "private-outcome-mask": lambda value: [MASK, outcome_table(value), mask_table(value)],
        "private-outcome-regimes": lambda value: [REGIMES, regime_table(value)],
        "private-outcome-dp-sgd": lambda value: [DP_SGD, outcome_table(value)],
        "private-outcome-bench-b": lambda value: [BENCH_B, outcome_table(value)],
        "private-mask": lambda value: [SENSITIVITIES, sensitivity_table(value)],
    }
    parts: list[str] = []
    for name, maker in makers.items():
        file = results / f"{name}.json"
        if file.exists():
            parts += maker(json.loads(file.read_text()))
    return parts


def outcome_table(value: Json) -> str:
    """A sweep's summary, one row a design, and where it comes from."""
    rows = _head("design, epsilon", "runs", *COLUMNS)
    for line in value["summary"]:
        cells = []
        for key, share in COLUMNS.values():
            figure, scale, digits = line[key], 100 if share else 1, 0 if share else 3
            mean, low, high, least = (f"{scale * figure[k]:.{digits}f}" for k in ("mean", "low", "high", "least"))
            cells.append(f"{mean}{' %' if share else ''} [{low}, {high}], least {least}")
        rows.append(_line(line["design"], line["runs"], *cells))
    collapsed = sum(line["collapsed"] for line in value["summary"])
    fact = f"Runs that ended for a collapse: {collapsed} of {len(value['rows'])}."
    return "\n".join([*rows, "", fact, _origin(value), ""])


def _origin(value: Json) -> str:
    seeds = sorted({row["seed"] for row in value["rows"]})
    draws = max(row["draw"] for row in value["rows"]) + 1
    noise = "one draw of noise a seed" if draws == 1 else f"{draws} draws of noise a seed"
    where = f"`{value['command']}`, commit {value['commit']}, {value['machine']}, seeds {seeds}"
    return f"{where}; {noise}, which does not repeat."


def mask_table(value: Json) -> str:
    """The gap under the soft mask less that under each other, by place of the noise."""
    rows = _head("soft minus", "noise", "seeds", "gap", "p", "rate-matched", "p")
    run = {row["design"] for row in value["rows"]}
    for mode in (mode for mode in ("local", "once") if f"soft {mode} 3" in run):
        for other in ("permuted", "constant", "ones"):
            cells = []
            seeds = 0
            for figure in (GAP, f"{GAP}_rate_matched"):
                apart = paired(value["rows"], f"soft {mode} 3", f"{other} {mode} 3", figure)
                seeds, test = len(apart), ttest_1samp(apart, 0.0)
                low, high = test.confidence_interval(0.95)
                cells += [f"{np.mean(apart):+.3f} [{low:+.3f}, {high:+.3f}]", f"{test.pvalue:.2f}"]
            rows.append(_line(other, mode, seeds, *cells))
    return "\n".join([*rows, ""])


def regime_table(value: Json) -> str:
    """By cell, test and control: what is left of the gap, the paired difference, p and p by Holm's method."""
    found = _comparisons(value)
    corrected = holm([test.pvalue for *_, test in found])
    rows = _head("setting", "test", "seeds", "gap before", "soft", "minus", "difference", "p", "p, Holm")
    for (cell, where, before, after, other, apart, test), held in zip(found, corrected, strict=True):
        low, high = test.confidence_interval(0.95)
        words = f"{np.mean(apart):+.3f} [{low:+.3f}, {high:+.3f}]"
        line = (cell, where, len(apart), f"{before:.3f}", f"{after:.3f}", other, words)
        rows.append(_line(*line, f"{test.pvalue:.3f}", f"{held:.2f}"))
    smaller, larger, looked = soft_mask_count(value)
    fact = (
        f"After the correction the soft mask leaves a smaller gap in {smaller} and a larger one in {larger} of "
        f"{looked} comparisons."
    )
    return "\n".join([*rows, "", fact, _origin(value), ""])


def soft_mask_count(value: Json) -> tuple[int, int, int]:
    """In how many comparisons the soft mask's gap is smaller and larger after Holm's correction, and of how many."""
    found = _comparisons(value)
    corrected = holm([test.pvalue for *_, test in found])
    means = [float(np.mean(apart)) for p, (*_, apart, _) in zip(corrected, found, strict=True) if p < ALPHA]
    return sum(mean < 0 for mean in means), sum(mean > 0 for mean in means), len(found)


def _comparisons(value: Json) -> list[tuple[str, str, float, float, str, list[float], Any]]:
    """Setting, test, gap before and under the soft mask, the other mask, paired differences, their t-test."""
    cells = list(dict.fromkeys(row["design"].removeprefix("soft ") for row in value["rows"] if _is_soft(row)))
    found = []
    for cell in cells:
        for side, test in (("after", "hospitals"), ("unseen_after", "unseen")):
            mine = [row for row in value["rows"] if row["design"] == f"soft {cell}"]
            before, after = (
                float(np.mean([row[key][GAP] for row in mine])) for key in (side.replace("after", "base"), side)
            )
            for other in ("permuted", "constant"):
                apart = paired(value["rows"], f"soft {cell}", f"{other} {cell}", GAP, side)
                found.append((cell, test, before, after, other, apart, ttest_1samp(apart, 0.0)))
    return found


def _is_soft(row: Json) -> bool:
    return str(row["design"]).startswith("soft ")


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): each p times the number of those not smaller, never falling, at most 1."""
    order = np.argsort(values)
    steps = np.maximum.accumulate([(len(values) - place) * values[index] for place, index in enumerate(order)])
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(steps, 1.0)
    return [float(value) for value in corrected]


def paired(rows: Sequence[Json], first: str, second: str, figure: str, side: str = "after") -> list[float]:
    """By seed that has both: the mean over draws of the first design less that of the second."""

    def means(design: str) -> dict[int, float]:
        mine = [row for row in rows if row["design"] == design]
        return {
            seed: float(np.mean([row[side][figure] for row in mine if row["seed"] == seed]))
            for seed in sorted({row["seed"] for row in mine})
        }

    one, other = means(first), means(second)
    return [one[seed] - other[seed] for seed in one if seed in other]


def sensitivity_table(value: Json) -> str:
    """By tensor in the design that is in use, from each pool; then by parameter."""
    rows = _head("pool", "by", "noise", "epsilon", "share", *CORRELATIONS.values())
    for line in value["summary"]:
        if line["design"] not in ("chosen", "pool alone", "by_cell, bias alone"):
            continue
        if line["level"] not in ("tensor", "parameter"):
            continue
        noise = "no patients" if line["mode"] is None else line["mode"]
        cells = [_figure(line.get(key)) for key in CORRELATIONS]
        share = "-" if line["share"] is None else f"{line['share']:.2f}"
        epsilon = "-" if line["epsilon"] is None else f"{line['epsilon']:g}"
        rows.append(_line(line["pool"], line["level"], noise, epsilon, share, *cells))
    fact = (
        f"`{value['command']}`, commit {value['commit']}, seeds {value['seeds']}, {value['draws']} draws of noise each."
    )
    return "\n".join([*rows, "", fact, ""])


def _figure(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return "-"
    return f"{figure['mean']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def _head(*names: object) -> list[str]:
    return [_line(*names), f"|{'---|' * len(names)}"]


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
