"""What a ledger says to its officer: every release, what each account has spent, and whether the file is whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from equipoise.client.accounts import Spend
from equipoise.client.ledger import Ledger
from equipoise.common.errors import TranscriptError
from equipoise.common.privacy.accounting import epsilon_of, epsilon_of_curve
from equipoise.common.privacy.events import Event

Json = dict[str, Any]


def statement(ledger: Ledger, delta: float) -> Json:
    """All releases and accounts as JSON values.

    Keys: `releases`, oldest first, each attempt at one by itself, with its own epsilon at `delta` (by PLD; None without
    noise) and its state (`sealed`: the reply was made; `charged`: it was begun and may not have left); `accounts`, each
    with what its patients have spent at most (by RDP, as the caps count).
    """
    releases: list[Json] = []
    sealed = {_key(e.body) for e in ledger.entries() if e.kind == "seal"}
    for entry in ledger.entries():
        if entry.kind != "release":
            continue
        body = entry.body
        releases.append(
            {
                "time": datetime.fromtimestamp(body["time"], UTC).isoformat(timespec="seconds"),
                "study": body["study"],
                "run": body["run"],
                "number": body["number"],
                "attempt": body["attempt"],
                "query": body["name"],
                "split": body["split"],
                "account": body["account"],
                "state": "sealed" if _key(body) in sealed else "charged",
                "epsilon": epsilon_together([Event.from_json(body["event"])], delta),
            }
        )
    return {"releases": releases, "accounts": [_account(ledger, name, delta) for name in ledger.account_names()]}


def epsilon_together(events: Sequence[Event], delta: float) -> float | None:
    """What releases cost the same patients together, by PLD; None where one of them has no noise."""
    return None if any(event.law == "none" for event in events) else epsilon_of(events, delta)


def _key(body: Any) -> tuple[str, str, int, int]:
    return body["study"], body["run"], body["number"], body["attempt"]


def _account(ledger: Ledger, name: str, delta: float) -> Json:
    account = ledger.account(name)
    charged = {split: _epsilons(account.spent(split, with_reserved=False), delta) for split in account.splits}
    together = [_epsilons(account.spent(split), delta) for split in account.splits]
    return {
        "account": name,
        "splits": {split: honest for split, (honest, _) in charged.items()},
        "epsilon": max(honest for honest, _ in charged.values()),
        "epsilon_if_others_collude": max(alone for _, alone in charged.values()),
        "reserved_epsilon": max(honest for honest, _ in together),
        "unprotected": account.unprotected,
    }


def _epsilons(spend: Spend, delta: float) -> tuple[float, float]:
    return epsilon_of_curve(spend.honest, delta), epsilon_of_curve(spend.alone, delta)


def check_ledger(ledger: Ledger, witnessed: Sequence[str]) -> list[str]:
    """Check the chain and that it holds every head that a coordinator's transcript names.

    Raises:
        TranscriptError: the first thing that does not hold.
    """
    broken = ledger.broken_entry()
    if broken is not None:
        raise TranscriptError(
            f"ledger: entry {broken.seq} ({broken.kind}) was changed, or one before it was removed; restore the file "
            "from a backup and tell whoever is responsible for the data"
        )
    entries = ledger.entries()
    missing = sorted(set(witnessed) - {entry.hash for entry in entries})
    if missing:
        raise TranscriptError(
            f"ledger: {len(missing)} of {len(set(witnessed))} witnessed entries are missing, the first "
            f"{missing[0][:16]}; an older copy was put back; what it lacks was spent all the same"
        )
    lines = [f"{len(entries)} entries, each follows from the one before"]
    if witnessed:
        lines.append(f"all {len(set(witnessed))} entries that the transcripts name are there")
    spent = [_account(ledger, name, 1e-5) for name in ledger.account_names()]
    lines += [f"account {row['account']}: epsilon {row['epsilon']:.3f} at delta 1e-05" for row in spent]
    if any(not math.isfinite(row["epsilon"]) for row in spent):
        lines.append("an account has no finite epsilon")
    return lines
