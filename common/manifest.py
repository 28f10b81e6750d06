"""Manifests: the table, one row per image or per visit, in which a hospital lists its cohort.

CSV or Parquet; every value becomes text, so that both kinds of file mean the same: an empty cell, a null and a NaN are
"", and a column of whole numbers that was saved as decimals ("1.0") reads as whole numbers ("1") where values are
compared. In messages rows count from 1, the header left out.

A cell of a CSV stands on one line. A quotation mark that somebody forgot to close makes one cell of every row after it,
and these patients would be gone without a word; so a cell with a line break is refused.
"""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from equipoise.common.canonical import sha256
from equipoise.common.errors import DataError

_OTHER_SEPARATORS = re.compile(r"[;\t|]")
_NAMES = {";": "semicolons", "\t": "tabs", "|": "bars"}
_FIRST_LINE = re.compile(rb"[^\r\n]+")
_WHOLE = re.compile(r"([+-]?\d+)\.0+")


@dataclass(frozen=True)
class Manifest:
    """Columns of text of one length, and where they came from.

    Attributes:
        path: the file, for messages.
        columns: column name to its values, all of length `rows`.
        rows: number of rows, without the header.
        fingerprint: SHA-256 of the file's bytes.
    """

    path: Path
    columns: dict[str, list[str]]
    rows: int
    fingerprint: str

    def column(self, name: str, purpose: str) -> list[str]:
        """The values of a column; `purpose` is the study's or the site file's key that asks for it.

        Raises:
            DataError: the manifest has no such column.
        """
        if name not in self.columns:
            raise DataError(
                f"{self.path}: no column {name!r} ({purpose}); the manifest has "
                f"{', '.join(sorted(self.columns))}; correct the name, or map it under data.columns of the site file"
            )
        return self.columns[name]

    def where(self, row: int, column: str) -> str:
        """'file: data row 3, column age', for a message; `row` counts from 0."""
        return f"{self.path}: data row {row + 1}, column {column}"


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; the ending of its name tells CSV (.csv) from Parquet (.parquet, .pq).

    Raises:
        DataError: no such file, another ending, not readable, no rows, a column name twice, values
            that other marks than commas separate, or a cell of a CSV that goes over several lines.
    """
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".pq": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: a manifest is a .csv or a .parquet file; save it as one of them")
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: the manifest cannot be read ({reason}); correct data.manifest") from None
    try:
        table = reader(content, path)
    except (pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable {path.suffix[1:]} table ({reason}); save it again") from None
    names = table.column_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: column {twice[0]!r} stands twice in the header; rename one of them")
    other = _OTHER_SEPARATORS.search(names[0]) if len(names) == 1 else None
    if other is not None:
        raise DataError(
            f"{path}: one column, {names[0]!r}: the values seem to be separated by {_NAMES[other[0]]}; save the table "
            "with commas between them"
        )
    if table.num_rows == 0:
        raise DataError(f"{path}: the manifest has no rows, so this site has no patients; list at least one")
    columns = {name: [_text(value) for value in table[name].to_pylist()] for name in names}
    return Manifest(path, columns, table.num_rows, sha256(content))


def same(value: str) -> str:
    """The form in which two values are compared: "1.0" is "1"; anything else is itself."""
    whole = _WHOLE.fullmatch(value)
    return whole[1] if whole else value


def number(value: str) -> float | None:
    """The finite number that `value` writes, or None.

    >>> number("40"), number("4_0"), number("inf")
    (40.0, None, None)
    """
    if "_" in value:
        return None  # Python reads 4_0 as 40; in a table it is a slip
    try:
        result = float(value)
    except ValueError:
        return None
    return result if math.isfinite(result) else None


def _read_csv(content: bytes, path: Path) -> pa.Table:
    if b'"' in content:  # without one no cell can hold a line break
        _check_quotes(content.decode("utf-8-sig"), path)
    # The header is read first: only columns that are named can be kept as the text that stands in the file.
    header = _FIRST_LINE.search(content)
    names = pa.csv.read_csv(_source(header[0] + b"\n" if header else b"")).column_names
    as_text = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    return pa.csv.read_csv(_source(content), convert_options=as_text)


def _check_quotes(text: str, path: Path) -> None:
    """Refuse a cell that goes over several lines, and so a quotation mark that is not closed.

    Raises:
        DataError: there is one; names the row and the column where it begins.
    """
    # The line at the end is for a mark that is open in a last line without its own end.
    lines = [*io.StringIO(text, newline=""), "\n"]
    reader, names, row = csv.reader(lines), list[str](), 0
    while (begun := reader.line_num) < len(lines):
        try:
            cells = next(reader)
            if reader.line_num == begun + 1:
                names, row = names or cells, row + bool(cells)  # a blank line is no row
                continue
        except csv.Error:  # longer than any cell may be: of hundreds of rows
            pass
        column = len(next(csv.reader([lines[begun]])))
        name = names[column - 1] if column <= len(names) else str(column)
        raise DataError(
            f"{path}: {f'data row {row}' if row else 'the header'}, column {name}: a quotation mark is not closed, or "
            "the cell holds a line break; close or remove the mark, and write every cell on one line"
        )


def _read_parquet(content: bytes, path: Path) -> pa.Table:
    return pa.parquet.read_table(_source(content))


def _source(content: bytes) -> pa.BufferReader:
    """A copy in Arrow's own memory, as a file.

    Its threads let go of a source when they please. If it were Python's and Python had ended by then, the process would
    abort.
    """
    memory = pa.BufferOutputStream()
    memory.write(content)
    return pa.BufferReader(memory.getvalue())


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value).strip()
