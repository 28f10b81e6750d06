"""Processes that are killed in a run, on real processes and through the secure sum."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.e2e.deployed import equipoise
from tests.e2e.failing import Hospitals, hospitals

pytestmark = [pytest.mark.failures, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def there() -> Iterator[Hospitals]:
    with hospitals("kill") as found:
        yield found


def test_a_superlink_that_is_killed(there: Hospitals) -> None:
    there.begin("superlink")
    there.processes["superlink"].kill()
    there.wait(lambda: there.status("superlink")["state"] == "interrupted", 60, "the run is interrupted")
    error = equipoise("resume", "superlink", *there.here, check=False)
    assert "no answer" in error or "is it started?" in error
    there.start_superlink()
    there.resume("superlink")
    there.check_whole("superlink")


def test_a_server_app_that_is_killed(there: Hospitals) -> None:
    there.begin("serverapp")
    (server_app,) = there.running("flwr-serverapp")
    os.kill(server_app, signal.SIGKILL)
    there.wait(lambda: there.status("serverapp")["state"] == "interrupted", 60, "the run is interrupted")
    there.resume("serverapp")
    there.check_whole("serverapp")


def test_a_supernode_that_is_killed_in_a_round(there: Hospitals) -> None:
    there.begin("supernode")
    there.processes["supernode-ash"].kill()
    time.sleep(65)  # as supervise.sh waits
    there.start_supernode("ash")
    assert there.until("supernode", "finished", "failed", patience=400)["state"] == "finished"
    there.check_whole("supernode")


def test_an_agent_that_is_killed_in_a_release(there: Hospitals) -> None:
    there.begin("agent")
    there.processes["agent-birch"].kill()
    there.start_agent("birch")
    assert there.until("agent", "finished", "failed", patience=400)["state"] == "finished"
    there.check_whole("agent")


def test_a_run_that_the_coordinator_stops(there: Hospitals) -> None:
    there.begin("stopped")
    equipoise("stop", "stopped", *there.here)
    there.wait(lambda: there.status("stopped")["state"] == "interrupted", 60, "the run is interrupted")
    there.resume("stopped")
    there.check_whole("stopped")


def test_a_second_agent_and_a_second_attempt_are_one_line(there: Hospitals) -> None:
    site = there.site("ash")
    error = equipoise("agent", site / "site.yaml", "--state", site / "agent", check=False)
    assert "another site agent works on this folder" in error
    error = equipoise("submit", there.study, *there.here, "--name", "whole", check=False)
    assert "holds a run already; go on with `equipoise resume whole`" in error
