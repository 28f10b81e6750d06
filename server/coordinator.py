"""The coordinator's folder: certificates, the SuperLink and how it is reached, the sites, and Flower's commands on it.

coordinator.yaml         addresses; the one file to edit
tls/                     ca.pem (give it to every hospital), ca.key, server.pem, server.key
sites/<name>.json        the enrolment of every site that was let in
app/                     what a SuperNode is sent: two lines that name installed code
flower/, superlink/      Flower's own configuration; its database, in the neutral folder that it is started from
runs/                    the runs
start-superlink.sh, equipoise-superlink.service, supervise.sh, nginx.conf
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from pydantic import Field

from equipoise import __version__
from equipoise.common.config import Strict, read_yaml, validate
from equipoise.common.errors import StudyError, UnreachableError
from equipoise.common.files import write_whole
from equipoise.common.identity import Enrolment
from equipoise.quiet import quiet_flower

CONNECTION = "equipoise"
_IN_USE, _REVOKED = "Public key already in use", "unregistered"  # in Flower's words
_PATIENCE_S = 120

_APP = f'''[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "equipoise-app"
version = "{__version__}"
description = "Names the code that is installed at the coordinator and at each hospital; brings none of its own."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "equipoise"
fab-include = ["equipoise_app/*.py"]

[tool.flwr.app.components]
serverapp = "equipoise_app.server:app"
clientapp = "equipoise_app.client:app"

[tool.flwr.app.config]
folder = ""
coordinator = ""
approval-wait-s = 604800.0
track = ""
'''
_APP_FILES = {
    "pyproject.toml": _APP,
    "equipoise_app/__init__.py": '"""What a SuperNode is sent."""\n',
    "equipoise_app/server.py": "from equipoise.server import deployment\n\napp = deployment.app\n",
    "equipoise_app/client.py": "from equipoise.client import app as stub\n\napp = stub.app\n",
}


class Settings(Strict):
    """coordinator.yaml."""

    host: str = "127.0.0.1"
    port: int = Field(default=9443, ge=1, le=65535)
    public: str = ""  # host:port that hospitals reach: the proxy's; empty where they reach the SuperLink itself


class Coordinator:
    """The folder of one coordinator.

    Raises:
        StudyError: there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        file = self.folder / "coordinator.yaml"
        if not file.is_file():
            raise StudyError(f"{folder}: no coordinator here; make one with `equipoise coordinator init`")
        self.settings = validate(Settings, read_yaml(file), str(file))

    @property
    def runs(self) -> Path:
        """Where the runs lie."""
        return self.folder / "runs"

    def enrolled(self) -> dict[str, dict[str, Any]]:
        """Every site that was let in, by name."""
        files = sorted((self.folder / "sites").glob("*.json"))
        return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}

    @property
    def nodes(self) -> dict[str, int]:
        """Node id of every site that was let in: the SuperLink gave it to the site's key, and it stays the key's."""
        return {site: int(known["node_id"]) for site, known in self.enrolled().items()}

    def node_states(self) -> dict[str, str]:
        """Status of every node of the SuperLink's database, by node id; those that were taken off stay in it.

        Raises:
            UnreachableError: the SuperLink does not answer.
        """
        nodes = self.flower("supernode", "ls", CONNECTION).get("nodes", [])
        return {str(node["node-id"]): str(node["status"]) for node in nodes}

    def enroll(self, found: Enrolment, replace: bool = False) -> None:
        """Let a site in: register its node key at the SuperLink, unless that has it already.

        Args:
            found: the site and its keys.
            replace: the site has exchanged a key; take these for the ones before.

        Raises:
            StudyError: the site is in already with another key, or its node key is another site's or was revoked.
            UnreachableError: the SuperLink does not answer.
        """
        others = self.enrolled()
        known = others.pop(found.site, None)
        _check_keys(found, known, others, replace)
        states = self.node_states()
        number = "" if known is None else str(known["node_id"])
        same = known is not None and known["node_key"] == found.node_key
        if same and states.get(number) == _REVOKED:
            raise _used_up(found.site)
        if not same:
            self._unregister(number, states)
        if not same or number not in states:  # its database was lost
            live = {node for node, state in states.items() if state != _REVOKED}
            number = self._register(found, live - {number, *(other["node_id"] for other in others.values())})
        value = {**found.__dict__, "node_id": number}
        write_whole(self.folder / "sites" / f"{found.site}.json", json.dumps(value, indent=1).encode())

    def _register(self, found: Enrolment, nobodys: set[str]) -> str:
        """Register a site's node key; the node id that the SuperLink gives it, or gave it before a crash.

        Flower does not say which node has which key. But where an enrolment of this key did not end, the key lies there
        already, and the one node that is nobody's is its.
        """
        file = self.folder / "sites" / f"{found.site}.pub"
        key = found.node_key.encode() + b"\n"
        begun = file.exists() and file.read_bytes() == key
        write_whole(file, key)
        try:
            return str(self.flower("supernode", "register", str(file), CONNECTION, "--name", found.site)["node-id"])
        except UnreachableError as error:
            if _IN_USE not in str(error):
                raise
        if begun and len(nobodys) == 1:
            return nobodys.pop()
        file.unlink()
        raise _used_up(found.site)

    def revoke(self, site: str) -> None:
        """Take a site's node key off the SuperLink, for ever; its SuperNode is refused from then on.

        Raises:
            StudyError: no such site is enrolled.
            UnreachableError: the SuperLink does not answer.
        """
        known = self.enrolled().get(site)
        if known is None:
            raise StudyError(f"site {site}: not enrolled here; there are: {', '.join(self.enrolled()) or 'none'}")
        self._unregister(known["node_id"], self.node_states())
        (self.folder / "sites" / f"{site}.pub").unlink(missing_ok=True)
        (self.folder / "sites" / f"{site}.json").unlink()

    def _unregister(self, number: str, states: Mapping[str, str]) -> None:
        """Take a node off, unless the SuperLink has done so, or has lost its database."""
        if states.get(number, _REVOKED) != _REVOKED:
            self.flower("supernode", "unregister", number, CONNECTION)

    def start(self, run: Path, approval_wait_s: float, track: Sequence[str]) -> str:
        """Start an attempt at a run at the SuperLink; Flower's number of it.

        Raises:
            UnreachableError: the SuperLink does not answer.
        """
        config = f"folder={json.dumps(str(run.resolve()))} coordinator={json.dumps(str(self.folder))} "
        config += f'approval-wait-s={approval_wait_s} track="{",".join(track)}"'
        for name, text in _APP_FILES.items():
            write_whole(self.folder / "app" / name, text.encode())
        return str(self.flower("run", str(self.folder / "app"), CONNECTION, "-c", config)["run-id"])

    def flower(self, *arguments: str) -> dict[str, Any]:
        """What a `flwr` command answers in JSON.

        Raises:
            UnreachableError: it failed; Flower's own last line says why.
        """
        ended = self._flwr(*arguments, "--format", "json")
        text = ended.stdout
        try:
            # Flower prints its notes before the value.
            value = json.loads(text[text.index("{") :])
        except ValueError:
            value = {}
        if ended.returncode or not isinstance(value, dict) or value.get("success") is False:
            said = str(value.get("error-message") or (ended.stderr or text).strip())
            last = " ".join(said.replace("│", " ").split())[:300] or "no answer"
            address = f"{self.settings.host}:{self.settings.port}"
            raise UnreachableError(f"SuperLink at {address}, flwr {arguments[0]}: {last}; {self._remedy()}")
        return value

    def _remedy(self) -> str:
        """What to do about a SuperLink that does not answer; Flower does not say that a certificate has ended."""
        file = self.folder / "tls" / "server.pem"
        ends = x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc
        if ends < datetime.now(UTC):
            return f"its certificate has expired on {ends:%Y-%m-%d}: `equipoise coordinator renew`, then start it again"
        return "is it started?"

    def log(self, number: str) -> str:
        """Flower's log of an attempt."""
        return self._flwr("log", number, CONNECTION, "--show").stdout

    def _flwr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        quiet_flower(self.folder / "flower")
        config = (
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "{self.settings.host}:{self.settings.port}"\n'
            f"root-certificates = {json.dumps(str(self.folder / 'tls' / 'ca.pem'))}\n"
        )
        write_whole(self.folder / "flower" / "config.toml", config.encode())
        try:
            return subprocess.run(  # noqa: S603 - the program beside this one, without a shell
                [str(Path(sys.executable).parent / "flwr"), *arguments],
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
                check=False,
                cwd=self.folder / "flower",
                env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
            )
        except subprocess.TimeoutExpired:
            raise UnreachableError(f"flwr {arguments[0]}: no answer within {_PATIENCE_S} s") from None


def _check_keys(
    found: Enrolment, known: Mapping[str, Any] | None, others: Mapping[str, Mapping[str, Any]], replace: bool
) -> None:
    """Whether an enrolment's keys are nobody else's, and the ones that are known, unless they are to be replaced."""
    for name, what in {"node_key": "node key", "identity": "identity key"}.items():
        key = getattr(found, name)
        owner = next((site for site, other in others.items() if other[name] == key), None)
        if owner is not None:
            raise StudyError(f"site {found.site}: its {what} is that of site {owner}; each hospital has its own")
        if known is not None and known[name] != key and not replace:
            raise StudyError(
                f"site {found.site} is enrolled with another {what}; if the hospital tells you by telephone that it "
                "has exchanged it, add --replace"
            )


def _used_up(site: str) -> StudyError:
    return StudyError(
        f"site {site}: the SuperLink takes no node key twice, and has had this one (it was revoked); ask the hospital "
        "for a new one (docs/deploy.md); where the site is still enrolled, add --replace"
    )
