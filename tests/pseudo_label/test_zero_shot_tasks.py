"""The articles' zero-shot tasks as task files: made rows in every layout, read as lm-evaluation-harness reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapt.core.errors import DataError
from pseudo_label.harnesses.zero_shot import NAMES, data_files, write_zero_shot
from tests.support.yaml_functions import Loader

PROBLEMS = [
    {"question": "It was  _  .", "options": ["red", "blue", "old", "new"], "answer": "B"},
    {"question": "Who came?", "options": ["a", "b", "c", "d"], "answer": "C"},
]
RACE = "Article: Long ago.\n\nIt was blue\nWho came?"
LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "lambada": [{"text": 'He said: "here is the door"'}],
    "piqa": [{"goal": "Open a can", "sol1": "Use an opener.", "sol2": "Use a {spoon}.", "label": 0}],
    "boolq": [
        {"passage": "Cats purr.", "question": "do cats purr", "answer": True},
        {"passage": "Cats purr.", "question": "do cats purr", "label": 1},
    ],
    "race": [
        {"article": "Long ago.", "problems": str(PROBLEMS)},
        {"article": "Long ago.", "problems": PROBLEMS},
        {
            "article": "Long ago.",
            "questions": [one["question"] for one in PROBLEMS],
            "options": [one["options"] for one in PROBLEMS],
            "answers": [one["answer"] for one in PROBLEMS],
        },
    ],
    "triviaqa": [
        {"question": "Who was first", "answer": {"aliases": ["Adam", "Adam Smith", "Eve"]}},
        {"Question": "Who was first", "Answer": {"Aliases": ["Eve", "Adam"]}},
    ],
    "webqs": [
        {"question": "who was first", "answers": ["Eve", "Adam"]},
        {"utterance": "who was first", "targetValue": '(list (description Adam) (description "Eve"))'},
    ],
}
WANTED = {
    "lambada": ('He said: "here is the', ['door"'], 0),
    "piqa": ("Question: Open a can\nAnswer:", ["Use an opener.", "Use a {spoon}."], 0),
    "boolq": ("Cats purr.\nQuestion: do cats purr?\nAnswer:", ["no", "yes"], 1),
    "race": (RACE, ["a", "b", "c", "d"], 2),
    "triviaqa": ("Question: Who was first?\nAnswer:", ["Adam", "Eve"], [0, 1]),
    "webqs": ("Question: who was first\nAnswer:", ["Adam", "Eve"], [0, 1]),
}


def written(directory: Path, is_list: bool = False) -> Path:
    """Write made rows of every task, as JSON lines or as one list."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, records in LAYOUTS.items():
        text = json.dumps(records, indent=1) if is_list else "".join(json.dumps(record) + "\n" for record in records)
        (directory / f"{name}.{'json' if is_list else 'jsonl'}").write_text(text, encoding="utf-8")
    return directory


@pytest.mark.parametrize("is_list", [False, True])
def test_rows_of_every_layout_become_the_harness_s_contexts_and_answers(is_list: bool, tmp_path: Path) -> None:
    data = written(tmp_path / "data", is_list)
    assert write_zero_shot(tmp_path, data_files(data), "<s>") == {name: len(records) for name, records in LAYOUTS.items()}
    place = tmp_path / "lm_eval"
    reader: dict[str, Any] = {"__name__": "zero_shot_rows"}
    exec((place / "zero_shot_rows.py").read_text(encoding="utf-8"), reader)
    for name in NAMES:
        content: dict[str, Any] = yaml.load((place / f"zero_shot_{name}.yaml").read_text(encoding="utf-8"), Loader)
        assert content["task"] == f"moe_adapt_zero_shot_{name}"
        assert content["custom_dataset"] == "zero_shot_rows.load"
        context, choices, gold = WANTED[name]
        found = list(reader["load"](**content["dataset_kwargs"], version=1.0)["test"])
        assert found == [{"context": "<s>" + context, "choices": choices, "gold": gold}] * len(LAYOUTS[name])


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("piqa", '{"goal": "a", "sol1": "b", "label": 0}', r"piqa.jsonl: row 1: .*has no 'sol2'.*goal, sol1, sol2, label"),
        ("piqa", '{"goal": "a", "sol1": "b", "sol2": "c", "label": 2}', "label 2 is none of 0 to 1"),
        ("lambada", '{"text": "word"}', "is a single word"),
        ("webqs", '{"question": "a", "answers": []}', "it has no answer"),
        ("race", '{"article": "a", "problems": "[import os]"}', "is no row of race"),
        ("boolq", "[1", "boolq.jsonl: is neither JSON lines nor a JSON list"),
        ("boolq", "3", "is no row of boolq"),
        ("boolq", "", "has no rows"),
    ],
)
def test_rows_of_another_layout_are_refused_by_one_line(name: str, line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=words) as refused:
        write_zero_shot(tmp_path, data_files(tmp_path), "")
    assert "\n" not in str(refused.value)


def test_a_directory_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds none of lambada.jsonl"):
        data_files(tmp_path)
    with pytest.raises(DataError, match="no such directory"):
        data_files(tmp_path / "nowhere")
