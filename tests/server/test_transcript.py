"""The transcript: what was released is stored once, found again, and cannot be changed unseen."""

from __future__ import annotations

import errno
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from equipoise.common.canonical import canonical_json, sha256
from equipoise.common.errors import StorageError, TranscriptError
from equipoise.common.files import append_line, drop_parts, drop_unfinished_line, write_whole
from equipoise.common.query import Block, Query, Sum
from equipoise.common.wire import unpack
from equipoise.server.transcript import Row, Transcript, missing_heads


def query(number: int) -> Query:
    return Query("q", "patient_sum", "train", "phase", {"round": number}, {"x": Block.counts((2,))})


def total(number: int) -> Sum:
    return Sum(query(number), ("a", "b"), {"x": np.array([number, 2], dtype=np.int64)})


def filled(folder: Path, rows: int = 3) -> Transcript:
    transcript = Transcript(folder, "study", "run")
    for number in range(rows):
        transcript.append(total(number))
    return transcript


def lines(folder: Path) -> list[bytes]:
    return (folder / "chain.jsonl").read_bytes().splitlines()


def put(folder: Path, rows: list[bytes]) -> None:
    (folder / "chain.jsonl").write_bytes(b"".join(row + b"\n" for row in rows))


def test_what_was_appended_is_replayed(tmp_path: Path) -> None:
    written = filled(tmp_path)
    again = Transcript(tmp_path, "study", "run")
    assert again.rows == written.rows
    assert again.head == written.head == again.heads()[-1]
    assert len(set(again.heads())) == 4
    for number in range(3):
        replayed = again.replay(number, query(number))
        assert replayed is not None
        assert replayed.cohort == ("a", "b")
        assert (replayed.points["x"] == [number, 2]).all()
    assert again.replay(3, query(3)) is None
    again.check()


def test_only_sums_are_stored(tmp_path: Path) -> None:
    filled(tmp_path, rows=1)
    header, arrays = unpack((tmp_path / "sums" / "0000.safetensors").read_bytes())
    assert set(arrays) == {"x"}
    assert header["cohort"] == ["a", "b"]
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == [
        "0000.safetensors",
        "chain.jsonl",
        "witness.jsonl",
    ]


def test_another_study_or_another_run_has_another_anchor(tmp_path: Path) -> None:
    filled(tmp_path)
    for study, run in (("other", "run"), ("study", "other")):
        with pytest.raises(TranscriptError, match="line 1 does not follow"):
            Transcript(tmp_path, study, run)


def test_a_run_that_asks_something_else_is_refused(tmp_path: Path) -> None:
    transcript = filled(tmp_path)
    with pytest.raises(TranscriptError, match=r"release 1 \(q\) does not follow"):
        transcript.replay(1, query(2))


@pytest.mark.parametrize("line", range(3))
def test_a_flipped_byte_in_the_chain_is_found(tmp_path: Path, line: int) -> None:
    filled(tmp_path)
    rows = lines(tmp_path)
    for place in range(0, len(rows[line]), 7):
        changed = bytearray(rows[line])
        changed[place] ^= 1
        put(tmp_path, [*rows[:line], bytes(changed), *rows[line + 1 :]])
        with pytest.raises(TranscriptError, match=f"line ({line + 1}|{line + 2}) "):
            Transcript(tmp_path, "study", "run")


@pytest.mark.parametrize(
    ("order", "line"), [([1, 0, 2], 1), ([0, 2, 1], 2), ([0, 0, 1, 2], 2), ([1, 2], 1), ([0, 2], 2)]
)
def test_a_moved_doubled_or_missing_row_is_found(tmp_path: Path, order: list[int], line: int) -> None:
    filled(tmp_path)
    rows = lines(tmp_path)
    put(tmp_path, [rows[i] for i in order])
    with pytest.raises(TranscriptError, match=f"line {line} does not follow"):
        Transcript(tmp_path, "study", "run")


@pytest.mark.parametrize("line", [b"", b"[]", b"7", b"{}", b'{"number":NaN}', b"\xff", b'"' + b"[" * 9])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: bytes) -> None:
    filled(tmp_path)
    put(tmp_path, [*lines(tmp_path), line])
    with pytest.raises(TranscriptError, match="line 4 "):
        Transcript(tmp_path, "study", "run")


def test_a_row_written_otherwise_is_found(tmp_path: Path) -> None:
    filled(tmp_path)
    rows = lines(tmp_path)
    put(tmp_path, [json.dumps(json.loads(rows[0])).encode(), *rows[1:]])
    with pytest.raises(TranscriptError, match="line 1 is not written as"):
        Transcript(tmp_path, "study", "run")


