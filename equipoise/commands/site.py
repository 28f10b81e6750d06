"""`equipoise site`: what a hospital does: set up, check, approve, pause."""

from __future__ import annotations

import getpass
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from equipoise.client.approvals import Approvals, Proposal

app = typer.Typer(no_args_is_help=True, help="A hospital's side: set up, check, approve or refuse studies, pause.")

FolderOption = Annotated[Path, typer.Option("--folder", help="The site's folder, as `equipoise site init` made it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
HashArgument = Annotated[str, typer.Argument(metavar="HASH", help="The study's hash, or how it begins.")]
HERE = Path()


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The hospital's name: lower-case letters, digits, . _ -")],
    superlink: Annotated[str, typer.Option(help="host:port of the coordinator, as it is reached from here.")],
    ca: Annotated[Path, typer.Option(help="The coordinator's CA certificate, ca.pem.")],
    folder: FolderOption = HERE,
    port: Annotated[int, typer.Option(help="A free port of this machine for the SuperNode's own processes.")] = 9094,
    manifest: Annotated[str, typer.Option(help="The cohort's file, for the site file.")] = "cohort.csv",
) -> None:
    """Make keys, a site file with comments, start scripts and service files."""
    from equipoise.client.site_init import init_site, ownership

    made = init_site(folder, name, superlink, ca, port, manifest)
    typer.echo(f"{folder / 'site.yaml'}: edit it, then `equipoise site check`")
    typer.echo("before the service files are used, as root (docs/deploy.md says how these users are made):")
    for line in ownership(folder.resolve()):
        typer.echo(f"  {line}")
    typer.echo(f"send the coordinator what `equipoise site enroll` prints; fingerprint {made.fingerprint}")


@app.command()
def enroll(
    folder: FolderOption = HERE,
    out: Annotated[Path | None, typer.Option(help="The file to write; stdout by default.")] = None,
) -> None:
    """Print the enrolment, public keys only, that the coordinator needs to let the site in."""
    from equipoise.client.site_init import enrolment, signed_enrolment
    from equipoise.common.files import write_whole

    site = _site(folder).site
    signed = signed_enrolment(folder, site)
    if out is None:
        typer.echo(signed.decode())
    else:
        write_whole(out, signed)
    typer.echo(f"fingerprint, to compare by telephone: {enrolment(folder, site).fingerprint}", err=True)


@app.command()
def pin(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Enrolments of other hospitals.")],
    folder: FolderOption = HERE,
) -> None:
    """Pin the identity keys of other hospitals: the only ones whose company the secure sum accepts."""
    from equipoise.client.site_init import pin_peer

    for file in files:
        peer = pin_peer(folder, _site(folder), file)
        typer.echo(
            f"{peer.site} is pinned; fingerprint, to compare by telephone with that hospital: {peer.fingerprint}"
        )


@app.command()
def check(
    folder: FolderOption = HERE,
    study: Annotated[Path | None, typer.Option(help="A study file: check the data as this study reads them.")] = None,
    superlink: Annotated[str | None, typer.Option(help="host:port; by default the one in start-supernode.sh.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check certificates, clock, data, codings, policy, disk, versions and reachability; nothing leaves."""
    from equipoise.client.check import check_site

    rows = check_site(folder, study, superlink)
    if as_json:
        typer.echo(json.dumps([row.__dict__ for row in rows]))
    for row in [] if as_json else rows:
        typer.echo(f"{'ok ' if row.holds else 'BAD'}  {row.what}: {row.found}" + (f"; {row.fix}" if row.fix else ""))
    if not all(row.holds for row in rows):
        raise typer.Exit(2)


@app.command()
def studies(folder: FolderOption = HERE, as_json: JsonOption = False) -> None:
    """List the studies that were proposed, and what the site decided."""
    found = _approvals(folder).all()
    if as_json:
        typer.echo(json.dumps([_brief(proposal) for proposal in found]))
        return
    for proposal in found:
        row = _brief(proposal)
        typer.echo(f"{row['hash'][:12]}  {row['state']:<9} {row['time']}  {row['study']}  {row['method']}")
    if not found:
        typer.echo("no study was proposed yet", err=True)


@app.command()
def show(digest: HashArgument, folder: FolderOption = HERE, as_json: JsonOption = False) -> None:
    """Show what a study would run here: what it reads, method, queries, epsilons, rounds, code, hash."""
    from equipoise.client.showing import describe, show_lines

    proposal = _approvals(folder).find(digest)
    found = describe(proposal, _site(folder), folder / "agent")
    if as_json:
        typer.echo(json.dumps(found))
        return
    for line in show_lines(found):
        typer.echo(line)


@app.command()
def approve(digest: HashArgument, folder: FolderOption = HERE) -> None:
    """Let a study ask, once this hospital's cohort is seen to have a word of the study's for every value."""
    from equipoise.client.check import check_readable

    approvals = _approvals(folder)
    found = approvals.find(digest)
    for warning in check_readable(_site(folder), found.study):
        typer.echo(f"warning: {warning}", err=True)
    proposal = approvals.decide(found.hash, "approved", getpass.getuser())
    typer.echo(f"study {proposal.study.study}, hash {proposal.hash}: approved")


@app.command()
def refuse(digest: HashArgument, folder: FolderOption = HERE) -> None:
    """Let a study ask nothing, or nothing more."""
    proposal = _approvals(folder).decide(digest, "refused", getpass.getuser())
    typer.echo(f"study {proposal.study.study}, hash {proposal.hash}: refused")


@app.command()
def pause(folder: FolderOption = HERE) -> None:
    """Answer nothing until `resume`."""
    from equipoise.client.resident import PAUSED
    from equipoise.common.files import write_whole

    write_whole(folder / "agent" / PAUSED, b"")
    typer.echo("paused; `equipoise site resume` ends it")


@app.command()
def resume(folder: FolderOption = HERE) -> None:
    """End a pause."""
    from equipoise.client.resident import PAUSED

    (folder / "agent" / PAUSED).unlink(missing_ok=True)
    typer.echo("answering again")


@app.command()
def audit(folder: FolderOption = HERE, as_json: JsonOption = False) -> None:
    """List what was asked and what left, with what it cost, after checking the log's chain."""
    from equipoise.client.showing import audit_rows
    from equipoise.common.audit import check_rows

    whole = check_rows(folder / "agent" / "audit.jsonl")
    rows = audit_rows(folder / "agent")
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        what = f"{row.get('run', '')} {row.get('release', '')}".strip()
        typer.echo(
            f"{row['time']}  {row['event']:<9} {what:<32} {row.get('code') or '':<12} {row.get('cost', '')}".rstrip()
        )
    typer.echo(f"{whole} lines, each follows from the one before", err=True)


def _site(folder: Path) -> Any:
    from equipoise.common.sitefile import load_site

    return load_site(folder / "site.yaml")


def _approvals(folder: Path) -> Approvals:
    from equipoise.client.approvals import Approvals

    os.umask(0o077)  # what is decided is the agent's own, as all of its folder
    site = _site(folder)
    return Approvals(folder / "agent", () if site.approve == "manual" else site.approve)


def _brief(proposal: Proposal) -> dict[str, str]:
    return {
        "hash": proposal.hash,
        "study": proposal.study.study,
        "method": proposal.study.method.name,
        "privacy": proposal.study.privacy.mode,
        "run": proposal.run,
        "state": proposal.state,
        "by": proposal.by,
        "time": datetime.fromtimestamp(proposal.time, UTC).isoformat(timespec="seconds"),
    }
