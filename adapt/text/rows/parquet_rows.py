"""Parquet files, or folders of them, as rows, a batch in memory at a time.

Dates become ISO text and decimals their digits; bytes are refused.
"""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from adapt.core.errors import DataError
from adapt.text.rows.contract import MAX_UNPACKED_RATIO, Row, RowsFile
from adapt.text.rows.directories import parts_of
from adapt.text.rows.json_rows import refuse_odd_text
from adapt.text.rows.table_rows import refuse_repeats

_BATCH_ROWS = 256
_MOST_ROWS = 10_000_000  # in a file of any size


def parquet_rows(file: RowsFile) -> Iterator[Row]:
    """Yield a file's rows, numbered from 1.

    Raises:
        DataError: it is no Parquet file, is damaged, repeats a column, or holds what is no value of a row.
    """
    number = 0
    known: list[str] | None = None
    for path in _paths(file):
        try:
            with pyarrow.parquet.ParquetFile(path) as table:
                names = _names(file, table)
                if known is not None and names != known:
                    raise DataError(f"{file.name}: {path.name} has other columns than the files before it; keep those of one kind")
                known = names
                _refuse_bomb(file, path, table.metadata.num_rows)
                for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                    columns = [values_of(column, name, file) for name, column in zip(names, batch.columns, strict=True)]
                    for values in zip(*columns, strict=True):
                        number += 1
                        where = f"{file.name}, row {number}"
                        record = {name: plain_value(value, name, where) for name, value in zip(names, values, strict=True)}
                        yield Row(record, number, "row")
        except (OSError, ValueError, MemoryError, pyarrow.ArrowException) as error:
            raise _damaged(file, error, number) from error


def parquet_header(file: RowsFile) -> list[str]:
    """Return the names of a file's columns. Raises DataError as `parquet_rows` does."""
    try:
        with pyarrow.parquet.ParquetFile(_paths(file)[0]) as table:
            return _names(file, table)
    except (OSError, ValueError, MemoryError, pyarrow.ArrowException) as error:
        raise _damaged(file, error, 0) from error


def _paths(file: RowsFile) -> list[Path]:
    return parts_of(file.path, file.name).files if file.path.is_dir() else [file.path]


def _refuse_bomb(file: RowsFile, path: Path, n_rows: int) -> None:
    """Raise DataError for a file that claims more rows than it can have written down."""
    most = max(_MOST_ROWS, MAX_UNPACKED_RATIO * path.stat().st_size)
    if n_rows > most:
        raise DataError(f"{file.name}: claims {n_rows:,} rows in {path.stat().st_size:,} bytes; write them anew, {most:,} at most")


def _names(file: RowsFile, table: pyarrow.parquet.ParquetFile) -> list[str]:
    names = [str(name) for name in table.schema_arrow.names]
    refuse_repeats(names, file.name)
    refuse_repeated_fields(table.schema_arrow, file)
    if not names:
        raise DataError(f"{file.name}: has no columns")
    return names


def refuse_repeated_fields(schema: pyarrow.Schema, file: RowsFile) -> None:
    """Raise DataError for a column of objects with two fields of one name, of which a row could hold one only."""
    for column in schema:
        found = next(_repeated(column.type), None)
        if found is not None:
            raise DataError(f"{file.name}: two fields in column '{column.name}' are called '{found}'; rename one")


def _repeated(kind: pyarrow.DataType) -> Iterator[str]:
    fields = [kind.field(place) for place in range(kind.num_fields)]
    names = [field.name for field in fields]
    if pyarrow.types.is_struct(kind):
        yield from (name for place, name in enumerate(names) if name in names[:place])
    for field in fields:
        yield from _repeated(field.type)


def values_of(column: pyarrow.Array, name: str, file: RowsFile) -> list[Any]:
    """Return a column's values; times of day keep their nanoseconds, as text.

    Raises:
        DataError: such times are inside lists or objects, where they would be cut.
    """
    if _has_fine_times(column.type):
        if not pyarrow.types.is_time64(column.type):
            raise DataError(f"{file.name}: its {name} holds times of day in nanoseconds inside lists or objects; save it as text")
        return [None if value is None else _time_of_day(value) for value in column.cast(pyarrow.int64()).to_pylist()]
    return list(column.to_pylist())


def _has_fine_times(kind: pyarrow.DataType) -> bool:
    is_fine = pyarrow.types.is_time64(kind) and kind.unit == "ns"
    return is_fine or any(_has_fine_times(kind.field(place).type) for place in range(kind.num_fields))


def _time_of_day(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    fraction = "" if not rest else f".{rest // 1000:06d}" if not rest % 1000 else f".{rest:09d}"
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{fraction}"


def plain_value(value: Any, name: str, where: str) -> Any:
    """Return a value of Arrow as one of a row. Raises DataError for bytes and others that are no text, at `where`."""
    if isinstance(value, str):
        try:
            refuse_odd_text(value, f"its {name}")
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error
        return value
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, dict):
        return {key: plain_value(inner, name, where) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(inner, name, where) for inner in value]
    raise DataError(f"{where}: its {name} is {type(value).__name__}, not text; save it as text")


def _damaged(file: RowsFile, error: Exception, number: int) -> DataError:
    if isinstance(error, FileNotFoundError | IsADirectoryError):
        return DataError(f"{file.name}: no such file")
    reason = (str(error).splitlines() or [""])[0]
    return DataError(f"{file.name}, after row {number}: not a Parquet file, or a damaged one ({reason})")
