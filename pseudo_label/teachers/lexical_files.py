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
    # An empty file of tensors cannot be told from a damaged one.
    save_file({"version": np.ones(1, np.int32), **arrays}, directory / LEXICAL_ARRAYS)
    (directory / LEXICAL_FILE).write_text(json.dumps(plain, ensure_ascii=False) + "\n", encoding="utf-8")


def copy(source: Path, directory: Path) -> None:
    """Copy the two files that `save` wrote."""
    for name in (LEXICAL_FILE, LEXICAL_ARRAYS):
        shutil.copyfile(source / name, directory / name)


def load(directory: Path, task: TaskConfig) -> Lexical:
    """Read back what `save` wrote for this task.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    try:
        plain = parsed_json((directory / LEXICAL_FILE).read_text(encoding="utf-8"))
        arrays = load_file(directory / LEXICAL_ARRAYS)
        if task.candidates is None:
            return FittedLexical.from_plain(plain, arrays, task)
        return FittedCloze.from_plain(plain, arrays, task)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{directory}: {LEXICAL_FILE} or {LEXICAL_ARRAYS} is missing or damaged ({error}); run its stage again with force=true"
        ) from error
