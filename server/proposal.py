"""A study is proposed to its sites before it asks anything, and waits until they have decided.

A site takes the study down as pending and says what it has decided so far: that is the site's own decision, made by
people, and says nothing about a patient that they did not mean to say. A site that could not be reached, or failed, has
decided nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from equipoise.common.canonical import digest_arrays
from equipoise.common.errors import QuorumError
from equipoise.common.study import Study
from equipoise.common.wire import PROTOCOL, pack_bundles, unpack
from equipoise.envelope import safe_code
from equipoise.server.release import quorum, study_bundle
from equipoise.server.transport import Reply, Transport

APPROVED, PENDING, REFUSED, PAUSED = "approved", "pending", "refused", "paused"
_DECIDED = frozenset({APPROVED, REFUSED, PAUSED})
_SAID = _DECIDED | {PENDING}
# People decide, which takes days; each time that a site is asked it starts a process and writes a line in its log.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _PAUSE_GROWTH = 5.0, 60.0, 1.5


def propose(
    transport: Transport,
    study: Study,
    run: str,
    sites: int,
    wait_s: float,
    say: Callable[[Mapping[str, str]], None],
) -> dict[str, int]:
    """Wait for the sites' decisions; the transport is left with the sites that approved.

    Args:
        transport: connected.
        study: what is proposed.
        run: name of the run, for the sites' lists.
        sites: how many sites the study has, connected or not.
        wait_s: seconds until who has not decided is left out.
        say: told the state of every connected site after the first look, and whenever one changed.

    Raises:
        QuorumError: too few sites approved.
    """
    document = study_bundle(study)
    digest = digest_arrays(document)
    request = pack_bundles({"protocol": PROTOCOL, "propose": True, "run": run, "study": digest}, {digest: document})
    states: dict[str, str] = dict.fromkeys(transport.nodes, PENDING)
    said: dict[str, str] | None = None
    end = time.monotonic() + wait_s
    pause_s = _FIRST_PAUSE_S
    while True:
        # Who refused or approved is asked again too: a decision can be changed while others are waited for.
        for reply in transport.ask(dict.fromkeys(transport.nodes, request), study.sites.deadline_s):
            states[reply.site] = _state(reply, states[reply.site])
        if states != said:  # each word is written to the disk, and a wait of days has thousands of looks
            said = dict(states)
            say(said)
        left_s = end - time.monotonic()
        if _DECIDED.issuperset(states.values()) or left_s <= 0:
            break
        time.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * _PAUSE_GROWTH, _LONGEST_PAUSE_S)
    approved = {site: node for site, node in transport.nodes.items() if states[site] == APPROVED}
    needed = quorum(study, sites)
    if len(approved) < needed:
        left = ", ".join(f"{site}: {state}" for site, state in sorted(states.items()) if state != APPROVED)
        raise QuorumError(
            f"study {study.study}: {len(approved)} of {sites} sites approved it, {needed} are needed ({left}); ask "
            f"them to `equipoise site approve {study.hash[:12]}`, then resume the run"
        )
    transport.nodes = approved
    return approved


def _state(reply: Reply, before: str) -> str:
    """What a site says of the study; where it says nothing, the decision that it had made, or why it says nothing."""
    said = str(reply.code) if reply.payload is None else _said(reply.payload)
    return before if before in _DECIDED and said not in _SAID else said


def _said(payload: bytes) -> str:
    try:
        header, _ = unpack(payload)
    except QuorumError:
        return "malformed"
    if header.get("code") != "ok":
        return safe_code(header.get("code"))
    state = safe_code(header.get("state"))
    return state if state in _SAID else "malformed"
