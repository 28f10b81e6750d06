"""How long the SuperLink's database waits for a lock, in Flower's own class."""

import subprocess
import sys
from pathlib import Path

import pytest

HELD_S = 6.5
WAITING = """
import sys, threading, time
from sqlalchemy import text
from equipoise.server.superlink import wait_for_turn
if sys.argv[1] == "ours":
    wait_for_turn()
from flwr.supercore.sql_mixin import SqlMixin

class State(SqlMixin):
    pass

state = State(sys.argv[2])
state.initialize()
with state.session() as session:
    session.execute(text("CREATE TABLE sent (number INTEGER)"))
locked = threading.Event()

def write(number, hold_s):
    with state.session() as session:
        session.execute(text(f"INSERT INTO sent VALUES ({number})"))
        locked.set()
        time.sleep(hold_s)

first = threading.Thread(target=write, args=(1, float(sys.argv[3])))
first.start()
locked.wait()
second = threading.Thread(target=write, args=(2, 0))
second.start()
first.join()
second.join()
with state.session() as session:
    print(session.execute(text("SELECT COUNT(*) FROM sent")).scalar())
"""


@pytest.mark.parametrize(("how", "written"), [("ours", 2), ("as shipped", 1)])
def test_a_transaction_waits_for_one_that_takes_long(tmp_path: Path, how: str, written: int) -> None:
    """As shipped the second is given up: where that changes, `equipoise.server.superlink` is needed no more."""
    command = [sys.executable, "-c", WAITING, how, tmp_path / "state.db", str(HELD_S)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == [str(written)], done.stderr
    assert ("database is locked" in done.stderr) == (written == 1)
