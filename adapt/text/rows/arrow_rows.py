"""Data sets saved by `datasets.save_to_disk` as rows: Arrow streams, mapped into memory and read a few rows at a time.

Nothing of `datasets` runs, and no code of the data set: types that a file brings of its own are refused. Numbers of a `ClassLabel`
stay numbers, as in the data set's JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pyarrow.ipc

from adapt.core.errors import DataError
from adapt.text.rows.contract import Row, RowsFile, unpacked_limit
from adapt.text.rows.directories import parts_of
from adapt.text.rows.parquet_rows import plain_value, refuse_repeated_fields, values_of
from adapt.text.rows.table_rows import refuse_repeats

_STEP_ROWS = 256
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of a stream that was written to its end


def arrow_rows(file: RowsFile) -> Iterator[Row]:
    """Yield a data set's rows, numbered from 1.

    Raises:
        DataError: a file of it is missing or damaged, has other columns than the first, or holds what is no value of a row.
    """
    number = 0
    known: list[str] | None = None
    for part in parts_of(file.path, file.name).files:
        with _opened(file, part) as stream:
            names = _names(file, stream.schema)
            if known is not None and names != known:
                raise DataError(f"{file.name}: {part.name} has other columns than the files before it; save the data set anew")
            known = names
            for batch in stream:
                if batch.nbytes > unpacked_limit(part.stat().st_size):
                    raise DataError(f"{file.name}: {part.name} unpacks to more than fits its size; save the data set anew")
                batch.validate(full=True)
                for start in range(0, batch.num_rows, _STEP_ROWS):
                    columns = [
                        values_of(column.slice(start, _STEP_ROWS), name, file)
                        for name, column in zip(names, batch.columns, strict=True)
                    ]
                    for values in zip(*columns, strict=True):
                        number += 1
                        where = f"{file.name}, row {number}"
                        record = {name: plain_value(value, name, where) for name, value in zip(names, values, strict=True)}
                        yield Row(record, number, "row")


def arrow_header(file: RowsFile) -> list[str] | None:
    """Return the names of a data set's columns; None where it has no files. Raises DataError as `arrow_rows` does."""
    for part in parts_of(file.path, file.name).files:
        with _opened(file, part) as stream:
            return _names(file, stream.schema)
    return None


@contextmanager
def _opened(file: RowsFile, part: Path) -> Iterator[pyarrow.ipc.RecordBatchStreamReader]:
    try:
        with part.open("rb") as raw:
            raw.seek(max(part.stat().st_size - len(_END), 0))
            if raw.read() != _END:
                raise DataError(f"{file.name}: {part.name} is cut off, or no Arrow file of a saved data set; save it anew")
        with pyarrow.memory_map(str(part)) as mapped, pyarrow.ipc.open_stream(mapped) as stream:
            yield stream
    except (OSError, ValueError, MemoryError, pyarrow.ArrowException) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(f"{file.name}: {part.name} is no Arrow file of a saved data set, or a damaged one ({reason})") from error


def _names(file: RowsFile, schema: pyarrow.Schema) -> list[str]:
    names = [str(name) for name in schema.names]
    refuse_repeats(names, file.name)
    refuse_repeated_fields(schema, file)
    if not names:
        raise DataError(f"{file.name}: has no columns")
    own = next((field.name for field in schema if isinstance(field.type, pyarrow.BaseExtensionType)), None)
    if own is not None:
        raise DataError(f"{file.name}: its column '{own}' has a type of its own, which is not read; save it as text")
    return names
