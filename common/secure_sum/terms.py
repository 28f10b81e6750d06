"""Terms: what all sites of a release agree on before any of them makes a key, and the numbers that follow.

With K sites, t of which may act as one with the server:

    threshold  T = max(3, floor(2K/3) + 1)    shares that recover a secret; signatures under one list of survivors
    quorum     max(T, ceil(0.8 K))            least number of inputs in a sum
    honest     h <= T - t                     whatever happens, at least h honest sites' noise shares are in a sum

2T > K + t, so two lists of T signatures have an honest site in common, which signs one list only: the server cannot
learn the seed *and* the mask key of a site, and cannot unmask two sums of one release. The digest of the terms is in
every signature and in every derived key, so nothing of one release fits another.

A release (study, run, number) has one cohort, for ever. What failed before anything was unmasked may be tried again as
a new attempt, with fresh keys, fresh noise and a new charge; at most one is ever unmasked, by the same argument.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from equipoise.common.canonical import digest_json
from equipoise.common.errors import SecureSumError, StudyError
from equipoise.common.patterns import NAME
from equipoise.common.secure_sum.keys import KEY_BYTES, key_text, parse_key
from equipoise.common.secure_sum.threshold import LEAST_SITES, threshold

MOST_SITES = 1000
MOST_BYTES = 2**36  # of one site's integers
_SITE = re.compile(NAME)
_DIGEST = re.compile(r"[0-9a-f]{64}")


def run_of(study: str, run: str) -> str:
    """The name of a run of the study with this hash."""
    return f"{study}:{run}"


@dataclass(frozen=True)
class Part:
    """One array of the sum: its number of integers, their width, and the most that a site may send in one of them."""

    size: int
    bits: int
    reach: int


@dataclass(frozen=True)
class Terms:
    """See the module's text.

    Attributes:
        study: the study's hash; runs of two studies may bear one name.
        run, number: the release.
        attempt: 0, or how often it failed before.
        query: digest of the query.
        cohort: site -> public identity key, of all sites that are asked.
        colluding: t, sites that may act as one with the server.
        quorum: least number of inputs.
        honest: shares that make up the noise; None where each site adds all of it.
        parts: array -> its integers.

    Raises:
        StudyError: these numbers protect nobody.
    """

    study: str
    run: str
    number: int
    attempt: int
    query: str
    cohort: Mapping[str, bytes]
    colluding: int
    quorum: int
    honest: int | None
    parts: Mapping[str, Part]

    def __post_init__(self) -> None:
        count, needed = len(self.cohort), threshold(len(self.cohort))
        if not LEAST_SITES <= count <= MOST_SITES:
            raise StudyError(
                f"a secure sum of {count} sites: expected {LEAST_SITES} to {MOST_SITES}; fewer hide nobody"
            )
        if len(set(self.cohort.values())) != count:
            raise StudyError("two sites of a secure sum have the same identity key; give each its own")
        if self.colluding < 0 or needed - self.colluding < 2 or 2 * needed <= count + self.colluding:
            raise StudyError(
                f"{self.colluding} of {count} sites may collude: their threshold of {needed} does not hold against "
                "that; declare fewer or ask more sites"
            )
        if not needed <= self.quorum <= count:
            raise StudyError(f"quorum={self.quorum} of {count} sites: expected {needed} to {count}")
        if self.honest is not None and not 1 <= self.honest <= needed - self.colluding:
            raise StudyError(
                f"honest={self.honest} noise shares: {count} sites of which {self.colluding} may collude leave "
                f"{needed - self.colluding} for certain; declare at most that"
            )
        if not self.parts or sum(part.size * part.bits // 8 for part in self.parts.values()) > MOST_BYTES:
            raise StudyError(f"a secure sum of no array, or of more than {MOST_BYTES} bytes a site")
        for name, part in self.parts.items():
            if part.bits not in (32, 64) or part.size < 0 or not 1 <= part.reach * count < 2 ** (part.bits - 1):
                raise StudyError(f"{name}: {count} times {part.reach} does not fit into integers of {part.bits} bits")

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the cohort, in the order in which everything is listed."""
        return tuple(sorted(self.cohort))

    @property
    def threshold(self) -> int:
        """T, of the module's text."""
        return threshold(len(self.cohort))

    @property
    def words(self) -> str:
        """What these numbers mean, for plans, reports and errors."""
        count, spare = len(self.cohort), len(self.cohort) - self.quorum
        dropping = "no site may drop out" if not spare else f"{spare} of them may drop out"
        return (
            f"{count} sites: {dropping} before their integers are sent, {count - self.threshold} after that; the sum "
            f"conceals each as long as at most {self.colluding} of them act as one with the server"
        )

    @property
    def study_run(self) -> str:
        """Study and run: what a site keeps its state of."""
        return run_of(self.study, self.run)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the terms."""
        return digest_json(self.to_json())

    @property
    def lasting(self) -> str:
        """Digest of what every attempt at the release has in common: cohort, query and numbers."""
        return replace(self, attempt=0).digest

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "study": self.study,
            "run": self.run,
            "number": self.number,
            "attempt": self.attempt,
            "query": self.query,
            "cohort": {site: key_text(self.cohort[site]) for site in self.sites},
            "colluding": self.colluding,
            "quorum": self.quorum,
            "honest": self.honest,
            "parts": {name: [part.size, part.bits, part.reach] for name, part in sorted(self.parts.items())},
        }

    @staticmethod
    def from_json(value: Any) -> Terms:
        """The terms in a message.

        Raises:
            SecureSumError: a key is missing, unknown or of another type, or the numbers protect nobody.
        """
        try:
            terms = _parsed(value)
        except (StudyError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
            raise SecureSumError(
                "terms", "a message states no terms under which a secure sum protects a site"
            ) from None
        if terms.to_json() != value:
            raise SecureSumError("terms", "a message states its terms in another form than this version does")
        return terms


def _parsed(value: Any) -> Terms:
    numbers = [value["number"], value["attempt"], value["colluding"], value["quorum"]]
    parts = {name: tuple(part) for name, part in value["parts"].items()}
    flat = [number for part in parts.values() for number in part]
    honest = value["honest"]
    if any(type(number) is not int or number < 0 for number in (*numbers, *flat, 0 if honest is None else honest)):
        raise ValueError("not a whole number")
    if not isinstance(value["run"], str) or len(value["run"]) > 200:
        raise ValueError("no run")
    if not (_DIGEST.fullmatch(value["study"]) and _DIGEST.fullmatch(value["query"])):
        raise ValueError("no study or query")
    if not all(_SITE.fullmatch(site) for site in value["cohort"]) or not all(isinstance(name, str) for name in parts):
        raise ValueError("no name of a site or an array")
    cohort = {site: parse_key(text) for site, text in value["cohort"].items()}
    if any(len(key) != KEY_BYTES for key in cohort.values()):
        raise ValueError("no key")
    return Terms(
        study=value["study"],
        run=value["run"],
        number=numbers[0],
        attempt=numbers[1],
        query=value["query"],
        cohort=cohort,
        colluding=numbers[2],
        quorum=numbers[3],
        honest=honest,
        parts={name: Part(*part) for name, part in parts.items()},
    )
