"""A whole deployment on this machine: one SuperLink, SuperNodes, site agents, each a process, over TLS on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import permutations
from pathlib import Path
from typing import Any

import yaml

from equipoise.client.site_init import pin_peer, signed_enrolment
from equipoise.common.sitefile import load_site

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def free_port() -> int:
    """A port that nobody listens at."""
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def equipoise(*arguments: object, check: bool = True, timeout: float = 300, cwd: Path = ROOT) -> str:
    """The command as a user runs it; what it printed on stdout, or on stderr where it failed as expected."""
    ended = subprocess.run(
        [sys.executable, "-c", "from equipoise.cli import main; main()", *map(str, arguments)],
        cwd=cwd, env=ENVIRONMENT, text=True, capture_output=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert "Traceback" not in ended.stderr, ended.stderr
    if check:
        assert ended.returncode == 0, f"{arguments}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        return ended.stdout
    assert ended.returncode != 0, ended.stdout
    return ended.stderr


def programs(folder: Path) -> Path:
    """A folder with the command `equipoise` of this checkout, as an installation would have it."""
    place = folder / "bin"
    place.mkdir()
    (place / "equipoise").write_text(f"#!{sys.executable}\nfrom equipoise.cli import main\nmain()\n")
    (place / "equipoise").chmod(0o755)
    return place


class Process:
    """A start script's process, in a group of its own, with its log."""

    def __init__(
        self,
        script: Path,
        log: Path,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] = {},
        cwd: Path = ROOT,
    ) -> None:
        self.script, self.log, self._prefix, self._cwd = script, log, tuple(prefix), cwd
        self._environment = {**ENVIRONMENT, **environment}
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [*self._prefix, str(self.script)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environment, start_new_session=True,
                cwd=self._cwd,
            )  # fmt: skip

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the process and whatever it started."""
        try:
            os.killpg(self.child.pid, number)
        except ProcessLookupError:
            return
        self.child.wait(timeout=30)

    def text(self) -> str:
        return self.log.read_text(errors="replace")


class Deployment:
    """A coordinator and sites below `folder`; use in a `with`, which ends every process.

    Args:
        folder: short, since Unix sockets lie below it.
        cohorts: site name to the folder that `site.yaml` and the manifest of its data are in.
    """

    def __init__(self, folder: Path, cohorts: Mapping[str, Path]) -> None:
        self.folder = folder
        self.cohorts = dict(cohorts)
        self.port = free_port()
        self.coordinator = folder / "coordinator"
        self.processes: dict[str, Process] = {}
        self.study = folder

    def __enter__(self) -> Deployment:
        equipoise("coordinator", "init", "--coordinator", self.coordinator, "--port", self.port)
        for site, cohort in self.cohorts.items():
            self.init_site(site, cohort)
        for site, peer in permutations(self.cohorts, 2):
            pin_peer(self.site(site), load_site(self.site(site) / "site.yaml"), self.enrolment(peer))
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(list(self.processes.values())):
            process.kill()

    def site(self, name: str) -> Path:
        return self.folder / name

    def init_site(self, name: str, cohort: Path) -> None:
        """Keys and scripts by the command; the site file as the cohort's folder has it."""
        equipoise(
            "site", "init", name, "--folder", self.site(name), "--superlink", f"127.0.0.1:{self.port}",
            "--ca", self.coordinator / "tls" / "ca.pem", "--port", free_port(),
        )  # fmt: skip
        value = yaml.safe_load((cohort / "site.yaml").read_text())
        value["data"]["manifest"] = str(cohort / value["data"]["manifest"])
        value["data"]["synthetic"] = True
        value.setdefault("caps", {})["cohort_minimum"] = 1
        self.change_site(name, **value)

    def change_site(self, name: str, **changes: Any) -> None:
        path = self.site(name) / "site.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))

    def start(self) -> None:
        """Start everything and let the sites in."""
        for site in self.cohorts:
            self.start_agent(site, wait=False)
        self.start_superlink()
        for site in self.cohorts:
            self.enroll(site)
            self.start_supernode(site)
        for site in self.cohorts:
            self.wait_for_agent(site)

    def start_superlink(self) -> None:
        self._start("superlink", self.coordinator / "start-superlink.sh")
        self.wait(lambda: listens(self.port), 60, "the SuperLink listens")

    def enrolment(self, site: str) -> Path:
        """The file that the coordinator and the other sites get."""
        file = self.folder / f"{site}.json"
        file.write_bytes(signed_enrolment(self.site(site), site))
        return file

    def enroll(self, site: str) -> None:
        equipoise("coordinator", "enroll", self.enrolment(site), "--coordinator", self.coordinator)

    def start_agent(self, site: str, prefix: Sequence[str] = (), wait: bool = True) -> None:
        self._start(f"agent-{site}", self.site(site) / "start-agent.sh", prefix)
        if wait:
            self.wait_for_agent(site)

    def wait_for_agent(self, site: str) -> None:
        door = self.site(site) / "door" / "agent.sock"
        log = self.processes[f"agent-{site}"]
        self.wait(lambda: door.exists() and f"listens at {door}" in log.text(), 60, f"the agent of {site} listens")

    def start_supernode(self, site: str, prefix: Sequence[str] = ()) -> None:
        self._start(f"supernode-{site}", self.site(site) / "start-supernode.sh", prefix)

    def submit(self, study: Path, *options: object, check: bool = True) -> str:
        return equipoise("submit", study, "--coordinator", self.coordinator, *options, check=check, timeout=580)

    def status(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(equipoise("status", run, "--coordinator", self.coordinator, "--json"))
        return found

    def approve(self, *sites: str, patience: float = 120) -> None:
        """Approve whatever waits at the sites, as soon as it does."""
        for site in sites or self.cohorts:
            waits = self.wait(lambda site=site: self.pending(site), patience, f"a study waits at {site}")
            for digest in waits:
                equipoise("site", "approve", digest, "--folder", self.site(site))

    def pending(self, site: str) -> list[str]:
        found = sorted((self.site(site) / "agent" / "studies").glob("*.json"))
        return [f.stem for f in found if not (self.site(site) / "agent" / "decisions" / f.name).exists()]

    def until(self, run: str, *states: str, patience: float = 300) -> dict[str, Any]:
        """Wait for one of the states; what `status` says then."""
        file = self.coordinator / "runs" / run / "deployment" / "state.json"

        def reached() -> bool:
            try:
                return json.loads(file.read_text())["state"] in states
            except (OSError, ValueError):
                return False

        self.wait(reached, patience, f"run {run} is {' or '.join(states)}")
        return self.status(run)

    def wait(self, condition: Any, patience: float, what: str) -> Any:
        return wait_for(condition, patience, what, self.processes.values())

    def _start(self, name: str, script: Path, prefix: Sequence[str] = ()) -> None:
        self.processes[name] = Process(script, self.folder / f"{name}.log", prefix)


def wait_for(condition: Any, patience: float, what: str, processes: Iterable[Process] = ()) -> Any:
    """What `condition` gives as soon as it is true; the ends of the processes' logs where it does not become so."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            found = condition()
        except (OSError, ValueError):  # a file that is not there yet, or is being written
            found = None
        if found:
            return found
        time.sleep(0.2)
    logs = "\n".join(f"== {process.log.name}\n{process.text()[-1500:]}" for process in processes)
    raise AssertionError(f"not within {patience:g} s: {what}\n{logs}")


def listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def sums(run: Path) -> dict[str, bytes]:
    """Every released sum and every model of a run."""
    patterns = ("**/sums/*.safetensors", "**/model.safetensors")
    return {str(f.relative_to(run)): f.read_bytes() for pattern in patterns for f in sorted(run.glob(pattern))}


def short_folder(name: str) -> Iterator[Path]:
    """A folder whose path leaves room for the name of a socket."""
    folder = Path("/tmp") / f"eq-{name}-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
