"""Rows out: what is written is what is read back, a file is replaced as a whole or not at all, and pipes are written through."""

from __future__ import annotations

import gzip
import json
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from adapt.core.errors import ConfigError
from adapt.text.rows.contract import Kind
from adapt.text.rows.writing import kind_of_output, write_rows
from tests.support.row_files import json_lines, planted, records

ROWS: list[dict[str, Any]] = [{"id": "0", "s": "菜不错", "p": "好"}, {"id": "1", "s": "", "p": "坏"}]


def written(tmp_path: Path, output: Path | str, rows: list[dict[str, Any]] = ROWS) -> Path:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_rows(str(output), planted(tmp_path / "answers.jsonl", json_lines(rows)), columns)
    return Path(output)


@pytest.mark.parametrize("name", ["o.jsonl", "o.json", "o.csv", "o.tsv", "o.CSV", "o.csv.gz", "o.jsonl.gz", "new/deep/o.csv"])
def test_the_ending_says_the_format(tmp_path: Path, name: str) -> None:
    assert records(written(tmp_path, tmp_path / name)) == ROWS
    assert not list(tmp_path.rglob(".*")), "nothing is left beside it"


def test_a_csv_is_a_csv(tmp_path: Path) -> None:
    assert written(tmp_path, tmp_path / "o.csv").read_text(encoding="utf-8") == "id,s,p\n0,菜不错,好\n1,,坏\n"
    assert written(tmp_path, tmp_path / "o.tsv").read_bytes() == "id\ts\tp\n0\t菜不错\t好\n1\t\t坏\n".encode()
    assert written(tmp_path, tmp_path / "rows").read_text(encoding="utf-8") == json_lines(ROWS)


def test_a_packed_file_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    first, second = (written(tmp_path, tmp_path / name).read_bytes() for name in ("a.csv.gz", "b.csv.gz"))
    assert first == second and gzip.decompress(first).startswith(b"id,s,p\n")


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_any_cell_comes_back(tmp_path: Path, kind: str) -> None:
    random.seed(3)
    signs = ["a", "好", '"', ",", "\t", " ", "\n", "\r\n", "\r", "'", "\u2028", ";", "\\", "1"]
    rows = [{"id": f"r{n}", "s": "".join(random.choices(signs, k=random.randrange(7))), "p": "x"} for n in range(300)]
    if kind == "tsv":  # a tab in a cell of several lines is refused on reading: it looks like rows glued together
        rows = [{**row, "s": row["s"].replace("\t", "")} for row in rows]
    assert records(written(tmp_path, tmp_path / f"o.{kind}", rows)) == rows


def test_values_that_are_no_text_are_cells_of_json(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"a": 1, "b": True, "c": None, "d": [1, "好"], "e": {"k": 0.5}}, {"a": -0.25, "f": "late"}]
    assert records(written(tmp_path, tmp_path / "o.csv", rows)) == [
        {"a": "1", "b": "true", "c": "", "d": '[1, "好"]', "e": '{"k": 0.5}', "f": ""},
        {"a": "-0.25", "b": "", "c": "", "d": "", "e": "", "f": "late"},
    ]


def test_no_rows_are_a_header(tmp_path: Path) -> None:
    write_rows(str(tmp_path / "o.csv"), planted(tmp_path / "answers.jsonl", ""), ["id", "p"])
    assert (tmp_path / "o.csv").read_text() == "id,p\n"


@pytest.mark.parametrize("name", ["o.parquet", "o.xlsx", "o.txt", "o.parquet.gz"])
def test_a_format_that_is_not_written_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is written as .jsonl"):
        kind_of_output(name)


def test_a_link_is_followed_and_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link, dangling = tmp_path / "real" / "t.csv", tmp_path / "l.csv", tmp_path / "d.csv"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "real" / "new.csv")
    for place in (link, dangling):
        written(tmp_path, place)
        assert place.is_symlink() and records(place) == ROWS
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_pipe_is_written_through(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    written(tmp_path, pipe)
    reader.join()
    assert got == [json_lines(ROWS).encode()]
    assert pipe.is_fifo()


def test_devices_and_open_files_are_written_through(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    written(tmp_path, "/dev/null")
    assert not Path("/dev/null").is_file()
    for place in ("-", "/dev/stdout", "/dev/fd/1"):
        written(tmp_path, place)
        assert capfdbinary.readouterr().out == json_lines(ROWS).encode()
    written(tmp_path, "/dev/stderr")
    assert capfdbinary.readouterr().err == json_lines(ROWS).encode()
    assert [kind_of_output(place) for place in ("-", "/dev/stdout", "/dev/null")] == [Kind.JSON] * 3


def test_a_reader_that_has_gone_is_one_line(tmp_path: Path) -> None:
    receiving, sending = os.pipe()
    os.close(receiving)
    try:
        with pytest.raises(ConfigError, match="nobody reads it any more"):
            written(tmp_path, f"/dev/fd/{sending}")
    finally:
        os.close(sending)


def test_a_place_that_cannot_be_written_is_one_line_and_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot be written"):
        written(tmp_path, tmp_path / "file" / "o.csv")
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(ConfigError, match="is a directory"):
        written(tmp_path, tmp_path / "dir.csv")
    kept = tmp_path / "kept.csv"
    kept.write_text("mine")
    with pytest.raises(json.JSONDecodeError):
        write_rows(str(kept), planted(tmp_path / "broken.jsonl", '{"a": 1}\n{'), ["a"])
    assert kept.read_text() == "mine"
    assert not list(tmp_path.rglob(".*"))
