"""The SuperNode's pauses: short while a run goes on, Flower's own otherwise; it is Flower's loop that pauses."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from equipoise.client import supernode
from equipoise.client.supernode import IDLE_S, LOCAL_S, LOOK_S, QUIET_AFTER_S, Pauses


class Clock:
    """A clock that a sleep moves on."""

    def __init__(self) -> None:
        self.now, self.slept = 1000.0, []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_pauses_are_short_while_there_is_work_and_flowers_own_when_it_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(supernode, "time", clock)
    pauses = Pauses()
    pauses.sleep(IDLE_S)
    assert clock.slept == [IDLE_S]
    pauses.sleep(0.5)  # Flower waits for the reply of a ClientApp
    assert clock.slept.pop() == LOCAL_S
    clock.slept.clear()
    while clock.now < 1000 + QUIET_AFTER_S + 10:
        pauses.sleep(IDLE_S)
    assert clock.slept[0] == LOOK_S
    assert clock.slept.count(LOOK_S) == pytest.approx(QUIET_AFTER_S / LOOK_S, abs=2)
    assert clock.slept[-1] == IDLE_S


def test_flowers_loop_pauses_by_this_name_and_uses_nothing_else_of_it() -> None:
    # What the program replaces: if Flower moves it, the pauses are Flower's own, and this test says so.
    file = Path(str(import_module("flwr.supernode.start_client_internal").__file__))
    used = [
        node.attr
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time"
    ]
    assert used
    assert set(used) == {"sleep"}
    assert f"time.sleep({IDLE_S:.0f})" in file.read_text()


GIVES_UP = """
import importlib, threading
from equipoise.client import supernode
cli = importlib.import_module("flwr.supernode.cli.flower_supernode")
cli.flower_supernode = threading.Thread(target=threading.Event().wait).start
supernode.main()
"""


def test_it_ends_when_flower_gives_the_connection_up_although_a_thread_goes_on() -> None:
    command = [sys.executable, "-c", GIVES_UP]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, cwd=Path(__file__).parents[2]
    )
    assert ended.returncode == 1
    assert ended.stderr.endswith("gave up the connection to the coordinator; `equipoise site check` says why\n")


def test_the_program_is_flowers_own() -> None:
    command = [sys.executable, "-m", "equipoise.client.supernode", "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert "--auth-supernode-private-key" in ended.stdout
