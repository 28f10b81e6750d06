"""`equipoise agent`: the resident site agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def agent(
    site_file: Annotated[Path, typer.Argument(metavar="SITE.yaml", help="The hospital's own file.")],
    state: Annotated[Path, typer.Option(help="Folder of ledger, logs and decisions; the agent's own.")] = Path("agent"),
) -> None:
    """Hold a hospital's data, ledger and keys, and answer its SuperNode through a Unix socket."""
    from equipoise.client.host import run_agent

    run_agent(site_file, state, lambda line: typer.echo(line, err=True))
