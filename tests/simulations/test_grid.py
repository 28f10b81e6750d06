"""The in-process grid: real apps, real serialisation, lazily, in memory that does not grow with the sites."""

import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from equipoise.client import door
from equipoise.client.app import app as stub
from equipoise.envelope import RELEASE, get_bytes, put_bytes
from equipoise.simulations.grid import InProcessGrid, node_id, run_in_process, task_identity
from equipoise.simulations.wire_form import WireForm

SECRET = "/data/patient42/scan.png"


class Tail:
    """A toy door: the request's length, then its bytes reversed."""

    def __init__(self, site: str) -> None:
        self.site = site

    def answer(self, request: bytes) -> bytes:
        return f"{self.site}:{len(request)}:".encode() + request[::-1]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with task_identity(1):
        door.register_doors(Tail)
        yield
    door.forget_doors()


def letters(grid: Grid, request: bytes) -> list[Message]:
    content = put_bytes("request", request)
    return [Message(content, node, RELEASE) for node in grid.get_node_ids()]


def drain(grid: Grid, messages: list[Message]) -> Iterator[Message]:
    waiting = set(grid.push_messages(messages))
    while waiting:
        for reply in grid.pull_messages(sorted(waiting)):
            waiting.discard(reply.metadata.reply_to_message_id)
            yield reply


def one_action(work) -> ClientApp:  # type: ignore[no-untyped-def]
    client = ClientApp()
    client.query("release")(work)
    return client


def test_node_ids_come_from_the_names_alone() -> None:
    # SHA-256("a") begins ca978112ca1bbdca; its upper 63 bits, with bit 1 set so that it is neither 0 nor 1.
    assert node_id("a") == 0xCA978112CA1BBDCA >> 1 | 2
    with InProcessGrid(stub, ["b", "a"]) as grid:
        assert list(grid.get_node_ids()) == [node_id("b"), node_id("a")]
        assert [info.node_id for info in grid.get_nodes()] == [node_id("b"), node_id("a")]


def test_messages_are_serialised_both_ways_and_counted() -> None:
    request = bytes(1000)
    seen: list[Message] = []

    def work(message: Message, context: Context) -> Message:
        seen.append(message)
        return Message(put_bytes("reply", b"y" * 10), reply_to=message)

    with InProcessGrid(one_action(work), ["a"]) as grid:
        (message,) = letters(grid, request)
        vars(message)["aside"] = vars(message.content)["aside"] = "what Flower's protobuf does not carry"
        (reply,) = drain(grid, [message])
        assert get_bytes("request", seen[0].content) == request
        assert seen[0] is not message
        assert seen[0].content is not message.content
        assert not hasattr(seen[0], "aside")
        assert not hasattr(seen[0].content, "aside")
        record, sent = seen[0].content["equipoise"], message.content["equipoise"]
        assert record is not sent
        assert record["request"] is not sent["request"]
        assert grid.bytes_down == {"a": len(message_to_proto(message).SerializeToString())}
        assert grid.bytes_up == {"a": len(message_to_proto(reply).SerializeToString())}
        assert 1000 < grid.bytes_down["a"] < 1250
        assert 10 < grid.bytes_up["a"] < 350
        assert reply.metadata.src_node_id == node_id("a")
        assert reply.metadata.reply_to_message_id == message.metadata.message_id


def test_the_wire_form_is_flowers_own() -> None:
    records = RecordDict(
        {
            "arrays": ArrayRecord({"b": Array(np.arange(6.0).reshape(2, 3)), "a": Array("uint8", (0,), "s", b"")}),
            "metrics": MetricRecord({"m": [0.5, 2.0]}),
            "config": ConfigRecord({"t": "text", "b": b"\x00\xff", "n": 2**40}),
        }
    )
    ask = Message(records, node_id("a"), RELEASE, ttl=30.0, group_id="g")
    for message in (ask, Message(RecordDict(), reply_to=ask), Message(Error(5, "why"), reply_to=ask)):
        flowers_own = message_to_proto(message).SerializeToString()
        form = WireForm.of(message)
        assert form.size == len(flowers_own)
        assert message_to_proto(form.message()).SerializeToString() == flowers_own


