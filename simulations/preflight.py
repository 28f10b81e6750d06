"""What has to hold before a run's folder is begun, so that a mistake costs seconds and leaves nothing to clear away.

The same things are checked again where they are used: a coordinator cannot look into a hospital, a simulation can.
"""

from __future__ import annotations

from collections.abc import Mapping

from equipoise.common.errors import DataError, StudyError
from equipoise.common.evaluation import splits_needed
from equipoise.common.fairness.thresholds import parse_rule
from equipoise.common.methods import resolve
from equipoise.common.probe import check_network
from equipoise.common.query import SPLITS, SplitName
from equipoise.common.study import Study

Census = Mapping[str, Mapping[SplitName, tuple[int, int]]]
"""Site -> split -> patients without and with the disease."""


def check_study(study: Study) -> None:
    """Whether the study's parts exist and fit together; reads no patient.

    Raises:
        StudyError: an unknown method, control, parameter or threshold rule.
        ModelError: no such factory, weights that do not fit it, or a network that does not take the study's inputs,
            mixes their rows or gives no finite logits.
    """
    resolve(study)
    check_network(study)


def check_census(study: Study, census: Census) -> None:
    """Whether the hospitals have the patients that the study needs.

    Raises:
        StudyError: fewer hospitals than `sites.minimum`.
        DataError: a label has no patient anywhere in a split that is needed.
    """
    if len(census) < study.sites.minimum:
        raise StudyError(
            f"sites.minimum={study.sites.minimum}, and the hospitals are {len(census)} ({', '.join(census)}); add "
            "hospitals or lower sites.minimum (E150)"
        )
    needed = {*splits_needed(study), *(["train"] if resolve(study).trains else [])}
    for split in (name for name in SPLITS if name in needed):
        for label, which in enumerate(("negative", "positive")):
            if sum(counts[split][label] for counts in census.values()) == 0:
                raise DataError(
                    f"no {which} patient in the {split} split of any hospital (label column {study.label.column!r}, "
                    f"positive = {study.label.positive}); check label.positive and the splits against the manifests"
                    + _why_validation(study, split)
                )


def _why_validation(study: Study, split: SplitName) -> str:
    """What needs validation patients where nobody would look for it."""
    if split != "validation" or parse_rule(study.evaluation.threshold.rule).needs_histogram:
        return ""
    return "; evaluation.rate_match chooses its threshold there: {rule: median, from: test} needs none"
