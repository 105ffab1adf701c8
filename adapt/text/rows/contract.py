"""What a file of rows is, and what reading it gives: mappings with their place in the file."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A line, a cell or a row holds at most so many characters: an unclosed quote or a file without line ends is refused there.
MAX_CHARACTERS = 1 << 25
# A compressed file may unpack to this many bytes, or to this many times its size where that is more.
MAX_UNPACKED_BYTES = 1 << 28
MAX_UNPACKED_RATIO = 200


class Quotes(enum.Enum):
    """What a quote at the beginning of a table's cell is: it opens a quoted cell (RFC 4180), or it is a letter like others."""

    CELLS = "cells"
    TEXT = "text"


class Kind(enum.Enum):
    """How rows are written down; a JSON file holds an object a line, or one array of objects."""

    JSON = "JSON"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "Parquet"
    XLSX = "xlsx"
    ARROW = "a saved data set"
    PLAIN = "plain text"

    @property
    def is_table(self) -> bool:
        """Whether columns are named once for all rows."""
        return self not in (Kind.JSON, Kind.PLAIN)

    @property
    def is_text(self) -> bool:
        return self not in (Kind.PARQUET, Kind.XLSX, Kind.ARROW)


@dataclass(frozen=True, kw_only=True)
class RowsFile:
    """A file of rows: where it is, what messages call it, and how it is read.

    `encoding` absent is recognised. `quotes` absent are those of cells, unless they look like letters: that is refused.
    """

    path: Path
    name: str
    kind: Kind
    is_gzipped: bool = False
    is_zstd: bool = False
    encoding: str | None = None
    quotes: Quotes | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row as a mapping, and its place: the line it starts in, or its number where lines say nothing."""

    record: Mapping[str, Any]
    number: int
    unit: str = "line"

    @property
    def place(self) -> str:
        return f"{self.unit} {self.number}"


def first_repeat(names: Iterable[str]) -> str | None:
    """Return the first name that stands there a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def unpacked_limit(packed_bytes: int) -> int:
    """Return how many bytes a compressed file may unpack to."""
    return max(MAX_UNPACKED_BYTES, MAX_UNPACKED_RATIO * packed_bytes)
