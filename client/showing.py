"""What a hospital reads before it approves a study, and afterwards in its audit log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from equipoise import __version__
from equipoise.client.accounts import Account
from equipoise.client.approvals import Proposal
from equipoise.client.ledger import Ledger
from equipoise.client.policy import check_queries, check_study, life_caps
from equipoise.client.statement import epsilon_together
from equipoise.common.audit import read_rows
from equipoise.common.errors import EquipoiseError
from equipoise.common.privacy.accounting import parallel_max
from equipoise.common.privacy.events import Event
from equipoise.common.sitefile import Site
from equipoise.common.study_plan import SPLITS, StudyPlan

Json = dict[str, Any]
AUDIT_DELTA = 1e-5  # at which the audit log's costs are shown


def describe(proposal: Proposal, site: Site, state: Path) -> Json:
    """A proposed study as JSON values: what runs, what it costs, and whether this site's file would let it.

    The plan and its price are made again here, from the study alone and by this installation's code. `state` is the
    agent's folder, whose ledger says what is spent.
    """
    study = proposal.study
    plan = StudyPlan.of(study).calibrated(study)
    queries = [
        {"arm": arm, "phase": phase, "query": name, "split": split, "times": len(list(found))}
        for (arm, phase, name, split), found in groupby(
            plan.entries, key=lambda e: (e.arm, e.query.phase, e.query.name, e.query.split)
        )
    ]
    epsilon: Json = {}
    if study.privacy.private:
        costs = [plan.cost(split, study.privacy.delta) for split in SPLITS if plan.plans(split)]
        worst = parallel_max(costs)
        epsilon = {
            "epsilon": worst.epsilon,
            "epsilon_if_others_collude": worst.epsilon_if_others_collude,
            "delta": study.privacy.delta,
        }
    return {
        "hash": proposal.hash,
        "study": study.study,
        "state": proposal.state,
        "by": proposal.by,
        "run": proposal.run,
        "method": study.method.name,
        "parameters": study.method.parameters,
        "controls": study.method.controls,
        "model": study.model.factory,
        "weights": None if study.model.weights is None else study.model.weights.sha256,
        "label": study.label.column,
        "attributes": [attribute.name for attribute in study.attributes],
        "privacy": study.privacy.mode,
        "secure_sum": bool(study.privacy.secure_sum),
        "strangers": sorted(
            name for name, key in study.sites.keys.items() if name != site.site and site.peers.keys.get(name) != key
        ),
        "cost": epsilon,
        "queries": queries,
        "releases": len(plan.entries),
        "sites": dict(study.sites.declared_patients),
        "code": __version__,
        "policy": _policy(proposal, site, plan, state),
    }


def _policy(proposal: Proposal, site: Site, plan: StudyPlan, state: Path) -> str:
    try:
        check_study(site, proposal.study, {proposal.hash}, False)
        check_queries(site, proposal.study, plan, False)
        if proposal.study.privacy.private:
            _check_room(proposal, site, plan, state)
    except EquipoiseError as error:
        return str(error)
    return ""


def _check_room(proposal: Proposal, site: Site, plan: StudyPlan, state: Path) -> None:
    """As when the study begins; one that has begun has its room."""
    name, account = site.data.account, Account()
    with _ledger(state) as ledger:
        if ledger is not None:
            if any(study == proposal.hash for study, _ in ledger.runs()):
                return
            account = ledger.account(name)
    account.check_room(name, {split: plan.plans(split) for split in SPLITS}, life_caps(site))


@contextmanager
def _ledger(state: Path) -> Iterator[Ledger | None]:
    """The agent's ledger; None before its first release, since looking makes no file."""
    file = state / "ledger.sqlite"
    ledger = Ledger(file) if file.exists() else None
    try:
        yield ledger
    finally:
        if ledger is not None:
            ledger.close()


