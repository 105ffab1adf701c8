"""The answers that evaluation writes down are those that its accuracy table counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from adapt.core.artifacts import open_artifact
from pipelines.stages.evaluate import ANSWERS_FILE
from pseudo_label.accuracy import accuracy_of
from tests.support.tiny_models import DEMO

TASKS = pytest.mark.parametrize("task", ["demo_reviews", "demo_topics"])
WHO = ("task", "split", "model", "method")


def read(smallest_run: Path, task: str, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((smallest_run / "evaluate" / task / name).read_text(encoding="utf-8"))
    return found


@TASKS
def test_accuracies_can_be_counted_again_from_the_answers(smallest_run: Path, task: str) -> None:
    answers, table = read(smallest_run, task, ANSWERS_FILE), read(smallest_run, task, "metrics.json")
    assert [[line[key] for key in WHO] for line in answers] == [[line[key] for key in WHO] for line in table]
    assert {line["model"] for line in answers} == {"lexical", "base", "adapted"}
    for line, row in zip(answers, table, strict=True):
        given, gold = line["answers"], line["gold"]
        counted = accuracy_of(given, gold)
        assert (counted.n, counted.accuracy, list(counted.ci95)) == (row["n"], row["accuracy"], row["ci95"])
        assert row["accuracy"] == sum(a == b for a, b in zip(given, gold, strict=True)) / len(gold)
        shares, right = Counter(given), Counter(gold)
        assert row["largest_share"] == max(shares.values()) / len(given)
        drift = sum(abs(shares[label] - right[label]) for label in shares | right) / 2 / len(given)
        assert row["share_drift"] == pytest.approx(drift)
        assert 0 <= row["entropy"] <= 1 + 1e-9


@TASKS
def test_answers_stand_in_the_order_of_the_rows_beside_the_right_ones(smallest_run: Path, task: str) -> None:
    rows = [json.loads(line) for line in (DEMO / "clue" / task / "dev.json").read_text(encoding="utf-8").splitlines()]
    found = [line for line in read(smallest_run, task, ANSWERS_FILE) if line["split"] == "dev"]
    assert found
    labels = {row["label"] for row in rows}
    for line in found:
        assert line["gold"] == [row["label"] for row in rows]
        assert len(line["answers"]) == len(rows)
        assert set(line["answers"]) <= labels


@TASKS
def test_splits_without_labels_have_no_answers_and_the_manifest_holds_none(smallest_run: Path, task: str) -> None:
    assert {line["split"] for line in read(smallest_run, task, ANSWERS_FILE)} == {"dev"}
    assert "answers" not in open_artifact((smallest_run / "evaluate" / task).resolve()).metrics
