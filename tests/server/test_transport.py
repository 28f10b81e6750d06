"""Requests and replies over any grid: quorum, deadlines, lost sites, and codes in place of texts."""

import gc
import time
from collections.abc import Callable, Iterable, Iterator

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from equipoise import __version__
from equipoise.client import door
from equipoise.client.app import app as stub
from equipoise.common.errors import QuorumError, RefusedError
from equipoise.envelope import HELLO, get_bytes, put_hello
from equipoise.server.exchange import LocalGrid
from equipoise.server.transport import Reply, Transport
from equipoise.simulations.grid import InProcessGrid, node_id, task_identity

SECRET = "/data/patient42/scan.png"
COUNTS = {"a": 3, "b": 5, "c": 11}


class Count:
    """A toy door: the site's count times the number in the request."""

    def __init__(self, site: str) -> None:
        self.site = site

    def answer(self, request: bytes) -> bytes:
        if request == b"refuse":
            raise RefusedError(f"{SECRET} is beyond the policy")
        if request == b"fail":
            raise OSError(2, "No such file", SECRET)
        if request.startswith(b"sleep "):
            time.sleep(float(request[6:]))
            return b"awake"
        return str(COUNTS[self.site] * int(request)).encode()


class RemoteGrid(Grid):
    """An in-process grid behind the manners of a remote one: it takes lists alone, walks over them twice, knows no
    working time, brings nothing at the first `delay` looks, and may lose, refuse, repeat or add messages."""

    def __init__(self, inner: InProcessGrid, *, delay: int = 0) -> None:
        self.inner = inner
        self.delay = delay
        self.pulls = 0
        self.largest_pull = 0
        self.absent: set[int] = set()  # nodes that do not show up yet
        self.silent: set[int] = set()  # nodes that never answer
        self.dead: set[int] = set()  # nodes that the SuperLink reports as lost
        self.refused: set[int] = set()  # nodes for which no message is taken
        self.extra: list[Message] = []
        self.node_of: dict[str, int] = {}
        self.pushed: list[Message] = []

    @property
    def run(self) -> Run:
        return self.inner.run

    def set_run(self, run: Run) -> None:
        self.inner.set_run(run)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self.inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise AssertionError("the transport waits by itself")

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in self.inner.get_node_ids() if node not in self.absent]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        assert isinstance(messages, list)
        self.pushed += messages
        ids: list[str | None] = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = "unsent"
            if message.metadata.dst_node_id in self.refused:
                ids.append(None)
            else:
                ids += self.inner.push_messages([message])
                self.node_of[message.metadata.message_id] = message.metadata.dst_node_id
        return ids  # type: ignore[return-value]  # as Flower's own grid does

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = list(message_ids)
        self.pulls += 1
        self.largest_pull = max(self.largest_pull, len(wanted))
        if self.pulls <= self.delay:
            return []
        replies = [lost(i, ErrorCode.NODE_UNAVAILABLE) for i in wanted if self.node_of[i] in self.dead]
        alive = [i for i in wanted if self.node_of[i] not in self.dead | self.silent]
        while arrived := list(self.inner.pull_messages(alive)):
            replies += arrived
        return replies + self.extra


def lost(message_id: str, code: int) -> Message:
    """What a SuperLink says for a node: an error from itself (node 1), with a text."""
    reply = Message(RecordDict(), SUPERLINK_NODE_ID, HELLO)
    reply = Message(Error(code, reason=SECRET), reply_to=reply)
    reply.metadata.__dict__.update(_src_node_id=SUPERLINK_NODE_ID, _reply_to_message_id=message_id)
    return reply


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with task_identity(1):
        door.register_doors(Count)
        yield
    door.forget_doors()


@pytest.fixture(params=["local", "remote"])
def grid(request: pytest.FixtureRequest) -> Iterator[Grid]:
    with InProcessGrid(stub, ["c", "a", "b"]) as inner:
        yield inner if request.param == "local" else RemoteGrid(inner)


@pytest.fixture
def remote() -> Iterator[RemoteGrid]:
    with InProcessGrid(stub, ["c", "a", "b"]) as inner:
        yield RemoteGrid(inner)


def by_site(replies: Iterable[Reply]) -> dict[str, Reply]:
    listed = list(replies)
    assert len({reply.site for reply in listed}) == len(listed)
    return {reply.site: reply for reply in listed}


