"""A hospital's own figure leaves it only where its own file allows that."""

from __future__ import annotations

import pytest

from equipoise.client.policy import check_queries
from equipoise.common.errors import RefusedError
from equipoise.common.sitefile import Site
from equipoise.common.study_plan import StudyPlan
from tests.driving import town
from tests.tiny import declare, site_file


def site(**caps: object) -> Site:
    return site_file("a", caps={"cohort_minimum": 1, "models": ["tests.tiny:*"], **caps})


@pytest.mark.parametrize("method", ["afl", "fairfed"])
def test_queries_about_one_hospital_need_its_consent(method: str) -> None:
    study = declare(town(method, rounds=1).study, {"a": 20, "b": 20})
    plan = StudyPlan.of(study)
    with pytest.raises(RefusedError, match=r"a figure of a alone; caps\.site_results does not allow"):
        check_queries(site(), study, plan, scratch=False)
    check_queries(site(site_results=True), study, plan, scratch=False)
    check_queries(site(), study, plan, scratch=True)  # a simulation owns its data


@pytest.mark.parametrize("method", ["q_ffl", "fedfb", "group_dro", "fine_tune"])
def test_sums_over_hospitals_need_none(method: str) -> None:
    study = declare(town(method, rounds=1).study, {"a": 20, "b": 20})
    check_queries(site(), study, StudyPlan.of(study), scratch=False)
