"""The site agent's gRPC service on a Unix socket (site_agent.proto).

What reaches the socket is not trusted: it is the code that the coordinator sent to the SuperNode. The kernel lets only
the socket's owner and group connect; sizes are capped before anything is parsed; what fails here is a status without
details.
"""

from __future__ import annotations

import grp
import logging
import os
import socket as sockets
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import grpc

from equipoise import __version__
from equipoise.client import site_agent_pb2 as pb
from equipoise.client.chunks import CHUNK_BYTES, SERVICE, TooLargeError, joined, parts
from equipoise.common.errors import StorageError, StudyError

_LONGEST_PATH = 100  # bytes that a Unix socket's name may have, with a little room
_WORKERS = 4
_log = logging.getLogger(__name__)
_CALLS = 16


class Door(Protocol):
    """What answers bytes with bytes."""

    def answer(self, request: bytes) -> bytes:
        """The reply to `request`."""


class AgentService(grpc.GenericRpcHandler):
    """Answers `Hello` and `Answer` of equipoise.v1.SiteAgent.

    Args:
        door: answers the requests.
        site: name of the site.
        most_bytes: size of the largest request.
    """

    def __init__(self, door: Door, site: str, most_bytes: int) -> None:
        self._door = door
        self._site = site
        self._most_bytes = most_bytes
        self._methods = {
            f"/{SERVICE}/Hello": grpc.unary_unary_rpc_method_handler(
                self.hello,
                request_deserializer=pb.HelloRequest.FromString,
                response_serializer=pb.HelloReply.SerializeToString,
            ),
            f"/{SERVICE}/Answer": grpc.stream_stream_rpc_method_handler(
                self.answer, request_deserializer=pb.Chunk.FromString, response_serializer=pb.Chunk.SerializeToString
            ),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a method; None for what there is not."""
        return self._methods.get(handler_call_details.method)

    def hello(self, request: pb.HelloRequest, context: grpc.ServicerContext) -> pb.HelloReply:
        """Name of the site and version of its installation."""
        return pb.HelloReply(site=self._site, version=__version__)

    def answer(self, chunks: Iterable[pb.Chunk], context: grpc.ServicerContext) -> Iterator[pb.Chunk]:
        """The reply to one request, in chunks."""
        try:
            request = joined(chunks, self._most_bytes)
        except TooLargeError:
            # Not RESOURCE_EXHAUSTED, by which gRPC itself says that there are too many calls at once.
            context.abort(grpc.StatusCode.OUT_OF_RANGE, "")
        try:
            reply = self._door.answer(request)
        except Exception:
            # gRPC would send the exception's text to the other side.
            _log.exception("the door failed")
            context.abort(grpc.StatusCode.INTERNAL, "")
        yield from parts(reply)


def door_workers() -> ThreadPoolExecutor:
    """The threads in which requests are answered. A stopped server does not wait for them; `shutdown` does."""
    return ThreadPoolExecutor(_WORKERS, thread_name_prefix="door")


def serve(
    door: Door,
    site: str,
    socket: Path,
    *,
    group: str | None = None,
    most_bytes: int = 2**30,
    workers: ThreadPoolExecutor | None = None,
) -> grpc.Server:
    """Start to listen at `socket`; stop the server to end it.

    Args:
        door: answers the requests.
        site: name of the site.
        socket: path of the Unix socket; its folder is made with mode 0750 where it is missing.
        group: name of the Unix group that may connect beside the owner; None for the agent's own. A folder of this
            user that is closed to others becomes that group's.
        most_bytes: size of the largest request.
        workers: of `door_workers`, for who has to know when the last answer has ended.

    Raises:
        StudyError: the path is too long, or there is no such group.
        StorageError: the socket cannot be made, or another process listens there.
    """
    if len(os.fsencode(socket)) > _LONGEST_PATH:
        raise StudyError(f"socket.path: {socket} is longer than the {_LONGEST_PATH} bytes of a Unix socket; shorten it")
    try:
        gid = -1 if group is None else grp.getgrnam(group).gr_gid
    except KeyError:
        raise StudyError(f"socket.group={group}: no such group; make it (groupadd) or correct the name") from None
    server = grpc.server(
        workers or door_workers(),
        options=[("grpc.max_receive_message_length", 2 * CHUNK_BYTES), ("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=_CALLS,
    )
    server.add_generic_rpc_handlers((AgentService(door, site, most_bytes),))
    if listens(socket):
        # gRPC would put its own socket in the place of that one.
        raise StorageError(f"socket {socket}: another process listens there; stop it, or give socket.path another name")
    try:
        if not socket.parent.is_dir():
            socket.parent.mkdir(parents=True)
            socket.parent.chmod(0o750)
        folder = socket.parent.stat()
        if folder.st_uid == os.geteuid() and not folder.st_mode & stat.S_IRWXO:
            os.chown(socket.parent, -1, gid)
        # Made with no rights for others from the start; the group's are given once it is the right one.
        before = os.umask(0o177)
        try:
            server.add_insecure_port(f"unix:{socket}")
        finally:
            os.umask(before)
        os.chown(socket, -1, gid)
        socket.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "the folder cannot be written"
        raise StorageError(f"socket {socket}: cannot be made ({reason})") from None
    server.start()
    return server


def listens(path: Path) -> bool:
    """Whether a process answers at a Unix socket; one that ended left the name alone."""
    with sockets.socket(sockets.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True
