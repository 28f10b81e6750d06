"""The stub's side of the site agent's socket: a door that is another process, of another user.

Imported by the ClientApp, which a SuperNode starts anew for every message: it loads gRPC and nothing heavier.
"""

from __future__ import annotations

import grpc

from equipoise.client import site_agent_pb2 as pb
from equipoise.client.chunks import CHUNK_BYTES, SERVICE, TooLargeError, joined, parts
from equipoise.common.errors import EquipoiseError, UnreachableError

_HELLO_S = 10.0
_ANSWER_S = 6 * 3600.0  # the coordinator's own deadline is shorter; this ends what nobody waits for
_LARGEST_REPLY_BYTES = 2**34


class SocketDoor:
    """The door behind the Unix socket at `path`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._channel = grpc.insecure_channel(
            f"unix:{path}",
            options=[
                ("grpc.max_receive_message_length", 2 * CHUNK_BYTES),
                ("grpc.enable_http_proxy", 0),
            ],
        )

    def introduce(self) -> tuple[str, str]:
        """Name of the site and version of its agent.

        Raises:
            UnreachableError: no agent answers.
        """
        call = self._channel.unary_unary(
            f"/{SERVICE}/Hello",
            request_serializer=pb.HelloRequest.SerializeToString,
            response_deserializer=pb.HelloReply.FromString,
        )
        try:
            reply = call(pb.HelloRequest(), timeout=_HELLO_S)
        except grpc.RpcError:
            raise self._unreachable() from None
        return reply.site, reply.version

    def answer(self, request: bytes) -> bytes:
        """The agent's reply.

        Raises:
            UnreachableError: no agent answers, or it ended before its answer was whole.
            TooLargeError: the request has more bytes than the site allows.
            EquipoiseError: the agent failed.
        """
        call = self._channel.stream_stream(
            f"/{SERVICE}/Answer",
            request_serializer=pb.Chunk.SerializeToString,
            response_deserializer=pb.Chunk.FromString,
        )
        try:
            return joined(call(parts(request), timeout=_ANSWER_S), _LARGEST_REPLY_BYTES)
        except grpc.RpcError as error:
            # What another attempt would not change is not asked again.
            status = error.code() if isinstance(error, grpc.Call) else None
            if status is grpc.StatusCode.OUT_OF_RANGE:
                raise TooLargeError(f"{len(request)} bytes; raise socket.request_mib in the site file") from None
            if status is grpc.StatusCode.INTERNAL:
                raise EquipoiseError("the site agent failed; its log says why") from None
            raise self._unreachable() from None

    def _unreachable(self) -> UnreachableError:
        return UnreachableError(f"no site agent answers at {self._path}; start it (equipoise agent)")
