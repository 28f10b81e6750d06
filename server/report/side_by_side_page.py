"""comparison.html: one self-contained page made from comparison.json alone; it fetches nothing and runs no script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from equipoise.common.evaluation import BASE
from equipoise.server.report.blocks import Figure, Panel, Section, Table
from equipoise.server.report.plots.svg import identifier
from equipoise.server.report.plots.tradeoff import Point, tradeoff
from equipoise.server.report.side_by_side import FIGURES, GATES, MATCHED, PLAIN, REFERENCES, seeds_text
from equipoise.server.report.template import fill
from equipoise.server.report.words import LEVEL_TEXT, NOT_ESTIMABLE, number, signed

Json = dict[str, Any]
_SHAPES = {BASE: "before", PLAIN: "control"}
LEGEND = (("before", "the model as delivered"), ("control", "plain fine-tuning"), ("after", "methods"))


def render(value: Json) -> str:
    """The page of a comparison."""
    return fill(
        "side_by_side.html",
        value=value,
        stamps=_stamps(value),
        sections=[_means(value), _changes(value), _gates(value), _terms(value)],
    )


def figure_words(name: str) -> str:
    """A figure's name in words of the field."""
    base = name.removesuffix(MATCHED).replace("_auc", "_AUC").replace("auc", "AUC")
    words = base if base.startswith("equalized_odds") else base.replace("worst_group", "worst-group").replace("_", " ")
    return f"{words}, matched rate" if name.endswith(MATCHED) else words


def cell_text(cell: Json, *, change: bool = False) -> str:
    """Mean and interval, `0.071 [0.012, 0.140]`; the mean alone where the seeds are too few for one."""
    if cell["mean"] is None:
        return NOT_ESTIMABLE
    write = signed if change else number
    if cell["low"] is None:
        return f"{write(cell['mean'])}"
    return f"{write(cell['mean'])} [{write(cell['low'])}, {write(cell['high'])}]"


def _labels(value: Json) -> dict[str, str]:
    """Model -> its number in the drawing; the two that methods are compared with have none."""
    others = [row["name"] for row in value["methods"] if row["name"] not in REFERENCES]
    return {name: str(place) for place, name in enumerate(others, start=1)} | {name: name for name in REFERENCES}


def _means(value: Json) -> Section:
    labels, gap = _labels(value), value["study"]["evaluation"]["primary"]
    panels = [
        Panel(f"{figure_words(up)} against {figure_words(gap)}", _drawing(value, number_, gap, up))
        for number_, up in enumerate(("worst_group_auc", "balanced_accuracy"))
    ]
    rows = [
        [f"{labels[name]} {seeds_text(name, value)}" if labels[name] != name else seeds_text(name, value)]
        + [cell_text(row["figures"][figure]["value"]) for figure in FIGURES]
        for name, row in value["table"].items()
    ]
    seeds = len(value["seeds"])
    table = Table(
        f"Means over {seeds} seeds, with {LEVEL_TEXT} t-intervals over seeds",
        ("model", *map(figure_words, FIGURES)),
        rows,
    )
    caption = (
        f"Gap between the groups of {value['study']['primary']} (left is smaller) against accuracy (up is better): "
        f"means over {seeds} seeds and {LEVEL_TEXT} t-intervals of both. Numbers are those of the table. A model may "
        "lie far to the left because it tells nobody apart: then it lies low."
    )
    words = "A smaller gap at a lower worst-group AUC is a model that got worse for everybody, not a better one."
    return Section("figures", "Gap and accuracy", (words,), (Figure(caption, panels, table, LEGEND), table))


def _drawing(value: Json, number_: int, gap: str, up: str) -> Markup:
    labels = _labels(value)
    points = [
        Point(labels[name], _SHAPES.get(name, "after"), row["figures"][gap]["value"], row["figures"][up]["value"])
        for name, row in value["table"].items()
    ]
    points.sort(key=lambda point: point.shape != "after")  # the two references on top
    axes = (f"{figure_words(gap)} (0: equal)", figure_words(up))
    return tradeoff(identifier("tradeoff", number_), f"{axes[1]} of every model against {axes[0]}", axes, points)


def _changes(value: Json) -> Section:
    words = (
        "Differences are taken within a seed, between models of the same base model, hospitals and test patients, and "
        "then averaged. An interval that excludes 0 says that the difference holds over seeds, not that it matters.",
    )
    blocks = [_differences(value, reference) for reference in REFERENCES]
    return Section("changes", "Against the delivered model, and against plain fine-tuning", words, blocks)


def _differences(value: Json, reference: str) -> Table:
    rows = [
        [name, *(cell_text(row["figures"][figure][f"versus_{reference}"], change=True) for figure in FIGURES)]
        for name, row in value["table"].items()
        if name not in (BASE, reference)
    ]
    what = "the model as delivered" if reference == BASE else "plain fine-tuning"
    caption = f"Method less {what}, paired by seed, with {LEVEL_TEXT} t-intervals"
    return Table(caption, ("model", *map(figure_words, FIGURES)), rows)


