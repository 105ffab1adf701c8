"""Parquet files as rows, a batch in memory at a time. Dates become ISO text and decimals their digits; bytes are refused."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.parquet

from adapt.core.errors import DataError
from adapt.text.rows.contract import Row, RowsFile
from adapt.text.rows.json_rows import refuse_odd_text
from adapt.text.rows.table_rows import refuse_repeats

_BATCH_ROWS = 256


def parquet_rows(file: RowsFile) -> Iterator[Row]:
    """Yield a file's rows, numbered from 1.

    Raises:
        DataError: it is no Parquet file, is damaged, repeats a column, or holds what is no value of a row.
    """
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file.path) as table:
            names = _names(file, table)
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    where = f"{file.name}, row {number}"
                    yield Row({name: _plain(value, name, where) for name, value in zip(names, values, strict=True)}, number, "row")
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _damaged(file, error, number) from error


def parquet_header(file: RowsFile) -> list[str]:
    """Return the names of a file's columns. Raises DataError as `parquet_rows` does."""
    try:
        with pyarrow.parquet.ParquetFile(file.path) as table:
            return _names(file, table)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _damaged(file, error, 0) from error


def _names(file: RowsFile, table: pyarrow.parquet.ParquetFile) -> list[str]:
    names = [str(name) for name in table.schema_arrow.names]
    refuse_repeats(names, file.name)
    if not names:
        raise DataError(f"{file.name}: has no columns")
    return names


def _plain(value: Any, name: str, where: str) -> Any:
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
        return {key: _plain(inner, name, where) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, name, where) for inner in value]
    raise DataError(f"{where}: its {name} is {type(value).__name__}, not text; save it as text")


def _damaged(file: RowsFile, error: Exception, number: int) -> DataError:
    if isinstance(error, FileNotFoundError | IsADirectoryError):
        return DataError(f"{file.name}: no such file")
    reason = (str(error).splitlines() or [""])[0]
    return DataError(f"{file.name}, after row {number}: not a Parquet file, or a damaged one ({reason})")
