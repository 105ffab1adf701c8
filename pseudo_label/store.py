"""The pseudo-label store: Parquet files with provenance.

`scores.parquet`: one row per (example, pass over it) with every candidate's sums and target counts by kind of token, from which one
can rank by another criterion, decide and select again without scoring again; null contexts stand beside the rows they belong
to. It is written in parts, a chunk of rows each, so that a killed run goes on behind the last part.
`labels.parquet`: one row per example with its label, margin, probabilities and whether it was selected. Its metadata name the
task's labels, whose order scores and probabilities follow.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from adapt.core.errors import CheckpointError, DataError
from adapt.core.spans import LabelForm, Span
from adapt.core.typed import digest_of
from pseudo_label.candidates import Candidates
from pseudo_label.criteria.contract import CandidateScores, Null
from pseudo_label.tasks import TaskConfig, TaskRow, labels_of
from pseudo_label.zero_shot import PassScores, ScoringPass

SCORES_FILE = "scores.parquet"
LABELS_FILE = "labels.parquet"
_DIGEST_CHARACTERS = 32
_LABELS_KEY = b"labels"  # of the metadata of `labels.parquet`

_IDENTITY = [
    ("task", pyarrow.string()),
    ("line", pyarrow.int64()),
    ("id", pyarrow.string()),
    ("text_digest", pyarrow.string()),
    ("prompt", pyarrow.string()),
    ("checkpoint", pyarrow.string()),
]
_SCORES_SCHEMA = pyarrow.schema(
    [
        *_IDENTITY,
        ("form", pyarrow.string()),
        ("kinds", pyarrow.list_(pyarrow.int8())),
        ("null", pyarrow.string()),
        ("with_groups", pyarrow.bool_()),
        ("labels", pyarrow.list_(pyarrow.string())),
        ("characters", pyarrow.list_(pyarrow.int32())),
        ("sums", pyarrow.list_(pyarrow.float64())),
        ("tokens", pyarrow.list_(pyarrow.int32())),
        ("null_sums", pyarrow.list_(pyarrow.float64())),
        ("null_tokens", pyarrow.list_(pyarrow.int32())),
    ]
)
_LABELS_SCHEMA = pyarrow.schema(
    [
        *_IDENTITY,
        ("criterion", pyarrow.string()),
        ("method", pyarrow.string()),
        ("label", pyarrow.string()),
        ("margin", pyarrow.float64()),
        ("confidence", pyarrow.float64()),
        ("agreement", pyarrow.float64()),
        ("scores", pyarrow.list_(pyarrow.float64())),
        ("probabilities", pyarrow.list_(pyarrow.float64())),
        ("is_selected", pyarrow.bool_()),
        ("is_held_out", pyarrow.bool_()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class PseudoLabel:
    """One labelled example: the digest of its texts, by which its row is found again, and its line when it was labelled.

    `agreement` is the share of prompts and other teachers that give the same label by themselves; `probabilities` are the
    soft label. `labels` are the task's labels in the order of scores and probabilities; where rows bring their own candidates there
    are none, and these are in the order of the candidates.
    """

    text_digest: str
    line: int
    label: str
    margin: float
    confidence: float
    agreement: float
    labels: list[str]
    scores: list[float]
    probabilities: list[float]
    is_selected: bool
    is_held_out: bool


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where labels come from: prompts and criteria that voted, how, and the digest of the checkpoint."""

    prompt: str
    criterion: str
    method: str
    checkpoint: str


def write_scores(path: Path, task: TaskConfig, rows: Sequence[TaskRow], passes: Iterable[PassScores], checkpoint: str) -> None:
    """Write what passes gave for rows."""
    records = [
        _record(task, row, scored.what, scores, null, checkpoint)
        for scored in passes
        for row, scores, null in zip(rows, scored.rows, scored.nulls, strict=True)
    ]
    _write(path, records, _SCORES_SCHEMA)


def join_scores(path: Path, parts: Sequence[Path]) -> None:
    """Write the parts' rows into one file, in the order of the parts, one part in memory at a time."""
    with pyarrow.parquet.ParquetWriter(path, _SCORES_SCHEMA, write_page_checksum=True) as writer:
        for part in parts:
            writer.write_table(_read(part, _SCORES_SCHEMA))


def read_scores(path: Path, task: TaskConfig, rows: Sequence[TaskRow]) -> list[PassScores]:
    """Read back what passes gave for these rows, in their order.

    Raises:
        CheckpointError: it is no such file, or it holds other rows.
    """
    found: dict[ScoringPass, list[dict[str, Any]]] = {}
    for record in _read(path, _SCORES_SCHEMA).to_pylist():
        found.setdefault(_pass_of(record), []).append(record)
    result = []
    for what, records in found.items():
        wanted = [(row.line, reading_digest(row), _names(row, task, what)) for row in rows]
        if [(r["line"], r["text_digest"], r["labels"]) for r in records] != wanted:
            raise CheckpointError(f"{path}: holds scores of other rows or labels than those of these {len(rows)}")
        scores = [_candidates(r, "sums", "tokens") for r in records]
        nulls = [_candidates(r, "null_sums", "null_tokens") if what.null is not Null.NONE else None for r in records]
        result.append(PassScores(what=what, rows=scores, nulls=nulls))
    return result


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
            "agreement": label.agreement,
            "scores": label.scores,
            "probabilities": label.probabilities,
            "is_selected": label.is_selected,
            "is_held_out": label.is_held_out,
        }
        for row, label in zip(rows, labels, strict=True)
    ]
    order = json.dumps(task.labels, ensure_ascii=False).encode()
    _write(path, records, _LABELS_SCHEMA.with_metadata({_LABELS_KEY: order}))


