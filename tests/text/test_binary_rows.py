"""Parquet files and workbooks: rows as they were saved, and what is no text or number refused by row."""

from __future__ import annotations

import datetime
import decimal
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from adapt.core.errors import ConfigError
from adapt.text.rows import xlsx_rows
from adapt.text.rows.reading import header_of, open_rows, rows_of
from tests.support.row_files import ROWS, planted, records, refusal


def parquet(place: Path, columns: dict[str, Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), place)
    return place


def test_parquet_rows_keep_their_values(tmp_path: Path) -> None:
    columns = {
        "id": [1, None],
        "s": ["菜不错\n", ""],
        "score": [0.5, math.inf],
        "ok": [True, False],
        "many": [["a"], []],
        "deep": [{"x": 1}, {"x": 2}],
        "day": [datetime.date(2024, 1, 2), None],
        "cost": [decimal.Decimal("1.50"), decimal.Decimal("2.00")],
    }
    path = parquet(tmp_path / "a.Parquet", columns)
    first, second = records(path)
    assert first == {
        "id": 1, "s": "菜不错\n", "score": 0.5, "ok": True, "many": ["a"], "deep": {"x": 1}, "day": "2024-01-02", "cost": "1.50",
    }  # fmt: skip
    assert (second["id"], second["s"], second["score"], second["many"]) == (None, "", math.inf, [])
    assert header_of(open_rows(path)) == list(columns)
    assert [row.place for row in rows_of(open_rows(path))] == ["row 1", "row 2"]


def test_many_parquet_rows_are_read_in_batches(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"n": list(range(1000))})
    assert [row["n"] for row in records(path)] == list(range(1000))


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    assert "not a Parquet file" in refusal(planted(tmp_path / "a.parquet", b"id,s\n0,x\n"))
    whole = parquet(tmp_path / "b.parquet", {"s": ["x" * 1000, "y"]}).read_bytes()
    assert "not a Parquet file, or a damaged one" in refusal(planted(tmp_path / "c.parquet", whole[:-40]))
    assert "row 1: its s is bytes" in refusal(parquet(tmp_path / "d.parquet", {"s": [b"x"]}))
    assert "row 2: its s has a NUL" in refusal(parquet(tmp_path / "e.parquet", {"s": ["x", "a\x00"]}))
    table = pyarrow.Table.from_arrays([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["s", "s"])
    pyarrow.parquet.write_table(table, tmp_path / "f.parquet")
    assert "two columns are called 's'" in refusal(tmp_path / "f.parquet")
    assert "is packed already" in refusal(planted(tmp_path / "g.parquet.gz", b""))


def test_times_of_day_keep_their_nanoseconds(tmp_path: Path) -> None:
    fine = pyarrow.time64("ns")
    nanoseconds = [3_661_000_000_001, 3_661_500_000_000, 3_661_000_000_000, None]
    path = parquet(tmp_path / "a.parquet", {"at": pyarrow.array(nanoseconds, fine)})
    assert [row["at"] for row in records(path)] == ["01:01:01.000000001", "01:01:01.500000", "01:01:01", None]
    deep = parquet(tmp_path / "b.parquet", {"at": pyarrow.array([[1], []], pyarrow.list_(fine))})
    assert "its at holds times of day in nanoseconds inside lists" in refusal(deep)


def test_objects_with_two_fields_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = pyarrow.StructArray.from_arrays([pyarrow.array(["x"]), pyarrow.array(["y"])], names=["t", "t"])
    path = parquet(tmp_path / "a.parquet", {"deep": pyarrow.ListArray.from_arrays([0, 1], twice)})
    assert "two fields in column 'deep' are called 't'" in refusal(path)


def stored_as(place: Path, cell: str) -> Path:
    """Return a workbook whose one formula is stored with a value."""
    source = workbook(place.with_suffix(".plain.xlsx"), [["s", "n"], ["=A3", 1]])
    with zipfile.ZipFile(source) as whole, zipfile.ZipFile(place, "w") as target:
        for name in whole.namelist():
            text = whole.read(name).decode()
            target.writestr(name, re.sub(r'<c r="A2"[^>]*>.*?</c>', cell, text) if "sheet1" in name else text)
    return place


def test_a_formula_stands_for_its_stored_value(tmp_path: Path) -> None:
    text = stored_as(tmp_path / "a.xlsx", '<c r="A2" t="str"><f>A3</f><v>好</v></c>')
    assert records(text) == [{"s": "好", "n": 1}]
    empty = stored_as(tmp_path / "b.xlsx", '<c r="A2" t="str"><f>A3</f><v></v></c>')
    assert records(empty) == [{"s": "", "n": 1}]
    error = stored_as(tmp_path / "c.xlsx", '<c r="A2" t="e"><f>A3</f><v>#N/A</v></c>')
    assert "row 2: a cell holds an error" in refusal(error)
    assert "no stored value" in refusal(stored_as(tmp_path / "d.xlsx", '<c r="A2"><f>A3</f></c>'))


def workbook(place: Path, *sheets: list[list[Any]]) -> Path:
    openpyxl = pytest.importorskip("openpyxl", reason="the extra `xlsx` is not installed")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for sheet in sheets:
        page = book.create_sheet()
        for line in sheet:
            page.append(line)
    book.save(place)
    return place


def test_a_workbook_is_read_like_a_table(tmp_path: Path) -> None:
    lines: list[list[Any]] = [["id", "sentence", None], ["0", "菜不错"], [], ["1", "太贵了"], [None, None]]
    path = workbook(tmp_path / "a.XLSX", [], lines)
    assert records(path) == ROWS
    assert [row.place for row in rows_of(open_rows(path))] == ["row 2", "row 4"]
    assert header_of(open_rows(path)) == ["id", "sentence"]
    typed = workbook(
        tmp_path / "b.xlsx", [["n", "x", "day", "s"], [3, 0.5, datetime.datetime(2024, 1, 2), None], [True, 1e9, None, "a\nb"]]
    )
    assert records(typed) == [
        {"n": 3, "x": 0.5, "day": "2024-01-02", "s": ""},
        {"n": True, "x": 1e9, "day": "", "s": "a\nb"},
    ]
    assert records(workbook(tmp_path / "c.xlsx", [["id", "s"]])) == []
    assert records(workbook(tmp_path / "d.xlsx", [])) == []


def test_what_a_workbook_cannot_say_is_refused(tmp_path: Path) -> None:
    assert "has several sheets with rows" in refusal(workbook(tmp_path / "a.xlsx", [["s"], ["x"]], [["s"], ["y"]]))
    assert "row 1: two columns are called 's'" in refusal(workbook(tmp_path / "b.xlsx", [["s", "s"], ["x", "y"]]))
    assert "row 2: has more cells than the header" in refusal(workbook(tmp_path / "c.xlsx", [["s"], ["x", "y"]]))
    assert "row 3: a formula has no stored value" in refusal(workbook(tmp_path / "d.xlsx", [["s"], ["x"], ["=A2"]]))
    assert "row 2: a cell holds an error" in refusal(workbook(tmp_path / "e.xlsx", [["s"], ["#N/A"]]))
    assert "not an xlsx workbook" in refusal(planted(tmp_path / "f.xlsx", b"id,s\n0,x\n"))
    with zipfile.ZipFile(tmp_path / "g.xlsx", "w") as archive:
        archive.writestr("a.txt", "nothing of a workbook")
    assert "not an xlsx workbook, or a damaged one" in refusal(tmp_path / "g.xlsx")


def test_a_workbook_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openpyxl", reason="the extra `xlsx` is not installed")
    monkeypatch.setattr("adapt.text.rows.contract.MAX_UNPACKED_BYTES", 1000)
    monkeypatch.setattr("adapt.text.rows.contract.MAX_UNPACKED_RATIO", 2)
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", "x" * 100_000)
    assert "unpacks to more than 1,000 bytes" in refusal(tmp_path / "a.xlsx")


def test_without_openpyxl_a_workbook_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xlsx_rows, "openpyxl", None)
    with pytest.raises(ConfigError, match="install the extra `xlsx`"):
        records(planted(tmp_path / "a.xlsx", b""))


