"""What the hospital's own file lets anyone ask. What is unknown is refused."""

from __future__ import annotations

from fnmatch import fnmatchcase

from equipoise.client.computations import COMPUTATIONS
from equipoise.common.errors import RefusedError
from equipoise.common.query import Query
from equipoise.common.sitefile import Site
from equipoise.common.study import Study


def check_study(site: Site, study: Study, approved: frozenset[str], scratch: bool) -> None:
    """Whether the site takes part in the study at all.

    Args:
        approved: hashes of the studies that the hospital approved.
        scratch: the site is part of a simulation, which owns its data.

    Raises:
        RefusedError: not approved, or the method, the model or the privacy mode is not allowed here.
    """
    if study.hash not in approved:
        raise RefusedError(f"study {study.study}: hash {study.hash} is not approved at {site.site}")
    caps = site.caps
    if isinstance(caps.methods, list) and study.method.name not in caps.methods:
        raise RefusedError(f"method {study.method.name!r} is not in caps.methods of {site.site}")
    if not any(fnmatchcase(study.model.factory, pattern) for pattern in caps.models):
        raise RefusedError(f"model factory {study.model.factory!r} is not in caps.models of {site.site}")
    open_data = scratch or site.data.synthetic or study.hash in site.allow_none
    if study.privacy.mode == "none" and not open_data:
        raise RefusedError(f"privacy.mode none is not allowed at {site.site}; its data is not declared synthetic")


def check_query(site: Site, query: Query) -> None:
    """Whether the site answers this kind of query.

    Raises:
        RefusedError: the query is unknown here or not in the site's list.
    """
    if query.name not in COMPUTATIONS or query.version != 1:
        raise RefusedError(f"query {query.name!r} version {query.version} is unknown at {site.site}")
    if isinstance(site.caps.queries, list) and query.name not in site.caps.queries:
        raise RefusedError(f"query {query.name!r} is not in caps.queries of {site.site}")
