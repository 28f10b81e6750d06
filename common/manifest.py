"""Manifests: the table, one row per image or per visit, in which a hospital lists its cohort.

CSV or Parquet; every value becomes text, so that both kinds of file mean the same: an empty cell, a null and a NaN are
"", and a column of whole numbers that was saved as decimals ("1.0") reads as whole numbers ("1") where values are
compared. In messages rows count from 1, the header left out.
"""

from __future__ import annotations

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
        DataError: no such file, another ending, not readable, no rows, a column name twice, or values
            that other marks than commas separate.
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
        table = reader(pa.BufferReader(content))
    except (pa.ArrowException, UnicodeDecodeError) as error:
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
    """The finite number that `value` writes, or None."""
    try:
        result = float(value)
    except ValueError:
        return None
    return result if math.isfinite(result) else None


def _read_csv(source: pa.BufferReader) -> pa.Table:
    parsing = pa.csv.ParseOptions(newlines_in_values=True)
    # The header is read first: only columns that are named can be kept as the text that stands in the file.
    names = pa.csv.open_csv(source, parse_options=parsing).schema.names
    source.seek(0)
    as_text = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    return pa.csv.read_csv(source, parse_options=parsing, convert_options=as_text)


def _read_parquet(source: pa.BufferReader) -> pa.Table:
    return pa.parquet.read_table(source)


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value).strip()