def outcomes(replies: Iterable[Reply]) -> dict[str, bytes | str | None]:
    found = by_site(replies)
    assert all((reply.payload is None) != (reply.code is None) for reply in found.values())
    return {site: reply.code if reply.payload is None else reply.payload for site, reply in found.items()}


def test_which_grids_are_local(grid: Grid) -> None:
    assert isinstance(grid, LocalGrid) == isinstance(grid, InProcessGrid)


def test_sites_are_found_by_name_and_answer(grid: Grid) -> None:
    transport = Transport(grid)
    assert list(transport.connect(["b", "a", "c"], 5).items()) == [(s, node_id(s)) for s in "abc"]
    replies = by_site(transport.ask({"a": b"2", "b": b"2", "c": b"10"}, 5))
    assert {site: reply.payload for site, reply in replies.items()} == {"a": b"6", "b": b"10", "c": b"110"}
    assert {site: (reply.bytes_down, reply.bytes_up) for site, reply in replies.items()} == {
        "a": (1, 1),
        "b": (1, 2),
        "c": (2, 3),
    }
    assert all(0 < reply.seconds < 5 for reply in replies.values())


def test_the_sites_of_the_study_alone_are_taken(grid: Grid) -> None:
    transport = Transport(grid)
    assert set(transport.connect(["a", "c"], 5)) == {"a", "c"}
    with pytest.raises(ValueError, match="site d is not connected"):
        transport.ask({"a": b"1", "d": b"1"}, 5)


def test_missing_sites_are_named_in_one_line(grid: Grid) -> None:
    with pytest.raises(QuorumError) as caught:
        Transport(grid).connect(["a", "north", "b", "south"], 0.2)
    assert str(caught.value) == "2 of 4 sites did not connect within 0.2 s: north, south"


def test_a_local_grid_is_not_waited_for_in_vain() -> None:
    with InProcessGrid(stub, ["a"]) as grid:
        started = time.monotonic()
        with pytest.raises(QuorumError, match="b"):
            Transport(grid).connect(["a", "b"], 60)
        assert time.monotonic() - started < 5


def test_a_site_that_comes_later_is_waited_for(remote: RemoteGrid) -> None:
    remote.absent = {node_id("b")}
    listed = remote.get_node_ids
    looks = 0

    def get_node_ids() -> Iterable[int]:
        nonlocal looks
        looks += 1
        if looks == 4:
            remote.absent.clear()
        return listed()

    remote.get_node_ids = get_node_ids  # type: ignore[method-assign]
    assert set(Transport(remote).connect(["a", "b", "c"], 10)) == {"a", "b", "c"}
    assert looks >= 4


def hello_app(answer: Callable[[str], tuple[str, str]]) -> ClientApp:
    client = ClientApp()

    @client.query("hello")
    def hello(message: Message, context: Context) -> Message:
        return Message(put_hello(*answer(str(context.node_config["site"]))), reply_to=message)

    return client


def test_another_version_and_a_name_claimed_twice_end_the_run() -> None:
    old = InProcessGrid(hello_app(lambda site: (site, "9.9")), ["a"])
    with old, pytest.raises(QuorumError, match=r"site a runs equipoise '9\.9', the server '"):
        Transport(old).connect(["a"], 5)
    twins = InProcessGrid(hello_app(lambda site: ("same", __version__)), ["a", "b"])
    with twins, pytest.raises(QuorumError, match="site same is claimed by two nodes"):
        Transport(twins).connect(["same", "other"], 5)


@pytest.fixture(params=[None, {site: node_id(site) for site in "abz"}], ids=["simulated", "enrolled"])
def enrolled(request: pytest.FixtureRequest) -> dict[str, int] | None:
    found: dict[str, int] | None = request.param
    return found


def test_what_a_node_outside_the_study_runs_ends_no_run(enrolled: dict[str, int] | None) -> None:
    app = hello_app(lambda site: (site, "9.9" if site == "z" else __version__))
    for order in ("zab", "abz"):
        with InProcessGrid(app, list(order)) as grid:
            assert set(Transport(grid).connect("ab", 5, enrolled=enrolled)) == {"a", "b"}
    with InProcessGrid(app, ["z", "a"]) as grid, pytest.raises(QuorumError, match=r"did not connect within 5 s: b$"):
        Transport(grid).connect("ab", 5, enrolled=enrolled)


