"""What fails in a deployment, on real processes: what the user sees, that nothing is lost, that nothing is spent twice.

The rows that need no process of Flower's are tested where they are cheaper: a study edited after approval, a paused
site, an edited site file, a full disk, hostile bytes (tests/client), replies that are wrong (tests/server), a
coordinator killed at every point (tests/server/test_deployment.py).
"""

from __future__ import annotations

import gzip
import io
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from equipoise.client.ledger import Ledger
from equipoise.server.certificates import make_ca, sign_server
from equipoise.simulations.loopback import ENVIRONMENT, ROOT, Deployment, wait_for
from tests.e2e.deployed import equipoise, short_folder, sums
from tests.e2e.studies import SITES, TABLE, Desk

pytestmark = [pytest.mark.failures, pytest.mark.timeout(600)]
SHORT = {"name": "fine_tune", "rounds": 2, "part": "head"}


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    """Three hospitals that have approved one study; every test runs it under a name of its own."""
    for folder in short_folder("fail"):
        desk = Desk(folder / "desk", TABLE)
        sites = {"declared_patients": dict.fromkeys(SITES, 24), "minimum": 2, "quorum": 1.0, "deadline_s": 240}
        desk.write_study(method=SHORT, sites=sites)
        with Deployment(folder, {site: desk.site(site) for site in SITES}) as found:
            found.study = desk.study
            found.start()
            found.submit(found.study, "--name", "whole")
            found.approve()
            assert found.until("whole", "finished", "failed", patience=500)["state"] == "finished"
            yield found


def released(deployment: Deployment, run: str) -> dict[str, list[tuple[str, int]]]:
    """Every release that each site's ledger has of a run."""
    found = {}
    for site in SITES:
        ledger = Ledger(deployment.site(site) / "agent" / "ledger.sqlite")
        try:
            rows = [(e.body["run"], e.body["number"]) for e in ledger.entries() if e.kind == "release"]
        finally:
            ledger.close()
        found[site] = [(arm.partition("/")[2], number) for arm, number in rows if arm.startswith(f"{run}/")]
    return found


def begin(deployment: Deployment, run: str, releases: int = 1) -> Path:
    """Submit the study under a name and wait for some releases."""
    deployment.submit(deployment.study, "--name", run)
    log = deployment.coordinator / "runs" / run / "rounds.jsonl"
    deployment.wait(lambda: log.read_bytes().count(b"\n") >= releases, 300, f"{releases} releases of {run}")
    return deployment.coordinator / "runs" / run


def check_whole(deployment: Deployment, run: str) -> None:
    """The run gave what an undisturbed one gives, and each site released everything once."""
    runs = deployment.coordinator / "runs"
    assert sums(runs / run) == sums(runs / "whole")
    assert released(deployment, run) == released(deployment, "whole")
    equipoise("verify", runs / run)


def test_a_superlink_that_is_killed(deployment: Deployment) -> None:
    begin(deployment, "superlink")
    deployment.processes["superlink"].kill()
    deployment.wait(lambda: deployment.status("superlink")["state"] == "interrupted", 60, "the run is interrupted")
    deployment.start_superlink()
    equipoise("resume", "superlink", *deployment.here)
    assert deployment.until("superlink", "finished", "failed", patience=400)["state"] == "finished"
    check_whole(deployment, "superlink")


def test_a_server_app_that_is_killed(deployment: Deployment) -> None:
    begin(deployment, "serverapp")
    (server_app,) = deployment.running("flwr-serverapp")
    os.kill(server_app, signal.SIGKILL)
    deployment.wait(lambda: deployment.status("serverapp")["state"] == "interrupted", 60, "the run is interrupted")
    equipoise("resume", "serverapp", *deployment.here)
    assert deployment.until("serverapp", "finished", "failed", patience=400)["state"] == "finished"
    check_whole(deployment, "serverapp")


def test_a_supernode_that_is_killed_in_a_round(deployment: Deployment) -> None:
    begin(deployment, "supernode")
    deployment.processes["supernode-ash"].kill()
    time.sleep(65)  # as supervise.sh waits
    deployment.start_supernode("ash")
    assert deployment.until("supernode", "finished", "failed", patience=400)["state"] == "finished"
    check_whole(deployment, "supernode")


