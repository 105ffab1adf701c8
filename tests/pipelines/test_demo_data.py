"""The demo's rows are what their README says: ids in order, even labels, and no sentence twice."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from pipelines.config.locations import demo_dir
from pseudo_label.leakage import plain_text

SPLITS = ("unlabeled", "dev", "few", "test")
COUNTS = {"demo_reviews": (2480, 60, 1584, 30), "demo_topics": (1080, 60, 668, 30)}
TASKS = pytest.mark.parametrize("task", list(COUNTS))


def rows_of(task: str, split: str) -> list[dict[str, Any]]:
    lines = (demo_dir() / "clue" / task / f"{split}.json").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@TASKS
def test_ids_count_from_0_and_files_have_as_many_rows_as_their_readme_says(task: str) -> None:
    for split, count in zip(SPLITS, COUNTS[task], strict=True):
        assert [row["id"] for row in rows_of(task, split)] == list(range(count)), split
    text = (demo_dir() / "README.md").read_text(encoding="utf-8")
    for place in (0, 2):
        assert f"{COUNTS['demo_reviews'][place]:,} reviews, {COUNTS['demo_topics'][place]:,} titles" in text


@TASKS
def test_no_sentence_occurs_twice_whatever_its_punctuation(task: str) -> None:
    texts = Counter(plain_text(row["sentence"]) for split in SPLITS for row in rows_of(task, split))
    assert not [text for text, count in texts.items() if count > 1 or not text]


@TASKS
def test_labels_are_even_and_about_three_rows_in_ten_are_hard(task: str) -> None:
    for split in ("dev", "few"):
        assert len(set(Counter(row["label"] for row in rows_of(task, split)).values())) == 1, split
    kinds = Counter(row["kind"] for row in rows_of(task, "few"))
    assert set(kinds) == {"hard", "plain"}
    assert 0.25 < kinds["hard"] / kinds.total() < 0.35
