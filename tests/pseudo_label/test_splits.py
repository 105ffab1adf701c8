"""A split is found and read whatever its ending, one file for each; only texts and numbers become words."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from adapt.core.errors import ConfigError, DataError
from pseudo_label.tasks import FieldConfig, PromptConfig, TaskConfig, TaskRow, read_split, row_from, split_path

TASK = TaskConfig(
    name="mine",
    fields={"s": FieldConfig(path="s"), "k": FieldConfig(path="k", is_optional=True)},
    label_words={"good": "好", "bad": "坏"},
    prompts={"reference": PromptConfig(template="{s}{label}")},
)
ROWS = [{"s": "菜不错", "label": "good"}, {"s": "太贵了", "label": "bad"}]
TABLE = "s,label\n菜不错,good\n太贵了,bad\n"


def planted(root: Path, name: str, content: str | bytes) -> Path:
    place = root / "mine" / name
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(content.encode() if isinstance(content, str) else content)
    return place


def write(root: Path, name: str) -> Path:
    ending = name.lower().partition(".")[2]
    if ending == "parquet":
        (root / "mine").mkdir()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), root / "mine" / name)
        return root / "mine" / name
    if ending == "xlsx":
        openpyxl = pytest.importorskip("openpyxl", reason="the extra `xlsx` is not installed")
        book = openpyxl.Workbook()
        for line in TABLE.splitlines():
            book.active.append(line.split(","))
        (root / "mine").mkdir()
        book.save(root / "mine" / name)
        return root / "mine" / name
    texts = {"csv": TABLE, "tsv": TABLE.replace(",", "\t"), "json": json.dumps(ROWS)}
    text = texts.get(ending.removesuffix(".gz"), "".join(json.dumps(row) + "\n" for row in ROWS)).encode()
    return planted(root, name, gzip.compress(text) if ending.endswith("gz") else text)


@pytest.mark.parametrize(
    "name",
    ["dev.json", "dev.jsonl", "dev.csv", "dev.tsv", "dev.parquet", "dev.xlsx", "dev.CSV", "dev.Json", "dev.csv.gz"],
)
def test_a_split_is_read_whatever_its_ending(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    assert split_path(tmp_path, TASK, "dev") == path
    assert [(row.texts["s"], row.label) for row in read_split(tmp_path, TASK, "dev")] == [("菜不错", "good"), ("太贵了", "bad")]


def test_a_split_that_is_not_there_has_the_name_of_json_lines(tmp_path: Path) -> None:
    planted(tmp_path, "dev.txt", "")
    planted(tmp_path, "dev.csv.bak", "")
    planted(tmp_path, "dev_2.csv", "")
    (tmp_path / "mine" / "dev.csv").mkdir()
    assert split_path(tmp_path, TASK, "dev") == tmp_path / "mine" / "dev.json"


def test_two_files_of_one_split_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("dev.csv", "dev.JSON", "test.csv"):
        planted(tmp_path, name, TABLE)
    with pytest.raises(DataError, match=r"mine: has 2 files for split 'dev' \(dev.JSON, dev.csv\); keep one"):
        split_path(tmp_path, TASK, "dev")
    assert split_path(tmp_path, TASK, "test").name == "test.csv"


@pytest.mark.parametrize("split", ["../dev", "a/dev", "..", "", "a\\b", "a\nb", "a\x1b[31m"])
def test_a_splits_name_never_leads_elsewhere(tmp_path: Path, split: str) -> None:
    with pytest.raises(ConfigError, match="split: .* is no plain name"):
        split_path(tmp_path, TASK, split)


def test_a_task_may_say_the_encoding_of_its_files(tmp_path: Path) -> None:
    planted(tmp_path, "dev.csv", "s\n這家很好\n".encode("big5"))
    with pytest.raises(DataError, match=r"dev\.csv, line 2: not UTF-8"):
        read_split(tmp_path, TASK, "dev")
    task = TaskConfig(**{**vars(TASK), "encoding": "big5"})
    assert [row.texts["s"] for row in read_split(tmp_path, task, "dev")] == ["這家很好"]


def test_a_header_that_is_a_row_is_refused_where_there_are_no_others(tmp_path: Path) -> None:
    planted(tmp_path, "dev.csv", "太贵了,bad\n")
    with pytest.raises(DataError, match=r"dev\.csv: has no column 's'; its first line must name the columns, and has: 太贵了, bad"):
        read_split(tmp_path, TASK, "dev")
    planted(tmp_path, "dev.csv", "s,label\n")
    assert read_split(tmp_path, TASK, "dev") == []


def test_columns_may_be_called_by_a_dotted_path(tmp_path: Path) -> None:
    task = TaskConfig(**{**vars(TASK), "fields": {"s": FieldConfig(path="target.s")}})
    planted(tmp_path, "dev.csv", "target.s,label\n好吃,good\n")
    assert [row.texts["s"] for row in read_split(tmp_path, task, "dev")] == ["好吃"]


def row_of(record: dict[str, Any], task: TaskConfig = TASK) -> TaskRow:
    return row_from(record, task, "rows.json", 7)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (True, "is true, which is no text"),
        (math.nan, "is nan, which is no text"),
        (math.inf, "is inf, which is no text"),
        ({"a": 1}, "is an object, which is no text"),
        (["a", None], "item 1: is null, which is no text"),
        (["a", True], "item 1: is true"),
        ([["a"]], "item 0: is a list"),
        (10**2000, "is a number of more than a thousand digits"),
        ("a\x00", "it has a NUL character"),
        ("a\ud83d", "it has half a surrogate pair"),
    ],
)
@pytest.mark.parametrize("field", ["s", "k"])
def test_what_is_no_text_is_never_turned_into_words(value: object, what: str, field: str) -> None:
    with pytest.raises(DataError) as caught:
        row_of({"s": "a", field: value})
    assert str(caught.value).startswith(f"rows.json, line 7: '{field}'")
    assert what in str(caught.value)


@pytest.mark.parametrize(("value", "text"), [("nan", "nan"), ("null", "null"), (0, "0"), (1.5, "1.5"), (["a", 2], "a、2")])
def test_numbers_and_words_that_look_like_none_are_text(value: object, text: str) -> None:
    assert row_of({"s": value}).texts["s"] == text


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["a", None], "item 1: is null"),
        (["a", True], "item 1: is true"),
        (["a", " "], "has an empty candidate"),
        ("ab", "has no list 'o'"),
    ],
)
def test_candidates_are_words_too(options: object, what: str) -> None:
    task = TaskConfig(**{**vars(TASK), "candidates": "o"})
    with pytest.raises(DataError, match=rf"line 7: .*{what}|line 7: {what}"):
        row_of({"s": "a", "o": options}, task)


@pytest.mark.parametrize("name", ["dev.csv", "unlabeled.tsv"])
@pytest.mark.parametrize("content", [b"", b"\n"])
def test_a_table_without_its_header_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    planted(tmp_path, name, content)
    with pytest.raises(DataError, match=f"{name}: is empty: no header line and no rows"):
        read_split(tmp_path, TASK, name.partition(".")[0])


def test_a_table_with_its_header_may_have_no_rows(tmp_path: Path) -> None:
    planted(tmp_path, "unlabeled.csv", "s,label\n")
    assert read_split(tmp_path, TASK, "unlabeled") == []
