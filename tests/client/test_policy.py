"""What a hospital's own file lets anyone ask."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest

from equipoise.client.computations import COMPUTATIONS
from equipoise.client.policy import check_cohort, check_queries, check_query, check_study, life_caps
from equipoise.common import catalogue
from equipoise.common.config import validate
from equipoise.common.errors import RefusedError, StudyError
from equipoise.common.privacy.accounting import PrivacyCost
from equipoise.common.query import Query
from equipoise.common.sitefile import Site
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan
from tests.tiny import Memory, draw_people, make_study, private_study, site_file

STUDY = make_study()
PRIVATE = private_study()


def site_of(synthetic: bool = True, allow_none: Any = (), **caps: Any) -> Site:
    data = {"manifest": "cohort.csv", "splits": {"column": "split"}, "synthetic": synthetic}
    return site_file("a", data=data, caps={"models": ["tests.tiny:*"], **caps}, allow_none=list(allow_none))


def check(site: Site, study: Study = STUDY, approved: Any = None, scratch: bool = False) -> None:
    check_study(site, study, frozenset([STUDY.hash, PRIVATE.hash] if approved is None else approved), scratch)


def test_an_approved_study_on_synthetic_data_is_let_in() -> None:
    check(site_of())


def test_only_the_very_study_that_was_approved() -> None:
    with pytest.raises(RefusedError, match=f"hash {STUDY.hash} is not approved at a"):
        check(site_of(), approved=[])
    changed = STUDY.model_copy(update={"seed": 8})
    with pytest.raises(RefusedError, match="is not approved"):
        check(site_of(), changed)
    # Where the weights lie and what a simulation does is the coordinator's own; everything else is in the hash.
    moved = STUDY.model.weights.model_copy(update={"path": "elsewhere"})  # type: ignore[union-attr]
    check(site_of(), STUDY.model_copy(update={"model": STUDY.model.model_copy(update={"weights": moved})}))
    for part in ("model", "inputs", "label", "attributes", "method", "evaluation", "sites"):
        assert part in STUDY.model_dump()
    other = moved.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(RefusedError, match="is not approved"):
        check(site_of(), STUDY.model_copy(update={"model": STUDY.model.model_copy(update={"weights": other})}))


def test_mode_none_needs_synthetic_data_a_simulation_or_an_exception_for_the_study() -> None:
    with pytest.raises(
        RefusedError, match=r"privacy.mode none is not allowed at a; its data is not declared synthetic"
    ):
        check(site_of(synthetic=False))
    with pytest.raises(RefusedError, match="mode none"):
        check(site_of(synthetic=False, allow_none=["0" * 64]))
    check(site_of(synthetic=False, allow_none=[STUDY.hash]))
    check(site_of(synthetic=False), scratch=True)


def test_data_are_not_synthetic_unless_the_site_says_so() -> None:
    site = Site.model_validate({"site": "a", "data": {"manifest": "m.csv", "splits": {"column": "split"}}})
    assert not site.data.synthetic
    assert site.allow_none == []
    assert site.caps.models == ["equipoise.common.models:*"]


@pytest.mark.parametrize("factory", ["os:system", "subprocess:run", "tests.tinyx:small", "builtins:eval", "tests:tiny"])
def test_a_factory_that_the_site_does_not_list_is_refused(factory: str) -> None:
    study = make_study(model={**STUDY.model.model_dump(), "factory": factory})
    with pytest.raises(RefusedError, match=f"model factory '{factory}' is not in caps.models"):
        check(site_of(), study, approved=[study.hash])


@pytest.mark.parametrize("scratch", [False, True])
@pytest.mark.parametrize("name", ["load_factory", "build", "ImageClassifier", "nope"])
def test_a_pattern_over_our_modules_lets_in_their_factories_alone(name: str, scratch: bool) -> None:
    models = ["equipoise.common.models:*"]
    for factory in ("mlp", "resnet_small"):
        study = make_study(model={**STUDY.model.model_dump(), "factory": f"equipoise.common.models:{factory}"})
        check(site_of(models=models), study, approved=[study.hash], scratch=scratch)
    study = make_study(model={**STUDY.model.model_dump(), "factory": f"equipoise.common.models:{name}"})
    with pytest.raises(RefusedError, match="is no factory of equipoise"):
        check(site_of(models=models), study, approved=[study.hash], scratch=scratch)


def test_a_simulated_site_runs_what_its_owner_names_unless_its_own_file_lists_factories() -> None:
    study = make_study(model={**STUDY.model.model_dump(), "factory": "mine:network"})
    silent = Site.model_validate({"site": "a", "data": {"manifest": "m.csv", "splits": {"column": "split"}}})
    check(silent, study, approved=[study.hash], scratch=True)
    for site, scratch in ((silent, False), (site_of(), True)):
        with pytest.raises(RefusedError, match=r"is not in caps\.models"):
            check(site, study, approved=[study.hash], scratch=scratch)


def test_patterns_of_factories_mind_upper_and_lower_case_and_an_empty_list_lets_none_in() -> None:
    with pytest.raises(RefusedError):
        check(site_of(models=["TESTS.tiny:*"]))
    with pytest.raises(RefusedError):
        check(site_of(models=[]))
    check(site_of(models=["tests.tiny:small"]))


def test_methods_and_queries_are_limited_to_the_lists() -> None:
    check(site_of(methods=["fine_tune", "swift"]))
    for methods in ([], ["fine_tune"]):
        with pytest.raises(RefusedError, match=r"method 'swift' is not in caps.methods of a"):
            check(site_of(methods=methods))
    query = catalogue.cell_statistics(STUDY)
    check_query(site_of(), query)
    check_query(site_of(queries=["cell_statistics"]), query)
    with pytest.raises(RefusedError, match=r"query 'cell_statistics' is not in caps.queries of a"):
        check_query(site_of(queries=["gradient_sum"]), query)


@pytest.mark.parametrize("key", ["methods", "queries"])
def test_a_list_written_without_brackets_is_an_error_and_not_everything(key: str) -> None:
    value = site_of().model_dump()
    value["caps"][key] = "swift"
    with pytest.raises(StudyError, match=rf"caps.{key}") as caught:
        validate(Site, value, "site.yaml")
    assert "\n" not in str(caught.value)
    value["caps"][key] = "all"
    assert getattr(validate(Site, value, "site.yaml").caps, key) == "all"


@pytest.mark.parametrize(("name", "version"), [("everything", 1), ("cell_statistics", 2), ("cell_statistics", 0)])
def test_an_unknown_query_is_refused(name: str, version: int) -> None:
    query = Query(name, "patient_sum", "train", "phase", {}, {}, version=version)
    with pytest.raises(RefusedError, match=f"query '{name}' version {version} is unknown at a"):
        check_query(site_of(), query)


def test_the_closed_list_of_queries_is_the_catalogue() -> None:
    functions = {
        name
        for name, value in vars(catalogue).items()
        if inspect.isfunction(value) and value.__annotations__.get("return") == "Query" and not name.startswith("_")
    }
    # One of them is the same query on other patients, with other noise.
    assert functions - {"candidate_histogram"} == set(COMPUTATIONS)


# --- private studies ----------------------------------------------------------------------------------------------


def test_a_private_study_needs_a_cap_and_no_more_than_its_delta() -> None:
    check(site_of(epsilon=4), PRIVATE)
    with pytest.raises(RefusedError, match=r"caps\.epsilon is not set in the site file of a"):
        check(site_of(), PRIVATE)
    check(site_of(epsilon=4, delta=1e-5), PRIVATE)
    with pytest.raises(RefusedError, match=r"privacy\.delta=1e-05 is above caps\.delta=1e-06 of a"):
        check(site_of(epsilon=4, delta=1e-6), PRIVATE)
    check(site_of(), PRIVATE, scratch=True)  # charged to nobody


def test_patients_need_not_be_synthetic_where_noise_protects_them() -> None:
    check(site_of(synthetic=False, epsilon=4), PRIVATE)


def test_only_a_simulation_gives_each_control_a_budget_of_its_own() -> None:
    controls = {"name": "private_head", "controls": ["plain"]}
    for kind in ("own", "shared"):
        study = private_study(controls, privacy={"controls": kind})
        check(site_of(), study, approved=[study.hash], scratch=True)
        if kind == "shared":
            check(site_of(epsilon=4), study, approved=[study.hash])
            continue
        with pytest.raises(RefusedError, match=r"privacy\.controls=own: only a simulation"):
            check(site_of(epsilon=4), study, approved=[study.hash])


def test_every_arm_has_to_be_an_allowed_method() -> None:
    study = private_study({"name": "private_head", "controls": ["plain"]}, privacy={"controls": "shared"})
    check(site_of(epsilon=4, methods=["private_head", "fine_tune"]), study, approved=[study.hash])
    with pytest.raises(RefusedError, match=r"method 'fine_tune' is not in caps\.methods of a"):
        check(site_of(epsilon=4, methods=["private_head"]), study, approved=[study.hash])


def test_the_plan_is_the_studys_own_and_each_of_its_queries_is_allowed() -> None:
    plan = StudyPlan.of(PRIVATE).calibrated(PRIVATE)
    check_queries(site_of(), PRIVATE, plan, scratch=False)
    names = sorted({entry.query.name for entry in plan.entries})
    check_queries(site_of(queries=names), PRIVATE, plan, scratch=False)
    for name in names:
        with pytest.raises(RefusedError, match=rf"query '{name}' is not in caps\.queries of a"):
            check_queries(site_of(queries=[other for other in names if other != name]), PRIVATE, plan, scratch=False)
    with pytest.raises(RefusedError, match="the study asks"):
        check_queries(site_of(), PRIVATE, StudyPlan(plan.entries[:-1]), scratch=False)


def changed_plan(place: int, query: Query | None = None, **changes: Any) -> StudyPlan:
    """The study's plan with one entry changed, as long as before."""
    entries = list(StudyPlan.of(PRIVATE).calibrated(PRIVATE).entries)
    entries[place] = replace(entries[place], query=query or entries[place].query, **changes)
    return StudyPlan(tuple(entries))


