"""Flower's own simulation: the same apps, the same replies."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from equipoise.client import door
from equipoise.client.app import app as stub
from equipoise.common.errors import QuorumError, StudyError
from equipoise.envelope import HELLO
from equipoise.quiet import quiet_flower
from equipoise.server.transport import Transport
from equipoise.simulations.flower import SitedClientApp, run_in_flower
from equipoise.simulations.grid import run_in_process, task_identity

SITES = ("north", "south", "west")


class Times:
    """A toy door: the request's number times a factor, with the site's name."""

    def __init__(self, site: str, factor: int) -> None:
        self.site, self.factor = site, factor

    def answer(self, request: bytes) -> bytes:
        if request == b"fail":
            raise OSError("/data/patient42/scan.png")
        return f"{self.site} {int(request) * self.factor}".encode()


def coordinator(seen: dict[str, object], requests: dict[str, bytes]) -> ServerApp:
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        seen["config"] = context.run_config["study"]
        transport = Transport(grid)
        transport.connect(SITES, 60)
        seen.update({reply.site: reply.payload or reply.code for reply in transport.ask(requests, 60)})
        raise QuorumError("the end")

    return server


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)
    door.forget_doors()


def test_a_numbered_node_becomes_its_site_and_keeps_its_state() -> None:
    inner = ClientApp()

    @inner.query("hello")
    def hello(message: Message, context: Context) -> Message:
        assert context.node_config == {"site": "south", "door-factory": "x:y"}
        assert context.run_config == {"study": "s"}
        context.state["kept"] = ConfigRecord({"n": 1})
        return Message(RecordDict(), reply_to=message)

    app = SitedClientApp(inner, SITES, {"study": "s"}, {"door-factory": "x:y"})
    context = Context(1, 5, {"partition-id": 1, "num-partitions": 3}, RecordDict(), {})
    with task_identity(1):
        app(Message(RecordDict(), 5, HELLO), context)
    assert context.state["kept"] == {"n": 1}
    # What Flower checks afterwards is as it was.
    assert context.node_config == {"partition-id": 1, "num-partitions": 3}
    assert context.run_config == {}


def test_quiet_means_no_telemetry_even_after_an_import(tmp_path: Path) -> None:
    from flwr.supercore import telemetry

    telemetry.FLWR_TELEMETRY_ENABLED = "1"
    quiet_flower(tmp_path / "flower")
    assert telemetry.FLWR_TELEMETRY_ENABLED == "0"
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert os.environ["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == os.environ["DO_NOT_TRACK"] == "true"
    assert Path(os.environ["FLWR_HOME"]) == tmp_path / "flower"
    assert (tmp_path / "flower").is_dir()


def test_without_ray_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"Ray is not installed; install equipoise\[simulation\]"):
        run_in_flower(ServerApp(), stub, SITES, {}, door_factory="x:y", door_arguments={}, home=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (equipoise[simulation])")
def test_flowers_simulation_gives_the_replies_of_the_in_process_grid(tmp_path: Path) -> None:
    requests = {"north": b"7", "south": b"9", "west": b"fail"}
    local: dict[str, object] = {}
    door.register_doors(lambda site: Times(site, 6))
    with pytest.raises(QuorumError, match="the end"):
        run_in_process(coordinator(local, requests), stub, SITES, {"study": "s"})
    door.forget_doors()
    ray: dict[str, object] = {}
    with pytest.raises(QuorumError, match="the end"):
        run_in_flower(
            coordinator(ray, requests),
            stub,
            SITES,
            {"study": "s"},
            door_factory=f"{__name__}:Times",
            door_arguments={"factor": 6},
            home=tmp_path,
        )
    assert ray == local == {"config": "s", "north": b"north 42", "south": b"south 54", "west": "internal"}