def read_labels(path: Path) -> list[PseudoLabel]:
    """Read the labels back. Raises CheckpointError where the file is damaged, or another version wrote it."""
    names = [field.name for field in dataclasses.fields(PseudoLabel) if field.name != "labels"]
    table = _read(path, _LABELS_SCHEMA)
    order = (table.schema.metadata or {}).get(_LABELS_KEY)
    if order is None:
        raise CheckpointError(f"{path}: does not name its labels, as another version wrote it; run its stage again")
    labels = json.loads(order)
    return [PseudoLabel(labels=labels, **{name: record[name] for name in names}) for record in table.to_pylist()]


def reading_digest(row: TaskRow) -> str:
    """Return a digest of all that a prompt reads of a row: its texts to the letter, and its own candidates.

    Unlike `row_digest`, which finds the same example in another split, it tells rows apart that differ in white space.
    """
    return digest_of([dict(row.texts), row.candidates])[:_DIGEST_CHARACTERS]


def rows_of_labels(labels: Sequence[PseudoLabel], rows: Iterable[TaskRow], where: str) -> list[TaskRow]:
    """Return the row of each label, found by its texts; the rows of a text that occurs again are taken in turn.

    Raises:
        DataError: a label's row is not among them; the message names the file `where`.
    """
    found: dict[str, list[TaskRow]] = {}
    for row in rows:
        found.setdefault(reading_digest(row), []).append(row)
    matched = []
    for label in labels:
        same = found.get(label.text_digest)
        if not same:
            raise DataError(
                f"{where}: lacks the row that was line {label.line} when it was labelled; put it back, or label the file anew with "
                "`python -m pipelines.pseudo_label`"
            )
        matched.append(same.pop(0))
    return matched


def _record(
    task: TaskConfig, row: TaskRow, what: ScoringPass, scores: CandidateScores, null: CandidateScores | None, checkpoint: str
) -> dict[str, Any]:
    return {
        **_identity(task, row),
        "prompt": what.prompt,
        "checkpoint": checkpoint,
        "form": what.form.value,
        "kinds": [int(kind) for kind in what.kinds],
        "null": what.null.value,
        "with_groups": what.with_groups,
        "labels": _names(row, task, what),
        "characters": scores.characters_C,
        "sums": scores.sums_C3.ravel(),
        "tokens": scores.tokens_C3.ravel(),
        "null_sums": [] if null is None else null.sums_C3.ravel(),
        "null_tokens": [] if null is None else null.tokens_C3.ravel(),
    }


def _names(row: TaskRow, task: TaskConfig, what: ScoringPass) -> list[str]:
    candidates = Candidates.of(task, what.prompt, with_groups=what.with_groups)
    return candidates.ordered(labels_of(row, task), candidates.groups, candidates.synonyms)


def _pass_of(record: dict[str, Any]) -> ScoringPass:
    return ScoringPass(
        prompt=record["prompt"],
        form=LabelForm(record["form"]),
        kinds=tuple(Span(kind) for kind in record["kinds"]),
        null=Null(record["null"]),
        with_groups=record["with_groups"],
    )


def _candidates(record: dict[str, Any], sums: str, tokens: str) -> CandidateScores:
    return CandidateScores(
        sums_C3=np.asarray(record[sums], float).reshape(-1, len(Span)),
        tokens_C3=np.asarray(record[tokens], np.int64).reshape(-1, len(Span)),
        characters_C=np.asarray(record["characters"], np.int64),
    )


def _identity(task: TaskConfig, row: TaskRow) -> dict[str, Any]:
    return {
        "task": task.name,
        "line": row.line,
        "id": json.dumps(row.id, ensure_ascii=False),
        "text_digest": reading_digest(row),
    }


def _read(path: Path, schema: pyarrow.Schema) -> pyarrow.Table:
    try:
        table = pyarrow.parquet.read_table(path, page_checksum_verification=True)
    except (OSError, pyarrow.ArrowException) as error:
        raise CheckpointError(f"{path}: missing, damaged or not a Parquet file") from error
    if table.schema.names != schema.names:
        raise CheckpointError(f"{path}: its columns are not those of {path.name} as this program writes it; run its stage again")
    return table


def _write(path: Path, records: list[dict[str, Any]], schema: pyarrow.Schema) -> None:
    table = pyarrow.Table.from_pylist(records, schema=schema)
    pyarrow.parquet.write_table(table, path, write_page_checksum=True)
