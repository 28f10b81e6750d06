"""What the hospital's own file lets anyone ask. What is unknown is refused."""

from __future__ import annotations

from collections.abc import Container
from fnmatch import fnmatchcase

from equipoise.client.cohort_store import Patients
from equipoise.client.computations import COMPUTATIONS
from equipoise.common.catalogue import SITE_LEVEL
from equipoise.common.errors import RefusedError
from equipoise.common.factory import is_offered
from equipoise.common.privacy.accounting import PrivacyCost
from equipoise.common.query import Query
from equipoise.common.sitefile import Site
from equipoise.common.study import Study
from equipoise.common.study_plan import STUDY, StudyPlan, arms_of, check_plan


def check_study(site: Site, study: Study, approved: Container[str], scratch: bool) -> None:
    """Whether the site takes part in the study at all.

    Args:
        approved: hashes of the studies that the hospital approved.
        scratch: the site is part of a simulation, which owns its data.

    Raises:
        RefusedError: not approved, or a method, the model or the privacy mode is not allowed here.
    """
    if study.hash not in approved:
        raise RefusedError(f"study {study.study}: hash {study.hash} is not approved at {site.site} (E121)")
    caps = site.caps
    for arm in arms_of(study).values():
        if isinstance(caps.methods, list) and arm.method.name not in caps.methods:
            raise RefusedError(f"method {arm.method.name!r} is not in caps.methods of {site.site}")
    check_model(site, study, scratch)
    open_data = scratch or site.data.synthetic or study.hash in site.allow_none
    if not study.privacy.private and not open_data:
        raise RefusedError(f"privacy.mode none is not allowed at {site.site}; its data is not declared synthetic")
    if study.privacy.private and not scratch:
        _check_price(site, study)


def check_model(site: Site, study: Study, scratch: bool) -> None:
    """Whether the study's factory may be imported here; nothing is, but a module of this package.

    Raises:
        RefusedError: `caps.models` does not list it, or it is a function of this package that is no factory.
    """
    factory, caps = study.model.factory, site.caps
    # A simulated site runs what its owner names, unless its own file says what it may run.
    limited = not scratch or "models" in caps.model_fields_set
    if limited and not any(fnmatchcase(factory, pattern) for pattern in caps.models):
        raise RefusedError(f"model factory {factory!r} is not in caps.models of {site.site}")
    if not is_offered(factory):
        raise RefusedError(f"model factory {factory!r} is no factory of equipoise; docs/study-file.md lists them")


def _check_price(site: Site, study: Study) -> None:
    caps = life_caps(site)
    if study.privacy.delta > caps.delta:
        raise RefusedError(f"privacy.delta={study.privacy.delta:g} is above caps.delta={caps.delta:g} of {site.site}")
    if study.privacy.controls == "own" and len(arms_of(study)) > 1:
        raise RefusedError("privacy.controls=own: only a simulation has a budget for each control; write shared")


def check_query(site: Site, query: Query) -> None:
    """Whether the site answers this kind of query.

    Raises:
        RefusedError: the query is unknown here or not in the site's list.
    """
    if query.name not in COMPUTATIONS or query.version != 1:
        raise RefusedError(f"query {query.name!r} version {query.version} is unknown at {site.site}")
    if isinstance(site.caps.queries, list) and query.name not in site.caps.queries:
        raise RefusedError(f"query {query.name!r} is not in caps.queries of {site.site}")


def check_queries(site: Site, study: Study, plan: StudyPlan, scratch: bool) -> None:
    """Whether the plan received is the approved study's, pays for itself, and asks nothing that is not allowed.

    Raises:
        RefusedError: see `check_query` and `equipoise.common.study_plan.check_plan`.
    """
    check_plan(study, plan)
    for entry in plan.entries:
        check_query(site, entry.query)
        if entry.query.name in SITE_LEVEL and not (scratch or site.caps.site_results):
            raise RefusedError(
                f"{entry.query.name} shows a figure of {site.site} alone; caps.site_results does not allow that"
            )
        if entry.account != STUDY and not scratch:
            raise RefusedError(f"{entry.query.name} is to be paid for by {entry.account!r}, which has no account here")


def check_cohort(site: Site, cohort: Patients, query: Query) -> None:
    """Whether there are patients enough to hide among.

    Raises:
        RefusedError: fewer than the site's own least numbers.
    """
    caps, here = site.caps, cohort.split_patients(query.split)
    if cohort.patients < caps.cohort_minimum:
        raise RefusedError(f"{cohort.patients} patients, fewer than caps.cohort_minimum of {site.site}")
    if here < caps.split_minimum:
        raise RefusedError(f"{here} patients in the split {query.split}, fewer than caps.split_minimum of {site.site}")


def life_caps(site: Site) -> PrivacyCost:
    """The most that the site's patients may ever spend.

    Raises:
        RefusedError: the site file names no epsilon.
    """
    caps = site.caps
    if caps.epsilon is None:
        raise RefusedError(f"caps.epsilon is not set in the site file of {site.site}: nothing private takes place here")
    return PrivacyCost(caps.epsilon, caps.epsilon_if_others_collude or caps.epsilon, caps.delta)
