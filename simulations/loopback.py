"""A whole deployment on this machine: one SuperLink, SuperNodes, site agents, each a process, over TLS on loopback.

For the tests of a deployment and its benchmarks: what runs is what a coordinator and hospitals run, by the commands
that they use, in folders below one folder.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import yaml

from equipoise.client.site_init import pin_peer, signed_enrolment
from equipoise.common.sitefile import load_site

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
_MARK = "EQUIPOISE_LOOPBACK"
"""Variable by which the processes of a deployment are known, whoever started them."""


def free_port() -> int:
    """A port that nobody listens at."""
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def command(*arguments: object, timeout_s: float = 300, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command `equipoise` as a user runs it."""
    return subprocess.run(
        [sys.executable, "-c", "from equipoise.cli import main; main()", *map(str, arguments)],
        cwd=cwd, env=ENVIRONMENT, text=True, capture_output=True, timeout=timeout_s, check=False,
    )  # fmt: skip


def done(*arguments: object, timeout_s: float = 300) -> str:
    """What the command printed.

    Raises:
        RuntimeError: it failed.
    """
    ended = command(*arguments, timeout_s=timeout_s)
    if ended.returncode:
        raise RuntimeError(f"{arguments}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}")
    return ended.stdout


class Process:
    """A start script's process, in a group of its own, with its log.

    Args:
        script: the script.
        log: what it writes is added to this file.
        prefix: a command that runs it.
        environment: further variables.
        cwd: where it is started.
    """

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
        """Start it, or start it again."""
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
        """The log so far."""
        return self.log.read_text(errors="replace")


class Deployment:
    """A coordinator and sites below `folder`; use in a `with`, which ends every process.

    Args:
        folder: short, since Unix sockets lie below it.
        cohorts: site name to the folder that `site.yaml` and the manifest of its data are in.
        host: address of this machine at which the SuperLink listens.

    Attributes:
        prefix: name of a process, as `supernode-ash`, to a command that runs it.
    """

    def __init__(self, folder: Path, cohorts: Mapping[str, Path], host: str = "127.0.0.1") -> None:
        self.folder = folder.resolve()
        self.cohorts = dict(cohorts)
        self.host, self.port = host, free_port()
        self.coordinator = folder / "coordinator"
        self.processes: dict[str, Process] = {}
        self.prefix: dict[str, Sequence[str]] = {}

    def __enter__(self) -> Deployment:
        done("coordinator", "init", *self.here, "--host", self.host, "--port", self.port)
        for site, cohort in self.cohorts.items():
            self.init_site(site, cohort)
        for site, peer in permutations(self.cohorts, 2):
            pin_peer(self.site(site), load_site(self.site(site) / "site.yaml"), self.enrolment(peer))
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(list(self.processes.values())):
            process.kill()
        for number in self.running():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)  # what Flower started in a session of its own

    def running(self, program: str = "") -> list[int]:
        """Process ids of everything that this deployment runs, or of one program, as `flwr-serverapp`."""
        mark = f"{_MARK}={self.folder}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                marked = mark in (entry / "environ").read_bytes().split(b"\0")
                if marked and program.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return sorted(found)

    @property
    def here(self) -> tuple[str, str]:
        """The option by which a command finds the coordinator."""
        return ("--coordinator", str(self.coordinator))

    def site(self, name: str) -> Path:
        """Folder of a site."""
        return self.folder / name

    def init_site(self, name: str, cohort: Path) -> None:
        """Keys and scripts by the command; the site file as the cohort's folder has it."""
        done(
            "site", "init", name, "--folder", self.site(name), "--superlink", f"{self.host}:{self.port}",
            "--ca", self.coordinator / "tls" / "ca.pem", "--port", free_port(),
        )  # fmt: skip
        value = yaml.safe_load((cohort / "site.yaml").read_text())
        files = {key: str(cohort / value["data"][key]) for key in ("manifest", "images") if value["data"].get(key)}
        value["data"] |= files
        value["data"]["synthetic"] = True
        value["caps"] = {**value.get("caps", {}), "cohort_minimum": 1, "split_minimum": 1}
        self.change_site(name, **value)

    def change_site(self, name: str, **changes: Any) -> None:
        """Replace top keys of a site file."""
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
        """Start the SuperLink, and wait until it listens."""
        self._start("superlink", self.coordinator / "start-superlink.sh")
        self.wait(lambda: listens(self.port, self.host), 60, "the SuperLink listens")

    def enrolment(self, site: str) -> Path:
        """The file that the coordinator and the other sites get."""
        file = self.folder / f"{site}.json"
        file.write_bytes(signed_enrolment(self.site(site), site))
        return file

    def enroll(self, site: str) -> None:
        """Let a site in."""
        done("coordinator", "enroll", self.enrolment(site), *self.here)

    def start_agent(self, site: str, wait: bool = True) -> None:
        """Start a site's agent."""
        self._start(f"agent-{site}", self.site(site) / "start-agent.sh")
        if wait:
            self.wait_for_agent(site)

    def wait_for_agent(self, site: str) -> None:
        """Wait until the agent listens."""
        door = Path(load_site(self.site(site) / "site.yaml").socket.path)
        log = self.processes[f"agent-{site}"]
        self.wait(lambda: door.exists() and f"listens at {door}" in log.text(), 60, f"the agent of {site} listens")

    def start_supernode(self, site: str) -> None:
        """Start a site's SuperNode."""
        self._start(f"supernode-{site}", self.site(site) / "start-supernode.sh")

    def submit(self, study: Path, *options: object) -> str:
        """Submit a study; what the command printed."""
        return done("submit", study, *self.here, *options, timeout_s=580)

    def status(self, run: str) -> dict[str, Any]:
        """What `equipoise status` says."""
        found: dict[str, Any] = json.loads(done("status", run, *self.here, "--json"))
        return found

    def approve(self, *sites: str, patience: float = 120) -> None:
        """Approve whatever waits at the sites, as soon as it does."""
        for site in sites or self.cohorts:
            waits = self.wait(partial(self.pending, site), patience, f"a study waits at {site}")
            for digest in waits:
                done("site", "approve", digest, "--folder", self.site(site))

    def pending(self, site: str) -> list[str]:
        """Hashes of the studies that wait at a site."""
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

    def wait(self, condition: Callable[[], Any], patience: float, what: str) -> Any:
        """`wait_for`, with the logs of all processes."""
        return wait_for(condition, patience, what, self.processes.values())

    def _start(self, name: str, script: Path) -> None:
        mark = {_MARK: str(self.folder)}
        self.processes[name] = Process(script, self.folder / f"{name}.log", self.prefix.get(name, ()), mark)


def wait_for(condition: Callable[[], Any], patience: float, what: str, processes: Iterable[Process] = ()) -> Any:
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
    raise TimeoutError(f"not within {patience:g} s: {what}\n{logs}")


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody listens at a port of this machine."""
    with closing(socket.socket()) as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