def test_sites_work_only_while_replies_are_pulled() -> None:
    worked: list[str] = []

    def work(message: Message, context: Context) -> Message:
        worked.append(str(context.node_config["site"]))
        return Message(RecordDict(), reply_to=message)

    with InProcessGrid(one_action(work), ["a", "b", "c"]) as grid:
        ids = list(grid.push_messages(letters(grid, b"")))
        assert worked == []
        assert len(list(grid.pull_messages(ids))) == 1
        assert worked == ["a"]
        assert len(list(grid.pull_messages(ids[2:]))) == 1
        assert worked == ["a", "c"]
        grid.discard(ids)
        assert list(grid.pull_messages(ids)) == []
        assert worked == ["a", "c"]


def peak_of(sites: int, workers: int, request: bytes) -> int:
    names = [f"site{i:03d}" for i in range(sites)]
    with InProcessGrid(stub, names, workers=workers) as grid:
        tracemalloc.start()
        try:
            for reply in drain(grid, letters(grid, request)):
                assert len(get_bytes("reply", reply.content)) > len(request)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("workers", [1, 2])
def test_memory_is_flat_in_the_number_of_sites(workers: int) -> None:
    request = bytes(2**20)
    few, many = peak_of(10, workers, request), peak_of(200, workers, request)
    # A payload has a handful of forms while its site works; 190 more sites may not add one of them.
    assert max(few, many) < (5 * workers + 2) * 2**20, (few, many)


def test_one_and_two_workers_give_the_same_replies_and_bytes() -> None:
    names = [f"site{i}" for i in range(25)]
    seen = []
    for workers in (1, 2):
        with InProcessGrid(stub, names, workers=workers) as grid:
            arrived = drain(grid, letters(grid, b"abc"))
            replies = {reply.metadata.src_node_id: get_bytes("reply", reply.content) for reply in arrived}
            seen.append((replies, dict(grid.bytes_down), dict(grid.bytes_up)))
    assert seen[0] == seen[1]
    assert seen[0][0][node_id("site3")] == b"site3:3:cba"


@pytest.mark.parametrize("workers", [1, 2])
def test_as_many_sites_work_together_as_there_are_workers(workers: int) -> None:
    together, active, lock = 0, 0, threading.Lock()

    def work(message: Message, context: Context) -> Message:
        nonlocal together, active
        with lock:
            active += 1
            together = max(together, active)
        time.sleep(0.02)
        with lock:
            active -= 1
        return Message(RecordDict(), reply_to=message)

    with InProcessGrid(one_action(work), ["a", "b", "c", "d"], workers=workers) as grid:
        assert len(list(drain(grid, letters(grid, b"")))) == 4
    assert together == workers


def test_a_site_works_on_one_message_at_a_time_and_keeps_its_state() -> None:
    active: list[str] = []

    def work(message: Message, context: Context) -> Message:
        assert not active
        active.append("busy")
        count = int(context.state.config_records.get("n", ConfigRecord({"n": 0}))["n"]) + 1  # type: ignore[arg-type]
        context.state["n"] = ConfigRecord({"n": count})
        time.sleep(0.01)
        active.pop()
        return Message(RecordDict({"n": ConfigRecord({"n": count})}), reply_to=message)

    with InProcessGrid(one_action(work), ["a"], workers=2) as grid:
        messages = [Message(RecordDict(), node_id("a"), RELEASE) for _ in range(3)]
        counts = [reply.content.config_records["n"]["n"] for reply in drain(grid, messages)]
    assert counts == [1, 2, 3]


