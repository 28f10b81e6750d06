"""What a hospital reads before it approves a study, and afterwards in its audit log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from equipoise import __version__
from equipoise.client.accounts import Account
from equipoise.client.approvals import Proposal
from equipoise.client.check import open_cohort
from equipoise.client.ledger import Ledger
from equipoise.client.policy import check_model, check_queries, check_study, life_caps
from equipoise.client.statement import epsilon_together
from equipoise.common.audit import read_rows
from equipoise.common.errors import EquipoiseError
from equipoise.common.privacy.accounting import parallel_max
from equipoise.common.privacy.events import Event
from equipoise.common.query import SPLITS
from equipoise.common.sitefile import Site
from equipoise.common.study import Study
from equipoise.common.study_plan import StudyPlan

Json = dict[str, Any]
AUDIT_DELTA = 1e-5  # at which the audit log's costs are shown


def describe(proposal: Proposal, site: Site, state: Path) -> Json:
    """A proposed study as JSON values: what runs, what it costs, and whether this site's file would let it.

    The plan and its price are made again here, from the study alone and by this installation's code. A plan needs the
    network, so there is none where the site file does not let it be imported: whoever looks at a study has not yet let
    it run anything. `state` is the agent's folder, whose ledger says what is spent.
    """
    study = proposal.study
    try:
        check_model(site, study, False)
        plan = StudyPlan.of(study).calibrated(study)
    except EquipoiseError as error:
        planned = {"planned": False, "cost": {}, "queries": [], "releases": 0, "policy": str(error)}
    else:
        planned = {"planned": True, **_planned(study, plan), "policy": _policy(proposal, site, plan, state)}
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
        "label": study.label.model_dump(mode="json"),
        "attributes": [attribute.model_dump(mode="json", exclude_none=True) for attribute in study.attributes],
        "inputs": study.inputs.model_dump(mode="json", exclude_none=True),
        "privacy": study.privacy.mode,
        "secure_sum": bool(study.privacy.secure_sum),
        "strangers": sorted(
            name for name, key in study.sites.keys.items() if name != site.site and site.peers.keys.get(name) != key
        ),
        "site": site.site,
        "sites": dict(study.sites.declared_patients),
        **_cohort(site, study),
        "code": __version__,
        **planned,
    }


def _cohort(site: Site, study: Study) -> Json:
    """Training patients that there are here, or why the cohort cannot be read as the study would."""
    try:
        return {"training_patients": open_cohort(site, study).split_patients("train"), "cohort": ""}
    except EquipoiseError as error:
        return {"training_patients": None, "cohort": str(error)}


def _planned(study: Study, plan: StudyPlan) -> Json:
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
    return {"cost": epsilon, "queries": queries, "releases": len(plan.entries)}


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
    """The lines of `equipoise site show`.

    Names in a study are its author's, so whatever could move a terminal's cursor or begin a line is written out.
    """
    for line in _lines(found):
        yield "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def _reads(found: Json) -> Iterator[str]:
    """What of the manifest a study reads, and the values that it has a word for; any other ends in a refusal."""
    label = found["label"]
    negative = "any other value" if label["negative"] is None else _listed(label["negative"])
    yield f"label {label['column']}: positive {_listed(label['positive'])}; negative {negative}"
    for one in found["attributes"]:
        levels = f"column {one['column']}, levels {_listed(one.get('levels', []))}"
        cut = f"column {one['column']}, a number cut at {', '.join(f'{cut:g}' for cut in one.get('cuts', []))}"
        parts = f"intersection of {', '.join(one.get('of', []))}"
        yield f"attribute {one['name']}: " + {"levels": levels, "cut": cut, "intersection": parts}[one["kind"]]
    inputs = found["inputs"]
    if inputs["kind"] == "table":
        yield f"inputs: columns {', '.join(feature['name'] for feature in inputs['features'])}"
    elif inputs["kind"] == "score":
        scores = [inputs[key] for key in ("before", "after") if key in inputs]
        yield f"inputs: scores {', '.join(scores)}, each a {inputs['scale']}"
    else:
        yield f"inputs: images of {inputs['size']} x {inputs['size']} pixels"


def _patients(found: Json) -> Iterator[str]:
    """The declared numbers of training patients, this site's first, and whether they fit what lies here."""
    name, here = found["site"], found["training_patients"]
    others = ", ".join(f"{site} {count}" for site, count in found["sites"].items() if site != name)
    declared = found["sites"].get(name)
    own = "this site is not among them" if declared is None else f"this site {declared}"
    yield f"declared    {own}; others: {others or 'none'} (training patients)"
    if here is None:
        yield f"cohort      cannot be read as this study does: {found['cohort']}"
        return
    yield "cohort      every value is one of the study's"
    if declared is not None and abs(declared - here) * 10 > here:
        warning = f"{declared} are declared for this site; its cohort has {here} training patients (shown here only)"
        yield f"WARNING     {warning}"


def _listed(values: Iterable[str]) -> str:
    return ", ".join(repr(value) for value in values)


def _lines(found: Json) -> Iterator[str]:
    yield f"study {found['study']}, {found['state']}" + (f" by {found['by']}" if found["by"] else "")
    yield f"  hash        {found['hash']}"
    yield f"  code        equipoise {found['code']}, this site's own installation"
    yield f"  method      {found['method']} {found['parameters']}"
    yield f"  controls    {', '.join(found['controls']) or 'none'}"
    yield f"  model       {found['model']}, weights {str(found['weights'])[:16]}"
    for number, line in enumerate(_reads(found)):
        yield f"  {'reads' if number == 0 else '':<11} {line}"
    yield from (f"  {line}" for line in _patients(found))
    if not found["planned"]:
        yield f"  privacy     mode {found['privacy']}; without the model there is no plan, and so no price"
    elif found["cost"]:
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
    yield f"  releases    {found['releases'] if found['planned'] else 'not known without the model'}"
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
