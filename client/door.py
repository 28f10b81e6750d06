"""Where the stub that Flower runs finds its hospital's door: an object that answers bytes with bytes.

Which door a node opens is the hospital's own choice and comes from the node's configuration alone, never from the
run's configuration, which the server writes.

| key of the node's configuration | door |
|---|---|
| `socket` | the site agent at this Unix socket, another process (deployment); it knows its own name |
| `site` | name of the site (needed without `socket`) |
| `door-factory`, `door-arguments` | `module:function`, called once a process as `function(site, **json)` |
| neither | the factory that the runner registered in this process (simulation) |
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

from equipoise import __version__
from equipoise.common.errors import StudyError

if TYPE_CHECKING:
    from equipoise.client.socket_door import SocketDoor

NodeConfig = Mapping[str, bool | float | int | str]


class Door(Protocol):
    """What stands between the network and a hospital's data."""

    def answer(self, request: bytes) -> bytes:
        """The reply to `request`; both are opaque to everything on this side of the door."""
        ...


DoorFactory = Callable[[str], Door]
FailureHook = Callable[[str, Exception], None]


@dataclass
class _Doors:
    """Doors of the sites that live in this process, made on first use and then resident."""

    factory: DoorFactory | None = None
    on_failure: FailureHook | None = None
    opened: dict[str, Door] = field(default_factory=dict)


_doors = _Doors()


def register_doors(factory: DoorFactory, on_failure: FailureHook | None = None) -> None:
    """Let the sites of this process answer through `factory(site)`, called once a site.

    Args:
        factory: makes the door of a site.
        on_failure: told the site and the exception of a failed answer, of which the server learns only a code; for
            runners that hold the sites in their own process and want to show the cause.
    """
    global _doors  # noqa: PLW0603 - the stub is called by Flower, which hands it nothing but configuration
    _doors = _Doors(factory, on_failure)


def forget_doors() -> None:
    """Undo `register_doors` and let go of its doors."""
    global _doors  # noqa: PLW0603
    _doors = _Doors()


def site_name(node_config: NodeConfig) -> str:
    """The name of the node's site.

    Raises:
        StudyError: the node's configuration has no such name.
    """
    site = node_config.get("site")
    if not isinstance(site, str) or not site:
        raise StudyError("node configuration: key 'site' is missing; start the SuperNode with --node-config 'site=...'")
    return site


def introduce(node_config: NodeConfig) -> tuple[str, str]:
    """Name of the node's site, and version of the code behind its door.

    Raises:
        StudyError: the node's configuration names neither a site nor a socket.
        UnreachableError: no site agent answers at the socket.
    """
    socket = node_config.get("socket")
    return (site_name(node_config), __version__) if socket is None else _open_socket(str(socket)).introduce()


def open_door(node_config: NodeConfig) -> Door:
    """The door of the node's site, the same object at every call.

    Raises:
        StudyError: the node's configuration has no site name or names no door, or its factory does not exist.
    """
    socket = node_config.get("socket")
    if socket is not None:
        return _open_socket(str(socket))
    site = site_name(node_config)
    reference = node_config.get("door-factory")
    if reference is not None:
        return _open_by_reference(str(reference), str(node_config.get("door-arguments", "{}")), site)
    if _doors.factory is None:
        raise StudyError(f"site {site}: no door in this process; start the site agent, or register a factory of doors")
    # No lock: a node works on one message at a time, so no two threads open the door of one site.
    if site not in _doors.opened:
        _doors.opened[site] = _doors.factory(site)
    return _doors.opened[site]


def report_failure(node_config: NodeConfig, error: Exception) -> None:
    """Tell the runner in this process, if one asked for it; nothing is written or sent."""
    if _doors.on_failure is not None:
        _doors.on_failure(str(node_config.get("site", "?")), error)


@functools.cache
def _open_socket(path: str) -> SocketDoor:
    # Imported here: a simulation needs no gRPC.
    from equipoise.client.socket_door import SocketDoor

    return SocketDoor(path)


@functools.cache
def _open_by_reference(reference: str, arguments: str, site: str) -> Door:
    module, colon, name = reference.partition(":")
    if not colon:
        raise StudyError(f"site {site}: door-factory={reference!r}: expected module:function")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise StudyError(f"site {site}: door-factory={reference!r}: no such function is installed") from None
    return cast(Door, factory(site, **json.loads(arguments)))
