"""Runs one hospital's site agent as a process: `equipoise agent`."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from equipoise.client.agent import SiteAgent
from equipoise.client.approvals import Approvals
from equipoise.client.resident import Resident
from equipoise.client.secure_session import Peers, SecureSessions
from equipoise.client.secure_store import FolderStore
from equipoise.client.service import door_workers, serve
from equipoise.client.setback import AUDIT, check_ledger
from equipoise.common.errors import StorageError
from equipoise.common.files import drop_unfinished_line
from equipoise.common.identity import signing_identity
from equipoise.common.secure_sum.keys import parse_key
from equipoise.common.sitefile import Site, load_site
from equipoise.common.threads import one_thread

_GRACE_S = 20.0


def approvals_of(site: Site, state: Path) -> Approvals:
    """The hospital's store of studies, with what its site file approves beforehand."""
    return Approvals(state, () if site.approve == "manual" else site.approve)


def sessions_of(site: Site, state: Path) -> SecureSessions | None:
    """The site's part in secure sums; None where it has no identity key, or pinned no peers.

    Raises:
        RefusedError: `peers.keys` lists this site under another key than its own.
        StudyError: the identity key is not one.
    """
    file = state / "identity.key"
    if not file.exists() or not site.peers.keys:
        return None
    own = signing_identity(file.read_bytes())
    known = {site.site: own.public, **{name: parse_key(text) for name, text in site.peers.keys.items()}}
    return SecureSessions(site.site, own, Peers(known, site.peers.minimum), FolderStore(state / "secure"))


def run_agent(site_file: Path, state: Path, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; an answer that was begun is ended first, unless the signal comes again.

    Until it has ended the folder is this agent's alone: two that wrote there would tear the audit log's chain.

    Args:
        site_file: the hospital's own file.
        state: folder of ledger, logs and decisions; made with mode 0700, its files get 0600.
        say: told where the agent listens.

    Raises:
        StudyError: the site file is wrong.
        StorageError: the folder or the socket cannot be written, another agent works on them, or the ledger is not the
            one that this agent left.
    """
    os.umask(0o077)
    site = load_site(site_file)
    state.mkdir(parents=True, exist_ok=True)
    with (state / "agent.lock").open("w") as lock, one_thread(), door_workers() as workers:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StorageError(f"{state}: another site agent works on this folder; stop it, or give another") from None
        drop_unfinished_line(state / AUDIT)
        check_ledger(state)  # before the agent makes one
        approvals = approvals_of(site, state)
        agent = SiteAgent(site, state, approvals, sessions=sessions_of(site, state))
        resident = Resident(agent, site.site, state, site_file, approvals)
        socket = Path(site.socket.path)
        most = site.socket.request_mib * 2**20
        server = serve(resident, site.site, socket, group=site.socket.group, most_bytes=most, workers=workers)
        say(f"site agent of {site.site} listens at {socket}")
        ended = threading.Event()

        def stop(_signal: int, _frame: FrameType | None) -> None:
            if ended.is_set():
                os._exit(1)  # as after a power cut: what was charged is charged, what was sealed is kept
            ended.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        ended.wait()
        server.stop(_GRACE_S).wait()
