"""Files that are there whole or not at all, and stay as they were said to be."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from equipoise.common.files import write_whole


def test_a_file_that_was_written_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are on the disk before it has its name, and its name before anybody goes on from it."""
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(number: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")
        fsync(number)

    def renamed(path: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_whole(tmp_path / "new" / "record.json", b"{}")
    assert steps == ["file", "rename", "folder"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["record.json"]