def show_lines(found: Json) -> Iterator[str]:
    """The lines of `equipoise site show`."""
    yield f"study {found['study']}, {found['state']}" + (f" by {found['by']}" if found["by"] else "")
    yield f"  hash        {found['hash']}"
    yield f"  code        equipoise {found['code']}, this site's own installation"
    yield f"  method      {found['method']} {found['parameters']}"
    yield f"  controls    {', '.join(found['controls']) or 'none'}"
    yield f"  model       {found['model']}, weights {str(found['weights'])[:16]}"
    yield f"  reads       label {found['label']}, attributes {', '.join(found['attributes'])}"
    if found["cost"]:
        cost = found["cost"]
        yield (
            f"  privacy     mode {found['privacy']}: epsilon {cost['epsilon']:.3f}, "
            f"{cost['epsilon_if_others_collude']:.3f} if all others collude, delta {cost['delta']:g}"
        )
    else:
        yield f"  privacy     mode {found['privacy']}: exact sums, no noise protects a patient"
    hidden = "the coordinator sees sums over the sites alone" if found["secure_sum"] else "off: it sees each site's own"
    yield f"  secure sum  {hidden}"
    if found["secure_sum"] and found["strangers"]:
        yield (
            f"              not pinned here, or under another key: {', '.join(found['strangers'])}; compare the "
            "fingerprints of their enrolments by another channel, then `equipoise site pin`, and start the agent again"
        )
    yield f"  releases    {found['releases']}"
    for row in found["queries"]:
        yield f"    {row['times']:>4} x {row['query']:<20} {row['phase']:<12} {row['split']:<10} {row['arm']}"
    yield f"  site file   {'would refuse it: ' + found['policy'] if found['policy'] else 'lets it'}"


def audit_rows(state: Path) -> list[Json]:
    """The rows of the audit log, with the cost of each release out of the ledger."""
    logged = read_rows(state / "audit.jsonl")
    with _ledger(state) as ledger:
        paid = [entry for entry in ([] if ledger is None else ledger.entries()) if entry.kind == "release"]
    costs = _costs([entry.body for entry in paid])
    studies = _studies(logged, {entry.hash: entry.body for entry in paid})
    runs: dict[str, set[str]] = {}
    for study, run, _ in costs:
        runs.setdefault(run, set()).add(study)
    rows = []
    for row in logged:
        shown = {key: value for key, value in row.items() if key not in ("previous", "hash")}
        shown["time"] = datetime.fromtimestamp(row["time"], UTC).isoformat(timespec="seconds")
        if row.get("code") == "ok" and row.get("event") == "request":
            run = str(row.get("run"))
            # A log whose replies name no entry of the ledger: then the run's name has to be enough, if it can be.
            named = studies.get(row.get("study"), runs[run] if len(runs.get(run, ())) == 1 else set())
            for study in named:
                cost = costs.get((study, run, int(row.get("release", -1))))
                shown |= {} if cost is None else {"cost": cost}
        rows.append(shown)
    return rows


def _costs(paid: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, int], str]:
    """Study, run and number of each release -> what it cost, all attempts at it together: a row names none of them."""
    events: dict[tuple[str, str, int], list[Event]] = {}
    for body in paid:
        events.setdefault((body["study"], body["run"], body["number"]), []).append(Event.from_json(body["event"]))
    found = {}
    for release, spent in events.items():
        value = epsilon_together(spent, AUDIT_DELTA)
        found[release] = "no noise" if value is None else f"epsilon {value:.3f}"
        found[release] += f" ({len(spent)} attempts)" if len(spent) > 1 else ""
    return found


def _studies(logged: Sequence[Json], paid: Mapping[str, Mapping[str, Any]]) -> dict[Any, set[str]]:
    """The digest by which requests name a study -> its hash, by the entries that their replies name."""
    found: dict[Any, set[str]] = {}
    for row in logged:
        body = paid.get(str(row.get("ledger")), {})
        if body and (body["run"], body["number"]) == (row.get("run"), row.get("release")):
            found.setdefault(row.get("study"), set()).add(body["study"])
    return found
