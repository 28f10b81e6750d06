"""`equipoise coordinator init` and `renew`: everything that a coordinator starts from, and its certificate again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import yaml
from cryptography import x509

from equipoise.common.errors import StudyError
from equipoise.common.files import write_whole
from equipoise.common.supervision import python_script, start_script, supervisor, unit
from equipoise.server.certificates import Pair, hosts_of, make_ca, sign_server

PROXY_PORT = 8443
"""Where the proxy listens by default: beside the SuperLink as a rule, so not at that one's port."""


def init_coordinator(
    folder: Path, name: str, host: str, port: int, public: str, hosts: Sequence[str], given: tuple[Path, ...] = ()
) -> None:
    """Write the folder.

    Args:
        folder: new.
        name: of the certificate authority.
        host, port: where the SuperLink listens; an address of the coordinator's own network.
        public: `host:port` under which hospitals reach the proxy; empty where its name is not known yet.
        hosts: names and addresses that the server's certificate is for.
        given: certificate, key and CA certificate of one's own, instead of a new authority.

    Raises:
        StudyError: the folder holds a coordinator already, `public` has no port, a given file is missing, or proxy and
            SuperLink would listen at one port of this machine.
        StorageError: the folder cannot be written.
    """
    folder = folder.resolve()
    if (folder / "coordinator.yaml").exists():
        raise StudyError(f"{folder}: holds a coordinator already; give another folder")
    listen = _proxy_port(public)
    # Who alone reaches the SuperLink is on its machine, and so would be the proxy.
    if port == listen and (host == "localhost" or host.startswith("127.")):
        raise StudyError(f"--port {port}: the proxy of this machine listens there; give the SuperLink another one")
    tls = folder / "tls"
    if given:
        for target, source in zip(("server.pem", "server.key", "ca.pem"), given, strict=True):
            if not source.is_file():
                raise StudyError(f"{source}: no such file; --cert, --key and --ca are PEM files")
            tls.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, tls / target)
    else:
        ca = make_ca(f"{name} authority")
        server = sign_server(ca, hosts)
        _write_pair(tls, "ca", ca)
        _write_pair(tls, "server", server)
    for file in tls.glob("*.key"):
        file.chmod(0o600)
    command = ["flower-superlink", "--host", host, "--port", str(port)]
    command += ["--ssl-certfile", str(tls / "server.pem"), "--ssl-keyfile", str(tls / "server.key")]
    command += ["--ssl-ca-certfile", str(tls / "ca.pem"), "--enable-supernode-auth"]
    command += ["--database", str(folder / "superlink" / "state.db"), "--disable-runtime-dependency-installation"]
    environment = {"FLWR_HOME": str(folder / "superlink" / "home")}
    home, programs = folder / "superlink", folder / "bin"
    start = start_script("the SuperLink of this coordinator", command, home, environment, programs)
    _write_script(folder / "start-superlink.sh", start)
    _write_script(programs / "flower-superlink", python_script("equipoise.server.superlink"))
    _write_script(folder / "supervise.sh", supervisor())
    service = unit("equipoise SuperLink", folder / "start-superlink.sh", "equipoise", 5, [f"ReadWritePaths={folder}"])
    write_whole(folder / "equipoise-superlink.service", service.encode())
    write_whole(folder / "nginx.conf", nginx(folder, host, port, listen).encode())
    (folder / "runs").mkdir(exist_ok=True)
    (folder / "sites").mkdir(exist_ok=True)
    settings = {"host": host, "port": port, "public": public}
    write_whole(folder / "coordinator.yaml", yaml.safe_dump(settings, sort_keys=False).encode())


def renew_certificate(folder: Path) -> datetime:
    """Sign a new certificate, with a new key, for the hosts of the present one; its last day.

    Raises:
        StudyError: the authority's key is not here, or a certificate cannot be read.
        StorageError: the files cannot be written.
    """
    tls = folder / "tls"
    try:
        hosts = hosts_of((tls / "server.pem").read_bytes())
        server = sign_server(Pair((tls / "ca.pem").read_bytes(), (tls / "ca.key").read_bytes()), hosts)
    except FileNotFoundError as error:
        raise StudyError(
            f"{error.filename}: not here; whoever signed your certificate renews it: put it in the place of "
            f"{tls / 'server.pem'}, its key in that of server.key"
        ) from None
    except (ValueError, TypeError) as error:
        raise StudyError(
            f"{tls}: a certificate or the authority's key is not as it was ({error}); restore it"
        ) from None
    _write_pair(tls, "server", server)
    return x509.load_pem_x509_certificate(server.certificate).not_valid_after_utc


def nginx(folder: Path, host: str, port: int, listen: int) -> str:
    """A reverse proxy, at port `listen`: hospitals reach the fleet's paths and nothing else of the SuperLink."""
    return f"""# Include this in the http block of nginx, on the machine that hospitals reach.
# The SuperLink serves three things on one port: /v1/fleet (hospitals, guarded by node keys), /v1/runtime (its own
# processes) and /v1/control (no guard of its own: whoever reaches it runs code). Only the first is passed on.
server {{
  listen {listen} ssl;
  ssl_certificate {folder}/tls/server.pem;
  ssl_certificate_key {folder}/tls/server.key;
  ssl_protocols TLSv1.2 TLSv1.3;
  client_max_body_size 64m;
  access_log off;

  location ^~ /v1/fleet/ {{
    proxy_pass https://{host}:{port};
    proxy_http_version 1.1;
    proxy_ssl_verify on;
    proxy_ssl_trusted_certificate {folder}/tls/ca.pem;
    proxy_ssl_name {host};
    proxy_read_timeout 120s;
    proxy_request_buffering off;
    proxy_buffering off;
  }}
  location / {{
    return 403;
  }}
}}
"""


def _proxy_port(public: str) -> int:
    host, _, port = public.rpartition(":")
    if public and not (host and port.isdigit()):
        raise StudyError(f"--public {public}: has no port; give host:port, as hospitals reach the proxy")
    return int(port) if public else PROXY_PORT


def _write_pair(folder: Path, name: str, pair: Pair) -> None:
    write_whole(folder / f"{name}.pem", pair.certificate)
    before = os.umask(0o077)
    try:
        write_whole(folder / f"{name}.key", pair.key)
    finally:
        os.umask(before)


def _write_script(path: Path, text: str) -> None:
    write_whole(path, text.encode())
    path.chmod(0o755)
