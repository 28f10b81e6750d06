"""The ServerApp that Flower starts: the study's coordinator, on whatever grid Flower brings."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study that the run's configuration names."""
    # Imported here, so that `flwr build`, which loads this file, needs no torch.
    from equipoise.server.run import main as run

    run(grid, context.run_config)
