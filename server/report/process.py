"""The sections on how the result came about: training, thresholds, hospitals, privacy, limits, and how to repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from equipoise.common.evaluation import POINTS
from equipoise.server.report.blocks import Figure, Panel, Section, Table
from equipoise.server.report.plots.bars import Bar, bars
from equipoise.server.report.plots.curve import loss_curve
from equipoise.server.report.plots.svg import rounded_up
from equipoise.server.report.privacy import privacy_section
from equipoise.server.report.tables import LOCAL
from equipoise.server.report.words import POINT_LABELS, number, size

Json = dict[str, Any]
MOST_BARS = 45  # more tensors are drawn by layer
MOST_SITES = 30


def process_sections(report: Json) -> list[Section]:
    """In the order of the page."""
    return [
        *_training(report),
        _thresholds(report),
        _hospitals(report),
        privacy_section(report),
        _limits(report),
        _reproduce(report),
    ]


def _training(report: Json) -> list[Section]:
    training, method = report["training"], report["study"]["method"]
    blocks: list[Figure | Table] = []
    if "bias_loss" in training:
        rounds = training["bias_loss"]
        axis = "bias loss (training patients)"
        panel = Panel("bias loss by round", loss_curve("bias-loss", "Bias loss over the rounds", axis, rounds))
        rows = [[str(row["round"]), row["phase"], number(row["value"], 4)] for row in rounds]
        table = Table("Bias loss by round", ("round", "phase", "bias loss"), rows, frozenset({0, 1}))
        caption = (
            "The bias loss on the training patients, from the released sums of each round; 0 is the model as "
            "delivered. It is what training minimises, not a test figure, and has no interval."
        )
        blocks.append(Figure(caption, [panel], table, _phase_legend(rounds)))
    if "rounds" in training:
        blocks.append(_rounds(training["rounds"]))
    if "mask" in training:
        blocks.append(_mask(training["mask"]))
    blocks += [
        Table(fact["title"], fact["columns"], fact["rows"], frozenset({0})) for fact in training.get("facts", [])
    ]
    if not blocks:
        return []
    text = f"{method['name']}: {method['title']} Source: {method['paper']}. What travels: {method['travels']}."
    return [Section("training", "What the method did", (text.replace(" Source", ". Source", 1),), blocks)]


def _rounds(rounds: Json) -> Table:
    """What the whitened rounds moved, and what the guard against collapse saw."""
    pool, separations = rounds["pool"], rounds["separation_by_round"]
    guard = "stopped the rounds: the model was forgetting the disease" if rounds["collapsed"] else "saw no collapse"
    if rounds["guard_blind"]:
        guard = "could not see through the noise: nothing was guarded"
    rows = [
        ["space that moved", f"{rounds['space']}: {rounds['coordinates']} coordinates"],
        ["directions released in each round", str(rounds["directions"])],
        ["clip bound of a patient, from the public pool", number(rounds["clip_bound"], 4)],
        ["mean score of diseased less healthy, by round", ", ".join(number(value, 2) for value in separations)],
        ["guard against collapse", guard],
        ["public pool", f"{pool['rows']} rows without labels"],
        ["what speaks against the pool", "; ".join(pool["problems"]) or "nothing that shows without labels"],
        ["what the check of the pool cannot see", pool["cannot_see"]],
    ]
    return Table("Whitened rounds", ("what", "value"), rows, frozenset({0, 1}))


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


def _thresholds(report: Json) -> Section:
    rows = [
        [model, *(f"{number(points[p]['probability'])} ({number(points[p]['logit'], 2)})" for p in POINTS)]
        for model, points in report["thresholds"].items()
        if not model.startswith(LOCAL)
    ]
    columns = ("model", *(POINT_LABELS[point] for point in POINTS))
    table = Table("Thresholds as probabilities (as logits)", columns, rows)
    points = [
        [POINT_LABELS[row["point"]], row["text"], f"{row['from']} patients" if row["from"] else "declared number"]
        for row in report["operating_points"]
    ]
    meaning = Table("Operating points", ("operating point", "rule", "chosen on"), points, frozenset({0, 1, 2}))
    text = "One threshold serves all groups and hospitals; a patient is flagged where the score is at or above it."
    if "group_thresholds" not in report:
        return Section("thresholds", "Thresholds", (text,), (meaning, table))
    method, attribute = report["study"]["method"]["name"], report["study"]["primary"]
    of_groups = report["group_thresholds"]
    own = [
        [at[0]["group"], *(f"{number(row['probability'])} ({number(row['logit'], 2)})" for row in at)]
        for at in zip(*(of_groups[point] for point in POINTS), strict=True)
    ]
    caption = f"Thresholds of {method} by {attribute}, as probabilities of the model's own score (as logits)"
    by_group = Table(caption, ("group", *columns[1:]), own)
    text += (
        f" Not so under {method}: there each group of {attribute} has its own, and the threshold above is one on a "
        "scale on which the groups' scores were aligned."
    )
    return Section("thresholds", "Thresholds", (text,), (meaning, table, by_group))


def _hospitals(report: Json) -> Section:
    sites, times = report["sites"], report["run_time"]
    names = [row["site"] for row in times["sites"]]
    blocks: list[Figure | Table] = []
    declared = sites["declared_patients"]
    answered = Table(
        "Releases answered, by hospital",
        ("hospital", "declared training patients", *(f"{arm['arm']} ({arm['releases']})" for arm in sites["arms"])),
        [
            [site, str(declared.get(site, "–")), *(str(arm["answered"][site]) for arm in sites["arms"])]
            for site in sites["connected"]
        ],
    )
    blocks.append(answered)
    if times["sites"]:
        traffic = Table(
            "Bytes by hospital, over all releases of this run",
            ("hospital", "releases", "received by it", "sent by it"),
            [
                [row["site"], str(row["releases"]), size(row["bytes_down"]), size(row["bytes_up"])]
                for row in times["sites"]
            ],
        )
        high = rounded_up(max(max(row["bytes_down"], row["bytes_up"]) for row in times["sites"]) or 1)
        rows = [
            Bar(
                row["site"],
                f"{size(row['bytes_down'])} · {size(row['bytes_up'])}",
                (row["bytes_down"], row["bytes_up"]),
            )
            for row in times["sites"]
        ]
        if len(names) <= MOST_SITES:
            drawing = bars("bytes", "Bytes received and sent by hospital", "megabytes (MB)", rows, high=high, unit=1e6)
            legend = (("bar", "received by the hospital"), ("hatched", "sent by the hospital"))
            caption = "Bytes of all messages, by hospital: received, and sent."
            blocks.append(Figure(caption, [Panel("bytes by hospital", drawing)], traffic, legend))
        else:
            blocks.append(traffic)
        blocks.append(
            Table(
                "Time and bytes by phase, all hospitals together",
                ("arm, phase", "releases", "seconds", "seconds per release", "received", "sent"),
                [
                    [
                        f"{row['arm']}, {row['phase']}",
                        str(row["releases"]),
                        number(row["seconds"], 1),
                        number(row["seconds_per_release"], 2),
                        size(row["bytes_down"]),
                        size(row["bytes_up"]),
                    ]
                    for row in times["phases"]
                ],
            )
        )
    method = report["study"]["method"]
    text = (
        f"{len(sites['connected'])} hospitals took part. All releases of this run moved {size(times['bytes_down'])} to "
        f"them and {size(times['bytes_up'])} from them, in {times['seconds']:.0f} s. What left a hospital"
        + (f" under {method['name']}: {method['travels']}; then" if report["kind"] == "method" else ":")
        + " counts of test patients. No patient's record left a hospital."
    )
    return Section("hospitals", "Hospitals, bytes and time", (text,), blocks)


def _limits(report: Json) -> Section:
    return Section("limits", "Limits", ("What this report cannot say.",), (), report["limits"])


def _reproduce(report: Json) -> Section:
    study = report["study"]
    code = ["equipoise verify RUN", "equipoise report RUN"]
    if report["data"]["simulated"]:
        command = "simulate" if report["kind"] == "method" else "evaluate"
        code.insert(0, f"equipoise {command} STUDY.yaml --out runs/{study['name']}")
    rows = [
        ["study", study["name"]],
        ["study hash (SHA-256)", study["hash"]],
        ["seed", str(study["seed"])],
        ["model weights (SHA-256)", str(study["model"]["sha256"])],
        ["model factory", study["model"]["factory"]],
        ["data", report["data"]["source"]],
        ["software", f"equipoise {report['software']['equipoise']}"],
        ["schema of report.json", report["schema"]],
    ]
    declared = yaml.safe_dump(
        {key: study[key] for key in ("label", "attributes", "privacy", "evaluation")}
        | {
            "method": {
                "name": study["method"]["name"],
                **study["method"]["parameters"],
                "controls": study["method"]["controls"],
            }
        },
        sort_keys=False,
        default_flow_style=None,
        width=100,
    )
    text = (
        "RUN is the folder of this run, STUDY.yaml the study file with the hash below. verify replays the stored sums, "
        "recomputes the model and every figure here, and compares.",
    )
    table = Table("Identity", ("what", "value"), rows, frozenset({0, 1}))
    return Section("reproduce", "Reproduce", text, (table,), (), (*code, "", *declared.splitlines()))
