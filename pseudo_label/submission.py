"""Predictions in the ZeroCLUE submission format: one JSON object a line, ids as in the input, checked before it is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from adapt.core.artifacts import write_atomically
from adapt.core.errors import DataError
from pseudo_label.tasks import TaskConfig, TaskRow, labels_of


def write_submission(
    path: Path, task: TaskConfig, rows: Sequence[TaskRow], predictions: Sequence[str], *, has_unique_ids: bool = True
) -> None:
    """Write `{"id": ..., "label": ...}` lines, one for every row in the rows' order.

    Labels are strings; a task whose rows bring their own candidates answers with the place of its choice, an integer.
    `has_unique_ids=False` is for splits that were merged from several files and are not to be submitted.

    Raises:
        DataError: the number of predictions is wrong, an id occurs twice, or a prediction is none of the labels.
    """
    if len(rows) != len(predictions):
        raise DataError(f"{path.name}: {len(predictions)} predictions for {len(rows)} rows")
    ids = [json.dumps(row.id, ensure_ascii=False) for row in rows]
    if has_unique_ids and len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise DataError(f"{path.name}: id {twice} occurs more than once in the rows to predict")
    lines = []
    for row, prediction in zip(rows, predictions, strict=True):
        if prediction not in labels_of(row, task):
            raise DataError(f"{path.name}: '{prediction}' is not a label of task '{task.name}'")
        answer: str | int = prediction if row.candidates is None else int(prediction)
        lines.append(json.dumps({"id": row.id, task.submission_key: answer}, ensure_ascii=False))
    write_atomically(path, "".join(line + "\n" for line in lines))


def submission_name(task: TaskConfig) -> str:
    """Return the file name that the task's board expects."""
    return task.submission_file or f"{task.name}_predict.json"
