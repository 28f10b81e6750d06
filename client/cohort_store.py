"""Opened cohorts, kept decoded between requests."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from equipoise.client.cohort import Cohort, Split, SplitName
from equipoise.common.canonical import digest_json
from equipoise.common.sitefile import Site
from equipoise.common.study import Study


class Patients(Protocol):
    """What a computation needs of a cohort."""

    @property
    def patients(self) -> int:
        """Number of patients, all splits together."""

    def split(self, name: SplitName) -> Split:
        """The decoded patients of a split."""

    def split_patients(self, name: SplitName) -> int:
        """Number of patients in a split."""


class CohortStore:
    """Opens each cohort once for all studies that read it alike; keeps the last `most` of them.

    A hospital has one cohort; a simulation has as many as sites, and bounds its memory by `most`.
    """

    def __init__(self, open_cohort: Callable[[Study, Site], Patients] = Cohort, most: int = 64) -> None:
        self._open = open_cohort
        self._most = most
        self._kept: OrderedDict[str, Patients] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, study: Study, site: Site) -> Patients:
        """The cohort of `site` as `study` reads it.

        Raises:
            DataError: see `Cohort`.
        """
        reading = study.model_dump(mode="json", include={"inputs", "label", "attributes"})
        key = digest_json([site.model_dump(mode="json"), reading])
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        # Opened outside the lock: two sites may be read at the same time.
        cohort = self._open(study, site)
        with self._lock:
            self._kept[key] = cohort
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return cohort
