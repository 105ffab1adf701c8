"""The pseudo-label store: Parquet files with provenance.

`scores.parquet`: one row per (example, prompt) with the key of every label, from which one can decide and select again without
scoring again. `labels.parquet`: one row per example with its label, margin, confidence, scores and whether it was selected.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from adapt.core.errors import CheckpointError
from adapt.core.scorer import FloatArray
from pseudo_label.tasks import TaskConfig, TaskRow, labels_of, row_digest
from pseudo_label.zero_shot import PromptKeys

SCORES_FILE = "scores.parquet"
LABELS_FILE = "labels.parquet"

_WHO_AND_WHENCE = [
    ("task", pyarrow.string()),
    ("line", pyarrow.int64()),
    ("id", pyarrow.string()),
    ("text_digest", pyarrow.string()),
    ("prompt", pyarrow.string()),
    ("criterion", pyarrow.string()),
    ("checkpoint", pyarrow.string()),
]
_SCORES_SCHEMA = pyarrow.schema(
    [
        *_WHO_AND_WHENCE,
        ("labels", pyarrow.list_(pyarrow.string())),
        ("keys", pyarrow.list_(pyarrow.float64())),
        ("group_keys", pyarrow.list_(pyarrow.float64())),
    ]
)
_LABELS_SCHEMA = pyarrow.schema(
    [
        *_WHO_AND_WHENCE,
        ("method", pyarrow.string()),
        ("label", pyarrow.string()),
        ("margin", pyarrow.float64()),
        ("confidence", pyarrow.float64()),
        ("scores", pyarrow.list_(pyarrow.float64())),
        ("is_selected", pyarrow.bool_()),
        ("is_held_out", pyarrow.bool_()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class PseudoLabel:
    """One labelled example; `line` is its line in the split it came from."""

    line: int
    label: str
    margin: float
    confidence: float
    scores: list[float]
    is_selected: bool
    is_held_out: bool


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where labels come from: prompts and criteria that voted, how, and the digest of the checkpoint."""

    prompt: str
    criterion: str
    method: str
    checkpoint: str


def write_scores(path: Path, task: TaskConfig, rows: Sequence[TaskRow], keys: Sequence[PromptKeys], checkpoint: str) -> None:
    """Write the keys of every row under every prompt."""
    records = [
        {
            **_identity(task, row),
            "prompt": key.prompt,
            "criterion": key.criterion,
            "checkpoint": checkpoint,
            "labels": labels_of(row, task),
            "keys": key.labels_NC[index, : len(labels_of(row, task))].tolist(),
            "group_keys": [] if key.groups_NG is None else key.groups_NG[index].tolist(),
        }
        for key in keys
        for index, row in enumerate(rows)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records, schema=_SCORES_SCHEMA), path)


def read_scores(path: Path) -> list[PromptKeys]:
    """Read back what `write_scores` wrote, one `PromptKeys` per prompt in their order."""
    table = _read(path).to_pylist()
    found: dict[str, list[dict[str, Any]]] = {}
    for record in table:
        found.setdefault(record["prompt"], []).append(record)
    return [
        PromptKeys(
            prompt=prompt,
            criterion=records[0]["criterion"],
            labels_NC=_ragged([r["keys"] for r in records]),
            groups_NG=np.asarray([r["group_keys"] for r in records]) if records[0]["group_keys"] else None,
        )
        for prompt, records in found.items()
    ]


def write_labels(
    path: Path, task: TaskConfig, rows: Sequence[TaskRow], labels: Sequence[PseudoLabel], provenance: Provenance
) -> None:
    """Write one line per example."""
    records = [
        {
            **_identity(task, row),
            "prompt": provenance.prompt,
            "criterion": provenance.criterion,
            "method": provenance.method,
            "checkpoint": provenance.checkpoint,
            "label": label.label,
            "margin": label.margin,
            "confidence": label.confidence,
            "scores": label.scores,
            "is_selected": label.is_selected,
            "is_held_out": label.is_held_out,
        }
        for row, label in zip(rows, labels, strict=True)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records, schema=_LABELS_SCHEMA), path)


def read_labels(path: Path) -> list[PseudoLabel]:
    """Read the labels back."""
    names = ("line", "label", "margin", "confidence", "scores", "is_selected", "is_held_out")
    return [PseudoLabel(**{name: record[name] for name in names}) for record in _read(path).to_pylist()]


def _identity(task: TaskConfig, row: TaskRow) -> dict[str, Any]:
    return {
        "task": task.name,
        "line": row.line,
        "id": json.dumps(row.id, ensure_ascii=False),
        "text_digest": row_digest(row, task),
    }


def _read(path: Path) -> pyarrow.Table:
    try:
        return pyarrow.parquet.read_table(path)
    except (FileNotFoundError, pyarrow.ArrowInvalid) as error:
        raise CheckpointError(f"{path}: missing or not a Parquet file") from error


def _ragged(lists: list[list[float]]) -> FloatArray:
    width = max((len(values) for values in lists), default=0)
    table = np.full((len(lists), width), -np.inf)
    for index, values in enumerate(lists):
        table[index, : len(values)] = values
    return table
