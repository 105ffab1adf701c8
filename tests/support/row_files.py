"""Helpers of the tests of the reader of rows: plant a file, read it, or get the one line that refuses it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pytest

from adapt.core.errors import AdaptError
from adapt.text.rows.reading import open_rows, rows_of

ROWS = [{"id": "0", "sentence": "菜不错"}, {"id": "1", "sentence": "太贵了"}]


def planted(place: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    raw = content.encode(encoding) if isinstance(content, str) else content
    place.write_bytes(gzip.compress(raw) if place.suffix.lower() == ".gz" else raw)
    return place


def records(path: Path, encoding: str | None = None) -> list[dict[str, Any]]:
    return [dict(row.record) for row in rows_of(open_rows(path, encoding=encoding))]


def places(path: Path) -> list[str]:
    return [row.place for row in rows_of(open_rows(path))]


def refusal(path: Path, encoding: str | None = None) -> str:
    """Return the one line that refuses a file."""
    with pytest.raises(AdaptError) as caught:
        records(path, encoding)
    message = str(caught.value)
    assert message.startswith(str(path)), message
    assert "\n" not in message
    return message.removeprefix(str(path))


def json_lines(rows: list[dict[str, Any]], *, is_ascii: bool = False) -> str:
    return "".join(json.dumps(row, ensure_ascii=is_ascii) + "\n" for row in rows)


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",", end: str = "\n") -> str:
    return "".join(delimiter.join(line) + end for line in [list(rows[0]), *(list(row.values()) for row in rows)])


def saved(place: Path, *batches: dict[str, list[Any]], state: dict[str, Any] | None = None) -> Path:
    """Write what `save_to_disk` writes, a file for each batch, without its bars and locks."""
    place.mkdir()
    names = [f"data-{number:05d}-of-{len(batches):05d}.arrow" for number in range(len(batches))]
    for name, columns in zip(names, batches, strict=True):
        table = pyarrow.table(columns)
        with pyarrow.ipc.new_stream(place / name, table.schema) as stream:
            stream.write_table(table)
    listed = {"_data_files": [{"filename": name} for name in names]}
    (place / "state.json").write_text(json.dumps(listed if state is None else state), encoding="utf-8")
    return place
