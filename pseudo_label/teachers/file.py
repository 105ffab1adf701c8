"""A file of labels as a teacher: an annotator's, another model's, an API's answers.

Rows of any kind that `adapt/text/rows` reads (JSON lines, csv, Parquet, ...), each with a row's `id` (as in the task's file) or all
its texts (by field, or in the columns of the task's file), and either a `label` or, in JSON and Parquet, `probabilities` by label.
Rows that the file does not name get the same score for every label: the other teachers decide on them.

Ids are those of the unlabeled rows. Files of other splits may count theirs anew, so rows of other splits are found by their texts
only. Where the file has an id and texts, the row of that id must have these texts, but for white space.

Legend: N rows, C labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adapt.core.errors import DataError
from adapt.core.registry import suggest
from adapt.core.scorer import FloatArray
from adapt.text.rows.reading import open_rows, rows_of
from pseudo_label.tasks import TaskConfig, TaskRow, given_id, labels_of, texts_in
from pseudo_label.teachers.contract import padded, row_centred

_LEAST = 1e-4  # probability that a label is never given less than


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """What a file says, by the key of a row: its id, or its texts; `by_texts` also holds rows with both that agree on a text.

    `texts` are those of rows with both, by the key of the id, and `places` where they are in the file.
    """

    task: TaskConfig
    answers: Mapping[str, Any]
    by_texts: Mapping[str, Any]
    texts: Mapping[str, Mapping[str, str]]
    places: Mapping[str, str]
    spread: float = 1.0

    def scores(self, rows: Sequence[TaskRow]) -> FloatArray:
        """See `FittedTeacher.scores`; the spread is that over the rows which the file names."""
        raw = [self._row(row) for row in rows]
        return row_centred(padded(raw)) / self.spread

    def coverage(self, rows: Sequence[TaskRow]) -> float:
        """Return the share of rows that the file names."""
        return float(np.mean([self._found(row) is not None for row in rows])) if rows else 0.0

    def fitted(self, rows: Sequence[TaskRow]) -> LabelFile:
        """Return the same teacher with its scores scaled by the unlabeled rows that it names.

        Raises:
            DataError: the row of an id has other texts than the file says.
        """
        for row in rows:
            self._refuse_other_texts(row)
        named = [row for row in rows if self._found(row) is not None]
        if not named:
            return self
        values = row_centred(padded([self._row(row) for row in named]))
        return replace(self, spread=float(values[np.isfinite(values)].std()) or 1.0)

    def of_other_splits(self) -> LabelFile:
        """Return the teacher that finds rows by their texts only."""
        return replace(self, answers=self.by_texts, texts={})

    def _row(self, row: TaskRow) -> FloatArray:
        names, answer = labels_of(row, self.task), self._found(row)
        if answer is None:
            return np.zeros(len(names))
        given = answer if isinstance(answer, dict) else {answer: 1.0}
        return np.log(np.asarray([max(float(given.get(name, 0.0)), _LEAST) for name in names]))

    def _found(self, row: TaskRow) -> Any:
        return self.answers.get(_id_key(row.id), self.answers.get(_text_key(row.texts)))

    def _refuse_other_texts(self, row: TaskRow) -> None:
        key = _id_key(row.id)
        said = self.texts.get(key)
        if said is not None and any(_unspaced(said[name]) != _unspaced(text) for name, text in row.texts.items()):
            raise DataError(
                f"{self.places[key]}: has the id {row.id} of the unlabeled row in line {row.line}, and another text; give the "
                "rows' own ids, or texts without ids"
            )


def read_label_file(path: Path, task: TaskConfig) -> LabelFile:
    """Read a file of labels.

    Raises:
        DataError: it is missing, a line is malformed, names no row, a row twice, or a label that the task does not have.
    """
    answers: dict[str, Any] = {}
    by_texts: dict[str, Any] = {}
    ambiguous: set[str] = set()
    texts: dict[str, Mapping[str, str]] = {}
    places: dict[str, str] = {}
    for row in rows_of(open_rows(path, encoding=task.encoding, quotes=task.quotes)):
        where = f"{path}, {row.place}"
        row_id, own = given_id(row.record, task), _texts_of(row.record, task, where)
        if row_id is None and own is None:
            raise DataError(f"{where}: names no row; give it an id ({', '.join(task.id_paths)}) or all of {', '.join(task.fields)}")
        key = _text_key(own or {}) if row_id is None else _id_key(row_id)
        if key in answers:
            raise DataError(f"{where}: its row was named before; keep one of the two")
        answers[key] = _answer_of(row.record, task, where)
        if own is None:
            continue
        if by_texts.setdefault(_text_key(own), answers[key]) != answers[key]:
            ambiguous.add(_text_key(own))
        if row_id is not None:
            texts[key], places[key] = own, where
    clear = {key: answer for key, answer in by_texts.items() if key not in ambiguous}
    return LabelFile(task=task, answers=answers, by_texts=clear, texts=texts, places=places)


def _texts_of(record: Mapping[str, Any], task: TaskConfig, where: str) -> Mapping[str, str] | None:
    """Return a row's texts by field: in the columns of the task's file, else under the fields' own names; None without them."""
    found = texts_in(record, task, where)
    if found is None and all(isinstance(record.get(name), str) for name in task.fields):
        return {name: record[name] for name in task.fields}
    return found


def _answer_of(record: Mapping[str, Any], task: TaskConfig, where: str) -> Any:
    given = record.get("probabilities") or record.get("label")
    if isinstance(given, dict):
        if not all(isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p <= 1 for p in given.values()):
            raise DataError(f"{where}: probabilities that are no numbers between 0 and 1")
        names = list(given)
    elif given is None or isinstance(given, list):
        raise DataError(f"{where}: has neither a label nor probabilities by label")
    else:
        given = str(given).lower() if isinstance(given, bool) else str(given)
        names = [given]
    unknown = [name for name in names if task.candidates is None and name not in task.label_words]
    if unknown:
        raise DataError(f"{where}: task '{task.name}' has no label '{unknown[0]}'{suggest(unknown[0], task.labels)}")
    return given


def _unspaced(text: str) -> str:
    return "".join(text.split())


def _id_key(row_id: Any) -> str:
    return f"id {row_id}"  # a table's ids are text, a task's may be numbers


def _text_key(texts: Mapping[str, str]) -> str:
    return "texts " + json.dumps(texts, ensure_ascii=False, sort_keys=True)