def _gates(value: Json) -> Section:
    words = (
        "Each run is judged on its own test patients by the gates that the study declared, with intervals over "
        "patients: pass or fail only where the whole interval lies on one side of the bound. Cells give the seeds that "
        "passed / failed / were undecided.",
    )
    rows = []
    for name, row in value["table"].items():
        if name != BASE:
            counts = [row["gates"][gate] for gate in GATES]
            rows.append([name, *(f"{c['pass']} / {c['fail']} / {c['undecided']}" for c in counts)])
    table = Table(
        "Gates, seeds that pass / fail / are undecided", ("model", *(g.replace("_", " ") for g in GATES)), rows
    )
    return Section("gates", "Gates", words, (table,))


def _terms(value: Json) -> Section:
    rows = [
        [
            row["name"],
            row["title"],
            "–" if row.get("releases") is None else f"{row['releases']:.0f}",
            "–" if row.get("megabytes_up") is None else number(row["megabytes_up"], 2),
            ", ".join(f"{key}: {_short(x)}" for key, x in sorted(row["parameters"].items())),
        ]
        for row in value["methods"]
    ]
    columns = ("model", "what it does", "released sums", "MB a hospital sent", "parameters")
    table = Table("What was run", columns, rows, frozenset({0, 1, 4}))
    points = [f"Seed {row['seed']}, {row['name']}: not run. {row['reason']}" for row in value["skipped"]]
    return Section("terms", "Terms of the comparison", terms(value), (table,), points)


def terms(value: Json) -> list[str]:
    """What was the same for all, and what was not."""
    study = value["study"]
    own = (
        "Within a seed all start from the same base model, hospitals, splits and shuffles; each seed has its own"
        + (", of the same patients." if study.get("resplit") else ".")
        if study["own_base_model"]
        else "All start from the base model that the study names; a seed changes shuffles"
        + (" alone: patients and splits stay." if study.get("same_split") else ", and what a simulation draws.")
    )
    privacy = study["privacy"]
    budget = (
        f"Privacy mode {privacy['mode']}, epsilon {privacy['epsilon']:g}, delta {privacy['delta']:g} for each method "
        "alone; together they would cost more. Figures are exact, not the released noisy ones: only a simulation can "
        "show them."
        if privacy["epsilon"] is not None
        else "Privacy mode none: nothing was private."
    )
    return [
        own,
        _effort(value),
        "The study's own method has the parameters that the study gives; the others take over its learning rate and "
        "local steps where these mean the same, and their defaults otherwise, rounds among them: how long each trained "
        "stands below. Plain fine-tuning trains as long as the study's own method. What a method tunes by itself on "
        "validation patients (fairtune its candidates, dfr its penalty) is part of it.",
        budget,
    ]


def _effort(value: Json) -> str:
    """How much was tuned, in words."""
    if not value["tuning"]:
        return "Tuning effort: none for any method."
    rows = [row for row in value["tuning"] if len(row["tried"]) > 1]
    taken = "; ".join(
        f"{row['name']} " + ", ".join(f"{key}={_short(x)}" for key, x in row["tried"][row["chosen"]].items())
        for row in rows
    )
    counts = sorted({len(row["tried"]) for row in rows})
    idle = [row["name"] for row in value["tuning"] if len(row["tried"]) == 1]
    return (
        f"Tuning effort: {' or '.join(map(str, counts))} settings for each of {len(rows)} models on one seed that "
        f"is not in the table. {tuned_by(value)} Taken: {taken}. Without settings: {', '.join(idle) or 'none'}."
    )


def tuned_by(value: Json) -> str:
    """By what the settings were chosen: by group where its AUC could be told; and which had no result at all."""
    rows = [row for row in value["tuning"] if len(row["tried"]) > 1]
    blind = [row["name"] for row in rows if all(one["worst_group_auc"] is None for one in row["validation"])]
    lost = [row["name"] for row in rows if all(one["auc"] == 0 for one in row["validation"])]
    pooled = [name for name in blind if name not in lost]
    said = []
    if len(blind) < len(rows):
        said.append("The largest worst-group AUC on validation patients was taken.")
    if pooled:
        whom = "all" if len(blind) == len(rows) else ", ".join(pooled)
        said.append(
            "The AUC of too few groups could be told on the validation patients: the largest AUC of all patients, "
            f"which looks at no group, was taken for {whom}."
        )
    if lost:
        said.append(f"No setting gave a result, and the first was kept, for {', '.join(lost)}.")
    return " ".join(said)


def _stamps(value: Json) -> list[str]:
    stamps = ["Simulated hospitals"]
    if value["study"]["privacy"]["mode"] == "none":
        stamps.append("Privacy mode none: releases were not private")
    return stamps


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_short(x)}" for key, x in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_short, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def summary_lines(value: Json) -> list[str]:
    """The table in short, for a terminal, and what it shows."""
    gap = value["study"]["evaluation"]["primary"]
    figures = (gap, "worst_group_auc", "auc", "balanced_accuracy")
    widest = max(len(name) for name in value["table"])
    head = f"{'model':<{widest}}  " + "  ".join(f"{figure_words(figure):<26}" for figure in figures)
    rows = [
        f"{name:<{widest}}  " + "  ".join(f"{cell_text(row['figures'][figure]['value']):<26}" for figure in figures)
        for name, row in value["table"].items()
    ]
    skipped = [f"not run: seed {row['seed']}, {row['name']}: {row['reason']}" for row in value["skipped"]]
    return [*(line.rstrip() for line in (head, *rows)), *skipped, *value["findings"]]
