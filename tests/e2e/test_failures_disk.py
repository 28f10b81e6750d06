"""Disks that are full at a site and at the coordinator, on real processes; both are small file systems in memory."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.e2e.deployed import equipoise
from tests.e2e.failing import Hospitals, hospitals, site_check

pytestmark = [
    pytest.mark.failures,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system"),
]
SIZE_MIB = 16


@pytest.fixture(scope="module")
def there() -> Iterator[Hospitals]:
    with ExitStack() as stack:

        def small_disks(found: Hospitals) -> None:
            for place in (found.site("ash") / "agent", found.coordinator / "runs"):
                kept = {file.name: file.read_bytes() for file in place.iterdir()}
                mounted = subprocess.run(
                    ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=700", "none", place],
                    check=False, capture_output=True,
                )  # fmt: skip
                if mounted.returncode:
                    pytest.skip("needs the right to mount a file system")
                stack.callback(shutil.rmtree, found.folder, ignore_errors=True)
                stack.callback(subprocess.run, ["umount", "-l", place], check=False)
                for name, content in kept.items():
                    (place / name).write_bytes(content)
                    (place / name).chmod(0o600)

        with hospitals("disk", privacy={"secure_sum": False}, prepare=small_disks) as found:
            yield found


@contextmanager
def full(place: Path) -> Iterator[None]:
    """The file system at `place` without a byte left."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    try:
        yield
    finally:
        filler.unlink()


def test_a_disk_that_is_full_at_a_site(there: Hospitals) -> None:
    agent = there.site("ash") / "agent"
    there.begin("site")
    with full(agent):
        line = there.fails("site")
        assert "(ash: storage)" in line
        assert "free at least 1 GiB" in site_check(there.site("ash")).get("disk", "")
    there.resume("site")
    there.check_whole("site")


def test_a_disk_that_is_full_at_the_coordinator(there: Hospitals) -> None:
    runs = there.coordinator / "runs"
    there.begin("coordinator")
    with full(runs):
        there.wait(lambda: there.status("coordinator")["state"] in ("failed", "interrupted"), 120, "the run ends")
        shown = equipoise("status", "coordinator", *there.here)
        assert "No space left on device" in shown, shown
        assert "free some space" in shown
        error = equipoise("submit", there.study, *there.here, "--name", "more", check=False)
        assert "cannot be written (No space left on device)" in error
    there.resume("coordinator")
    there.check_whole("coordinator")
    assert not (runs / "more" / "task.json").exists()
