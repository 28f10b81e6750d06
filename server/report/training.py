"""What the method did: the mask, the rounds, the search and their guards, out of what it notes, and as a section."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from equipoise.server.report.blocks import Figure, Panel, Section, Table
from equipoise.server.report.plots.bars import Bar, bars
from equipoise.server.report.plots.curve import loss_curve
from equipoise.server.report.suppression import Suppression
from equipoise.server.report.words import listed, number
from equipoise.server.transcript import Row

Json = dict[str, Any]
TRAINING = ("local_training", "gradient_sum")  # queries that are rounds
MOST_BARS = 45  # more tensors are drawn by layer
MOST_CANDIDATES = 9  # of a search, in the table
FIRST, SECOND = "rounds", "repair"  # whitened rounds, in the report and in a method's notes


def training_of(notes: Json, rows: Sequence[Row], hidden: Suppression) -> Json:
    """All that a method notes of how its result came about; it is named here, so that nothing is left unread."""
    training: Json = {key: notes[key] for key in (FIRST, SECOND, "dp_sgd", "facts") if key in notes}
    if "mask" in notes:
        training["mask"] = {
            "tensors": notes["mask"],
            "mean": notes["mask_mean"],
            "source": _source_of(notes.get("sensitivities")),
        }
    if "bias_loss_by_round" in notes:
        phases = [row.phase for row in rows if row.name in TRAINING]
        losses = notes["bias_loss_by_round"]
        training["bias_loss"] = [
            {"round": number, "phase": phase, "value": value}
            for number, (phase, value) in enumerate(zip(["before", *phases], losses, strict=True))
        ]
    if "search" in notes:
        training["search"] = _search_of(notes["search"], hidden.active)
    return training


def _source_of(found: Json | None) -> Json:
    """Who said where the bias sits, `patients` or `pool`, and the largest relative error that noise leaves in it."""
    if found is None:
        return {"source": "patients", "noise": 0.0}
    return {"source": found["source"], "noise": found["largest_relative_error"]}


def _search_of(search: Json, small_cells: bool) -> Json:
    """A search, without its objective where small cells are hidden: nobody has looked at the counts behind it."""

    def shown(judged: Json) -> Json:
        return {**judged, "value": None} if small_cells else judged

    return {
        **search,
        "base": shown(search["base"]),
        "candidates": [{**one, "rungs": [shown(at) for at in one["rungs"]]} for one in search["candidates"]],
        **({"final": shown(search["final"])} if "final" in search else {}),
    }


def training_section(report: Json) -> list[Section]:
    """The section of the page; none for a method that notes nothing."""
    training, method = report["training"], report["study"]["method"]
    blocks: list[Figure | Table] = []
    if "bias_loss" in training:
        blocks.append(_bias_loss(training["bias_loss"]))
    if "search" in training:
        blocks += _search(training["search"])
    if FIRST in training:
        blocks.append(_rounds("Whitened rounds" + (", first phase" if SECOND in training else ""), training[FIRST]))
    if SECOND in training:
        blocks.append(_rounds("Whitened rounds, second phase (the head)", training[SECOND]))
    if "dp_sgd" in training:
        blocks.append(_averages(training["dp_sgd"]))
    if "mask" in training:
        blocks.append(_mask(training["mask"]))
    blocks += [
        Table(fact["title"], fact["columns"], fact["rows"], frozenset({0})) for fact in training.get("facts", [])
    ]
    if not blocks:
        return []
    text = f"{method['name']}: {method['title']} Source: {method['paper']}. What travels: {method['travels']}."
    return [Section("training", "What the method did", (text.replace(" Source", ". Source", 1),), blocks)]


def training_notices(report: Json) -> Iterator[tuple[str, str]]:
    """Code and text of what a reader must know of how the result came about."""
    training = report["training"]
    guarded = [
        (words, training[key])
        for key, words in ((FIRST, "first phase" if SECOND in training else "training"), (SECOND, "second phase"))
        if key in training
    ]
    guarded += [(f"training of the {_part(part)}", rounds) for part, rounds in training.get("dp_sgd", {}).items()]
    for words, rounds in guarded:
        if rounds["collapsed"]:
            yield (
                "W330",
                f"{words}: the guard against collapse ended it in round {len(rounds['separation_by_round'])}, since "
                "the model was forgetting the disease; it went back to the last model that told patients apart.",
            )
        elif rounds["guard_blind"]:
            yield (
                "W331",
                f"{words}: the guard against collapse could not see: the noise on the scores is so large that a model "
                "which had forgotten the disease would not have stood out.",
            )
    search = training.get("search")
    if search is not None and search["winner"] is None:
        yield (
            "W332",
            f"the search had no winner: none of {len(search['candidates'])} candidates kept the AUC of the validation "
            f"patients at {number(search['floor'])} or above; what was delivered is the model as it came, unchanged.",
        )


STAMPS = {
    "W330": "Training was ended: the model was forgetting the disease",
    "W331": "Training was not guarded against collapse",
    "W332": "Search without a winner: the model is unchanged",
}


def _bias_loss(rounds: Sequence[Json]) -> Figure:
    axis = "bias loss (training patients)"
    panel = Panel("bias loss by round", loss_curve("bias-loss", "Bias loss over the rounds", axis, rounds))
    rows = [[str(row["round"]), row["phase"], number(row["value"], 4)] for row in rounds]
    table = Table("Bias loss by round", ("round", "phase", "bias loss"), rows, frozenset({0, 1}))
    caption = (
        "The bias loss on the training patients, from the released sums of each round; 0 is the model as "
        "delivered. It is what training minimises, not a test figure, and has no interval."
    )
    return Figure(caption, [panel], table, _phase_legend(rounds))


def _search(search: Json) -> list[Figure | Table]:
    """What a search looked for, what it chose, and the candidates that got furthest."""
    winner, base, final = search["winner"], search["base"], search.get("final")
    objective = search["objective"]
    if objective != search["objective_asked"]:
        objective += f" (in the place of {search['objective_asked']}, for which the groups were too small)"
    rows = [
        ["objective on the validation patients", objective],
        ["groups that it compares", listed(search["groups"])],
        ["model as delivered: objective, AUC", f"{number(base['value'])}, {number(base['auc'])}"],
        ["AUC that a candidate had to keep", number(search["floor"])],
        ["chosen", "none: no candidate kept that AUC; the model is unchanged"],
    ]
    if winner is not None:
        rows[-1] = ["chosen", f"candidate {winner['candidate']}, after {winner['rounds']} rounds"]
        rows.append(["parts that it trains beside the head", _bits(winner["bits"], search["bits"])])
        rows.append(["learning rate", f"{winner['lr']:.3g}"])
    if final is not None:
        kept = "delivered" if final["held"] else "below the AUC to keep; delivered is the candidate of the search"
        rows.append(["trained anew: objective, AUC", f"{number(final['value'])}, {number(final['auc'])}: {kept}"])
    best = sorted(search["candidates"], key=_furthest)[:MOST_CANDIDATES]
    tried = [
        [
            str(one["candidate"]),
            _bits(one["bits"], search["bits"]),
            f"{one['lr']:.3g}",
            str(last["rounds"]),
            number(last["value"]),
            number(last["auc"]),
            "yes" if last["held"] else "no",
        ]
        for one in best
        for last in one["rungs"][-1:]
    ]
    columns = ("candidate", "parts beside the head", "learning rate", "rounds", "objective", "AUC", "AUC kept")
    caption = f"Candidates of the search, the {len(best)} of {len(search['candidates'])} that got furthest"
    return [
        Table("What the search chose", ("what", "value"), rows, frozenset({0, 1})),
        Table(caption, columns, tried, frozenset({0, 1, 6})),
    ]


def _furthest(one: Json) -> tuple[Any, ...]:
    last = one["rungs"][-1]
    return -last["rounds"], not last["held"], -(last["value"] or 0.0), one["candidate"]


def _bits(names: Sequence[str], every: Sequence[str]) -> str:
    return "none" if not names else "all" if len(names) == len(every) else ", ".join(names)


def _averages(parts: Json) -> Table:
    """What DP-SGD at the hospitals did, by part of the model."""
    rows = [
        [
            _part(part),
            str(len(rounds["clip_bound_by_round"])),
            f"{rounds['steps_by_round']} at rate {number(rounds['sampling_rate'])}",
            ", ".join(number(value) for value in rounds["clip_bound_by_round"]),
            ", ".join(number(value, 2) for value in rounds["separation_by_round"]),
            _guard(rounds),
        ]
        for part, rounds in parts.items()
    ]
    columns = (
        "part",
        "rounds",
        "steps of a round",
        "clip bound of a patient, by round",
        "mean score of diseased less healthy, by round",
        "guard against collapse",
    )
    return Table("Averages of DP-SGD", columns, rows, frozenset({0, 2, 3, 4, 5}))


def _part(part: str) -> str:
    return "whole model" if part == "whole" else part


def _guard(rounds: Json) -> str:
    if rounds["collapsed"]:
        return "stopped the rounds: the model was forgetting the disease"
    return "could not see through the noise: nothing was guarded" if rounds["guard_blind"] else "saw no collapse"


def _rounds(caption: str, rounds: Json) -> Table:
    """What the whitened rounds moved, and what the guard against collapse saw."""
    pool, separations = rounds["pool"], rounds["separation_by_round"]
    rows = [
        ["space that moved", f"{rounds['space']}: {rounds['coordinates']} coordinates"],
        ["directions released in each round", str(rounds["directions"])],
        ["clip bound of a patient, from the public pool", number(rounds["clip_bound"], 4)],
        ["mean score of diseased less healthy, by round", ", ".join(number(value, 2) for value in separations)],
        ["guard against collapse", _guard(rounds)],
        ["public pool", f"{pool['rows']} rows without labels"],
        ["what speaks against the pool", "; ".join(pool["problems"]) or "nothing that shows without labels"],
        ["what the check of the pool cannot see", pool["cannot_see"]],
    ]
    return Table(caption, ("what", "value"), rows, frozenset({0, 1}))


def _phase_legend(rounds: Sequence[Json]) -> list[tuple[str, str]]:
    words = {"before": ("before", "as delivered"), "head": ("control", "phase head")}
    phases = dict.fromkeys(row["phase"] for row in rounds)
    return [words.get(phase, ("after", f"phase {phase}")) for phase in phases]


def _mask(mask: Json) -> Figure:
    tensors = mask["tensors"]
    shown = tensors if len(tensors) <= MOST_BARS else _by_layer(tensors)
    columns = 3 if len(shown) > 8 else 1
    share = -(-len(shown) // columns)
    panels = []
    for number_, start in enumerate(range(0, len(shown), share)):
        rows = [
            Bar(row["tensor"], f"{number(row['mean'], 2)} · {row['parameters']:,}".replace(",", " "), (row["mean"],))
            for row in shown[start : start + share]
        ]
        heading = "mask by tensor" if number_ == 0 else "continued"
        title = f"Mean soft mask by tensor, part {number_ + 1}"
        panels.append(
            Panel(
                heading,
                bars(f"mask-{number_}", title, "mean mask (0: held, 1: free)", rows, high=1.0, line=mask["mean"]),
            )
        )
    rows_ = [
        [row["tensor"], str(row["parameters"]), number(row["mean"]), f"{100 * row['held']:.0f} %"] for row in tensors
    ]
    table = Table("Soft mask by tensor", ("tensor", "parameters", "mean mask", "share below 0.1"), rows_)
    caption = (
        _mask_source(mask["source"])
        + " The soft mask: by how much of its step each part of the model moves. Beside each bar: mean mask and number "
        f"of parameters; the upright line is the mean over all parameters, {number(mask['mean'])}. "
        + ("" if shown is tensors else "Tensors are drawn together by layer; the table has each of them.")
    )
    return Figure(caption.strip(), panels, table)


def _mask_source(source: Json) -> str:
    """Who said where the bias sits: the patients' sensitivities, or the public pool where theirs drowned in noise."""
    if source["source"] == "patients" and not source["noise"]:
        return "From the sensitivities of the hospitals' patients."
    if source["source"] == "patients":
        return (
            "From the noisy sensitivities of the hospitals' patients (largest relative error "
            f"{number(source['noise'], 2)})."
        )
    return (
        "From the public pool alone: the patients' sensitivities could not be told from the noise, so no patient said "
        "where the bias sits."
    )


def _by_layer(tensors: Sequence[Json]) -> list[Json]:
    """Tensors joined by the longest prefix of their names that leaves few enough rows; means weighted by parameters."""
    deepest = max(row["tensor"].count(".") for row in tensors)
    joined: dict[str, Json] = {}
    for depth in range(deepest, 0, -1):
        joined = {}
        for row in tensors:
            name = ".".join(row["tensor"].split(".")[:depth])
            entry = joined.setdefault(name, {"tensor": name, "parameters": 0, "total": 0.0})
            entry["parameters"] += row["parameters"]
            entry["total"] += row["parameters"] * row["mean"]
        if len(joined) <= MOST_BARS:
            break
    return [{**entry, "mean": entry["total"] / entry["parameters"]} for entry in joined.values()]
