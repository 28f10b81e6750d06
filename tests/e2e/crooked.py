"""A site that answers wrongly: a process between a SuperNode and its agent, on a Unix socket of its own.

    python -m tests.e2e.crooked AGENT.sock OWN.sock MODE-FILE

Reads what to do from the file before every answer; where it is empty, bytes pass as they are.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np

from equipoise.client import service
from equipoise.client import site_agent_pb2 as pb
from equipoise.client.socket_door import SocketDoor
from equipoise.common.wire import pack, unpack

OLD = "0.0.1"


def changed(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[bytes], bytes]:
    """Every array of a reply changed."""

    def change_all(reply: bytes) -> bytes:
        header, arrays = unpack(reply)
        return pack(header, {name: change(array) for name, array in arrays.items()})

    return change_all


WRONG: dict[str, Callable[[bytes], bytes]] = {
    "nan": changed(lambda array: np.full(array.shape, np.nan)),
    "shapes": changed(lambda array: np.zeros((*array.shape, 2), dtype=array.dtype)),
    "large": changed(lambda array: np.full(array.shape, 2**62, dtype=array.dtype)),
    "huge": changed(lambda array: np.zeros(8 * 2**20, dtype=np.int64)),  # 64 MiB where a few numbers are due
    "pickle": lambda _: b"\x80\x04\x95" + bytes(64),
}
"""What is done to a reply that holds integers; others pass."""


class Crooked:
    """The door; `kept` is the last honest reply that held integers."""

    def __init__(self, agent: Path, mode: Path) -> None:
        self._agent, self._mode = SocketDoor(str(agent)), mode
        self._kept = b""

    @property
    def mode(self) -> str:
        return self._mode.read_text().strip() if self._mode.exists() else ""

    def answer(self, request: bytes) -> bytes:
        mode = self.mode
        if mode.startswith("slow"):
            time.sleep(float(mode.partition(" ")[2]))
        reply = self._agent.answer(request)
        if not unpack(reply)[1]:
            return reply
        if mode == "again" and self._kept:
            return self._kept
        self._kept = reply
        return WRONG[mode](reply) if mode in WRONG else reply


class Service(service.AgentService):
    """Introduces itself as an older installation where it is told so."""

    def hello(self, request: pb.HelloRequest, context: grpc.ServicerContext) -> pb.HelloReply:
        found = super().hello(request, context)
        return pb.HelloReply(site=found.site, version=OLD) if self._door.mode == "older" else found


def main(agent: str, own: str, mode: str) -> None:
    """Serve until killed."""
    vars(service)["AgentService"] = Service
    server = service.serve(Crooked(Path(agent), Path(mode)), Path(own).parents[1].name, Path(own))
    server.wait_for_termination()


if __name__ == "__main__":
    main(*sys.argv[1:])
