"""Requests to sites and their replies, over any Flower grid: in-process, Ray or deployment.

What Flower leaves to the application is done here: waiting for a quorum with a deadline, matching a reply to the site
that was asked (a dead node's error comes from the SuperLink, not from the node), and reporting a late or lost site.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from equipoise import __version__
from equipoise.common.errors import QuorumError
from equipoise.envelope import HELLO, INTERNAL, RELEASE, get_bytes, get_code, get_hello, put_bytes
from equipoise.server.exchange import Arrival, Exchange

TIMEOUT = "timeout"
"""Code of a site that did not answer in time, or was lost."""
TOO_LARGE = "too_large"
"""Code of a site whose reply is larger than the limit."""
ASK_AGAIN = frozenset({TIMEOUT, "unreachable"})
"""Codes of a site that was lost, or whose agent was away. It is asked again until its deadline: the same request gets
the same sealed reply, so that nothing is spent twice."""

_LOST = frozenset({ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE})
_ASK_AGAIN_AFTER_S = 5.0


@dataclass(frozen=True)
class Reply:
    """What became of the request to one site.

    Attributes:
        site: the site that was asked.
        payload: the reply's bytes; None where there is a code instead.
        code: why there is no payload: `timeout`, `too_large`, or the site's own generic code.
        bytes_down: size of the request, without Flower's envelope.
        bytes_up: size of the payload, without Flower's envelope.
        seconds: from the request to its reply; on a local grid, the time that the site itself worked.
    """

    site: str
    payload: bytes | None
    code: str | None
    bytes_down: int
    bytes_up: int
    seconds: float


class Transport:
    """The server's side of the line to the sites.

    Attributes:
        nodes: Flower's node id of each connected site.
    """

    def __init__(
        self, grid: Grid, *, max_reply_bytes: int = 2**30, ask_again_after_s: float = _ASK_AGAIN_AFTER_S
    ) -> None:
        """A line over `grid`; a reply of more than `max_reply_bytes` is not handed on.

        A site that was lost is asked again every `ask_again_after_s` seconds, until its deadline. One that stayed lost
        is asked once in what follows, until it answers, so that it costs one deadline and not one a release.
        """
        self._grid = grid
        self._ask_again_after_s = ask_again_after_s
        self._missed: set[int] = set()
        self._max_reply_bytes = max_reply_bytes
        self.nodes: dict[str, int] = {}

    def connect(
        self,
        sites: Collection[str],
        deadline_s: float,
        least: int | None = None,
        enrolled: Mapping[str, int] | None = None,
    ) -> dict[str, int]:
        """Wait for the sites of the study; whoever else is there is left alone.

        Args:
            sites: their names.
            deadline_s: seconds to wait.
            least: how many of them are enough once the time is over; None for all.
            enrolled: node id of each site that was let in: no other node is asked, and each must be the site that it
                says it is. None where nobody is let in (a simulation): a node is then the site that it says it is.

        Returns:
            Node id of each site that came, by name in sorted order.

        Raises:
            QuorumError: too few sites came in time, a site runs another version, or a node claims the name of another.
        """
        exchange = Exchange(self._grid, HELLO, deadline_s)
        # A name is what a node says; its id is the SuperLink's, which gives it to whoever has the site's node key.
        owners = None if enrolled is None else {enrolled[site]: site for site in sites if site in enrolled}
        found: dict[str, int] = {}
        asked: set[int] = set()
        complaint = ""
        while True:
            nodes = [node for node in self._grid.get_node_ids() if owners is None or node in owners]
            newcomers = [node for node in nodes if node not in asked]
            asked.update(newcomers)
            # A node that could not answer may do so later: ask again at the next look.
            asked -= exchange.send({node: RecordDict() for node in newcomers})
            for arrival in exchange.collect():
                try:
                    site, version = _introduction(arrival.message)
                except ValueError as error:
                    if str(error) != TIMEOUT:  # a node that is gone answered nothing
                        complaint = f" (a node answered {error})"
                    asked.discard(arrival.node)
                    continue
                owner = site if owners is None else owners[arrival.node]
                if owner in sites:
                    _check_newcomer(owner, site, version, arrival.node, found)
                    found[site] = arrival.node
            if len(found) == len(sites):
                break
            if exchange.expired or (exchange.local and not exchange.waiting):
                if least is not None and len(found) >= least:
                    break
                raise QuorumError(_missing(found, sites, deadline_s) + complaint)
            if not exchange.local:
                exchange.pause()
        exchange.abandon()
        self.nodes = dict(sorted(found.items()))
        return dict(self.nodes)

    def ask(self, requests: Mapping[str, bytes], deadline_s: float) -> Iterator[Reply]:
        """Send each site its request; replies come as they arrive, one a site.

        The requests leave at the call, the replies are waited for while they are taken. A request that is the same
        object for several sites is held once.

        Args:
            requests: request of each site.
            deadline_s: seconds that a site has.

        Raises:
            ValueError: a site is not connected.
        """
        strangers = sorted(set(requests) - set(self.nodes))
        if strangers:
            raise ValueError(f"site {strangers[0]} is not connected")
        contents = {id(request): put_bytes("request", request) for request in requests.values()}
        exchange = Exchange(self._grid, RELEASE, deadline_s)
        mail = {self.nodes[site]: contents[id(request)] for site, request in requests.items()}
        refused = exchange.send(mail)
        sizes = {site: len(request) for site, request in requests.items()}
        return self._replies(exchange, sizes, mail, refused)

    def _replies(
        self, exchange: Exchange, sizes: Mapping[str, int], mail: Mapping[int, RecordDict], refused: set[int]
    ) -> Iterator[Reply]:
        started = time.monotonic()
        sites = {self.nodes[site]: site for site in sizes}
        # Nodes to ask again, and when; only where sites are elsewhere: a local site that failed fails again.
        patient = set() if exchange.local else set(sites) - self._missed
        again = dict.fromkeys(refused & patient, started + self._ask_again_after_s)
        try:
            while exchange.waiting or again:
                last_look = exchange.expired and not exchange.local
                heard = False
                for arrival in exchange.collect():
                    heard = True
                    site = sites[arrival.node]
                    reply = self._read(site, sizes[site], arrival, late=exchange.is_late(arrival.seconds))
                    if reply.code in ASK_AGAIN and arrival.node in patient and not exchange.expired:
                        again[arrival.node] = time.monotonic() + self._ask_again_after_s
                        continue
                    del sites[arrival.node]
                    if reply.code in ASK_AGAIN:
                        self._missed.add(arrival.node)
                    else:
                        self._missed.discard(arrival.node)
                    yield reply
                if last_look:
                    break
                due = [node for node, when in again.items() if when <= time.monotonic()]
                for node in due:
                    del again[node]
                for node in exchange.send({node: mail[node] for node in due}) if due else ():
                    again[node] = time.monotonic() + self._ask_again_after_s
                if not heard:
                    if exchange.local:
                        break  # no site works and nothing is queued: the grid has been closed
                    exchange.pause()
            self._missed.update(sites)
            for site in sites.values():  # silent until now, or the grid took no message for them
                yield Reply(site, None, TIMEOUT, sizes[site], 0, time.monotonic() - started)
        finally:
            exchange.abandon()

    def _read(self, site: str, bytes_down: int, arrival: Arrival, late: bool) -> Reply:
        payload: bytes | None = None
        if late:
            code: str | None = TIMEOUT
        else:
            payload, code = _payload_or_code(arrival)
        bytes_up = 0 if payload is None else len(payload)
        if bytes_up > self._max_reply_bytes:
            payload, code = None, TOO_LARGE
        return Reply(site, payload, code, bytes_down, bytes_up, arrival.seconds)


def _payload_or_code(arrival: Arrival) -> tuple[bytes | None, str | None]:
    message = arrival.message
    if message.has_error():
        # The reason of an error is a remote exception's text: it is neither kept nor shown.
        return None, TIMEOUT if message.error.code in _LOST else INTERNAL
    code = get_code(message.content)
    if code is not None:
        return None, code
    try:
        return get_bytes("reply", message.content), None
    except ValueError:
        return None, INTERNAL


def _introduction(message: Message) -> tuple[str, str]:
    """Site and version in a reply to hello; ValueError with the code of a node that could not say."""
    if message.has_error():
        raise ValueError(TIMEOUT if message.error.code in _LOST else INTERNAL)
    code = get_code(message.content)
    if code is not None:
        raise ValueError(code)
    try:
        return get_hello(message.content)
    except ValueError:
        raise ValueError(INTERNAL) from None


def _check_newcomer(owner: str, site: str, version: str, node: int, found: Mapping[str, int]) -> None:
    if site != owner:
        raise QuorumError(
            f"the node that is enrolled as site {owner} says that it is {site}; connect the SuperNode of {owner} to "
            "its own site agent (--node-config)"
        )
    if version != __version__:
        raise QuorumError(
            f"site {site} runs equipoise {version[:32]!r}, the server {__version__!r}; install the same version at both"
        )
    if found.get(site, node) != node:
        raise QuorumError(f"site {site} is claimed by two nodes; give each SuperNode its own site in --node-config")


def _missing(found: Collection[str], sites: Collection[str], deadline_s: float) -> str:
    missing = sorted(set(sites) - set(found))
    return f"{len(missing)} of {len(sites)} sites did not connect within {deadline_s:g} s: {', '.join(missing)}"
