"""Messages to nodes that are out, and the replies to them, over any Flower grid; who a node is, `Transport` knows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flwr.app import DEFAULT_TTL, Message, RecordDict
from flwr.serverapp import Grid

_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _PAUSE_GROWTH = 0.02, 0.5, 1.5
# A remote grid brings every reply that has arrived at once; in batches, few payloads are in memory together.
_PULLED_AT_ONCE = 8


@runtime_checkable
class LocalGrid(Protocol):
    """A grid whose sites all live in this process: none can join or be lost, and they work in turn, inside a pull.

    There a deadline is for each site's own work, not for the waiting of the last site in the queue, so that a slow
    machine changes no result.
    """

    def work_seconds(self, message_id: str) -> float:
        """Seconds that the site worked on a message whose reply has been pulled."""
        ...

    def discard(self, message_ids: Iterable[str]) -> None:
        """Drop messages that no site has begun to work on."""
        ...


@dataclass(frozen=True)
class Arrival:
    """A reply that has come: its node, and the seconds from the message to it, on a local grid those of its work."""

    node: int
    message: Message
    seconds: float


class Exchange:
    """Messages of one type that are out, and the replies to them; each is given out at most once."""

    def __init__(self, grid: Grid, message_type: str, deadline_s: float) -> None:
        """Nothing is out yet; the deadline runs from now."""
        self._grid = grid
        self._type = message_type
        self._deadline_s = deadline_s
        self._end = time.monotonic() + deadline_s
        self._pause_s = _FIRST_PAUSE_S
        self._pending: dict[str, tuple[int, float]] = {}  # message id -> node, time of sending

    @property
    def local(self) -> bool:
        """Whether the sites live in this process."""
        return isinstance(self._grid, LocalGrid)

    @property
    def waiting(self) -> bool:
        """Whether a message is out."""
        return bool(self._pending)

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self._end

    def is_late(self, seconds: float) -> bool:
        """Whether a reply after these seconds is too late."""
        # A remote reply that is there at the last look has come in time.
        return self.local and seconds > self._deadline_s

    def send(self, contents: Mapping[int, RecordDict]) -> set[int]:
        """Push one message a node; returns the nodes that the grid would not take a message for."""
        # A message outlives its deadline a little, so that it is this side which decides what is late.
        ttl = min(float(DEFAULT_TTL), self._deadline_s + 60.0)
        # A list: a remote grid walks over the messages twice.
        messages = [Message(content, node, self._type, ttl=ttl) for node, content in contents.items()]
        accepted = set(self._grid.push_messages(messages))
        now = time.monotonic()
        refused = set()
        for message in messages:
            # The grid has written the id into the message; the list of ids it returns may have gaps.
            if message.metadata.message_id in accepted:
                self._pending[message.metadata.message_id] = (message.metadata.dst_node_id, now)
            else:
                refused.add(message.metadata.dst_node_id)
        return refused

    def collect(self) -> Iterator[Arrival]:
        """One look for replies: those that are there now; a local grid works on at least one message."""
        ids = list(self._pending)
        step = len(ids) if self.local else _PULLED_AT_ONCE
        for start in range(0, len(ids), max(step, 1)):
            for message in self._grid.pull_messages(ids[start : start + step]):
                answered = message.metadata.reply_to_message_id
                if answered not in self._pending:
                    continue
                node, sent = self._pending.pop(answered)
                self._pause_s = _FIRST_PAUSE_S
                seconds = time.monotonic() - sent
                if isinstance(self._grid, LocalGrid):
                    seconds = self._grid.work_seconds(answered)
                yield Arrival(node, message, seconds)

    def pause(self) -> None:
        """Sleep a little, longer each time, but never past the deadline."""
        time.sleep(max(0.0, min(self._pause_s, self._end - time.monotonic())))
        self._pause_s = min(self._pause_s * _PAUSE_GROWTH, _LONGEST_PAUSE_S)

    def abandon(self) -> None:
        """Wait for nothing any more."""
        if isinstance(self._grid, LocalGrid):
            self._grid.discard(self._pending)
        self._pending.clear()