@pytest.mark.parametrize(("name", "mend"), [("a.xls", "save it as"), ("a.txt", ".csv"), ("rows", ".jsonl"), ("a.zip", "unpack it")])
def test_a_name_that_says_no_kind_is_refused(tmp_path: Path, name: str, mend: str) -> None:
    message = refusal(planted(tmp_path / name, b"x"))
    assert "does not say what kind of rows it holds" in message and mend in message


def test_a_file_that_is_not_there_and_a_directory_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.csv") == ": no such file"
    (tmp_path / "b.csv").mkdir()
    assert "is a directory, and neither a data set" in refusal(tmp_path / "b.csv")


@pytest.mark.parametrize("name", ["rows", "rows.txt", "0a1b2c.blob"])
@pytest.mark.parametrize(("text", "count"), [('{"s": "x"}\n', 1), ('\ufeff \n[{"s": "x"}]', 1), ("", 0)])
def test_a_file_of_another_name_is_json_where_it_begins_like_that(tmp_path: Path, name: str, text: str, count: int) -> None:
    assert len(records(planted(tmp_path / name, text))) == count


def simple_workbook(place: Path, *rows: list[Any], merged: str | None = None) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    if merged is not None:
        book.active.merge_cells(merged)
    book.save(place)
    return place


def test_merged_cells_below_the_header_are_refused(tmp_path: Path) -> None:
    head: list[Any] = ["text", "label"]
    rows: list[list[Any]] = [["好", "x"], ["贵", None], ["行", "y"]]
    assert "cells B2:B3 of sheet 'Sheet' are merged" in refusal(simple_workbook(tmp_path / "a.xlsx", head, *rows, merged="B2:B3"))
    assert len(records(simple_workbook(tmp_path / "b.xlsx", [*head, None], *rows, merged="B1:C1"))) == 3


def test_signs_that_a_workbook_escapes_and_durations_are_read(tmp_path: Path) -> None:
    row = ["好_x000D_\n吃_x005F_x0041_", datetime.timedelta(hours=30)]
    assert records(simple_workbook(tmp_path / "a.xlsx", ["text", "took"], row)) == [{"text": "好\r\n吃_x0041_", "took": 108_000.0}]
    assert "half a surrogate pair" in refusal(simple_workbook(tmp_path / "b.xlsx", ["text"], ["_xD800_"]))
