"""What happens to a run whose coordinator is killed or stopped, on real processes and through the secure sum."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.e2e.deployed import equipoise
from tests.e2e.failing import Hospitals, hospitals
from tests.e2e.studies import SITES

pytestmark = [pytest.mark.failures, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def there() -> Iterator[Hospitals]:
    with hospitals("coord") as found:
        yield found


def test_a_superlink_that_is_killed(there: Hospitals) -> None:
    there.begin("superlink")
    there.processes["superlink"].kill()
    there.wait(lambda: there.status("superlink")["state"] == "interrupted", 60, "the run is interrupted")
    error = equipoise("resume", "superlink", *there.here, check=False)
    assert "no answer" in error or "is it started?" in error
    there.start_superlink()
    equipoise("resume", "superlink", *there.here)
    error = equipoise("resume", "superlink", *there.here, check=False)
    assert "the run is in progress; stop it first (equipoise stop superlink)" in error
    there.until("superlink", "finished", "failed", patience=400)
    there.check_whole("superlink")


def test_a_server_app_that_is_killed(there: Hospitals) -> None:
    there.begin("serverapp")
    (server_app,) = there.running("flwr-serverapp")
    os.kill(server_app, signal.SIGKILL)
    there.wait(lambda: there.status("serverapp")["state"] == "interrupted", 60, "the run is interrupted")
    there.resume("serverapp")
    there.check_whole("serverapp")


def test_a_run_that_the_coordinator_stops(there: Hospitals) -> None:
    there.begin("stopped")
    equipoise("stop", "stopped", *there.here)
    there.wait(lambda: there.status("stopped")["state"] == "interrupted", 60, "the run is interrupted")
    there.resume("stopped")
    there.check_whole("stopped")


def test_a_superlink_whose_database_is_lost(there: Hospitals) -> None:
    there.processes["superlink"].kill()
    for file in (there.coordinator / "superlink").glob("state.db*"):
        file.unlink()
    there.start_superlink()
    assert equipoise("coordinator", "sites", *there.here).count("unknown") == len(SITES)
    for site in SITES:
        there.processes[f"supernode-{site}"].kill()
        there.enroll(site)
        there.start_supernode(site)
    there.submit(there.study, "--name", "lost")
    assert there.until("lost", "finished", "failed", patience=400)["state"] == "finished"
    there.check_whole("lost")


def test_a_key_that_is_registered_twice_or_again_is_known_by_flowers_words(there: Hospitals) -> None:
    there.init_site("dale", there.cohorts["birch"])
    there.enroll("dale")
    (there.coordinator / "sites" / "dale.json").unlink()  # as a crash right after the registration leaves it
    there.enroll("dale")
    equipoise("coordinator", "revoke", "dale", *there.here)
    error = equipoise("coordinator", "enroll", there.enrolment("dale"), *there.here, check=False)
    assert "the SuperLink takes no node key twice, and has had this one" in error


def test_a_second_agent_and_a_second_attempt_are_one_line(there: Hospitals) -> None:
    site = there.site("ash")
    error = equipoise("agent", site / "site.yaml", "--state", site / "agent", check=False)
    assert "another site agent works on this folder" in error
    error = equipoise("submit", there.study, *there.here, "--name", "whole", check=False)
    assert "holds a run already; go on with `equipoise resume whole`" in error
