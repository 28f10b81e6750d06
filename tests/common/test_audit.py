"""The audit log: every change of a line is found, a torn end is mended, a full disk keeps the chain."""

import errno
import json
from pathlib import Path

import pytest

from equipoise.common import files
from equipoise.common.audit import AuditLog, check_rows, read_rows
from equipoise.common.errors import StorageError, TranscriptError


def written(path: Path) -> AuditLog:
    log = AuditLog(path)
    for number in range(4):
        log.append("request", release=number, code="ok")
    return log


def test_lines_follow_from_one_another_also_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    written(path)
    AuditLog(path).append("started")
    assert check_rows(path) == 5
    assert [row["event"] for row in read_rows(path)] == [*["request"] * 4, "started"]


@pytest.mark.parametrize("line", range(4))
@pytest.mark.parametrize("change", ["edit", "remove", "swap"])
def test_a_changed_line_is_found(line: int, change: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    written(path).append("last")
    lines = path.read_bytes().splitlines()
    if change == "edit":
        lines[line] = lines[line].replace(b'"code":"ok"', b'"code":"no"')
    elif change == "remove":
        del lines[line]
    else:
        lines[line], lines[line + 1] = lines[line + 1], lines[line]
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(TranscriptError, match=f"line {line + 1} was changed"):
        check_rows(path)


def test_a_line_that_a_crash_cut_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    written(path)
    with path.open("ab") as file:
        file.write(b'{"time": 1, "ev')
    AuditLog(path).append("started")
    assert check_rows(path) == 5


def test_a_full_disk_keeps_the_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.jsonl"
    log = written(path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        with pytest.raises(StorageError):
            log.append("request", release=9)
    log.append("request", release=10)
    assert check_rows(path) == 5
    assert json.loads(path.read_bytes().splitlines()[-1])["release"] == 10
