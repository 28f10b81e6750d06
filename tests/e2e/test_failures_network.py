"""The line between a hospital and the coordinator: cut, never there, with a wrong authority, an ended certificate, keys
that nobody knows or wants any more, a clock that is off; on real processes.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from equipoise.server.certificates import Pair, make_ca, sign_server
from tests.e2e.deployed import equipoise
from tests.e2e.failing import Hospitals, hospitals, site_check
from tests.e2e.studies import SITES

pytestmark = [pytest.mark.failures, pytest.mark.timeout(1200)]
DEADLINE_S = 100
FAR = "ash"  # the hospital behind a line of its own
CUT_S = 30
FAKETIME = next(iter(Path("/usr/lib").rglob("libfaketime.so.1")), None)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Line:
    """A network namespace and a pair of virtual cards; `there` is False where the system does not permit them."""

    def __init__(self) -> None:
        number = os.getpid() % 250 + 1
        self.space, self.card = f"eq{os.getpid()}", f"eqv{os.getpid()}"
        self.near, self.far = f"10.213.{number}.1", f"10.213.{number}.2"
        try:
            ip("netns", "add", self.space)
            ip("link", "add", self.card, "type", "veth", "peer", "name", "far", "netns", self.space)
            ip("addr", "add", f"{self.near}/24", "dev", self.card)
            ip("link", "set", self.card, "up")
            inside = ("-n", self.space)
            ip(*inside, "addr", "add", f"{self.far}/24", "dev", "far")
            ip(*inside, "link", "set", "far", "up")
            ip(*inside, "link", "set", "lo", "up")
            self.there = True
        except (OSError, subprocess.CalledProcessError):
            self.there = False

    @property
    def far_prefix(self) -> tuple[str, ...]:
        """Runs a command at the far end; nothing where there is no line."""
        return ("ip", "netns", "exec", self.space) if self.there else ()

    def cut(self, seconds: float) -> None:
        ip("link", "set", self.card, "down")
        time.sleep(seconds)
        ip("link", "set", self.card, "up")

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "del", self.space], check=False, capture_output=True)


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    found = Line()
    yield found
    found.remove()


@pytest.fixture(scope="module")
def there(line: Line) -> Iterator[Hospitals]:
    def supervised(found: Hospitals) -> None:
        for name in SITES:
            behind = line.far_prefix if name == FAR else ()
            found.prefix[f"supernode-{name}"] = (*behind, str(found.site(name) / "supervise.sh"))

    host = line.near if line.there else "127.0.0.1"
    plain = {"secure_sum": False}
    with hospitals("net", {"deadline_s": DEADLINE_S}, plain, host=host, prepare=supervised) as found:
        yield found


def test_a_line_that_is_cut_for_half_a_minute(there: Hospitals, line: Line) -> None:
    if not line.there:
        pytest.skip("needs network namespaces")
    there.begin("cut")
    line.cut(CUT_S)
    assert there.until("cut", "finished", "failed", patience=400)["state"] == "finished"
    there.check_whole("cut")


def test_a_certificate_that_has_ended_is_named_at_both_ends(there: Hospitals, line: Line) -> None:
    there.begin("expired")
    tls = there.coordinator / "tls"
    ca = Pair((tls / "ca.pem").read_bytes(), (tls / "ca.key").read_bytes())
    ended = sign_server(ca, [there.host], days=-1)

    def end_superlink() -> None:
        there.processes["superlink"].kill()  # the one that runs by then

    with ExitStack() as stack:
        (tls / "server.pem").write_bytes(ended.certificate)
        (tls / "server.key").write_bytes(ended.key)
        there.processes["superlink"].kill()
        there.wait(lambda: there.status("expired")["state"] == "interrupted", 60, "the run is interrupted")
        stack.callback(there.start_superlink)  # the last one: with a certificate that holds
        stack.callback(equipoise, "coordinator", "renew", *there.here)
        stack.callback(end_superlink)
        there.start_superlink()
        error = equipoise("resume", "expired", *there.here, check=False)
        assert "its certificate has expired on" in error
        assert "`equipoise coordinator renew`, then start it again" in error
        wrong = site_check(there.site(FAR), *line.far_prefix)
        assert "certificate has expired" in wrong["coordinator"]
        assert "ask the coordinator to renew it" in wrong["coordinator"]
    # A SuperNode that met the ended certificate has ended too; supervise.sh starts it again.
    there.wait(lambda: set(states(there).values()) == {"online"}, 180, "the sites are connected")
    there.resume("expired")
    there.check_whole("expired")


def test_a_site_with_another_authority_does_not_come_and_is_named(there: Hospitals, line: Line) -> None:
    file = there.site(FAR) / "ca.pem"
    kept = file.read_bytes()
    there.processes[f"supernode-{FAR}"].kill()
    file.write_bytes(make_ca("somebody else").certificate)
    there.start_supernode(FAR)
    wrong = site_check(there.site(FAR), *line.far_prefix)
    assert "its certificate is not accepted" in wrong["coordinator"]
    assert "somebody else answers at this address" in wrong["coordinator"]
    there.submit(there.study, "--name", "never")
    shown = there.fails("never")
    assert shown == f"1 of 3 sites did not connect within {DEADLINE_S} s: {FAR}"
    there.processes[f"supernode-{FAR}"].kill()
    file.write_bytes(kept)
    there.start_supernode(FAR)
    there.resume("never")
    there.check_whole("never")


def states(there: Hospitals) -> dict[str, str]:
    """What `equipoise coordinator sites` shows."""
    lines = equipoise("coordinator", "sites", *there.here).splitlines()
    return {line.split()[0]: line.split()[1] for line in lines}


def test_a_key_that_is_unknown_or_was_revoked_does_not_connect(there: Hospitals) -> None:
    there.init_site("dale", there.cohorts["birch"])
    there.start_supernode("dale")
    process = there.processes["supernode-dale"]
    there.wait(lambda: process.child.poll() is not None, 60, "the SuperNode of dale is refused")
    assert "dale" not in states(there)
    there.enroll("dale")
    there.start_supernode("dale")
    there.wait(lambda: states(there)["dale"] == "online", 60, "dale is connected")
    equipoise("coordinator", "revoke", "dale", *there.here)
    process = there.processes["supernode-dale"]
    there.wait(lambda: process.child.poll() is not None, 120, "the SuperNode of dale is refused")
    assert "dale" not in states(there)
    study = there.study.parent / "dale.yaml"
    study.write_text(there.study.read_text().replace("cedar: 24", "dale: 24"))
    error = equipoise("submit", study, *there.here, "--name", "revoked", check=False)
    assert "sites.declared_patients: dale not enrolled; enrolled are: ash, birch, cedar" in error


@pytest.mark.skipif(FAKETIME is None, reason="needs libfaketime, to set one process's clock")
@pytest.mark.parametrize(("shift", "word"), [("-1d", "behind"), ("+1d", "ahead of")])
def test_a_clock_that_is_off_by_a_day_does_not_connect_and_is_named(shift: str, word: str, there: Hospitals) -> None:
    name = f"elm-{word.split(maxsplit=1)[0]}"
    there.init_site(name, there.cohorts["birch"])
    there.enroll(name)
    wrong_clock = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": shift}
    there.prefix[f"supernode-{name}"] = ("env", *(f"{key}={value}" for key, value in wrong_clock.items()))
    there.start_supernode(name)
    time.sleep(20)
    assert states(there)[name] != "online"
    wrong = site_check(there.site(name), **wrong_clock)
    if "clock" in wrong:
        seconds, _, direction = wrong["clock"].partition(" s ")
        assert abs(int(seconds) - 86400) <= 5  # the coordinator tells whole seconds
        assert direction.startswith(word)
    else:
        assert "set this machine's clock" in wrong["coordinator"]
    there.processes[f"supernode-{name}"].kill()
    del there.prefix[f"supernode-{name}"]
    there.start_supernode(name)
    there.wait(lambda: states(there)[name] == "online", 60, "with its clock set it is connected")
