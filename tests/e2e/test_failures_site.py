"""What happens to a run in which a site's processes are killed, on real processes and through the secure sum."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.e2e.failing import Hospitals, hospitals

pytestmark = [pytest.mark.failures, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def there() -> Iterator[Hospitals]:
    with hospitals("site") as found:
        yield found


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
