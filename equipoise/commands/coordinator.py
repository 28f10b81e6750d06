"""`equipoise coordinator`: set up the coordinator, renew its certificate, let sites in, take them out."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The coordinator's side: set up, let sites in, take them out.")

FolderOption = Annotated[
    Path, typer.Option("--coordinator", envvar="EQUIPOISE_COORDINATOR", help="The coordinator's folder.")
]
HERE = Path()


@app.command()
def init(
    folder: FolderOption = HERE,
    name: Annotated[str, typer.Option(help="Name of the certificate authority.")] = "equipoise",
    host: Annotated[
        str, typer.Option(help="Where the SuperLink listens: the coordinator's own network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Its port.")] = 9443,
    public: Annotated[
        str, typer.Option(help="host:port of the proxy that hospitals reach; port 8443 by default.")
    ] = "",
    cert: Annotated[Path | None, typer.Option(help="A server certificate of your own, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    ca: Annotated[Path | None, typer.Option(help="The CA certificate that signed it, PEM.")] = None,
) -> None:
    """Make a certificate authority, start scripts, a service file and a proxy's configuration."""
    from equipoise.common.errors import StudyError
    from equipoise.server.coordinator_init import init_coordinator

    given = tuple(path for path in (cert, key, ca) if path is not None)
    if len(given) not in (0, 3):
        raise StudyError("--cert, --key and --ca are given together, or none of them")
    os.umask(0o077)
    hosts = [host, *(["localhost"] if host == "127.0.0.1" else [])]
    outside = public.rpartition(":")[0]
    hosts += [outside] if outside and outside not in hosts else []
    init_coordinator(folder, name, host, port, public, hosts, given)
    typer.echo(f"{folder / 'start-superlink.sh'}: start it, under supervise.sh or as the service beside it")
    typer.echo(f"before the service is used, as root: chown -R equipoise {shlex.quote(str(folder.resolve()))}")
    typer.echo(f"{folder / 'nginx.conf'}: lets hospitals reach the fleet's paths only")
    typer.echo(f"{folder / 'tls' / 'ca.pem'}: give it to every hospital, by a way that it trusts")


@app.command()
def renew(folder: FolderOption = HERE) -> None:
    """Sign a new server certificate for the same names, by the authority that `init` made; hospitals need nothing."""
    from equipoise.server.coordinator import Coordinator
    from equipoise.server.coordinator_init import renew_certificate

    os.umask(0o077)
    ends = renew_certificate(Coordinator(folder).folder)
    typer.echo(
        f"the certificate is valid until {ends:%Y-%m-%d}; start the SuperLink again, and let the proxy reload it"
    )


@app.command()
def enroll(
    enrolment: Annotated[Path, typer.Argument(metavar="FILE", help="What `equipoise site enroll` printed.")],
    folder: FolderOption = HERE,
    replace: Annotated[
        bool, typer.Option("--replace", help="The site has exchanged a key: take this enrolment for the one before.")
    ] = False,
) -> None:
    """Let a site in, or in again. Compare the fingerprint with the hospital, by telephone."""
    from equipoise.common.identity import read_enrolment
    from equipoise.server.coordinator import Coordinator

    found = read_enrolment(enrolment)
    Coordinator(folder).enroll(found, replace)
    typer.echo(f"site {found.site} is enrolled; fingerprint {found.fingerprint}")


@app.command()
def revoke(
    site: Annotated[str, typer.Argument(metavar="NAME", help="The site's name.")], folder: FolderOption = HERE
) -> None:
    """Take a site out; its SuperNode is refused from then on."""
    from equipoise.server.coordinator import Coordinator

    Coordinator(folder).revoke(site)
    typer.echo(f"site {site} is revoked")


@app.command()
def sites(
    folder: FolderOption = HERE, as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False
) -> None:
    """List the sites that were let in, and whether each is connected; `unknown` is one to `enroll` again."""
    from equipoise.server.coordinator import Coordinator

    coordinator = Coordinator(folder)
    states = coordinator.node_states()
    rows = [
        {"site": name, "state": states.get(known["node_id"], "unknown"), "identity": known["identity"]}
        for name, known in coordinator.enrolled().items()
    ]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row['site']:<24} {row['state']:<12} {row['identity']}")
