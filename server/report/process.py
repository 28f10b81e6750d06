"""The sections on how the result came about: training, thresholds, hospitals, privacy, limits, and how to repeat it."""

from __future__ import annotations

from typing import Any

import yaml

from equipoise.common.evaluation import POINTS
from equipoise.server.report.blocks import Figure, Panel, Section, Table
from equipoise.server.report.plots.bars import Bar, bars
from equipoise.server.report.plots.svg import rounded_up
from equipoise.server.report.privacy import privacy_section
from equipoise.server.report.tables import LOCAL
from equipoise.server.report.training import training_section
from equipoise.server.report.words import POINT_LABELS, number, size

Json = dict[str, Any]
MOST_SITES = 30


def process_sections(report: Json) -> list[Section]:
    """In the order of the page."""
    return [
        *training_section(report),
        _thresholds(report),
        _hospitals(report),
        privacy_section(report),
        _limits(report),
        _reproduce(report),
    ]


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
