"""A store of secure releases without a disk."""

from __future__ import annotations

from equipoise.common.secure_sum.messages import Stage


class MemoryStore:
    """A store of simulated sites: nothing outlives the process."""

    def __init__(self) -> None:
        self._records: dict[str, bytes] = {}
        self._replies: dict[str, dict[Stage, bytes]] = {}

    def read(self, run: str) -> bytes | None:
        """The record of a run, or None."""
        return self._records.get(run)

    def write(self, run: str, record: bytes) -> None:
        """Replace the record of a run."""
        self._records[run] = record

    def read_reply(self, run: str, stage: Stage) -> bytes | None:
        """The reply given in a stage, or None."""
        return self._replies.get(run, {}).get(stage)

    def write_reply(self, run: str, stage: Stage, reply: bytes) -> None:
        """Keep the reply of a stage."""
        self._replies.setdefault(run, {})[stage] = reply

    def drop_replies(self, run: str) -> None:
        """Delete all replies of a run."""
        self._replies.pop(run, None)
