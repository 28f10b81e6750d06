"""Reading a manifest: every row of the file is a row of the table, or nothing is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from equipoise.common.errors import DataError
from equipoise.common.manifest import number, read_manifest

HEADER = "id,age,image\n"
ROWS = [f"p{n},{20 + n % 60},im{n}.png\n" for n in range(240)]


def table(folder: Path, text: str) -> Path:
    file = folder / "cohort.csv"
    file.write_text(text, encoding="utf-8", newline="")
    return file


def refusal(file: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_manifest(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    return message


def with_cells(cells: dict[int, str]) -> str:
    """The table with other images in data rows, which count from 1."""
    rows = [row if n not in cells else f"p{n - 1},30,{cells[n]}\n" for n, row in enumerate(ROWS, start=1)]
    return HEADER + "".join(rows)


@pytest.mark.parametrize(
    "cells",
    [
        {100: '"im.png'},
        {100: '"im.png', 150: '"im.png'},
        {100: '"im.png', 150: 'im.png"'},
        {100: '"im.png\n"'},
    ],
    ids=["open", "open twice", "closed 50 rows later", "a line break"],
)
def test_a_mark_that_is_open_swallows_no_rows(tmp_path: Path, cells: dict[int, str]) -> None:
    message = refusal(table(tmp_path, with_cells(cells)))
    assert "data row 100, column image: a quotation mark is not closed" in message


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_mark_that_is_open_in_the_last_row(tmp_path: Path, end: str) -> None:
    message = refusal(table(tmp_path, HEADER + 'a,1,"x.png' + end))
    assert "data row 1, column image: a quotation mark is not closed" in message


def test_a_mark_that_is_open_elsewhere(tmp_path: Path) -> None:
    assert "data row 2, column age: a quotation" in refusal(table(tmp_path, HEADER + 'a,1,x\n\nb,"2,y\nc,3,z\n'))
    assert "the header, column 2: a quotation" in refusal(table(tmp_path, 'id,"age,image\na,1,x\n'))
    long = HEADER + 'a,1,"x\n' + "b,2,y\n" * 50_000  # one cell, longer than Python's csv takes
    assert "data row 1, column image: a quotation" in refusal(table(tmp_path, long))
    assert "not a readable csv table" in refusal(table(tmp_path, HEADER + f'a,1,"{"x" * 200_000}"\n'))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_that_are_closed_and_marks_within_a_cell_stay(tmp_path: Path, end: str) -> None:
    lines = ["\ufeffid,age,image", 'a,"1,5","say ""x"""', "", '007,6",']
    found = read_manifest(table(tmp_path, end.join(lines) + end))
    assert found.columns == {"id": ["a", "007"], "age": ["1,5", '6"'], "image": ['say "x"', ""]}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_no_memory_of_python_is_left_to_the_threads_of_arrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """One that let go of Python's bytes after Python had ended aborted the process, in one run of four."""
    file = table(tmp_path, HEADER + "".join(ROWS))
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.csv.read_csv(file), file := file.with_suffix(".parquet"))
    held: list[Any] = []

    def spy(source: Any) -> Any:
        held.append(source)
        return reader(source)

    reader = pa.BufferReader
    monkeypatch.setattr(pa, "BufferReader", spy)
    monkeypatch.delattr(pyarrow.csv, "open_csv")  # it reads ahead, too
    assert read_manifest(file).rows == 240
    assert held
    assert all(isinstance(source, pa.Buffer) for source in held)


def test_a_number_is_written_as_tables_write_it() -> None:
    assert [number(text) for text in ("40", " 4.5", "-1e3")] == [40.0, 4.5, -1000.0]
    assert [number(text) for text in ("4_0", "1_0.5", "inf", "nan", "", "1,5", "0x10")] == [None] * 7
