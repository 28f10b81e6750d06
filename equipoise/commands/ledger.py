"""`equipoise ledger`: what a hospital has ever released, and what it cost. For the hospital's own officer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from equipoise.client.ledger import Ledger

app = typer.Typer(no_args_is_help=True, help="A hospital's ledger: every release it ever made, and what it cost.")

LedgerFile = Annotated[Path, typer.Argument(metavar="LEDGER", help="The ledger.sqlite of the site agent.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
DeltaOption = Annotated[float, typer.Option(help="Delta at which epsilon is shown.")]


@app.command()
def show(ledger_file: LedgerFile, delta: DeltaOption = 1e-5, as_json: JsonOption = False) -> None:
    """List every release ever made, and what each account has spent."""
    from equipoise.client.statement import statement

    found = statement(_open(ledger_file), delta)
    if as_json:
        typer.echo(json.dumps(found))
        return
    for row in found["releases"]:
        typer.echo(
            f"{row['time']}  {row['run']:<28} {row['number']:>4}  {row['query']:<20} {row['split']:<10} "
            f"{row['account']:<12} {row['state']:<8} {_epsilon(row['epsilon'])}"
            + (f"  attempt {row['attempt']}" if row["attempt"] else "")
        )
    for account in found["accounts"]:
        typer.echo(_account(account, delta))


@app.command()
def verify(
    ledger_file: LedgerFile,
    witness: Annotated[
        list[Path] | None,
        typer.Option(help="Run folder of a coordinator, whose transcripts name heads of this ledger. Repeatable."),
    ] = None,
    site: Annotated[str | None, typer.Option(help="Name of this site in the run, where --witness is given.")] = None,
) -> None:
    """Check the chain, and that no witnessed entry is missing (as after an old copy was put back)."""
    from equipoise.client.statement import check_ledger
    from equipoise.common.errors import StudyError

    if witness and site is None:
        raise StudyError("--witness needs --site, the name of this site in the run")
    for line in check_ledger(_open(ledger_file), [] if site is None else _heads(witness or [], site)):
        typer.echo(line)


@app.command()
def export(ledger_file: LedgerFile) -> None:
    """Write every entry as a line of JSON on stdout, with its hashes."""
    from equipoise.common.canonical import canonical_json

    for entry in _open(ledger_file).entries():
        row = {"seq": entry.seq, "body": entry.body, "previous": entry.previous, "hash": entry.hash}
        typer.echo(canonical_json(row).decode("ascii"))


@app.command()
def end(
    ledger_file: LedgerFile,
    study: Annotated[str, typer.Argument(metavar="HASH", help="Hash of the study, or the beginning of it.")],
    run: Annotated[str, typer.Argument(help="Name of the run.")],
) -> None:
    """End a run that its coordinator abandoned: it may ask nothing more, and what it did not ask is given back."""
    from equipoise.client.request import Request
    from equipoise.common.errors import StudyError

    ledger = _open(ledger_file)
    there = [run_ for run_, ended in ledger.runs().items() if not ended]
    found = [digest for digest, name in there if name == run and digest.startswith(study)]
    if len(found) != 1:
        listed = ", ".join(f"{name} of {digest[:12]}" for digest, name in there) or "none"
        raise StudyError(f"{study} {run}: no run in progress, or several; in progress: {listed}; nothing was changed")
    ledger.end_run(Request(found[0], run, -1, ""), done=True)
    typer.echo(f"run {run} has ended; what it had reserved and not asked is free")


def _open(file: Path) -> Ledger:
    from equipoise.client.ledger import Ledger
    from equipoise.common.errors import StudyError

    if not file.is_file():
        raise StudyError(f"{file}: no ledger there; give the ledger.sqlite in the state folder of the site agent")
    return Ledger(file)


def _heads(runs: list[Path], site: str) -> list[str]:
    from equipoise.server.transcript import witnessed_heads

    return [head for run in runs for head in witnessed_heads(run, site)]


def _account(account: dict[str, Any], delta: float) -> str:
    line = f"account {account['account']}: epsilon {_epsilon(account['epsilon'])} at delta {delta:g}"
    if account["epsilon_if_others_collude"] != account["epsilon"]:
        line += f" ({_epsilon(account['epsilon_if_others_collude'])} if all others collude)"
    if account["reserved_epsilon"] > account["epsilon"]:
        line += f"; with what running studies may still ask, {_epsilon(account['reserved_epsilon'])}"
    if account["unprotected"]:
        line += f"; {account['unprotected']} releases without noise, which no epsilon covers"
    return line


def _epsilon(value: float | None) -> str:
    return "no noise" if value is None else f"{value:.3f}"