@pytest.mark.parametrize("there", ["zab", "zb"], ids=["beside it", "in its place"])
def test_a_node_outside_the_study_gets_no_place_under_a_sites_name(there: str) -> None:
    enrolled = {site: node_id(site) for site in "abz"}
    with InProcessGrid(hello_app(lambda site: ("a" if site == "z" else site, __version__)), list(there)) as grid:
        nodes = Transport(grid).connect("ab", 5, least=1, enrolled=enrolled)
    assert nodes == {site: enrolled[site] for site in "ab" if site in there}


def test_an_enrolled_site_under_the_name_of_another_is_refused_by_its_own() -> None:
    enrolled = {site: node_id(site) for site in "ab"}
    grid = InProcessGrid(hello_app(lambda site: ("a", __version__)), ["a", "b"])
    with grid, pytest.raises(QuorumError, match="the node that is enrolled as site b says that it is a; connect the"):
        Transport(grid).connect("ab", 5, enrolled=enrolled)


def test_nobody_but_the_studys_own_nodes_is_asked_who_it_is() -> None:
    asked: list[str] = []
    app = hello_app(lambda site: (asked.append(site) or site, __version__))  # type: ignore[func-returns-value]
    with InProcessGrid(app, ["z", "a", "b"]) as grid:
        Transport(grid).connect("ab", 5, enrolled={site: node_id(site) for site in "abz"})
    assert asked == ["a", "b"]


def test_a_site_that_is_enrolled_no_more_did_not_connect(grid: Grid) -> None:
    with pytest.raises(QuorumError, match=r"1 of 2 sites did not connect within 0\.2 s: b$"):
        Transport(grid).connect("ab", 0.2, enrolled={"a": node_id("a")})


def test_a_node_that_cannot_say_who_it_is_is_reported_by_code() -> None:
    client = ClientApp()

    @client.query("hello")
    def hello(message: Message, context: Context) -> Message:
        if context.node_config["site"] == "a":
            raise OSError(SECRET)
        return Message(RecordDict({"x": ConfigRecord({"site": SECRET})}), reply_to=message)

    for site in ("a", "b"):
        with InProcessGrid(client, [site]) as grid:
            with pytest.raises(QuorumError) as caught:
                Transport(grid).connect([site], 5)
            assert str(caught.value).endswith("(a node answered internal)")


def test_a_node_that_is_gone_is_a_site_that_did_not_connect_and_no_answer(remote: RemoteGrid) -> None:
    remote.dead = {node_id("b")}
    with pytest.raises(QuorumError, match=r"did not connect within 0\.2 s: b$"):
        Transport(remote).connect(["a", "b", "c"], 0.2)


def test_codes_carry_no_text(grid: Grid) -> None:
    transport = Transport(grid)
    transport.connect(COUNTS, 5)
    replies = by_site(transport.ask({"a": b"refuse", "b": b"fail", "c": b"1"}, 5))
    assert outcomes(replies.values()) == {"a": "refused", "b": "internal", "c": b"11"}
    assert "patient42" not in repr(replies)


def test_a_stub_that_raises_loses_only_its_site() -> None:
    client = ClientApp()
    client.query("hello")(stub._registered_funcs["query.hello"])

    @client.query("release")
    def release(message: Message, context: Context) -> Message:
        if context.node_config["site"] == "b":
            raise OSError(2, "No such file", SECRET)
        return stub(message, context)

    with InProcessGrid(client, ["a", "b"]) as grid:
        transport = Transport(grid)
        transport.connect(["a", "b"], 5)
        assert outcomes(transport.ask({"a": b"1", "b": b"1"}, 5)) == {"a": b"3", "b": "internal"}


@pytest.mark.parametrize("code", [SECRET, "Refused", "x" * 33, "", 7, b"refused", ["refused"]])
def test_a_code_that_a_site_made_up_is_not_shown(code: str) -> None:
    client = ClientApp()
    client.query("hello")(stub._registered_funcs["query.hello"])

    @client.query("release")
    def release(message: Message, context: Context) -> Message:
        return Message(RecordDict({"equipoise": ConfigRecord({"code": code})}), reply_to=message)

    with InProcessGrid(client, ["a"]) as grid:
        transport = Transport(grid)
        transport.connect(["a"], 5)
        assert outcomes(transport.ask({"a": b"1"}, 5)) == {"a": "internal"}


