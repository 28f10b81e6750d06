"""Opened cohorts, kept decoded between requests."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from equipoise.client.cohort import Cohort, Split, image_files
from equipoise.common.canonical import digest_json
from equipoise.common.query import SplitName
from equipoise.common.sitefile import Site
from equipoise.common.study import Study


class Patients(Protocol):
    """What a computation needs of a cohort."""

    @property
    def patients(self) -> int:
        """Number of patients, all splits together."""

    @property
    def bytes_held(self) -> int:
        """What its decoded rows take, about."""

    def split(self, name: SplitName) -> Split:
        """The decoded patients of a split."""

    def split_patients(self, name: SplitName) -> int:
        """Number of patients in a split."""

    @property
    def fingerprint(self) -> str:
        """Digest of the data; the cohort is the same as long as it is."""

    def members(self) -> list[tuple[str, str]]:
        """(identifier, split) of every patient, for the ledger."""


class CohortStore:
    """Opens each cohort once for all studies that read it alike; keeps the last ones, up to `most_bytes` of rows.

    A hospital has one cohort; a simulation has as many as sites, which are asked in turn: one cohort too many, and each
    would be read again at every release. So the bound is on their size, and hundreds of small ones stay.
    """

    def __init__(self, open_cohort: Callable[[Study, Site], Patients] = Cohort, most_bytes: int = 2**30) -> None:
        self._open = open_cohort
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, Patients] = OrderedDict()
        self._bytes: dict[str, int] = {}  # of each one kept, as it was when it was last asked for
        self._stamps: dict[str, list[object]] = {}
        self._lock = threading.Lock()

    def __call__(self, study: Study, site: Site) -> Patients:
        """The cohort of `site` as `study` reads it.

        Raises:
            DataError: see `Cohort`.
        """
        reading = study.model_dump(mode="json", include={"inputs", "label", "attributes"})
        key = digest_json([site.model_dump(mode="json"), reading])
        stamp = _stamp(site)
        with self._lock:
            if self._stamps.get(key) != stamp:
                # The files were edited since: what was decoded of them is no longer the site's data.
                self._kept.pop(key, None)
                self._stamps[key] = stamp
            cohort = self._kept.get(key)
        if cohort is None:
            # Opened outside the lock: two sites may be read at the same time.
            cohort = self._open(study, site)
        with self._lock:
            cohort = self._kept.setdefault(key, cohort)
            self._kept.move_to_end(key)
            self._bytes[key] = cohort.bytes_held
            while len(self._kept) > 1 and sum(self._bytes.values()) > self._most_bytes:
                oldest, _ = self._kept.popitem(last=False)
                del self._bytes[oldest]
        return cohort


def _stamp(site: Site) -> list[object]:
    """Size and time of the site's files, by which an edit is noticed; None where they cannot be looked at."""
    try:
        status = os.stat(site.data.manifest)
        return [status.st_size, status.st_mtime_ns, image_files(site)]
    except OSError:
        return [None]
