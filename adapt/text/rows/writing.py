"""Rows out: JSON lines, csv or tsv by the ending of a name, to a file, a pipe, a device, or (`-`) standard output.

A file is replaced as a whole, and where a link leads; what is there stays until all is written. Pipes and devices are written
through. csv and tsv are UTF-8 with a header; a cell that is no text is written as in JSON, null as an empty one.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from adapt.core.errors import ConfigError
from adapt.core.faults import refuse_closed
from adapt.text.rows.contract import Kind, Quotes
from adapt.text.rows.reading import ENDINGS, endings_of

STANDARD = "-"
_DELIMITERS = {Kind.CSV: ",", Kind.TSV: "\t"}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/(?:fd/(\d+)|std(out|err))")


def kind_of_output(place: str) -> Kind:
    """Return what is written to a place: what its ending says, JSON lines where it has none.

    Raises:
        ConfigError: its ending says something else.
    """
    if is_streamed(place):
        return Kind.JSON
    kind = ENDINGS.get(endings_of(place).removesuffix(".gz"))
    if (kind is None and Path(place).suffix) or kind in (Kind.PARQUET, Kind.XLSX):
        raise ConfigError(f"output={place}: is written as .jsonl, .json (lines, too), .csv or .tsv; choose one of these endings")
    return kind or Kind.JSON


def is_streamed(place: str) -> bool:
    """Say whether rows are written through to a place (standard output, a pipe, a device), so that later ones replace none."""
    return place == STANDARD or _is_stream(Path(place))


def check_writable(place: str) -> None:
    """Raise ConfigError, before rows are made for it, where a file cannot be written."""
    kind_of_output(place)
    if is_streamed(place):
        return
    if Path(place).is_dir():
        raise ConfigError(f"{place}: is a directory; give output= the name of a file")
    refuse_closed(Path(place).resolve().parent, f"output={place}")


def write_rows(place: str, lines: Path, columns: Sequence[str], quotes: Quotes | None = None) -> None:
    """Write a file of JSON lines to a place, in the format of its ending; `columns` are those of a table.

    With `Quotes.TEXT` a table is written as one is read then: quotes are letters, and no cell is quoted.

    Raises:
        ConfigError: the place cannot be written, or a cell would have to be quoted.
    """
    kind = kind_of_output(place)
    with _opened(place) as target, lines.open("rb") as source:
        stream = gzip.GzipFile(fileobj=target, mode="wb", mtime=0, filename="") if place.lower().endswith(".gz") else target
        if kind is Kind.JSON:
            shutil.copyfileobj(source, stream)
        else:
            table = (_PlainTable if quotes is Quotes.TEXT else _Table)(_DELIMITERS[kind], columns)
            stream.write(table.line(columns))
            for line in source:
                stream.write(table.row(json.loads(line)))
        if stream is not target:
            stream.close()


def without_nan(value: Any) -> Any:
    """Return a value with null for NaN, which is how tables say that nothing is there."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    return [without_nan(inner) for inner in value] if isinstance(value, list) else value


class _Table:
    """Lines of a table; any cell with a line break of any kind is quoted."""

    def __init__(self, delimiter: str, columns: Sequence[str]) -> None:
        self._columns = columns
        self._line = io.StringIO(newline="")
        # Cells are quoted for the characters of the line end: both, whatever ends the line in the file.
        self._writer = csv.writer(self._line, delimiter=delimiter, lineterminator="\r\n")

    def line(self, cells: Sequence[str]) -> bytes:
        self._line.seek(0)
        self._line.truncate()
        self._writer.writerow(cells)
        return (self._line.getvalue()[:-2] + "\n").encode()

    def row(self, record: Mapping[str, Any]) -> bytes:
        return self.line([_cell(record.get(column)) for column in self._columns])


class _PlainTable(_Table):
    """Lines of a table without quoted cells."""

    def __init__(self, delimiter: str, columns: Sequence[str]) -> None:
        super().__init__(delimiter, columns)
        self._delimiter = delimiter

    def line(self, cells: Sequence[str]) -> bytes:
        found = next((cell for cell in cells if set(cell) & {self._delimiter, "\n", "\r"}), None)
        if found is not None:
            raise ConfigError(
                f"output: '{found}' has a separator or a line break, which a table without quoted cells cannot hold "
                "(data.quotes=text); write .jsonl"
            )
        return (self._delimiter.join(cells) + "\n").encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@contextmanager
def _opened(place: str) -> Iterator[IO[bytes]]:
    """Open a place for writing; a file takes its name when all is written, and nothing is left where that fails."""
    try:
        if place == STANDARD or _is_stream(Path(place)):
            with _stream(place) as stream:
                yield stream
            return
        target = Path(place).resolve()
        if target.is_dir():
            raise ConfigError(f"{place}: is a directory; give output= the name of a file")
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with scratch.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, scratch)
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
    except BrokenPipeError:
        raise ConfigError(f"output={place}: nobody reads it any more; part of it was written") from None
    except OSError as error:
        raise ConfigError(f"{place}: cannot be written ({error.strerror}); choose another place or free space") from error


def _is_stream(path: Path) -> bool:
    """Say whether a path is a pipe, a device or an open file of this process, which are written through."""
    if _DESCRIPTOR.fullmatch(str(path.absolute())):
        return True
    try:
        return path.exists() and not path.is_file() and not path.is_dir()
    except OSError:
        return False


@contextmanager
def _stream(place: str) -> Iterator[IO[bytes]]:
    descriptor = _DESCRIPTOR.fullmatch(str(Path(place).absolute()))
    if place == STANDARD or descriptor is not None:
        number = (
            1 if place == STANDARD or descriptor is None or descriptor[2] == "out" else 2 if descriptor[2] else int(descriptor[1])
        )
        (sys.stderr if number == 2 else sys.stdout).flush()
        with os.fdopen(os.dup(number), "wb") as stream:  # a descriptor of its own: its place in the file is shared, its end not
            yield stream
    else:
        with Path(place).open("wb") as stream:
            yield stream