@pytest.mark.parametrize("workers", [1, 2])
def test_each_worker_has_one_torch_thread_and_the_server_keeps_its_own(workers: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:

        def work(message: Message, context: Context) -> Message:
            threads = ConfigRecord({"threads": torch.get_num_threads()})
            return Message(RecordDict({"t": threads}), reply_to=message)

        with InProcessGrid(one_action(work), ["a", "b", "c"], workers=workers) as grid:
            replies = list(drain(grid, letters(grid, b"")))
        assert [reply.content.config_records["t"]["threads"] for reply in replies] == [1, 1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("broken", ["raises", "answers nothing"])
def test_a_client_that_raises_becomes_an_error_without_text(broken: str) -> None:
    def work(message: Message, context: Context) -> Message:
        if context.node_config["site"] == "b":
            if broken == "raises":
                raise OSError(2, "No such file", SECRET)
            return None  # type: ignore[return-value]
        return Message(RecordDict(), reply_to=message)

    failures: list[tuple[str, str]] = []
    with InProcessGrid(
        one_action(work), ["a", "b", "c"], on_failure=lambda site, error: failures.append((site, type(error).__name__))
    ) as grid:
        replies = {reply.metadata.src_node_id: reply for reply in drain(grid, letters(grid, b""))}
    assert [replies[node_id(site)].has_error() for site in "abc"] == [False, True, False]
    assert replies[node_id("b")].error.code == 2
    assert b"patient42" not in message_to_proto(replies[node_id("b")]).SerializeToString()
    assert failures == [("b", "FileNotFoundError" if broken == "raises" else "AttributeError")]


def test_send_and_receive_returns_all_or_what_is_there_in_time() -> None:
    with InProcessGrid(stub, ["a", "b", "c"]) as grid:
        assert len(list(grid.send_and_receive(letters(grid, b"")))) == 3
        assert list(grid.send_and_receive(letters(grid, b""), timeout=0.0)) == []


def test_the_interface_of_a_grid() -> None:
    with InProcessGrid(stub, ["a"], run_id=9) as grid:
        assert grid.run.run_id == 9
        grid.set_run(Run.create_empty(11))
        grid.run.run_id = 12
        assert grid.run.run_id == 11
        with pytest.raises(TypeError, match="int"):
            grid.set_run(3)  # type: ignore[arg-type]
        message = grid.create_message(RecordDict(), RELEASE, node_id("a"), "round-1")
        assert message.metadata.group_id == "round-1"
        with pytest.raises(ValueError, match="node 5"):
            grid.push_messages([Message(RecordDict(), 5, RELEASE)])
    with pytest.raises(ValueError, match="twice"):
        InProcessGrid(stub, ["a", "a"])
    with pytest.raises(ValueError, match="workers=0"):
        InProcessGrid(stub, ["a"], workers=0)


def test_the_identity_is_set_and_given_back() -> None:
    with task_identity(5):
        assert TaskIdentity.run_id == 5
        with task_identity(6):
            assert Message(RecordDict(), 2, RELEASE).metadata.run_id == 6
        assert TaskIdentity.run_id == 5
        with pytest.raises(KeyError), task_identity(8):
            raise KeyError
        assert TaskIdentity.run_id == 5


def test_run_in_process_runs_the_real_server_app() -> None:
    server = ServerApp()
    seen: dict[int, bytes] = {}

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        if context.run_config["fail"]:
            raise LookupError("the server's own error")
        for reply in grid.send_and_receive(letters(grid, b"abc")):
            seen[reply.metadata.src_node_id] = get_bytes("reply", reply.content)

    grid = run_in_process(server, stub, ["a", "b"], {"fail": False}, workers=2)
    assert seen == {node_id("a"): b"a:3:cba", node_id("b"): b"b:3:cba"}
    assert set(grid.bytes_down) == {"a", "b"}
    with pytest.raises(LookupError, match="own error"):
        run_in_process(server, stub, ["a", "b"], {"fail": True})


def test_the_grid_itself_loads_no_ray() -> None:
    assert "ray" not in sys.modules
