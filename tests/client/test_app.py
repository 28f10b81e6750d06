"""The ClientApp stub: bytes through the door, and nothing but a code when something fails."""

import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from equipoise import __version__
from equipoise.client import door
from equipoise.client.app import app
from equipoise.common.errors import RefusedError, StudyError
from equipoise.envelope import HELLO, RELEASE, get_bytes, get_code, get_hello, put_bytes
from equipoise.simulations.grid import task_identity

SECRET = "/data/patient42/scan.png"
"""A path that must never be in a reply."""


class Echo:
    """A toy door."""

    def answer(self, request: bytes) -> bytes:
        return b"echo " + request


class Broken:
    """A door that fails with `error`."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def answer(self, request: bytes) -> bytes:
        raise self.error


def make_echo(site: str, greeting: str) -> door.Door:
    """A factory that a node's configuration can name."""
    return SimpleNamespace(answer=lambda request: f"{greeting} {site} ".encode() + request)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with task_identity(7):
        yield
    door.forget_doors()


def send(content: RecordDict, message_type: str = RELEASE, **node_config: str) -> Message:
    message = Message(content, 5, message_type)
    context = Context(7, 5, dict(node_config), RecordDict(), {})
    return app(message, context)


@pytest.mark.parametrize("request_bytes", [b"", b"\x00\xff", bytes(range(256)) * 100])
def test_bytes_go_through_the_door_unchanged(request_bytes: bytes) -> None:
    door.register_doors(lambda site: Echo())
    reply = send(put_bytes("request", request_bytes), site="a")
    assert get_bytes("reply", reply.content) == b"echo " + request_bytes
    assert get_code(reply.content) is None
    assert reply.metadata.message_type == RELEASE


def test_a_door_is_opened_once_a_site_and_stays() -> None:
    opened: list[str] = []

    def factory(site: str) -> door.Door:
        opened.append(site)
        return Echo()

    door.register_doors(factory)
    for site in ("a", "b", "a", "b"):
        send(put_bytes("request", b"x"), site=site)
    assert opened == ["a", "b"]


class LoudError(RefusedError):
    """An error whose instance carries text where its class has a code."""


def loud() -> LoudError:
    error = LoudError(f"row 3 of {SECRET}")
    error.code = SECRET
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RefusedError(f"epsilon 3 of {SECRET}"), "refused"),
        (FileNotFoundError(2, "No such file", SECRET), "internal"),
        (loud(), "refused"),
        (RecursionError(SECRET), "internal"),
        (MemoryError(SECRET), "internal"),
        (type("SecretPath", (Exception,), {"code": SECRET})(SECRET), "internal"),
    ],
)
def test_only_a_code_of_a_failure_leaves(error: Exception, code: str) -> None:
    seen: list[tuple[str, Exception]] = []
    door.register_doors(lambda site: Broken(error), on_failure=lambda site, cause: seen.append((site, cause)))
    reply = send(put_bytes("request", b"x"), site="a")
    assert get_code(reply.content) == code
    assert not reply.has_error()
    wire = message_to_proto(reply).SerializeToString()
    for word in (b"patient42", b"row 3", b"Traceback", b"SecretPath", b"epsilon"):
        assert word not in wire
    assert seen == [("a", error)]


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"equipoise": ConfigRecord({"request": b"x"})}),
        put_bytes("reply", b"x"),
        RecordDict({"equipoise": ArrayRecord({"request": Array("uint8", (9,), "equipoise.bytes", b"x")})}),
        RecordDict({"equipoise": ArrayRecord({"request": Array("uint8", (1,), "numpy.ndarray", b"x")})}),
    ],
)
def test_a_malformed_request_never_reaches_the_door(content: RecordDict) -> None:
    seen: list[Exception] = []
    door.register_doors(lambda site: Echo(), on_failure=lambda site, error: seen.append(error))
    assert get_code(send(content, site="a").content) == "internal"
    assert [type(error) for error in seen] == [ValueError]


def test_a_door_that_answers_no_bytes_is_a_failure() -> None:
    door.register_doors(lambda site: SimpleNamespace(answer=lambda request: SECRET))
    assert get_code(send(put_bytes("request", b"x"), site="a").content) == "internal"


def test_without_a_site_or_a_door_the_code_is_study() -> None:
    assert get_code(send(put_bytes("request", b"x"), site="a").content) == "study"
    door.register_doors(lambda site: Echo())
    assert get_code(send(put_bytes("request", b"x")).content) == "study"
    assert get_code(send(RecordDict(), HELLO).content) == "study"


def test_hello_names_site_and_version_and_opens_no_door() -> None:
    door.register_doors(lambda site: pytest.fail("hello opened the door"))
    assert get_hello(send(RecordDict(), HELLO, site="st-marys").content) == ("st-marys", __version__)


@pytest.mark.parametrize("site", ["", "../etc", "A B", "x" * 65])
def test_a_name_that_is_no_sites_is_not_taken(site: str) -> None:
    content = RecordDict({"equipoise": ConfigRecord({"site": site, "version": "0"})})
    with pytest.raises(ValueError, match="name of a site"):
        get_hello(content)


def test_a_door_can_be_named_by_the_nodes_configuration() -> None:
    config = {"site": "a", "door-factory": f"{__name__}:make_echo", "door-arguments": '{"greeting": "hi"}'}
    assert get_bytes("reply", send(put_bytes("request", b"x"), **config).content) == b"hi a x"
    first = door.open_door(config)
    assert door.open_door(config) is first


@pytest.mark.parametrize("reference", ["json", "json:nothing", "no_such_module:f"])
def test_a_door_factory_that_does_not_exist_is_one_line(reference: str) -> None:
    with pytest.raises(StudyError, match="door-factory="):
        door.open_door({"site": "a", "door-factory": reference})


def test_the_stub_needs_no_torch_and_no_server() -> None:
    code = (
        "import sys, equipoise.client.app\n"
        "loaded = {m for m in sys.modules if m.split('.')[0] in ('torch', 'ray', 'opacus', 'safetensors')}\n"
        "loaded |= {m for m in sys.modules if m.startswith(('equipoise.server', 'equipoise.simulations'))}\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("data", [b"", b"x", bytes(12 * 2**20), bytes(range(256)) * 2**15])
def test_bytes_survive_the_chunks_of_a_deployment(data: bytes) -> None:
    message = Message(put_bytes("request", data), 5, RELEASE)
    objects = get_all_nested_objects(message)
    arrived = inflate_object_from_contents(message.object_id, {key: item.deflate() for key, item in objects.items()})
    assert isinstance(arrived, Message)
    assert get_bytes("request", arrived.content) == data