def test_a_quick_site_is_not_held_up_by_a_slow_one() -> None:
    with InProcessGrid(stub, ["a", "b"], workers=2) as grid:
        transport = Transport(grid)
        transport.connect(["a", "b"], 5)
        started = time.monotonic()
        replies = transport.ask({"a": b"sleep 0.3", "b": b"1"}, 5)
        assert next(replies).site == "b"
        assert time.monotonic() - started < 0.2
        assert next(replies).payload == b"awake"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_slow_local_site_is_late_and_the_queue_behind_it_is_not(workers: int) -> None:
    with InProcessGrid(stub, ["a", "b", "c"], workers=workers) as grid:
        transport = Transport(grid)
        transport.connect(COUNTS, 5)
        replies = by_site(transport.ask({"a": b"sleep 0.3", "b": b"1", "c": b"sleep 0.15"}, 0.2))
    assert outcomes(replies.values()) == {"a": "timeout", "b": b"5", "c": b"awake"}
    assert replies["a"].seconds >= 0.3


def test_a_silent_a_dead_and_a_refused_site_are_lost_within_the_deadline(remote: RemoteGrid) -> None:
    transport = Transport(remote)
    transport.connect(COUNTS, 5)
    remote.silent, remote.dead = {node_id("a")}, {node_id("b")}
    started = time.monotonic()
    replies = by_site(transport.ask(dict.fromkeys("abc", b"1"), 0.3))
    assert 0.3 <= time.monotonic() - started < 1.5
    assert outcomes(replies.values()) == {"a": "timeout", "b": "timeout", "c": b"11"}
    assert "patient42" not in repr(replies)
    remote.silent, remote.dead, remote.refused = set(), set(), {node_id("c")}
    assert outcomes(transport.ask(dict.fromkeys("abc", b"1"), 0.3)) == {"a": b"3", "b": b"5", "c": "timeout"}


def test_a_lost_site_that_comes_back_is_asked_again_with_the_same_request(remote: RemoteGrid) -> None:
    transport = Transport(remote, ask_again_after_s=0.05)
    transport.connect(COUNTS, 5)
    remote.dead = {node_id("b")}
    pull = remote.pull_messages
    looks = 0

    def pull_and_heal(message_ids: Iterable[str]) -> Iterable[Message]:
        nonlocal looks
        looks += 1
        replies = list(pull(message_ids))
        if looks == 2:
            remote.dead = set()
        return replies

    remote.pull_messages = pull_and_heal  # type: ignore[method-assign]
    sent = len(remote.pushed)
    assert outcomes(transport.ask(dict.fromkeys("abc", b"1"), 10)) == {"a": b"3", "b": b"5", "c": b"11"}
    to_b = [m for m in remote.pushed[sent:] if m.metadata.dst_node_id == node_id("b")]
    assert len(to_b) >= 2
    assert len({get_bytes("request", message.content) for message in to_b}) == 1


def test_a_site_that_stayed_lost_costs_one_deadline_and_not_one_a_release(remote: RemoteGrid) -> None:
    transport = Transport(remote, ask_again_after_s=0.05)
    transport.connect(COUNTS, 5)
    remote.dead = {node_id("b")}
    assert outcomes(transport.ask(dict.fromkeys("abc", b"1"), 0.3))["b"] == "timeout"
    started = time.monotonic()
    assert outcomes(transport.ask(dict.fromkeys("abc", b"1"), 30))["b"] == "timeout"
    assert time.monotonic() - started < 5
    remote.dead = set()
    assert outcomes(transport.ask(dict.fromkeys("abc", b"1"), 5))["b"] == b"5"


def test_enough_sites_are_enough_once_the_time_is_over(remote: RemoteGrid) -> None:
    remote.absent = {node_id("b")}
    transport = Transport(remote)
    assert set(transport.connect(["a", "b", "c"], 0.2, least=2)) == {"a", "c"}
    with pytest.raises(QuorumError, match=r"did not connect within 0\.2 s: b"):
        Transport(remote).connect(["a", "b", "c"], 0.2, least=3)


