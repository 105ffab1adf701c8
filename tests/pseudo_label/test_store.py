"""What was scored and labelled is read back as it was, so that one can decide again without scoring again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adapt.core.errors import CheckpointError
from pseudo_label.decision import Method, fit_decision
from pseudo_label.store import (
    LABELS_FILE,
    SCORES_FILE,
    Provenance,
    PseudoLabel,
    labels_of,
    read_labels,
    read_scores,
    write_labels,
    write_scores,
)
from pseudo_label.tasks import FieldConfig, PromptConfig, TaskConfig, TaskRow
from pseudo_label.zero_shot import PromptKeys

PROVENANCE = Provenance(prompt="reference,second", criterion="sum,pmi", method="ensemble", checkpoint="abc")
PROMPTS = ("second", "reference", "third")


def task_of(*, candidates: str | None = None) -> TaskConfig:
    return TaskConfig(
        name="planted",
        fields={"text": FieldConfig(path="text")},
        label_words={} if candidates else {"a": "甲", "b": "乙", "c": "丙"},
        prompts={name: PromptConfig(template="{text}{label}") for name in PROMPTS},
        label_tree=None if candidates else {"一": ["a", "b"], "二": ["c"]},
        candidates=candidates,
    )


def rows_of(n: int, candidates: list[int] | None = None) -> list[TaskRow]:
    ids: list[object] = [0, "x", None, {"k": [1]}, "编号"]
    return [
        TaskRow(
            id=ids[i % len(ids)],
            texts={"text": f"文本 {i}"},
            label=None,
            candidates=None if candidates is None else tuple(f"词{c}" for c in range(candidates[i])),
            line=2 * i + 1,
        )
        for i in range(n)
    ]


def keys_of(n: int, *, with_groups: bool = False) -> list[PromptKeys]:
    random = np.random.default_rng(0)
    return [
        PromptKeys(
            prompt=prompt,
            criterion=criterion,
            labels_NC=random.normal(size=(n, 3)) * 7 - 20,
            groups_NG=random.normal(size=(n, 2)) if with_groups else None,
        )
        for prompt, criterion in zip(PROMPTS, ("sum", "pmi", "channel"), strict=True)
    ]


def assert_same(left: list[PromptKeys], right: list[PromptKeys]) -> None:
    assert [(k.prompt, k.criterion) for k in left] == [(k.prompt, k.criterion) for k in right]
    for one, other in zip(left, right, strict=True):
        assert np.array_equal(one.labels_NC, other.labels_NC)
        assert (one.groups_NG is None) == (other.groups_NG is None)
        assert one.groups_NG is None or np.array_equal(one.groups_NG, other.groups_NG)


@pytest.mark.parametrize("with_groups", [True, False])
def test_scores_come_back_bit_for_bit_in_the_order_of_prompts(tmp_path: Path, with_groups: bool) -> None:
    keys = keys_of(40, with_groups=with_groups)
    write_scores(tmp_path / SCORES_FILE, task_of(), rows_of(40), keys, "abc")
    assert_same(read_scores(tmp_path / SCORES_FILE), keys)


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("with_groups", [True, False])
def test_a_decision_from_read_scores_is_the_decision_from_the_originals(tmp_path: Path, method: Method, with_groups: bool) -> None:
    task, keys = task_of(), keys_of(40, with_groups=with_groups)
    write_scores(tmp_path / SCORES_FILE, task, rows_of(40), keys, "abc")
    read = read_scores(tmp_path / SCORES_FILE)
    one, other = (fit_decision(method, k, task, coarse_to_fine=with_groups) for k in (keys, read))
    assert one == other
    assert np.array_equal(one.scores(keys, task), other.scores(read, task))


def test_rows_with_lists_of_different_lengths_come_back_with_gaps(tmp_path: Path) -> None:
    labels = np.array([[-1.0, -2.0, -3.0], [-4.0, -np.inf, -np.inf], [-5.0, -6.0, -np.inf]])
    keys = [PromptKeys(prompt="reference", criterion="sum", labels_NC=labels)]
    task, rows = task_of(candidates="candidates"), rows_of(3, [3, 1, 2])
    write_scores(tmp_path / SCORES_FILE, task, rows, keys, "abc")
    assert_same(read_scores(tmp_path / SCORES_FILE), keys)
    assert [labels_of(row, task) for row in rows] == [["0", "1", "2"], ["0"], ["0", "1"]]


def test_the_labels_of_a_row_without_candidates_are_the_tasks() -> None:
    assert labels_of(rows_of(1)[0], task_of()) == ["a", "b", "c"]


def test_no_rows_are_written_and_read(tmp_path: Path) -> None:
    write_scores(tmp_path / SCORES_FILE, task_of(), [], keys_of(0), "abc")
    write_labels(tmp_path / LABELS_FILE, task_of(), [], [], PROVENANCE)
    assert read_scores(tmp_path / SCORES_FILE) == []
    assert read_labels(tmp_path / LABELS_FILE) == []


def labels_for(rows: list[TaskRow]) -> list[PseudoLabel]:
    random = np.random.default_rng(1)
    return [
        PseudoLabel(
            line=row.line,
            label="abc"[i % 3],
            margin=float(random.random()),
            confidence=float(random.random()),
            scores=random.normal(size=3).tolist(),
            is_selected=i % 2 == 0,
            is_held_out=i % 5 == 0,
        )
        for i, row in enumerate(rows)
    ]


def test_labels_come_back_as_they_were(tmp_path: Path) -> None:
    rows = rows_of(20)
    write_labels(tmp_path / LABELS_FILE, task_of(), rows, labels_for(rows), PROVENANCE)
    assert read_labels(tmp_path / LABELS_FILE) == labels_for(rows)


def test_a_label_for_every_row_is_demanded(tmp_path: Path) -> None:
    rows = rows_of(3)
    with pytest.raises(ValueError):
        write_labels(tmp_path / LABELS_FILE, task_of(), rows, labels_for(rows[:2]), PROVENANCE)


@pytest.mark.parametrize("content", [None, b"", b"not parquet at all"])
def test_a_missing_or_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    place = tmp_path / SCORES_FILE
    if content is not None:
        place.write_bytes(content)
    for read in (read_scores, read_labels):
        with pytest.raises(CheckpointError, match=r"scores\.parquet: missing or not a Parquet file"):
            read(place)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    place = tmp_path / SCORES_FILE
    write_scores(place, task_of(), rows_of(40), keys_of(40), "abc")
    place.write_bytes(place.read_bytes()[:-100])
    with pytest.raises(CheckpointError):
        read_scores(place)
