"""Start scripts and service files of a deployment: what both sides run, and what starts it again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from equipoise.quiet import SETTINGS

RETRY_S = 65
"""Flower refuses a SuperNode that comes back before its last session has timed out, and it then ends for good."""

QUIET = {
    **SETTINGS,
    # How often Flower looks for a message that waits. Its default of 1 s is half a second lost in every round trip; at
    # 0.05 s, looks that find nothing took a twentieth of a core at every site, day and night.
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    "OMP_NUM_THREADS": "1",
}


def start_script(
    what: str,
    command: Sequence[str],
    home: Path,
    environment: Mapping[str, str] | None = None,
    programs: Path | None = None,
) -> str:
    """A shell script that becomes `command`, started in an empty folder of its own, with nothing that phones home.

    Args:
        what: for the reader of the script.
        command: the program and its arguments.
        home: the folder that it is started in.
        environment: further variables.
        programs: a folder whose programs come before those of this installation.
    """
    lines = ["#!/bin/sh", f"# Starts {what}. Written by equipoise; edit it as you like.", "set -eu", "umask 077"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in {**QUIET, **(environment or {})}.items()]
    lines += [
        "PATH=" + ":".join([*([shlex.quote(str(programs))] if programs else []), _installed(), "$PATH"]),
        "export PATH",
        f"mkdir -p {shlex.quote(str(home))}",
        f"cd {shlex.quote(str(home))}",
        "exec " + " \\\n  ".join(map(shlex.quote, command)),
    ]
    return "\n".join(lines) + "\n"


def python_script(module: str) -> str:
    """A shell script that runs a module of this installation."""
    return f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n'


def _installed() -> str:
    return shlex.quote(str(Path(sys.executable).parent))


def supervisor() -> str:
    """A shell script that runs another again and again; for machines without systemd."""
    return f"""#!/bin/sh
# Runs a script again whenever it ends: ./supervise.sh ./start-agent.sh
# Flower refuses a node that comes back within a minute, so the pause is {RETRY_S} s; RETRY_S changes it.
trap 'kill "$child" 2>/dev/null; exit 0' INT TERM
while true; do
  "$1" &
  child=$!
  wait "$child" || true
  echo "$1 ended; starting it again in ${{RETRY_S:-{RETRY_S}}} s" >&2
  sleep "${{RETRY_S:-{RETRY_S}}}" &
  child=$!
  wait "$child" || true
done
"""


def unit(what: str, script: Path, user: str, retry_s: int, hardening: Sequence[str] = (), after: str = "") -> str:
    """A systemd service."""
    lines = [
        "[Unit]",
        f"Description={what}",
        f"After=network-online.target {after}".rstrip(),
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        f"User={user}",
        f"ExecStart={script}",
        "Restart=always",
        f"RestartSec={retry_s}",
        "NoNewPrivileges=yes",
        "PrivateTmp=yes",
        "ProtectSystem=strict",
        *hardening,
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"
