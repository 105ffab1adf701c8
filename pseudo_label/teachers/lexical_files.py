"""The labeller without a model as files: what was fitted goes into JSON, its arrays into safetensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from adapt.core.errors import CheckpointError
from adapt.core.json_files import parsed_json
from adapt.core.scorer import FloatArray
from pseudo_label.tasks import TaskConfig, TaskRow
from pseudo_label.teachers.cloze import FittedCloze, fit_cloze
from pseudo_label.teachers.lexical import FittedLexical, fit_lexical, with_lesson

LEXICAL_FILE = "lexical.json"
LEXICAL_ARRAYS = "lexical.safetensors"
Lexical = FittedLexical | FittedCloze


def fit(task: TaskConfig, rows: Sequence[TaskRow], seed: int, guide_NC: FloatArray | None = None) -> Lexical:
    """Fit the labeller that suits a task: by label words and rules, or by the rows' own candidates. There is at least one row.

    `guide_NC` are scores of the rows to learn from in place of the labeller's own seeds.
    """
    fits = fit_lexical if task.candidates is None else fit_cloze
    return fits(task, rows, seed, guide_NC)


def teach(known: Lexical, rows: Sequence[TaskRow], seed: int, guide_NC: FloatArray, *, keeps: bool) -> Lexical:
    """Return a labeller, fitted on these rows, that has learnt from scores of them.

    One by label words that `keeps` what it knew learns once and adds both up; else it learns anew from the scores, with all its
    rounds. One by candidates starts from the scores in any case.
    """
    if keeps and isinstance(known, FittedLexical):
        return with_lesson(known, fit_lexical(known.task, rows, seed, guide_NC, rounds=1), rows)
    return fit(known.task, rows, seed, guide_NC)


def save(directory: Path, fitted: Lexical) -> None:
    """Write `lexical.json` and `lexical.safetensors`."""
    plain, arrays = fitted.to_plain()
    plain = {"labels": fitted.task.labels, "fields": list(fitted.task.fields), **plain}
    # An empty file of tensors cannot be told from a damaged one.
    save_file({"version": np.ones(1, np.int32), **arrays}, directory / LEXICAL_ARRAYS)
    (directory / LEXICAL_FILE).write_text(json.dumps(plain, ensure_ascii=False) + "\n", encoding="utf-8")


def copy(source: Path, directory: Path) -> None:
    """Copy the two files that `save` wrote."""
    for name in (LEXICAL_FILE, LEXICAL_ARRAYS):
        shutil.copyfile(source / name, directory / name)


def load(directory: Path, task: TaskConfig, *, may_be_unnamed: bool = False) -> Lexical:
    """Read back what `save` wrote for a task with these labels, in whatever order, and these fields.

    Files of earlier versions do not name the labels that their arrays follow. They are read only where they `may_be_unnamed`: in an
    export, which has the task that they were made for beside them.

    Raises:
        CheckpointError: a file is missing or damaged, or was made for other labels or fields.
    """
    try:
        plain = parsed_json((directory / LEXICAL_FILE).read_text(encoding="utf-8"))
        arrays = load_file(directory / LEXICAL_ARRAYS)
        if may_be_unnamed:
            plain = {"labels": task.labels, "fields": list(task.fields), **plain}
        labels, names = plain["labels"], plain["fields"]
        if sorted(labels) != sorted(task.labels) or names != list(task.fields):
            raise CheckpointError(
                f"{directory}: {LEXICAL_FILE} was made for another version of task '{task.name}' (labels {', '.join(labels)}; "
                f"fields {', '.join(names)}); run its stage again"
            )
        if task.candidates is None:
            return FittedLexical.from_plain(plain, arrays, task)
        return FittedCloze.from_plain(plain, arrays, task)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{directory}: {LEXICAL_FILE} or {LEXICAL_ARRAYS} is missing or damaged ({error}); run its stage again with force=true"
        ) from error
