"""The transcript: the list of released sums that a run is.

Each completed release is a file of integers and a row in `chain.jsonl` that names the query's digest, the sites and the
digest of the file, chained by hash to the row before. A method is deterministic given these sums and the study's public
seed, so a run resumes, and is verified, by replaying them. Only sums are stored, never what one site sent. Beside them
`witness.jsonl` keeps the head of each site's ledger as its replies named it, so that a ledger which was set back to an
older copy is found; it is no part of the chain, since times are in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise.common.canonical import canonical_json, digest_json, sha256
from equipoise.common.errors import QuorumError, TranscriptError
from equipoise.common.files import append_line, write_whole
from equipoise.common.query import Query, Sum
from equipoise.common.wire import PROTOCOL, pack, unpack

WITNESS = "witness.jsonl"
ATTEMPTS = "attempts.json"  # at the release that is under way


@dataclass(frozen=True)
class Row:
    """One completed release."""

    number: int
    query: str
    name: str
    phase: str
    cohort: tuple[str, ...]
    sums: str
    previous: str
    hash: str

    @classmethod
    def make(cls, number: int, total: Sum, sums: str, previous: str) -> Row:
        """The row of `total`, whose file has digest `sums`."""
        query = total.query
        row = cls(number, query.digest, query.name, query.phase, total.cohort, sums, previous, "")
        return cls(number, query.digest, query.name, query.phase, total.cohort, sums, previous, row.expected_hash())

    def expected_hash(self) -> str:
        """The hash that the row's content gives."""
        return digest_json(
            [self.number, self.query, self.name, self.phase, list(self.cohort), self.sums, self.previous]
        )

    def to_json(self) -> dict[str, object]:
        """As a line of chain.jsonl."""
        return {**self.__dict__, "cohort": list(self.cohort)}


class Transcript:
    """The released sums of one run, in a folder.

    Args:
        folder: holds `chain.jsonl` and `sums/`; made at the first write.
        study: hash of the study, in which the chain is anchored.
        run: name of the run within the study (its method or control).

    Raises:
        TranscriptError: a row is not whole, out of order, changed, or of another study.
    """

    def __init__(self, folder: Path, study: str, run: str) -> None:
        self.folder = folder
        self.run = run
        self.anchor = digest_json([study, run])
        self._chain = folder / "chain.jsonl"
        self.rows: list[Row] = []
        if self._chain.exists():
            self._read()

    @property
    def head(self) -> str:
        """Hash of the last row; what sites are told with the next request."""
        return self.rows[-1].hash if self.rows else self.anchor

    def heads(self) -> list[str]:
        """The head before each release, and the last one."""
        return [self.anchor, *(row.hash for row in self.rows)]

    def replay(self, number: int, query: Query) -> Sum | None:
        """The stored sum of release `number`, or None where it was not completed.

        Raises:
            TranscriptError: release `number` was another query, or its file was changed.
        """
        if number >= len(self.rows):
            return None
        row = self.rows[number]
        if row.query != query.digest:
            raise TranscriptError(
                f"{self._chain}: release {number} ({row.name}) does not follow from the study and the sums before it; "
                "the study or the code changed, or an earlier sum was changed; start a new run"
            )
        return Sum(query, row.cohort, self._load(row, query))

    def append(self, total: Sum) -> None:
        """Store a completed release: first its file, then its row.

        Raises:
            StorageError: the disk is full; the release stays unfinished and can be asked again.
        """
        number = len(self.rows)
        header = {"protocol": PROTOCOL, "release": number, "query": total.query.digest, "public": total.query.public}
        data = pack({**header, "inputs": total.query.input_digests, "cohort": list(total.cohort)}, total.points)
        write_whole(self._file(number), data)
        row = Row.make(number, total, sha256(data), self.head)
        append_line(self.folder / WITNESS, canonical_json({"release": number, "ledgers": dict(total.witness)}))
        append_line(self._chain, canonical_json(row.to_json()))
        self.rows.append(row)

    def attempt(self, number: int) -> int:
        """How often release `number` has failed before, through the secure sum."""
        file = self.folder / ATTEMPTS
        found = json.loads(file.read_bytes()) if file.exists() else {}
        return int(found["attempt"]) if found.get("release") == number else 0

    def failed(self, number: int) -> None:
        """Count an attempt at release `number` that failed.

        Raises:
            StorageError: the count could not be written.
        """
        value = {"release": number, "attempt": self.attempt(number) + 1}
        write_whole(self.folder / ATTEMPTS, canonical_json(value))

    def check(self) -> None:
        """Check every file against its row.

        Raises:
            TranscriptError: the first file that is missing or differs.
        """
        for row in self.rows:
            self._bytes(row)

    def _file(self, number: int) -> Path:
        return self.folder / "sums" / f"{number:04d}.safetensors"

    def _bytes(self, row: Row) -> bytes:
        file = self._file(row.number)
        try:
            data = file.read_bytes()
        except OSError:
            raise TranscriptError(f"{file}: missing; the transcript is truncated; restore the file") from None
        if sha256(data) != row.sums:
            raise TranscriptError(f"{file}: changed since release {row.number} ({row.name}); restore the file")
        return data

    def _load(self, row: Row, query: Query) -> dict[str, NDArray[np.int64]]:
        try:
            _, points = unpack(self._bytes(row))
        except QuorumError:
            raise TranscriptError(f"{self._file(row.number)}: not a file of sums; restore the file") from None
        shapes = {name: block.shape for name, block in query.blocks.items()}
        if {name: array.shape for name, array in points.items()} != shapes:
            raise TranscriptError(f"{self._file(row.number)}: other blocks than release {row.number} has")
        return points

    def _read(self) -> None:
        data = self._chain.read_bytes()
        lines = data.split(b"\n")
        if lines.pop():
            raise TranscriptError(
                f"{self._chain}: the last line is not whole; the file was cut; remove that line and resume"
            )
        for number, line in enumerate(lines):
            row = self._parse(number, line)
            if row.number != number or row.previous != self.head or row.hash != row.expected_hash():
                raise TranscriptError(f"{self._chain}: line {number + 1} does not follow from the line before it")
            self.rows.append(row)

    def _parse(self, number: int, line: bytes) -> Row:
        try:
            value = json.loads(line)
            row = Row(**{**value, "cohort": tuple(value["cohort"])})
        except (ValueError, TypeError, KeyError):
            raise TranscriptError(f"{self._chain}: line {number + 1} is not a row of a transcript") from None
        if canonical_json(row.to_json()) != line:
            raise TranscriptError(f"{self._chain}: line {number + 1} is not written as a transcript writes it")
        return row


def witnessed_heads(folder: Path, site: str) -> list[str]:
    """Heads of a site's ledger that the transcripts below a run's folder name.

    Raises:
        TranscriptError: a line cannot be read.
    """
    heads = []
    for file in sorted(folder.rglob(WITNESS)):
        for line in file.read_bytes().splitlines():
            try:
                head = json.loads(line)["ledgers"].get(site)
            except (ValueError, KeyError, AttributeError):
                raise TranscriptError(f"{file}: a line is not whole; the run did not end (resume it)") from None
            if head:
                heads.append(head)
    return heads


def missing_heads(transcript: Transcript, witnessed: Sequence[str]) -> list[str]:
    """Heads that a site remembers and the transcript does not have: a sign of a forged chain."""
    known = set(transcript.heads())
    return [head for head in witnessed if head not in known]
