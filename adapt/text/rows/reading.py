"""The one reader of rows: JSON lines, a JSON array, csv, tsv, Parquet or xlsx by the ending of a file's name, or a directory.

As many rows come out as are in the file, or an error names file and line; memory holds one row, or one batch of Parquet. Endings
count in upper case too. A directory is a saved data set or a folder of Parquet files (`directories.py`). JSON, csv, tsv and plain
text may be packed (`.gz` or `.zst` at the end). A file whose name has none of the endings is read as JSON where it begins like
that.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from adapt.core.errors import DataError
from adapt.text.rows.contract import Kind, Quotes, Row, RowsFile
from adapt.text.rows.directories import parts_of
from adapt.text.rows.encodings import check_encoding
from adapt.text.rows.json_rows import json_rows
from adapt.text.rows.table_rows import table_header, table_rows

ENDINGS = {
    ".jsonl": Kind.JSON,
    ".json": Kind.JSON,
    ".ndjson": Kind.JSON,
    ".csv": Kind.CSV,
    ".tsv": Kind.TSV,
    ".parquet": Kind.PARQUET,
    ".xlsx": Kind.XLSX,
}
_GZIP, _ZSTD = ".gz", ".zst"
_LOOKED_AT_BYTES = 4096
_AS_TABLE = "save it as .xlsx or .csv"
_MENDS = {".xls": _AS_TABLE, ".ods": _AS_TABLE, ".zip": "unpack it", ".arrow": "save it as .parquet"}


def endings_of(name: str) -> str:
    """Return the part of a file's name that says its kind, in lower case: `.csv`, `.jsonl.gz`; empty where nothing does."""
    lower = name.lower()
    packed = next((ending for ending in (_GZIP, _ZSTD) if lower.endswith(ending)), "")
    ending = Path(lower.removesuffix(packed)).suffix
    return ending + packed if ending in ENDINGS else ""


def open_rows(path: Path, *, encoding: str | None = None, quotes: Quotes | None = None, name: str | None = None) -> RowsFile:
    """Say how a file of rows is read; `name` is what messages call it.

    Raises:
        DataError: its name does not say what it is, or there is no such file.
        ConfigError: there is no such encoding.
    """
    called = name or str(path)
    check_encoding(encoding, "data.encoding")
    ending = endings_of(path.name)
    if path.is_dir():
        return RowsFile(path=path, name=called, kind=parts_of(path, called).kind)
    if not path.is_file():
        raise DataError(f"{called}: no such file")
    if not ending:
        if path.suffix.lower() not in _MENDS and _begins_like_json(path, called):
            return RowsFile(path=path, name=called, kind=Kind.JSON, encoding=encoding)
        mend = _MENDS.get(path.suffix.lower(), "let it end in " + ", ".join(ENDINGS))
        raise DataError(f"{called}: its name does not say what kind of rows it holds; {mend}")
    is_gzipped, is_zstd = ending.endswith(_GZIP), ending.endswith(_ZSTD)
    kind = ENDINGS[ending.removesuffix(_GZIP).removesuffix(_ZSTD)]
    if (is_gzipped or is_zstd) and not kind.is_text:
        raise DataError(f"{called}: {kind.value} is packed already; unpack the file")
    return RowsFile(path=path, name=called, kind=kind, is_gzipped=is_gzipped, is_zstd=is_zstd, encoding=encoding, quotes=quotes)


def _begins_like_json(path: Path, called: str) -> bool:
    """Say whether a file begins with an object or a list, or is empty: one that a link leads to may have any name."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_LOOKED_AT_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()
    except OSError as error:
        raise DataError(f"{called}: cannot be read ({error.strerror})") from error
    return head[:1] in (b"", b"{", b"[")


def rows_of(file: RowsFile) -> Iterator[Row]:
    """Yield a file's rows in its order.

    Raises:
        DataError: something in it is no row, by line.
        ConfigError: a package that reads it is not installed.
    """
    if file.kind is Kind.JSON:
        return json_rows(file)
    if file.kind is Kind.PARQUET:
        from adapt.text.rows.parquet_rows import parquet_rows  # takes 0.3 s that other kinds do without

        return parquet_rows(file)
    if file.kind is Kind.ARROW:
        from adapt.text.rows.arrow_rows import arrow_rows

        return arrow_rows(file)
    if file.kind is Kind.XLSX:
        from adapt.text.rows.xlsx_rows import xlsx_rows

        return xlsx_rows(file)
    return table_rows(file)


def header_of(file: RowsFile) -> list[str] | None:
    """Return the names of a table's columns; None for JSON, and for a file without anything. Raises as `rows_of` does."""
    if file.kind is Kind.JSON:
        return None
    if file.kind is Kind.PARQUET:
        from adapt.text.rows.parquet_rows import parquet_header

        return parquet_header(file)
    if file.kind is Kind.ARROW:
        from adapt.text.rows.arrow_rows import arrow_header

        return arrow_header(file)
    if file.kind is Kind.XLSX:
        from adapt.text.rows.xlsx_rows import xlsx_header

        return xlsx_header(file)
    return table_header(file)
