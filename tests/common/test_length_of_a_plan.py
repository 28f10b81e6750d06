"""A slip in the number of rounds is told at once, not planned for."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest

from equipoise.common.errors import StudyError
from equipoise.common.query import MOST_RELEASES
from equipoise.common.study_plan import StudyPlan
from tests.tiny import make_study

ENDLESS = 20_000_000


@pytest.mark.parametrize(
    "method",
    [
        *(
            {"name": name, "rounds": ENDLESS}
            for name in ("fine_tune", "fedprox", "fairfed", "q_ffl", "afl", "zhang_zhou", "reweighing", "group_dro")
        ),
        {"name": "private_head", "rounds": ENDLESS},
        {"name": "fedfb", "whitened": {"rounds": ENDLESS}},
        {"name": "swift", "rounds": {"extractor": ENDLESS, "head": 1}},
        {"name": "bmft", "rounds": {"impair": 1, "repair": ENDLESS}},
        {"name": "dfr", "newton_steps": ENDLESS},
        {"name": "fairtune", "rounds": ENDLESS},
        {"name": "fairtune", "candidates": ENDLESS, "reduction": ENDLESS + 1},
    ],
    ids=str,
)
def test_endless_rounds_are_refused_in_one_line(method: Mapping[str, Any]) -> None:
    study = make_study(method)
    tracemalloc.start()
    with pytest.raises(StudyError, match=r"^method: .* 10000") as caught:
        StudyPlan.of(study)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < 2**24  # nothing was listed


def test_a_plan_is_refused_that_is_long_altogether() -> None:
    rounds = {"extractor": MOST_RELEASES, "head": 1}
    with pytest.raises(StudyError, match=r"asks for 1\d{4} releases \(swift: 1000\d\), expected at most 10000; take"):
        StudyPlan.of(make_study({"name": "swift", "rounds": rounds}))
    assert len(StudyPlan.of(make_study({"name": "swift", "rounds": {"extractor": 900, "head": 1}})).entries) > 900
