"""What stands before the site agent in a deployment: proposals, the pause, the site file as it was, the audit log.

In a simulation the agent is called as it is. At a hospital the same agent sits behind this object, which decides
nothing about data: it takes down studies that wait for approval, keeps everything out while the site is paused or its
file was edited, and writes one line for every message before an answer leaves.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, Protocol

from equipoise.client.approvals import Approvals
from equipoise.common.audit import AuditLog
from equipoise.common.canonical import sha256
from equipoise.common.config import validate
from equipoise.common.errors import EquipoiseError, QuorumError, RefusedError, StorageError, StudyError
from equipoise.common.study import Study
from equipoise.common.wire import PROTOCOL, pack, read_header, split_bundles, unpack

PAUSED = "paused"
"""Name of the file in the state folder that pauses a site, and the code that its coordinator gets."""

_NAMED = ("run", "release", "index", "study")


class Agent(Protocol):
    """What answers; `equipoise.client.agent.SiteAgent`."""

    def answer(self, request: bytes) -> bytes:
        """The reply to `request`."""


class Resident:
    """The agent of one hospital, as its SuperNode reaches it.

    Args:
        agent: answers what is let through.
        site: name of the site.
        state: the agent's folder.
        site_file: the site file; once it was edited, nothing is answered until the agent is started again.
        approvals: the studies that the hospital knows.
    """

    def __init__(self, agent: Agent, site: str, state: Path, site_file: Path, approvals: Approvals) -> None:
        self._agent = agent
        self._site = site
        self._pause = state / PAUSED
        self._site_file = site_file
        self._as_started = sha256(site_file.read_bytes())
        self._approvals = approvals
        self._audit = AuditLog(state / "audit.jsonl")
        self._lock = threading.Lock()
        self._audit.append("started", site=site, site_file=self._as_started)

    def answer(self, request: bytes) -> bytes:
        """The reply to one request; a line of the audit log is on the disk before it is given."""
        # One at a time: the audit log is in the order in which answers leave.
        with self._lock:
            try:
                header = read_header(request)
            except QuorumError:
                header = {}
            event, reason = "request", ""
            try:
                self._admit()
                if header.get("propose"):
                    event = "proposal"
                    reply = self._propose(request)
                else:
                    reply = self._agent.answer(request)
            except EquipoiseError as error:
                reply, reason = self._code(PAUSED if isinstance(error, _PausedError) else error.code), str(error)
            except Exception as error:
                # As behind the door: what failed stays here, a code leaves.
                reply, reason = self._code("internal"), f"{type(error).__name__}: {error}"
            return self._logged(event, header, reply, reason)

    def _admit(self) -> None:
        if self._pause.exists():
            raise _PausedError(f"{self._site} is paused; equipoise site resume ends that")
        if sha256(self._site_file.read_bytes()) != self._as_started:
            raise RefusedError(
                f"{self._site_file}: edited since the agent was started; check it (equipoise site check) and start the "
                "agent again"
            )

    def _propose(self, request: bytes) -> bytes:
        header, arrays = unpack(request)
        bundles = split_bundles(arrays)
        try:
            study = validate(Study, json.loads(bundles[header["study"]]["json"].tobytes()), "study proposed")
        except (KeyError, ValueError, UnicodeDecodeError):
            raise StudyError("a proposal without a study that can be read") from None
        state = self._approvals.propose(study, str(header.get("run", "")))
        return pack({"protocol": PROTOCOL, "code": "ok", "site": self._site, "state": state}, {})

    def _logged(self, event: str, header: dict[str, Any], reply: bytes, reason: str) -> bytes:
        """The reply, once its line is written; where it cannot be, nothing leaves but a code."""
        answered = read_header(reply)
        facts: dict[str, object] = {name: _short(header[name]) for name in _NAMED if name in header}
        facts |= {"code": answered.get("code"), "bytes": len(reply), "reply": sha256(reply)}
        # The entry that says what it cost; a reply in the secure sum has it among what it signs.
        for named in (answered, answered.get("fields")):
            if isinstance(named, dict) and "ledger" in named:
                facts["ledger"] = named["ledger"]
        if reason:
            facts["reason"] = reason
        try:
            self._audit.append(event, **facts)
        except StorageError:
            return self._code(StorageError.code)
        return reply

    def _code(self, code: str) -> bytes:
        return pack({"protocol": PROTOCOL, "code": code, "site": self._site}, {})


class _PausedError(RefusedError):
    """The site is paused; its own decision, which says nothing about patients."""


def _short(value: object) -> object:
    """A value of a header that anybody may have written, as it may stand in the log."""
    return value if isinstance(value, int) else str(value)[:200]
