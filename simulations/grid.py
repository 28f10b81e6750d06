"""Flower's real ServerApp and ClientApp in one process: the grid that `equipoise simulate` uses by default.

Every message goes through Flower's protobuf and back, both ways (`equipoise.simulations.wire_form`): what crosses is
what would cross a network, and its bytes are counted. Sites work while replies are pulled, `workers` at a time, so that
memory does not grow with the number of sites.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Self

from flwr.app import (
    Context,
    Error,
    Message,
    RecordDict,
    UserConfigValue,
)
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from equipoise.simulations.wire_form import WireForm

RunConfig = Mapping[str, UserConfigValue]
FailureHook = Callable[[str, Exception], None]


def node_id(site: str) -> int:
    """Node id of a site: the same in every run, 63 bits, apart from the SuperLink's own."""
    return int.from_bytes(hashlib.sha256(site.encode()).digest()[:8], "big") >> 1 | 2


@contextmanager
def task_identity(run_id: int) -> Iterator[None]:
    """Let messages be made outside a Flower process, where Flower raises `TaskIdentity.run_id is not set`."""
    before = (TaskIdentity._run_id, TaskIdentity._task_id, TaskIdentity._node_id)
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, 1, SUPERLINK_NODE_ID
    try:
        yield
    finally:
        TaskIdentity._run_id, TaskIdentity._task_id, TaskIdentity._node_id = before


