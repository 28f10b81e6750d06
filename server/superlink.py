"""Flower's `flower-superlink`, whose database waits longer for its turn.

A transaction that waits for another one's lock is given up after 5 s ("database is locked"), and nothing configures
that. On a machine with much work some are. Flower then answers a hospital with an internal error, the SuperNode drops
the message, and the release waits until its deadline for a reply that never comes: seen with 32 sites on two cores.
What runs is Flower's own program; only the wait is another (docs/decisions/0055). The coordinator's folder puts this
program before Flower's on the path of its start script.
"""

from __future__ import annotations

import importlib

WAIT_MS = 25_000
"""How long a transaction may wait for the lock. A request of Flower's is given up after 30 s."""


def wait_for_turn() -> None:
    """Let the SQLite connections that Flower opens in this process wait `WAIT_MS` for a lock."""
    mixin = importlib.import_module("flwr.supercore.sql_mixin")
    pragmas = {**dict(mixin.SQLITE_PRAGMAS), "busy_timeout": str(WAIT_MS)}
    vars(mixin)["SQLITE_PRAGMAS"] = tuple(pragmas.items())


def main() -> None:
    """Run Flower's `flower-superlink` with this process's arguments."""
    wait_for_turn()
    importlib.import_module("flwr.superlink.cli").flower_superlink()


if __name__ == "__main__":
    main()