def test_a_late_reply_of_an_earlier_request_is_never_taken_for_a_new_one(remote: RemoteGrid) -> None:
    transport = Transport(remote)
    transport.connect(COUNTS, 5)
    remote.silent = {node_id("a")}
    assert outcomes(transport.ask({"a": b"1"}, 0.1)) == {"a": "timeout"}
    remote.silent = set()
    late = list(remote.inner.pull_messages([remote.pushed[-1].metadata.message_id]))
    assert len(late) == 1
    remote.extra = late * 2
    assert outcomes(transport.ask({"a": b"100"}, 5)) == {"a": b"300"}


def test_a_repeated_reply_counts_once(remote: RemoteGrid) -> None:
    transport = Transport(remote)
    transport.connect(COUNTS, 5)
    pull = remote.pull_messages

    def pull_twice(message_ids: Iterable[str]) -> Iterable[Message]:
        return [message for message in pull(message_ids) for _ in range(2)]

    remote.pull_messages = pull_twice  # type: ignore[method-assign]
    assert [reply.site for reply in transport.ask({"a": b"1"}, 5)] == ["a"]


def test_replies_that_wait_while_the_server_is_busy_are_in_time(remote: RemoteGrid) -> None:
    transport = Transport(remote)
    transport.connect(COUNTS, 5)
    replies = transport.ask(dict.fromkeys("abc", b"1"), 0.1)
    time.sleep(0.2)
    assert outcomes(replies) == {"a": b"3", "b": b"5", "c": b"11"}


def test_the_polling_slows_down(remote: RemoteGrid) -> None:
    transport = Transport(remote)
    transport.connect(COUNTS, 5)
    remote.silent = {node_id("a")}
    remote.pulls = 0
    started = time.monotonic()
    list(transport.ask({"a": b"1"}, 1.0))
    assert time.monotonic() - started < 1.5
    # Pauses 0.02, 0.03, 0.045, ... up to 0.5 s: nine looks fit into a second, where 0.02 s alone would make fifty.
    assert 5 <= remote.pulls <= 10


def test_a_reply_beyond_the_limit_is_not_handed_on(grid: Grid) -> None:
    transport = Transport(grid, max_reply_bytes=2)
    transport.connect(COUNTS, 5)
    replies = by_site(transport.ask({"a": b"2", "b": b"2", "c": b"10"}, 5))
    assert outcomes(replies.values()) == {"a": b"6", "b": b"10", "c": "too_large"}
    assert replies["c"].bytes_up == 3


def test_one_request_for_all_sites_is_held_once(remote: RemoteGrid) -> None:
    transport = Transport(remote)
    transport.connect(COUNTS, 5)
    remote.pushed.clear()
    shared, own = b"1" * 3, b"2"
    list(transport.ask({"a": shared, "b": shared, "c": own}, 5))
    contents = [message.content for message in remote.pushed]
    assert contents[0] is contents[1]
    assert contents[0]["equipoise"]["request"].data is shared  # type: ignore[union-attr]
    assert contents[2]["equipoise"]["request"].data is own  # type: ignore[union-attr]


def test_a_reader_who_stops_leaves_nothing_queued() -> None:
    with InProcessGrid(stub, ["a", "b", "c"]) as grid:
        transport = Transport(grid)
        transport.connect(COUNTS, 5)
        replies = transport.ask(dict.fromkeys("abc", b"1"), 5)
        next(replies)
        assert len(grid._queue) == 2
        del replies
        gc.collect()
        assert not grid._queue


def test_a_closed_local_grid_ends_the_wait() -> None:
    with InProcessGrid(stub, ["a", "b"]) as grid:
        transport = Transport(grid)
        transport.connect(["a", "b"], 5)
        replies = transport.ask({"a": b"1", "b": b"1"}, 60)
        assert next(replies).payload == b"3"
    assert [reply.code for reply in replies] == ["timeout"]


def test_many_sites_are_pulled_in_batches_when_remote() -> None:
    names = [f"s{i:02d}" for i in range(40)]
    door.register_doors(lambda site: Count("a"))
    with InProcessGrid(stub, names) as inner:
        remote = RemoteGrid(inner, delay=2)
        transport = Transport(remote)
        assert list(transport.connect(names, 5)) == names
        assert outcomes(transport.ask(dict.fromkeys(names, b"1"), 5)) == dict.fromkeys(names, b"3")
        assert remote.largest_pull <= 8
