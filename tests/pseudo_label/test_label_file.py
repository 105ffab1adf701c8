"""The teacher `file`, joined with the unlabeled rows: wrong ids, wrong places and missing labels are refused or told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapt.core.errors import DataError
from pseudo_label.tasks import FieldConfig, PromptConfig, TaskConfig, TaskRow
from pseudo_label.teachers.file import read_label_file

REVIEWS = TaskConfig(
    name="reviews",
    fields={"text": FieldConfig(path="text")},
    label_words={"0": "差", "1": "好"},
    prompts={"reference": PromptConfig(template="{text}{label}")},
)
IDIOMS = TaskConfig(
    name="idioms",
    fields={"text": FieldConfig(path="text")},
    candidates="options",
    prompts={"reference": PromptConfig(template="{text}{label}")},
)


def written(place: Path, *records: object) -> Path:
    path = place / "labels.jsonl"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def row(text: str, line: int, row_id: Any = None, candidates: tuple[str, ...] | None = None) -> TaskRow:
    return TaskRow(id=line - 1 if row_id is None else row_id, texts={"text": text}, label=None, candidates=candidates, line=line)


ROWS = [row("很好", 1), row("不行", 2), row("还好", 3)]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("马到成功", ["line 2", "is the text of candidate 1", "give its place, 0 to 1"]),
        ("画蛇添足", ["line 2", "no place in its list of candidates"]),
        (2, ["line 2", "no place in its list of 2 candidates", "count from 1?"]),
        (True, ["line 2", "no place in its list"]),
        ([1], ["line 2", "neither a label"]),
    ],
)
def test_a_label_that_is_no_place_of_a_row_s_candidates_is_refused(tmp_path: Path, label: object, words: list[str]) -> None:
    path = written(tmp_path, {"id": 0, "label": 0}, {"id": 1, "label": label})
    rows = [row("甲", 1, candidates=("一帆风顺", "马到成功", "井底之蛙")), row("乙", 2, candidates=("一帆风顺", "马到成功"))]
    with pytest.raises(DataError) as refusal:
        read_label_file(path, IDIOMS).fitted(rows)
    assert all(word in str(refusal.value) for word in words)


def test_places_of_candidates_are_labels(tmp_path: Path) -> None:
    rows = [row(text, line, candidates=("一", "二", "三")) for line, text in enumerate("甲乙丙丁戊", start=1)]
    said: list[dict[str, object]] = [{"label": 2}, {"label": "1"}, {"label": 1.0}, {"label": None}, {"probabilities": {"2": 0.7}}]
    path = written(tmp_path, *({"id": place, **one} for place, one in enumerate(said)))
    scores = read_label_file(path, IDIOMS).fitted(rows).scores(rows)
    assert scores.argmax(axis=1)[[0, 1, 2, 4]].tolist() == [2, 1, 1, 2]
    assert not scores[3].any()


@pytest.mark.parametrize(
    ("lines", "ids", "words"),
    [
        ([1, 2, 3], [1, 2, 3], ["has the id 3 and not 0", "ids count from 0", "take 1 from its ids"]),
        ([1, 2, 3], [1, 3], ["has the id 3 and not 0", "take 1"]),
        ([2, 3, 4], [0, 1, 2], ["has the id 0 and not 3", "add 1"]),  # a table's first row is in line 2
    ],
)
def test_ids_that_are_off_by_one_are_refused(tmp_path: Path, lines: list[int], ids: list[int], words: list[str]) -> None:
    path = written(tmp_path, *({"id": one, "label": "1"} for one in ids))
    with pytest.raises(DataError) as refusal:
        read_label_file(path, REVIEWS).fitted([row(f"第{line}", line) for line in lines])
    assert all(word in str(refusal.value) for word in words)


@pytest.mark.parametrize("ids", [[0, 1, 2, 3], [0, 1, 2], [1, 2]])
def test_ids_that_fit_the_lines_are_taken(tmp_path: Path, ids: list[int]) -> None:
    file = read_label_file(written(tmp_path, *({"id": one, "label": "1"} for one in ids)), REVIEWS).fitted(ROWS)
    assert file.coverage(ROWS) == pytest.approx(len({0, 1, 2} & set(ids)) / 3)
    told = ["1 of its ids name no unlabeled row (such as 3), and count for nothing"] if 3 in ids else []
    assert list(file.findings) == told


def test_own_ids_are_not_taken_for_lines(tmp_path: Path) -> None:
    rows = [row("很好", 1, 1), row("不行", 2, 2), row("还好", 3, 3)]
    path = written(tmp_path, *({"id": one, "label": "1"} for one in (1, 2, 3)))
    assert read_label_file(path, REVIEWS).fitted(rows).coverage(rows) == 1


def test_a_row_whose_id_is_wrong_is_found_by_its_texts(tmp_path: Path) -> None:
    rows = [row("很好", 1, "0060"), row("不行", 2, "0061"), row("还好", 3, "0062")]
    path = written(
        tmp_path, {"id": 60, "text": "很好", "label": "1"}, {"id": 61, "text": "不行", "label": "0"}, {"id": 9, "label": "1"}
    )
    file = read_label_file(path, REVIEWS).fitted(rows)
    assert file.scores(rows)[:2].argmax(axis=1).tolist() == [1, 0]
    assert file.coverage(rows) == pytest.approx(2 / 3)
    assert file.findings == (
        "2 of its ids are of no unlabeled row (such as 60); their texts name the rows",
        "1 of its ids name no unlabeled row (such as 9), and count for nothing",
    )


@pytest.mark.parametrize(
    "record", [{"id": 60, "label": "1"}, {"id": 60, "text": "别的", "label": "1"}, {"text": "别的", "label": "1"}]
)
def test_a_file_that_names_no_row_is_refused(tmp_path: Path, record: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"labels\.jsonl: gives no unlabeled row a label"):
        read_label_file(written(tmp_path, {**record, "label": "1"}), REVIEWS).fitted(ROWS)


def test_labels_are_read_as_those_of_rows_are_and_rows_without_one_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path, {"id": 0, "label": 1.0}, {"id": 1, "label": None}, {"id": 2, "label": " - "})
    file = read_label_file(path, REVIEWS).fitted(ROWS)
    scores = file.scores(ROWS)
    assert scores[0].argmax() == 1 and not scores[1:].any()
    assert file.findings == ("2 of its rows have no label, and are left out",)
    assert file.coverage(ROWS) == pytest.approx(1 / 3)


def test_a_file_without_a_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row of it has a label"):
        read_label_file(written(tmp_path, {"id": 0, "label": "-1"}, {"id": 1, "label": None}), REVIEWS)
