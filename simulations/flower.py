"""`--engine flower`: the same ServerApp and ClientApp under Flower's own simulation, whose clients are Ray actors.

Actors are other processes, so that what was registered in this one does not reach them: a site's door is built there,
from a factory named by the node's configuration.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flwr.app import Context, Message, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.common.constant import PARTITION_ID_KEY
from flwr.serverapp import Grid, ServerApp

from equipoise.common.canonical import canonical_json
from equipoise.common.errors import StudyError
from equipoise.common.threads import one_thread
from equipoise.quiet import quiet_flower
from equipoise.simulations.grid import RunConfig, task_identity


class SitedClientApp(ClientApp):
    """A ClientApp whose nodes know their sites, as SuperNodes do that were started with `--node-config`.

    Flower's simulation numbers its nodes; this gives each number the name and the door of a site.
    """

    def __init__(
        self,
        client_app: ClientApp,
        sites: Sequence[str],
        run_config: RunConfig,
        door: Mapping[str, UserConfigValue],
    ) -> None:
        """`client_app` for nodes 0, 1, ... as `sites`, each with the node configuration `door` besides its name."""
        super().__init__()
        self._client_app = client_app
        self._sited = tuple(sites)
        self._run_config = dict(run_config)
        self._door = dict(door)

    def __call__(self, message: Message, context: Context) -> Message:
        """Run the inner ClientApp as the node's site; `context.state` is shared with it."""
        site = self._sited[int(context.node_config[PARTITION_ID_KEY])]
        # Flower refuses a context that came back with another configuration: the inner one is a copy.
        sited = replace(context, node_config={"site": site, **self._door}, run_config=dict(self._run_config))
        with one_thread():  # an actor is a process of its own
            return self._client_app(message, sited)


def run_in_flower(
    server_app: ServerApp,
    client_app: ClientApp,
    sites: Sequence[str],
    run_config: RunConfig,
    *,
    door_factory: str,
    door_arguments: Mapping[str, object],
    home: Path,
    workers: int = 1,
) -> None:
    """Run a ServerApp under Flower's simulation; what it raises is raised here.

    Args:
        server_app: the coordinator.
        client_app: the stub.
        sites: names of the sites.
        run_config: the run's configuration, as ServerApp and sites see it.
        door_factory: `module:function`, called in an actor as `function(site, **door_arguments)`.
        door_arguments: values that JSON can carry.
        home: folder for Flower's own files.
        workers: actors, of one CPU each. A site may be answered by any of them, so that with more than one the doors
            must share what they remember through files.

    Raises:
        StudyError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise StudyError("--engine flower: Ray is not installed; install equipoise[simulation], or leave --engine out")
    quiet_flower(home)
    # Imported after the telemetry is off, and only here: it is slow.
    from flwr.simulation import run_simulation

    door: dict[str, UserConfigValue] = {
        "door-factory": door_factory,
        "door-arguments": canonical_json(door_arguments).decode("ascii"),
    }
    configured = ServerApp()

    @configured.main()
    def main(grid: Grid, context: Context) -> None:
        server_app(grid, replace(context, run_config=dict(run_config)))

    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns at every run that the command line is preferred
    try:
        with task_identity(0):  # Flower sets its own and leaves it; this gives back what was there
            run_simulation(
                server_app=configured,
                client_app=SitedClientApp(client_app, sites, run_config, door),
                num_supernodes=len(sites),
                backend_config={
                    "init_args": {"num_cpus": workers, "logging_level": "error", "log_to_driver": False},
                    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                },
            )
    finally:
        logger.setLevel(level)