def places_of(split: str) -> list[int]:
    return [place for place, entry in enumerate(StudyPlan.of(PRIVATE).entries) if entry.query.split == split]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_plan_with_less_noise_than_the_studys_epsilon_needs_is_refused(split: str) -> None:
    for place in places_of(split):
        query = changed_plan(place).entries[place].query
        quieter = changed_plan(place, query.placed(place, noise=0.9 * query.plan.noise))
        with pytest.raises(
            RefusedError, match=rf"releases on {split} cost epsilon 3\.\d+, more than the 3 of the study"
        ):
            check_queries(site_of(), PRIVATE, quieter, scratch=False)
        louder = changed_plan(place, query.placed(place, noise=1.1 * query.plan.noise))
        check_queries(site_of(), PRIVATE, louder, scratch=False)


def test_a_plan_of_other_queries_than_the_studys_is_refused() -> None:
    entries = StudyPlan.of(PRIVATE).calibrated(PRIVATE).entries
    counts, rounds = entries[0].query, entries[1].query
    assert (counts.name, rounds.name) == ("cell_counts", "whitened_gradient")
    wider = replace(rounds, parameters={**rounds.parameters, "beta": 0.5})
    for place, other in ((0, changed_plan(0, rounds.placed(0))), (1, changed_plan(1, counts.placed(1))),
                         (1, changed_plan(1, wider)), (1, changed_plan(1, rounds.placed(2))),
                         (1, changed_plan(1, arm="plain")), (1, changed_plan(1, account="plain"))):  # fmt: skip
        assert len(other.entries) == len(entries)
        with pytest.raises(
            RefusedError, match=rf"query {place} of the plan \({entries[place].query.name}\) is not the"
        ):
            check_queries(site_of(), PRIVATE, other, scratch=True)


