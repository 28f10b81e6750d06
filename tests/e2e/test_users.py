"""A hostile app bundle beside a site agent of another user: it reads nothing, and the door gives it codes.

Needs root, to be three users. The bundle is code of the attacker's choice, as a lying coordinator would send it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from equipoise.client.site_init import ownership
from equipoise.simulations.loopback import ENVIRONMENT, ROOT, Process, wait_for
from tests.e2e.deployed import equipoise, programs, short_folder
from tests.e2e.studies import TABLE, Desk

AGENT, NODE, STRANGER, GROUP = 64001, 64002, 64003, 64010
pytestmark = [pytest.mark.failures, pytest.mark.timeout(300)]

HOSTILE = """
import json, os, sys
from pathlib import Path
from equipoise.client.socket_door import SocketDoor
from equipoise.common.wire import PROTOCOL, pack, unpack

folder, data = Path(sys.argv[1]), Path(sys.argv[2])
found = {"read": [], "listed": [], "wrote": [], "codes": []}
for place in (folder / "agent", data):
    try:
        found["listed"] += os.listdir(place)
    except OSError:
        pass
targets = [folder / "site.yaml", data / "manifest.csv"]
targets += [folder / "agent" / n for n in ("identity.key", "ledger.sqlite", "audit.jsonl", "agent.log.jsonl")]
for file in targets:
    try:
        found["read"].append(file.read_bytes().decode(errors="replace"))
    except OSError:
        pass
    try:
        file.open("ab").close()
        found["wrote"].append(str(file))
    except OSError:
        pass
try:
    (folder / "agent" / "decisions").mkdir()
    found["wrote"].append("decisions")
except OSError:
    pass
door = SocketDoor(str(folder / "door" / "agent.sock"))
header = {"protocol": PROTOCOL, "run": "r/swift", "release": 0, "head": "", "study": "0" * 64, "plan": "0" * 64,
          "index": 0, "inputs": {}}
asked = [b"", b"\\x80\\x04\\x95.", os.urandom(4096), pack(header, {}),
         pack({**header, "close": True, "done": True}, {}),
         pack({**header, "run": "../../etc/passwd"}, {}),
         pack({"protocol": PROTOCOL, "propose": True}, {})]
for request in asked:
    try:
        head, arrays = unpack(door.answer(request))
        found["codes"].append([head.get("code"), sorted(head), len(arrays)])
    except Exception as error:
        found["codes"].append([type(error).__name__, [], 0])
print(json.dumps(found))
"""


def numbered(line: str) -> str:
    """A command on the users and the group of the service files, on this test's, which have no names."""
    users = {"equipoise-agent": AGENT, "equipoise-node": NODE, "equipoise-door": GROUP}
    for name, number in users.items():
        line = line.replace(name, str(number))
    return line


def as_user(uid: int, gid: int) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]


@pytest.fixture(scope="module", autouse=True)
def _several_users() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be several users")
    # By a shell, which has no rights left over when it starts the interpreter.
    command = [*as_user(AGENT, AGENT), "sh", "-c", f"exec '{sys.executable}' -c 'import equipoise'"]
    if subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip(f"needs an interpreter and a checkout that other users may read, not {sys.executable}")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, Path, Process]]:
    """A site whose agent runs as its own user; folder, data and the process."""
    for folder in short_folder("users"):
        desk = Desk(folder / "desk", TABLE)
        (tmp_path / "ca.pem").write_text("none")
        place, data = folder / "ash", desk.site("ash")
        command = ["site", "init", "ash", "--folder", place, "--superlink", "127.0.0.1:9", "--ca", tmp_path / "ca.pem"]
        equipoise(*command)
        value = yaml.safe_load((data / "site.yaml").read_text())
        value["data"] |= {"manifest": str(data / "manifest.csv"), "synthetic": True}
        value["socket"] = {"path": str(place / "door" / "agent.sock")}
        (place / "site.yaml").write_text(yaml.safe_dump(value))
        for line in ownership(place):
            subprocess.run(shlex.split(numbered(line)), check=True)
        for path in (data, data / "manifest.csv"):
            os.chown(path, AGENT, AGENT)
            path.chmod(0o700 if path.is_dir() else 0o600)
        # The socket takes the group of the agent's process: the door's, as the service file has it.
        found = {"PATH": f"{os.environ['PATH']}:{programs(folder)}"}
        agent = Process(place / "start-agent.sh", folder / "agent.log", as_user(AGENT, GROUP), found)
        try:
            wait_for(partial(listening, agent), 200, "the agent listens", [agent])
            yield place, data, agent
        finally:
            agent.kill()


def listening(agent: Process) -> bool:
    return "listens at" in agent.text()


def attack(uid: int, gid: int, place: Path, data: Path) -> dict[str, list[object]]:
    ended = subprocess.run(
        [*as_user(uid, gid), sys.executable, "-c", HOSTILE, str(place), str(data)],
        env=ENVIRONMENT, cwd="/", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found: dict[str, list[object]] = json.loads(ended.stdout)
    return found


def test_a_hostile_bundle_reads_nothing_and_gets_codes(site: tuple[Path, Path, Process]) -> None:
    place, data, agent = site
    found = attack(NODE, GROUP, place, data)
    assert (found["read"], found["listed"], found["wrote"]) == ([], [], [])
    assert len(found["codes"]) == 7
    for code, names, arrays in found["codes"]:
        assert code in ("refused", "need_inputs", "internal", "study")
        assert (names, arrays) == (["code", "protocol", "site"], 0)
    assert agent.child.poll() is None


def test_who_is_not_of_the_group_cannot_even_connect(site: tuple[Path, Path, Process]) -> None:
    place, data, _ = site
    found = attack(STRANGER, STRANGER, place, data)
    assert (found["read"], found["listed"], found["wrote"]) == ([], [], [])
    assert {code for code, _, _ in found["codes"]} == {"UnreachableError"}


def test_the_attack_finds_what_is_not_guarded(site: tuple[Path, Path, Process]) -> None:
    place, data, _ = site
    found = attack(AGENT, GROUP, place, data)
    assert found["read"]
    assert found["listed"]