def test_a_flipped_byte_in_a_file_of_sums_is_found(tmp_path: Path) -> None:
    transcript = filled(tmp_path)
    file = tmp_path / "sums" / "0001.safetensors"
    data = file.read_bytes()
    for place in range(0, len(data), 61):
        changed = bytearray(data)
        changed[place] ^= 4
        file.write_bytes(changed)
        for look in (transcript.check, lambda: transcript.replay(1, query(1))):
            with pytest.raises(TranscriptError, match=r"0001.safetensors: changed since release 1"):
                look()
    file.unlink()
    with pytest.raises(TranscriptError, match=r"0001\.safetensors: missing"):
        transcript.check()


def test_a_cut_line_is_found_and_mended_only_where_a_run_goes_on(tmp_path: Path) -> None:
    filled(tmp_path)
    chain = tmp_path / "chain.jsonl"
    whole = chain.read_bytes()
    for cut in (1, 40, len(lines(tmp_path)[-1])):
        chain.write_bytes(whole[:-cut])
        with pytest.raises(TranscriptError, match="last line is not whole"):
            Transcript(tmp_path, "study", "run")
    drop_unfinished_line(chain)
    mended = Transcript(tmp_path, "study", "run")
    assert len(mended.rows) == 2
    mended.append(total(2))
    assert chain.read_bytes() == whole
    drop_unfinished_line(chain)
    assert chain.read_bytes() == whole
    drop_unfinished_line(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def forge(folder: Path, number: int, value: int) -> None:
    """Change a released sum and make every digest and hash after it fit again."""
    old = Transcript(folder, "study", "run")
    sums = [old.replay(k, query(k)) for k in range(len(old.rows))]
    (folder / "chain.jsonl").unlink()
    new = Transcript(folder, "study", "run")
    for k, one in enumerate(sums):
        assert one is not None
        points = {"x": np.array([value, 2], dtype=np.int64)} if k == number else one.points
        new.append(Sum(one.query, one.cohort, points))


@pytest.mark.parametrize("number", range(3))
def test_a_forgery_chained_anew_lacks_heads_that_sites_remember(tmp_path: Path, number: int) -> None:
    honest = filled(tmp_path)
    witnessed = honest.heads()
    assert missing_heads(honest, witnessed) == []
    assert missing_heads(honest, witnessed[:2]) == []  # a site that dropped out remembers fewer
    forge(tmp_path, number, 99)
    forged = Transcript(tmp_path, "study", "run")
    forged.check()  # it holds together by itself
    assert missing_heads(forged, witnessed) == witnessed[number + 1 :]


def test_rows_hash_all_that_they_say() -> None:
    row = Row.make(0, total(0), sha256(b"file"), "previous")
    for name in ("number", "query", "name", "phase", "cohort", "sums", "previous"):
        value = ("x",) if name == "cohort" else 9 if name == "number" else "x"
        assert Row(**{**row.__dict__, name: value}).expected_hash() != row.hash, name
    assert row.hash == row.expected_hash()


def test_a_full_disk_leaves_the_release_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transcript = filled(tmp_path, rows=1)

    def full(path: Path, line: bytes) -> None:
        raise StorageError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr("equipoise.server.transcript.append_line", full)
    with pytest.raises(StorageError, match="No space left"):
        transcript.append(total(1))
    monkeypatch.undo()
    assert len(transcript.rows) == 1
    again = Transcript(tmp_path, "study", "run")
    assert again.replay(1, query(1)) is None
    again.append(total(1))
    again.check()
    assert canonical_json(again.rows[1].to_json()) == lines(tmp_path)[1]


def test_a_file_that_cannot_be_opened_keeps_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "chain.jsonl"
    append_line(file, b"first")

    def too_many(self: Path, mode: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", too_many)
        with pytest.raises(StorageError, match="Too many open files"):
            append_line(file, b"second")
    assert file.read_bytes() == b"first\n"


def test_files_are_whole_or_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file"
    write_whole(file, b"first")
    write_whole(file, b"second")
    assert file.read_bytes() == b"second"
    assert list(file.parent.iterdir()) == [file]
    append_line(file, b"")
    assert file.read_bytes() == b"second\n"
    with pytest.raises(StorageError, match="cannot be written"):
        write_whole(file / "below-a-file", b"")
    with pytest.raises(StorageError, match="cannot be written"):
        append_line(tmp_path / "no" / "folder", b"")


def test_several_may_write_one_file_at_once_and_it_is_always_one_of_theirs(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    contents = [bytes([writer]) * 4096 for writer in range(4)]

    def write(content: bytes) -> set[bytes]:
        found = set()
        for _ in range(50):
            write_whole(file, content)
            found.add(file.read_bytes())
        return found

    with ThreadPoolExecutor(len(contents)) as writers:
        seen = set().union(*writers.map(write, contents))
    assert seen <= set(contents)
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(Path, "replace", lambda *_: None)
        killed.setattr(Path, "unlink", lambda *_: None)
        write_whole(tmp_path / "sums" / "0000", b"half")
    write_whole(tmp_path / "sums" / "spare.part", b"somebody else's")
    assert len(list((tmp_path / "sums").iterdir())) == 2
    drop_parts(tmp_path)
    assert [file.name for file in (tmp_path / "sums").iterdir()] == ["spare.part"]