def test_a_controls_account_is_paid_by_nobody_but_a_simulation() -> None:
    study = private_study({"name": "private_head", "controls": ["plain"]})
    plan = StudyPlan.of(study).calibrated(study)
    check_queries(site_of(), study, plan, scratch=True)
    with pytest.raises(RefusedError, match=r"is to be paid for by 'plain', which has no account here"):
        check_queries(site_of(), study, plan, scratch=False)


def test_a_crowd_is_counted_in_all_and_in_the_split_that_is_asked() -> None:
    people = draw_people(33, seed=1)
    cohort = Memory(
        {
            "train": people.split(range(20)),
            "validation": people.split(range(20, 30)),
            "test": people.split(range(30, 33)),
        }
    )
    counts = next(entry.query for entry in StudyPlan.of(PRIVATE).entries if entry.query.split == "train")
    tables = next(entry.query for entry in StudyPlan.of(PRIVATE).entries if entry.query.split == "test")
    check_cohort(site_of(cohort_minimum=33, split_minimum=20), cohort, counts)
    with pytest.raises(RefusedError, match=r"33 patients, fewer than caps\.cohort_minimum of a"):
        check_cohort(site_of(cohort_minimum=34), cohort, counts)
    with pytest.raises(RefusedError, match=r"20 patients in the split train, fewer than caps\.split_minimum of a"):
        check_cohort(site_of(cohort_minimum=1, split_minimum=21), cohort, counts)
    check_cohort(site_of(cohort_minimum=1, split_minimum=3), cohort, tables)
    with pytest.raises(RefusedError, match=r"3 patients in the split test, fewer than caps\.split_minimum of a"):
        check_cohort(site_of(cohort_minimum=1, split_minimum=4), cohort, tables)


def test_collusion_is_capped_like_the_honest_view_unless_said_otherwise() -> None:
    assert life_caps(site_of(epsilon=2, delta=1e-6)) == PrivacyCost(2, 2, 1e-6)
    assert life_caps(site_of(epsilon=2, epsilon_if_others_collude=5)) == PrivacyCost(2, 5, 1e-5)
    for epsilon in (None, 6):
        with pytest.raises(ValueError, match="epsilon_if_others_collude needs an epsilon"):
            site_of(epsilon=epsilon, epsilon_if_others_collude=5)


def test_a_plan_is_held_against_the_study_that_it_came_with_and_no_other() -> None:
    """Plans are kept between checks; each study has its own."""
    other = STUDY.model_copy(update={"seed": 9, "method": STUDY.method.model_copy(update={"controls": ["plain"]})})
    plans = {study.hash: StudyPlan.of(study) for study in (STUDY, other)}
    assert len(plans[STUDY.hash].entries) != len(plans[other.hash].entries)
    for _ in range(2):
        for study, wrong in ((STUDY, other), (other, STUDY)):
            check_queries(site_of(), study, StudyPlan.from_bundle(plans[study.hash].bundle), scratch=True)
            with pytest.raises(RefusedError, match="queries; the study asks"):
                check_queries(site_of(), study, StudyPlan.from_bundle(plans[wrong.hash].bundle), scratch=True)
