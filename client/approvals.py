"""Which studies a hospital takes part in: proposed, approved or refused by somebody who may, and nothing else.

A small store of files, because three processes meet here: the site agent, which reads it at every request, and the
commands `equipoise site approve` and `refuse`. A decision is one file, written whole, so that it holds or does not.

    studies/<hash>.json     what was proposed, as it was received
    decisions/<hash>.json   what the site decided, who and when
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from equipoise.common.canonical import canonical_json
from equipoise.common.config import validate
from equipoise.common.errors import RefusedError, StudyError
from equipoise.common.files import write_whole
from equipoise.common.study import Study

State = Literal["pending", "approved", "refused"]
MOST_PENDING = 100
MOST_BYTES = 2**20


@dataclass(frozen=True)
class Proposal:
    """A study that a coordinator proposed, and where it stands."""

    study: Study
    run: str
    time: float
    state: State
    by: str

    @property
    def hash(self) -> str:
        """What is approved: the hash of the whole rendered study."""
        return self.study.hash


class Approvals:
    """The store below `folder`; a container of the approved hashes.

    Args:
        folder: the agent's own state folder.
        always: hashes that the site file approves beforehand (`approve:`); a hash taken out of it is approved no more.
    """

    def __init__(self, folder: Path, always: Collection[str] = ()) -> None:
        self._studies = folder / "studies"
        self._decisions = folder / "decisions"
        self._always = frozenset(always)

    def __contains__(self, digest: object) -> bool:
        """Whether the study with this hash may be answered now."""
        return isinstance(digest, str) and self._decided(digest)[0] == "approved"

    def propose(self, study: Study, run: str) -> State:
        """Write a study down as pending, and say what the site has decided of it so far.

        Raises:
            RefusedError: it is larger than a study can be, or too many wait already.
            StorageError: it could not be written.
        """
        file = self._studies / f"{study.hash}.json"
        if not file.exists():
            value = {"time": time.time(), "run": run[:200], "study": json.loads(study.model_dump_json(by_alias=True))}
            text = canonical_json(value)
            if len(text) > MOST_BYTES:
                raise RefusedError(f"study {study.study}: {len(text)} bytes; a study is at most {MOST_BYTES}")
            if sum(found.state == "pending" for found in self.all()) >= MOST_PENDING:
                raise RefusedError(
                    f"{MOST_PENDING} studies wait already; approve or refuse some (equipoise site studies)"
                )
            write_whole(file, text)
        return self._decided(study.hash)[0]

    def decide(self, digest: str, state: Literal["approved", "refused"], by: str) -> Proposal:
        """Approve or refuse a study; the last decision holds.

        Args:
            digest: its hash, or the beginning of it, at least eight digits.
            state: the decision.
            by: who decided, for the record.

        Raises:
            StudyError: no such study was proposed, or several begin like this.
            StorageError: the decision could not be written; the one before it holds.
        """
        found = self.find(digest)
        decision = {"hash": found.hash, "state": state, "by": by, "time": time.time()}
        file = self._decisions / f"{found.hash}.json"
        write_whole(file, canonical_json(decision))
        if os.geteuid() == 0:
            # The agent has to read what an administrator decided.
            owner = self._studies.stat()
            for path in (self._decisions, file):
                os.chown(path, owner.st_uid, owner.st_gid)
        return self.find(found.hash)

    def find(self, digest: str) -> Proposal:
        """The proposed study with this hash, or whose hash begins like this.

        Raises:
            StudyError: none, or several.
        """
        if len(digest) < 8:
            raise StudyError(
                f"hash {digest!r}: give at least its first eight digits (equipoise site studies lists them)"
            )
        files = sorted(self._studies.glob(f"{digest}*.json")) if digest.isalnum() else []
        if len(files) != 1:
            count = "no study was" if not files else f"{len(files)} studies were"
            raise StudyError(f"hash {digest}: {count} proposed under it; equipoise site studies lists them")
        return self._read(files[0])

    def all(self) -> list[Proposal]:
        """Every study that was ever proposed here, oldest first."""
        found = []
        for file in self._studies.glob("*.json"):
            with suppress(StudyError):  # taken down by another version, or changed since: nobody can approve it
                found.append(self._read(file))
        return sorted(found, key=lambda proposal: proposal.time)

    def _read(self, file: Path) -> Proposal:
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
            study = validate(Study, value["study"], str(file))
            proposed, run = float(value["time"]), str(value["run"])
        except (OSError, ValueError, KeyError, TypeError):
            raise StudyError(f"{file}: not a proposed study as it was received; remove the file") from None
        if study.hash != file.stem:
            raise StudyError(f"{file}: the study was changed after it was received; remove the file")
        state, by = self._decided(study.hash)
        return Proposal(study, run, proposed, state, by)

    def _decided(self, digest: str) -> tuple[State, str]:
        file = self._decisions / f"{digest}.json"
        try:
            value = json.loads(file.read_bytes())
        except FileNotFoundError:
            return ("approved", "the site file") if digest in self._always else ("pending", "")
        except (OSError, ValueError):
            value = None
        if isinstance(value, dict) and value.get("hash") == digest and value.get("state") in ("approved", "refused"):
            return value["state"], str(value.get("by", ""))
        # Somebody decided: that it cannot be read, as one written by another user, must not approve.
        return "refused", f"a decision that cannot be read ({file.name})"
