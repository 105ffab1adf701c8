"""Submissions have one line for every row in their order, and a wrong one is never written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from adapt.core.errors import DataError
from pipelines.config.locations import conf_dir
from pseudo_label.submission import submission_name, write_submission
from pseudo_label.tasks import FieldConfig, PromptConfig, TaskConfig, TaskRow, load_task


def task_of(**changes: Any) -> TaskConfig:
    settings: dict[str, Any] = {
        "name": "planted",
        "fields": {"text": FieldConfig(path="text")},
        "label_words": {"100": "故事", "Positive": "满意"},
        "prompts": {"reference": PromptConfig(template="{text}{label}")},
    }
    return TaskConfig(**{**settings, **changes})


def rows_of(*ids: Any, candidates: tuple[str, ...] | None = None) -> list[TaskRow]:
    return [TaskRow(id=i, texts={"text": "t"}, label=None, candidates=candidates, line=n) for n, i in enumerate(ids, start=1)]


def test_every_row_has_one_line_in_the_order_of_the_rows_with_its_id_as_in_the_file(tmp_path: Path) -> None:
    place = tmp_path / "out.json"
    write_submission(place, task_of(), rows_of(7, "编号", 0), ["100", "Positive", "100"])
    text = place.read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == [
        {"id": 7, "label": "100"},
        {"id": "编号", "label": "Positive"},
        {"id": 0, "label": "100"},
    ]
    assert text.endswith("\n")
    assert "编号" in text


def test_rows_with_candidates_are_answered_with_the_place_as_a_whole_number(tmp_path: Path) -> None:
    task = task_of(label_words={}, candidates="candidates", submission_key="answer")
    write_submission(tmp_path / "out.json", task, rows_of(1, 2, candidates=("甲", "乙", "丙")), ["2", "0"])
    lines = [json.loads(line) for line in (tmp_path / "out.json").read_text().splitlines()]
    assert lines == [{"id": 1, "answer": 2}, {"id": 2, "answer": 0}]


def test_no_rows_give_an_empty_file(tmp_path: Path) -> None:
    write_submission(tmp_path / "out.json", task_of(), [], [])
    assert (tmp_path / "out.json").read_text() == ""


@pytest.mark.parametrize(
    ("ids", "predictions", "reason"),
    [
        ([1, 2, 1], ["100"] * 3, "id 1 occurs more than once"),
        (["甲", "甲"], ["100"] * 2, 'id "甲" occurs more than once'),
        ([1, 2], ["100", "200"], "'200' is not a label of task 'planted'"),
        ([1, 2], ["100", ""], "'' is not a label of task 'planted'"),
        ([1, 2], ["100"], "1 predictions for 2 rows"),
        ([1], ["100", "100"], "2 predictions for 1 rows"),
    ],
)
def test_a_wrong_submission_is_refused_and_the_old_file_stays(
    tmp_path: Path, ids: list[Any], predictions: list[str], reason: str
) -> None:
    place = tmp_path / "out.json"
    place.write_text("old")
    with pytest.raises(DataError, match=f"out.json: {reason}"):
        write_submission(place, task_of(), rows_of(*ids), predictions)
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
    assert place.read_text() == "old"


def test_a_number_and_its_spelling_are_different_ids(tmp_path: Path) -> None:
    write_submission(tmp_path / "out.json", task_of(), rows_of(1, "1"), ["100", "100"])
    assert len((tmp_path / "out.json").read_text().splitlines()) == 2


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def kill(_: int) -> None:
        raise Killed

    place = tmp_path / "out.json"
    place.write_text("old")
    monkeypatch.setattr(os, "fsync", kill)
    with pytest.raises(Killed):
        write_submission(place, task_of(), rows_of(1), ["100"])
    assert place.read_text() == "old"


def test_the_file_has_the_name_that_the_board_expects() -> None:
    assert submission_name(task_of()) == "planted_predict.json"
    assert submission_name(task_of(submission_file="tnewsf_predict.json")) == "tnewsf_predict.json"


def test_labelled_splits_may_repeat_ids(tmp_path: Path) -> None:
    task = load_task("eprstmt", [conf_dir() / "task"])
    rows = [TaskRow(id=3, texts={"sentence": text}, label="Positive", candidates=None, line=1) for text in "甲乙"]
    write_submission(tmp_path / "few.json", task, rows, ["Positive", "Negative"], has_unique_ids=False)
    assert len((tmp_path / "few.json").read_text(encoding="utf-8").splitlines()) == 2
