"""What counts as a label, what says that there is none, and what is refused with a hint."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from adapt.core.errors import DataError
from pseudo_label.gold import NoLabel, label_of
from pseudo_label.tasks import TaskConfig, load_task, read_split

WORDS = {"good": "满意", "bad": "不满意", "1": "一", "true": "对"}
CANDIDATES = ("晴朗", "阴沉", "7", "2")


@pytest.mark.parametrize("value", [None, math.nan, "", " ", "-", "-1", -1, -1.0, "null", "NULL", "nan", "NaN"])
def test_a_row_may_say_that_it_has_no_label(value: object) -> None:
    assert label_of(value, WORDS, None) is None
    assert label_of(value, {}, CANDIDATES) is None


@pytest.mark.parametrize(("value", "label"), [("-1", "-1"), (-1, "-1"), ("nan", "nan"), ("-", "-"), ("null", "null")])
def test_a_task_may_have_a_label_of_that_name(value: object, label: str) -> None:
    assert label_of(value, dict.fromkeys(("-1", "nan", "-", "null"), "x"), None) == label


@pytest.mark.parametrize(("value", "label"), [("good", "good"), (1, "1"), (1.0, "1"), ("1", "1"), (True, "true"), ("true", "true")])
def test_labels_are_the_tasks_names(value: object, label: str) -> None:
    assert label_of(value, WORDS, None) == label


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("goood", ["'goood' has no label word", "did you mean 'good'"]),
        ("Good", ["did you mean 'good'"]),
        (" bad", ["did you mean 'bad'"]),
        ("01", ["did you mean '1'"]),
        ("1.0", ["did you mean '1'"]),
        ("１", ["did you mean '1'"]),
        ("满意", ["is the word of label 'good'"]),
        (False, ["'false' has no label word"]),
        (2, ["'2' has no label word"]),
        (1.5, ["'1.5' has no label word"]),
        (["good"], ["label is a list"]),
        ({"a": 1}, ["label is an object"]),
        pytest.param(10**5000, ["thousand digits"], id="huge"),
    ],
)
def test_anything_else_is_refused_with_a_hint(value: object, words: list[str]) -> None:
    with pytest.raises(NoLabel) as caught:
        label_of(value, WORDS, None)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(("value", "place"), [(0, "0"), (3, "3"), ("1", "1"), (2.0, "2"), (2, "2")])
def test_where_rows_have_candidates_a_label_is_a_place(value: object, place: str) -> None:
    assert label_of(value, {}, CANDIDATES) == place


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (4, ["no place in its list of 4 candidates, counted from 0 to 3", "count from 1?"]),
        (9, ["no place in its list"]),
        (-2, ["no place in its list"]),
        (True, ["label is true", "give its place, 0 to 3"]),
        ("B", ["'B' is a letter", "1 for B"]),
        ("z", ["'z' is no place"]),
        ("阴沉", ["is the text of candidate 1", "give its place"]),
        ("7", ["is the text of candidate 2"]),
        ("2", ["is a place in its list, and the text of candidate 3"]),
        ("01", ["'01' is no place"]),
        (0.5, ["'0.5' is no place"]),
        ([1], ["label is a list"]),
    ],
)
def test_no_place_in_the_list_is_refused_with_a_hint(value: object, words: list[str]) -> None:
    with pytest.raises(NoLabel) as caught:
        label_of(value, {}, CANDIDATES)
    assert all(word in str(caught.value) for word in words), str(caught.value)


TASK = """
fields: {s: {path: s}}
label_words: {good: 好, bad: 坏}
prompts: {reference: {template: "{s}{label}"}}
"""


def task_from(tmp_path: Path, text: str) -> TaskConfig:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "mine").mkdir(exist_ok=True)
    return load_task("mine", [tmp_path])


def test_a_label_that_is_none_is_named_by_file_and_line(tmp_path: Path) -> None:
    task = task_from(tmp_path, TASK)
    (tmp_path / "mine" / "dev.csv").write_text("s,label\nx,good\ny,god\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"dev\.csv, line 3: label 'god' has no label word \(did you mean 'good'\?\); add it under"):
        read_split(tmp_path, task, "dev")


@pytest.mark.parametrize("empty", ["", "-", "-1", "NaN"])
def test_rows_without_a_label_are_kept_without_one(tmp_path: Path, empty: str) -> None:
    task = task_from(tmp_path, TASK)
    (tmp_path / "mine" / "dev.csv").write_text(f"s,label\nx,good\ny,{empty}\nz,bad\n", encoding="utf-8")
    assert [row.label for row in read_split(tmp_path, task, "dev")] == ["good", None, "bad"]


def test_labels_under_another_name_are_asked_for(tmp_path: Path) -> None:
    task = task_from(tmp_path, TASK)
    text = "s,gold,note\nx,good,good\ny,bad,none\nz,,bad\n"
    for split in ("dev", "few", "mine"):
        (tmp_path / "mine" / f"{split}.csv").write_text(text.replace("z,,bad\n", ""), encoding="utf-8")
        with pytest.raises(DataError, match=rf"{split}\.csv: has no 'label', and its 'gold' holds labels .*'label_path: gold'"):
            read_split(tmp_path, task, split)
    for split in ("unlabeled", "test"):
        (tmp_path / "mine" / f"{split}.csv").write_text(text, encoding="utf-8")
        assert [row.label for row in read_split(tmp_path, task, split)] == [None] * 3
    assert len(read_split(tmp_path, task_from(tmp_path, TASK + "label_path: gold\n"), "dev")) == 2


def test_another_column_with_places_is_asked_for_where_it_is_called_like_labels(tmp_path: Path) -> None:
    task = task_from(tmp_path, TASK + "candidates: o\n")
    lines = '{"s": "x", "n": 1, "KEY": 0, "o": ["a", "b"]}\n{"s": "y", "n": 0, "KEY": 1, "o": ["a", "b"]}\n'
    (tmp_path / "mine" / "dev.json").write_text(lines, encoding="utf-8")
    assert [row.label for row in read_split(tmp_path, task, "dev")] == [None, None]
    (tmp_path / "mine" / "dev.json").write_text(lines.replace("KEY", "Answer"), encoding="utf-8")
    with pytest.raises(DataError, match="its 'Answer' holds labels"):
        read_split(tmp_path, task, "dev")
