"""Damaged and hostile files of rows: each is read, or refused in one line; nothing else ever happens."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from adapt.core.errors import AdaptError
from adapt.text.rows.reading import header_of, open_rows, rows_of
from tests.support.row_files import as_csv

INPUTS = 20_000
ROWS = [{"id": str(n), "s": text} for n, text in enumerate(["菜不错", "a, b", "", "他说好", "x" * 50])]
PIECES = [
    b'"', b"'", b",", b"\t", b";", b"\n", b"\r", b"\r\n", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"}", b"[", b"]", b"[" * 200,
    b"\\u", b"\\ud83d", b"NaN", b"-", b"1e999", b"9" * 4400, b"null", b"true", b":", "好".encode(), "好吃".encode("gb18030"),
    b"\x1f\x8b", b"PAR1", b"PK\x03\x04", b"\x80", b"\xe5", b" ", b"id", b"s", b"\x1a", b"\x85", b"\xe2\x80\xa8",
]  # fmt: skip
NAMES = ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.csv.gz", "a.jsonl.gz", "a.parquet", "a.xlsx"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return a sound file of every kind, by name."""
    place = tmp_path_factory.mktemp("whole")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), place / "a.parquet")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    table = 'id,s\n0,菜不错\n1,"a, b"\n2,"c\nd ""e"""\n'
    texts = {"a.csv": table, "a.tsv": as_csv(ROWS, "\t"), "a.jsonl": lines, "a.json": json.dumps(ROWS, indent=1)}
    found = {name: text.encode() for name, text in texts.items()}
    found |= {f"{name}.gz": gzip.compress(found[name], mtime=0) for name in ("a.csv", "a.jsonl")}
    found["a.parquet"] = (place / "a.parquet").read_bytes()
    try:
        import openpyxl

        book = openpyxl.Workbook()
        for row in ROWS:
            book.active.append(list(row.values()))
        book.save(place / "a.xlsx")
        found["a.xlsx"] = (place / "a.xlsx").read_bytes()
    except ImportError:
        pass
    return found


def damaged(raw: bytes, chance: random.Random) -> bytes:
    """Cut, repeat, replace or put in something, once or several times."""
    for _ in range(chance.choice((1, 1, 2, 5))):
        start = chance.randrange(len(raw) + 1)
        end = min(len(raw), start + chance.choice((0, 0, 1, 3, 20)))
        piece = chance.choice(
            (b"", chance.choice(PIECES), chance.choice(PIECES), raw[start:end] * 2, bytes([chance.randrange(256)]))
        )
        raw = raw[:start] + piece + raw[end:]
        if chance.random() < 0.05:
            raw = raw[: chance.randrange(len(raw) + 1)]
    return raw


def read_or_refuse(path: Path, encoding: str | None) -> bool:
    """Say whether a file is read; fail on anything but an error of one line that names it."""
    try:
        file = open_rows(path, encoding=encoding)
        header_of(file)
        for row in rows_of(file):
            json.dumps(dict(row.record), ensure_ascii=False).encode()
    except AdaptError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        return False
    return True


def fuzz(whole: dict[str, bytes], tmp_path: Path, inputs: int, seed: int) -> int:
    """Return how many of so many damaged files are still read."""
    chance = random.Random(seed)
    names = [name for name in NAMES if name in whole]
    n_read = 0
    for number in range(inputs):
        name = names[number % len(names)]
        path = tmp_path / name
        path.write_bytes(damaged(whole[name], chance))
        n_read += read_or_refuse(path, chance.choice((None, None, None, "gb18030", "utf-16", "latin-1")))
    return n_read


def test_damaged_files_are_read_or_refused(whole: dict[str, bytes], tmp_path: Path) -> None:
    assert 0 < fuzz(whole, tmp_path, 400, seed=1) < 400


@pytest.mark.slow
def test_many_damaged_files_are_read_or_refused(whole: dict[str, bytes], tmp_path: Path) -> None:
    assert 0 < fuzz(whole, tmp_path, INPUTS, seed=2) < INPUTS
