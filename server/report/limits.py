"""What the report cannot say: one sentence per limit, from the study and the status of the figures."""

from __future__ import annotations

from typing import Any

from equipoise.common.fairness.estimate import LARGEST_HALF_WIDTH, MINIMUM_PATIENTS
from equipoise.common.fairness.small_cells import HIDDEN
from equipoise.server.report.summary import sides
from equipoise.server.report.tables import GAPS, LOCAL
from equipoise.server.report.within import NOT_MEASURED
from equipoise.server.report.words import POINT_LABELS, count_text, known, listed

Json = dict[str, Any]


def limits(report: Json) -> list[str]:
    """The limits of a report (all its other keys filled in), the gravest first."""
    return [
        *_of_the_data(report),
        *_of_the_groups(report),
        *_of_the_figures(report),
        *_of_the_design(report),
    ]


def _of_the_data(report: Json) -> list[str]:
    lines = []
    if report["data"]["synthetic"]:
        lines.append("The patients are synthetic. Nothing here says how the method does on real patients.")
    if report["data"]["note"]:
        lines.append(f"About the data: {report['data']['note']}")
    if report["privacy"]["mode"] == "none":
        least = report["small_cells"]["minimum"]
        lines.append(
            "Privacy mode none: the released sums are exact and no noise protects a patient. "
            + (
                f"Counts in this report are exact too, but those of 1 to {least - 1} patients, and what gives them "
                "away, are not in it. They are in the run's folder: treat that as confidentially as the tables."
                if least
                else "Counts in this report are exact too; treat it as confidentially as the tables that it is made "
                "from."
            )
        )
    else:
        lines.append(
            "Counts and rates carry the noise that protects the patients; the intervals contain it. A count shown here "
            "is the noisy one, and may differ from the true one by a few patients for each hospital."
        )
    absent = [arm for arm in report["sites"]["arms"] if arm["incomplete"]]
    lines += [
        f"Not every hospital answered every release of {arm['arm']}: "
        + "; ".join(f"release {entry['release']} without {', '.join(entry['absent'])}" for entry in arm["incomplete"])
        + "."
        for arm in absent
    ]
    return lines


def _of_the_groups(report: Json) -> list[str]:
    lines = []
    for attribute in report["attributes"]:
        name = attribute["attribute"]
        for group in attribute["groups"]:
            n, positives = known(group["n"]), known(group["positives"])
            if not group["declared"]:
                if n != 0:
                    who = "some" if group["n"] == HIDDEN else count_text(group["n"])
                    lines.append(
                        f"{name}: the group of {who} of {attribute['n']} test patients is unknown; they count in "
                        "figures over all patients and in no gap."
                    )
            elif n == 0:
                lines.append(f"{name}: no test patient of group {group['group']}; the report cannot speak for it.")
            elif n is None or positives is None:
                lines.append(
                    f"{name}: counts of group {group['group']} are hidden, and what needs them is suppressed, since a "
                    f"count below {report['small_cells']['minimum']} could be read from them."
                )
            elif min(positives, n - positives) < MINIMUM_PATIENTS:
                lines.append(
                    f"{name}: group {group['group']} has {positives} positives and {n - positives} negatives in the "
                    f"test split; with fewer than {MINIMUM_PATIENTS}, what needs them is not estimable."
                )
    return lines


def _of_the_figures(report: Json) -> list[str]:
    lines = []
    primary = report["study"]["primary"]
    by_attribute = report["models"][sides(report)[-1][1]]["attributes"]
    for name, figures in by_attribute.items():
        point = figures["points"]["rule"]
        cells = [*figures["auc_by_group"], *(e for rate in point["by_group"].values() for e in rate)]
        coarse = sorted({e["group"] for e in cells if e["status"] == "imprecise"})
        if coarse:
            lines.append(
                f"{name}: some figures of {', '.join(coarse)} are imprecise (interval wider than "
                f"±{LARGEST_HALF_WIDTH:.2f}); no gap shown there is not the same as no gap."
            )
        withheld = [metric for metric in GAPS if point["gaps"][metric]["status"] == "suppressed"]
        if withheld:
            reason = point["gaps"][withheld[0]]["reason"]
            lines.append(f"{name}: {', '.join(withheld)} cannot be shown ({reason}).")
        partial = [metric for metric in GAPS if point["gaps"][metric]["reason"] and metric not in withheld]
        if partial:
            reason = point["gaps"][partial[0]]["reason"]
            lines.append(f"{name}: {', '.join(partial)} cannot compare all groups ({reason}).")
    alone = report["kind"] == "one_model"
    points = 1 if alone else len(report["operating_points"])
    compared = sum(row["of"] is None for row in report["attributes"])  # an intersection has no gap
    others = compared * len(GAPS) * points - (1 if alone else 2)
    looked_at = sum(report["looked_at"].values())
    flagged = (
        "" if alone else f"Neither are the {looked_at} changes by group behind who got worse corrected for theirs. "
    )
    lines.append(
        f"One figure was declared in advance: {report['study']['evaluation']['primary']} of {primary}, at "
        f"{'the declared rule' if alone else 'two operating points'}. The other {others} gaps are shown to explore, "
        f"without correction for their number. {flagged}Intervals are simultaneous within an attribute and a gap only."
    )
    return lines


def _of_the_design(report: Json) -> list[str]:
    trained = report["kind"] == "method"
    lines = [
        f"One run with seed {report['study']['seed']}. Intervals speak of the choice of test patients; they do not "
        "contain what another seed, another draw of training patients or another set of hospitals would have changed."
        if trained
        else "Intervals speak of the choice of test patients; they do not contain what another set of hospitals would "
        "have changed.",
        *([NOT_MEASURED] if report["hospitals"] is None else []),
        "Hospitals are trusted to report honestly: a sum hides one that does not, and it can move a figure by as much "
        "as its share of the group's patients. A patient known to two hospitals counts twice.",
    ]
    if any(point["from"] == "test" for point in report["operating_points"]):
        named = listed([POINT_LABELS[row["point"]] for row in report["operating_points"] if row["from"] == "test"])
        lines.append(
            f"The threshold at the operating point {named} was chosen on the test patients themselves, as this study "
            "declares; its figures are somewhat optimistic for every model alike."
        )
    if "auc_noise" in report["models"]:
        lines.append(
            "The control auc_noise is one draw of noise out of many, the one with the median gap; the size of its "
            "noise was fitted on the test patients."
        )
        lines.append("The control auc_noise was kept by the simulation; it does not follow from released sums.")
    if any(name.startswith(LOCAL) for name in report["models"]):
        lines.append("Models of local_only are each measured on the test patients of all hospitals.")
    if report["verdict"] is None:
        lines.append("A measurement on these patients. It certifies nothing.")
        return lines
    lines.append("A passed gate is a statement about these bounds on these patients. It certifies nothing.")
    return lines