class InProcessGrid(Grid):
    """A grid of sites in this process; close it, or use it in a `with`, to end its threads.

    Attributes:
        bytes_down: bytes of the messages to each site in Flower's protobuf.
        bytes_up: bytes of the replies of each site, likewise.
    """

    def __init__(
        self,
        client_app: ClientApp,
        sites: Sequence[str],
        *,
        run_config: RunConfig | None = None,
        workers: int = 1,
        run_id: int = 1,
        on_failure: FailureHook | None = None,
    ) -> None:
        """A grid of `sites`, each of which runs `client_app`.

        Args:
            client_app: the stub, as a SuperNode would run it.
            sites: names, each once; a node's configuration is `{"site": name}`.
            run_config: the run's configuration, as the sites see it.
            workers: sites that work at the same time, each with one torch thread.
            run_id: Flower's number of the run.
            on_failure: told the site and the exception where the ClientApp raises; the reply says only that it did.

        Raises:
            ValueError: a site is named twice, or there is no worker.
        """
        if workers < 1:
            raise ValueError(f"workers={workers}: at least one is needed")
        self._sites = {node_id(site): site for site in sites}
        if len(self._sites) != len(sites):
            raise ValueError("sites: a name is given twice")
        self._client_app = client_app
        self._workers = workers
        self._on_failure = on_failure
        self._run = Run.create_empty(run_id)
        self._contexts = {
            node: Context(
                run_id=run_id,
                node_id=node,
                node_config={"site": site},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for node, site in self._sites.items()
        }
        self._queue: dict[str, Message] = {}  # pushed, not begun
        self._working: dict[str, Future[Message]] = {}  # begun, not handed out
        self._busy: set[int] = set()
        self._seconds: dict[str, float] = {}
        self._pushed = 0
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="site")
        self.bytes_down: Counter[str] = Counter()
        self.bytes_up: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop what is queued and end the threads."""
        self._queue.clear()
        self._threads.shutdown(cancel_futures=True)

    @property
    def run(self) -> Run:
        """A copy of the run's description."""
        return Run(**vars(self._run))

    def set_run(self, run: Run) -> None:
        """Set the run's description."""
        if not isinstance(run, Run):
            raise TypeError(f"run must be a Run, got {type(run).__name__}")
        self._run = run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A new message; Flower's older way to call `Message`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Node ids in the order of the sites."""
        return list(self._sites)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages without a copy; what they hold must not change until their replies are pulled.

        Raises:
            ValueError: a message is for a node that is not in this grid.
        """
        ids = []
        for message in messages:
            if message.metadata.dst_node_id not in self._sites:
                raise ValueError(f"node {message.metadata.dst_node_id} is not in this grid")
            self._pushed += 1
            message_id = f"{self._pushed:032x}"
            message.metadata.__dict__["_message_id"] = message_id
            self._queue[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let sites work until at least one of `message_ids` has its reply; empty where none is left."""
        wanted = list(message_ids)
        self._begin(wanted)
        working = [self._working[message_id] for message_id in wanted if message_id in self._working]
        if not working:
            return []
        wait(working, return_when=FIRST_COMPLETED)
        done = [message_id for message_id in wanted if message_id in self._working and self._working[message_id].done()]
        return [self._hand_out(message_id) for message_id in done]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, then pull until all replies are there or `timeout` seconds have passed; a list, as Flower returns."""
        end = None if timeout is None else time.monotonic() + timeout
        missing = set(self.push_messages(messages))
        replies: list[Message] = []
        while missing and (end is None or time.monotonic() < end):
            arrived = list(self.pull_messages(sorted(missing)))
            for reply in arrived:
                missing.discard(reply.metadata.reply_to_message_id)
                self.work_seconds(reply.metadata.reply_to_message_id)
            replies += arrived
        self.discard(missing)
        return replies

    def work_seconds(self, message_id: str) -> float:
        """Seconds that the site worked on a message whose reply has been pulled; told once."""
        return self._seconds.pop(message_id)

    def discard(self, message_ids: Iterable[str]) -> None:
        """Drop messages that no site has begun to work on."""
        for message_id in message_ids:
            self._queue.pop(message_id, None)

    def _begin(self, wanted: Sequence[str]) -> None:
        """Start queued messages while a worker is free; a site works on one message at a time, as a SuperNode does."""
        for message_id in wanted:
            if len(self._working) >= self._workers:
                return
            message = self._queue.get(message_id)
            if message is not None and message.metadata.dst_node_id not in self._busy:
                del self._queue[message_id]
                self._busy.add(message.metadata.dst_node_id)
                self._working[message_id] = self._threads.submit(self._work, message)

    def _hand_out(self, message_id: str) -> Message:
        future = self._working.pop(message_id)
        reply = future.result()
        self._busy.discard(reply.metadata.src_node_id)
        return reply

    def _work(self, message: Message) -> Message:
        """One message at its site, in a worker thread; each form of a payload goes as soon as the next is there."""
        started = time.perf_counter()
        _one_torch_thread()
        node, message_id = message.metadata.dst_node_id, message.metadata.message_id
        site = self._sites[node]
        wire = WireForm.of(message)
        del message
        self.bytes_down[site] += wire.size
        received = wire.message()
        try:
            reply = self._client_app(received, self._contexts[node])
            reply.metadata.__dict__["_message_id"] = f"reply-{message_id}"
            wire = WireForm.of(reply)
        except Exception as error:  # as Flower does, but without the exception's text
            if self._on_failure is not None:
                self._on_failure(site, error)
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), reply_to=received)
            wire = WireForm.of(reply)
        del received, reply
        self.bytes_up[site] += wire.size
        arrived = wire.message()
        self._seconds[message_id] = time.perf_counter() - started
        return arrived


def run_in_process(
    server_app: ServerApp,
    client_app: ClientApp,
    sites: Sequence[str],
    run_config: RunConfig,
    *,
    workers: int = 1,
    on_failure: FailureHook | None = None,
) -> InProcessGrid:
    """Run a ServerApp against `sites` in this process; what it raises is raised here.

    Args:
        server_app: the coordinator.
        client_app: the stub; the doors it finds must have been registered.
        sites: names of the sites.
        run_config: the run's configuration, as ServerApp and sites see it.
        workers: sites that work at the same time.
        on_failure: see `InProcessGrid`.

    Returns:
        The closed grid, for its counts of bytes.
    """
    with InProcessGrid(client_app, sites, run_config=run_config, workers=workers, on_failure=on_failure) as grid:
        run_id = grid.run.run_id
        context = Context(
            run_id=run_id,
            node_id=SUPERLINK_NODE_ID,
            node_config={},
            state=RecordDict(),
            run_config=dict(run_config),
        )
        with task_identity(run_id):
            server_app(grid, context)
    return grid


def _one_torch_thread() -> None:
    """One intra-op thread in this worker, so that sums do not depend on the number of workers or cores."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
