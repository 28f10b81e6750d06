"""The site agent's socket: bytes of any size pass, nothing else does; who may connect; what a failure tells a stub."""

import grp
import os
import socket as sockets
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID

from equipoise import __version__
from equipoise.client import site_agent_pb2 as pb
from equipoise.client.app import app as stub
from equipoise.client.chunks import CHUNK_BYTES, SERVICE, TooLargeError, joined, parts
from equipoise.client.service import serve
from equipoise.client.socket_door import SocketDoor
from equipoise.common.errors import StorageError, StudyError
from equipoise.envelope import HELLO, RELEASE, get_bytes, get_code, get_hello, put_bytes
from equipoise.simulations.grid import task_identity

ROOT = Path(__file__).parents[2]
SECRET = "/data/patient42.png"


class Mirror:
    """A door that gives the request back, turned round."""

    def answer(self, request: bytes) -> bytes:
        if request == b"fail":
            raise OSError(2, "No such file", SECRET)
        return request[::-1]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    socket = tmp_path / "door" / "a.sock"
    server = serve(Mirror(), "ash", socket, most_bytes=12 * 2**20)
    yield socket
    server.stop(None).wait()


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 11 * 2**20])
def test_bytes_of_any_size_pass(size: int, path: Path) -> None:
    request = (bytes(range(256)) * (size // 256 + 1))[:size]
    assert SocketDoor(str(path)).answer(request) == request[::-1]


def test_a_request_over_the_cap_is_not_read(path: Path) -> None:
    with pytest.raises(TooLargeError):
        SocketDoor(str(path)).answer(bytes(12 * 2**20 + 1))
    assert SocketDoor(str(path)).answer(b"ab") == b"ba"


def test_a_socket_that_somebody_listens_at_is_left_to_them(path: Path) -> None:
    class Other:
        def answer(self, request: bytes) -> bytes:
            return b"another"

    with pytest.raises(StorageError, match="another process listens there"):
        serve(Other(), "ash", path)
    assert SocketDoor(str(path)).answer(b"ab") == b"ba"


def test_the_name_that_a_dead_process_left_is_taken_over(tmp_path: Path) -> None:
    socket = tmp_path / "a.sock"
    with sockets.socket(sockets.AF_UNIX) as left:
        left.bind(str(socket))
    server = serve(Mirror(), "ash", socket)
    assert SocketDoor(str(socket)).answer(b"ab") == b"ba"
    server.stop(None).wait()


def test_chunks_hold_what_the_first_promised() -> None:
    assert joined(parts(b"x" * 3 * CHUNK_BYTES), 2**30) == b"x" * 3 * CHUNK_BYTES
    for wrong in (
        [pb.Chunk(total_bytes=3, data=b"ab")],
        [pb.Chunk(total_bytes=1, data=b"ab")],
        [pb.Chunk(total_bytes=2, data=b"a"), pb.Chunk(data=b"bc")],
        [pb.Chunk(total_bytes=2**40)],
        [],
    ):
        with pytest.raises(TooLargeError):
            joined(wrong, 2**20)


def test_only_owner_and_group_may_connect(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder to any group")
@pytest.mark.parametrize(("mode", "given"), [(0o750, True), (0o755, False)])
def test_a_closed_folder_that_is_there_lets_the_sockets_group_in(mode: int, given: bool) -> None:
    group = next(entry for entry in grp.getgrall() if entry.gr_gid != os.getegid())
    with tempfile.TemporaryDirectory(prefix="eq") as folder:
        door = Path(folder) / "door"
        door.mkdir()
        door.chmod(mode)
        serve(Mirror(), "ash", door / "agent.sock", group=group.gr_name).stop(None)
        assert (door.stat().st_gid == group.gr_gid) == given


def test_a_failure_behind_the_door_is_a_status_without_its_text(path: Path) -> None:
    channel = grpc.insecure_channel(f"unix:{path}")
    call = channel.stream_stream(
        f"/{SERVICE}/Answer",
        request_serializer=pb.Chunk.SerializeToString,
        response_deserializer=pb.Chunk.FromString,
    )
    with pytest.raises(grpc.RpcError) as caught:
        list(call(parts(b"fail")))
    assert SECRET not in repr(caught.value)
    assert "patient42" not in str(caught.value)
    for method in ("Approve", "answer", "../Answer"):
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(f"/{SERVICE}/{method}")(b"")


def test_bytes_that_are_no_grpc_do_not_end_the_service(path: Path) -> None:
    with sockets.socket(sockets.AF_UNIX) as raw:
        raw.connect(str(path))
        raw.sendall(b"\x00" * 100_000)
    assert SocketDoor(str(path)).answer(b"ab") == b"ba"


def test_a_path_that_no_socket_can_have_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"socket\.path: .* is longer than"):
        serve(Mirror(), "ash", tmp_path / ("x" * 120))
    with pytest.raises(StudyError, match=r"socket\.group=no-such-group"):
        serve(Mirror(), "ash", tmp_path / "a.sock", group="no-such-group")


def told(message_type: str, content: RecordDict, socket: Path) -> RecordDict:
    """What the ClientApp, as a SuperNode runs it, answers."""
    with task_identity(1):
        message = Message(content, SUPERLINK_NODE_ID + 1, message_type)
        context = Context(1, 2, {"socket": str(socket)}, RecordDict(), {})
        return stub(message, context).content


def test_the_stub_passes_bytes_and_introduces_the_agent(path: Path) -> None:
    assert get_bytes("reply", told(RELEASE, put_bytes("request", b"abc"), path)) == b"cba"
    assert get_hello(told(HELLO, RecordDict(), path)) == ("ash", __version__)


def test_what_another_attempt_would_not_change_is_not_called_unreachable(path: Path) -> None:
    """A site that cannot be reached is asked again until the deadline."""
    assert get_code(told(RELEASE, put_bytes("request", bytes(12 * 2**20 + 1)), path)) == "too_large"
    assert get_code(told(RELEASE, put_bytes("request", b"fail"), path)) == "internal"


def test_without_an_agent_the_stub_says_so_and_no_more(tmp_path: Path) -> None:
    nowhere = tmp_path / "none.sock"
    assert get_code(told(RELEASE, put_bytes("request", b"abc"), nowhere)) == "unreachable"
    assert get_code(told(HELLO, RecordDict(), nowhere)) == "unreachable"


def test_the_stub_and_its_door_load_neither_torch_nor_data_libraries() -> None:
    code = "import sys, equipoise.client.app, equipoise.client.socket_door; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in ended.stdout.split()}
    assert not loaded & {"torch", "pyarrow", "PIL", "scipy", "safetensors", "opacus", "sqlite3"}


def test_the_messages_are_those_of_the_proto_file() -> None:
    text = (ROOT / "client" / "site_agent.proto").read_text()
    for name, message in pb.DESCRIPTOR.message_types_by_name.items():
        assert f"message {name}" in text
        for field in message.fields:
            assert f" {field.name} = {field.number};" in text
    service = pb.DESCRIPTOR.services_by_name["SiteAgent"]
    assert service.full_name == SERVICE
    assert text.count("rpc ") == len(service.methods)