def test_an_agent_that_is_killed_in_a_release(deployment: Deployment) -> None:
    begin(deployment, "agent")
    deployment.processes["agent-birch"].kill()
    deployment.start_agent("birch")
    assert deployment.until("agent", "finished", "failed", patience=400)["state"] == "finished"
    check_whole(deployment, "agent")


def test_a_site_file_edited_in_a_run_and_the_agent_started_again(deployment: Deployment) -> None:
    begin(deployment, "edited")
    deployment.change_site("cedar", approve="manual")
    found = deployment.until("edited", "finished", "failed", patience=400)
    assert found["state"] == "failed"
    assert "cedar: refused" in found["detail"]
    deployment.processes["agent-cedar"].kill(signal.SIGTERM)
    deployment.start_agent("cedar")
    equipoise("resume", "edited", *deployment.here)
    assert deployment.until("edited", "finished", patience=400)["state"] == "finished"
    check_whole(deployment, "edited")


def test_a_second_agent_and_a_second_attempt_are_one_line(deployment: Deployment) -> None:
    site = deployment.site("ash")
    error = equipoise("agent", site / "site.yaml", "--state", site / "agent", check=False)
    assert "another site agent works on this folder" in error
    error = equipoise("submit", deployment.study, *deployment.here, "--name", "whole", check=False)
    assert "holds a run already; go on with `equipoise resume whole`" in error


def test_a_site_with_another_authority_or_an_expired_certificate_says_which(
    deployment: Deployment, tmp_path: Path
) -> None:
    other = make_ca("somebody else")
    (tmp_path / "ca.pem").write_bytes(other.certificate)
    site = deployment.site("ash")
    kept = (site / "ca.pem").read_bytes()
    (site / "ca.pem").write_bytes(other.certificate)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", "from equipoise.cli import main; main()", "site", "check", "--folder", str(site)],
            cwd=ROOT, env=ENVIRONMENT, text=True, capture_output=True, check=False,
        )  # fmt: skip
    finally:
        (site / "ca.pem").write_bytes(kept)
    assert ended.returncode == 2
    assert re.search(r"BAD  coordinator: 127\.0\.0\.1:\d+: its certificate is not accepted", ended.stdout)
    assert sign_server(
        other, ["127.0.0.1"], days=-1
    ).certificate  # that an ended one is named: tests/client/test_check.py


def test_a_revoked_site_cannot_connect_and_the_run_says_who_is_missing(deployment: Deployment) -> None:
    equipoise("coordinator", "revoke", "cedar", *deployment.here)
    try:
        error = deployment.submit(deployment.study, "--name", "revoked", check=False)
        assert "sites.declared_patients: cedar not enrolled" in error
        log = deployment.processes["supernode-cedar"]
        wait_for(lambda: log.child.poll() is not None, 120, "the SuperNode of cedar is refused", [log])
    finally:
        deployment.enroll("cedar")


def unpacked(data: bytes) -> Iterator[bytes]:
    """The bytes themselves, and what they hold compressed."""
    yield data
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield from unpacked(archive.read(name))
    elif data[:2] == b"\x1f\x8b":
        yield from unpacked(gzip.decompress(data))
    elif data[:1] == b"\x78":
        try:
            yield zlib.decompress(data)
        except zlib.error:
            return


def cells(database: Path) -> Iterator[bytes]:
    """Every value in every table."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as db:
        for (table,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in db.execute(f'SELECT * FROM "{table}"'):
                yield from (v if isinstance(v, bytes) else str(v).encode() for v in row)


def test_no_patient_path_or_value_is_in_any_byte_of_the_coordinator(deployment: Deployment) -> None:
    planted = [
        b"ash-0",
        b"birch-0",
        b"cedar-0",
        b"manifest.csv",
        str(deployment.folder / "desk" / "hospitals").encode(),
    ]
    looked = 0
    for file in deployment.coordinator.rglob("*"):
        if not file.is_file():
            continue
        sources = list(unpacked(file.read_bytes()))
        if file.suffix == ".db":
            sources += [part for cell in cells(file) for part in unpacked(cell)]
        for data in [*sources, (deployment.folder / "superlink.log").read_bytes()]:
            looked += len(data)
            for value in planted:
                assert value not in data, f"{value!r} in {file}"
    assert looked > 100_000
    # The search finds what is there.
    assert any(b"ash" in cell for cell in cells(next(deployment.coordinator.rglob("state.db"))))
