"""A file of labels as a teacher: an annotator's, another model's, an API's answers.

Rows of any kind that `adapt/text/rows` reads (JSON lines, csv, Parquet, ...), each with a row's `id` (as in the task's file) or all
its texts (by field, or in the columns of the task's file), and either a `label` (as `pseudo_label/gold.py` has it) or, in JSON and
Parquet, `probabilities` by label. Rows that the file does not name get the same score for every label: the other teachers decide on
them; so do rows without a label.

Ids are those of the unlabeled rows. Files of other splits may count theirs anew, so rows of other splits are found by their texts
only. Where the file has an id and texts, the row of that id must have these texts, but for white space; where no row has the id,
the texts name the row. Labels of rows with candidates of their own are places in a row's list: they are looked at when a row is
found.

Legend: N rows, C labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adapt.core.errors import DataError
from adapt.core.scorer import FloatArray
from adapt.text.rows.reading import open_rows, rows_of
from pseudo_label.gold import NoLabel, label_of
from pseudo_label.tasks import TaskConfig, TaskRow, given_id, labels_of, texts_in
from pseudo_label.teachers.contract import padded, row_centred

_LEAST = 1e-4  # probability that a label is never given less than


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a row of the file says: a label or probabilities by label (`given`; None is no label), of which row, and where."""

    given: Any
    row_id: Any
    texts: Mapping[str, str] | None
    where: str


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """What a file says, by the key of a row: its id, or its texts; `by_texts` also holds rows with both that agree on a text.

    `findings` are what there is to tell of how it fits the unlabeled rows.
    """

    path: Path
    task: TaskConfig
    answers: Mapping[str, Said]
    by_texts: Mapping[str, Said]
    spread: float = 1.0
    findings: tuple[str, ...] = ()

    def scores(self, rows: Sequence[TaskRow]) -> FloatArray:
        """See `FittedTeacher.scores`; the spread is that over the rows which the file names."""
        raw = [self._row(row) for row in rows]
        return row_centred(padded(raw)) / self.spread

    def coverage(self, rows: Sequence[TaskRow]) -> float:
        """Return the share of rows that the file names with a label."""
        return float(np.mean([self._found(row) is not None for row in rows])) if rows else 0.0

    def fitted(self, rows: Sequence[TaskRow], every: Iterable[TaskRow] | None = None) -> LabelFile:
        """Return the same teacher joined with the unlabeled rows (`every`), its scores scaled by those that are labelled (`rows`).

        Raises:
            DataError: it names no row, its ids are off by one, the row of an id has other texts than the file says, or a label is
                none of the row's candidates.
        """
        joined = self._joined(rows if every is None else every)
        named = [row for row in rows if joined._found(row) is not None]
        if not named:
            return joined
        values = row_centred(padded([joined._row(row) for row in named]))
        return replace(joined, spread=float(values[np.isfinite(values)].std()) or 1.0)

    def of_other_splits(self) -> LabelFile:
        """Return the teacher that finds rows by their texts only."""
        return replace(self, answers=self.by_texts)

    def _joined(self, rows: Iterable[TaskRow]) -> LabelFile:
        found: set[str] = set()  # keys that a row has, of those that the file has: there may be many rows
        n_rows, first, last, has_own_ids = 0, 0, 0, False
        for row in rows:
            place = row.line - 1
            first, last = (min(first, place) if n_rows else place), max(last, place)
            n_rows += 1
            has_own_ids = has_own_ids or row.id != place
            found |= {key for key in _keys(row) if key in self.answers or key in self.by_texts}
            self._refuse_other_texts(row)
            self._found(row)
        if not n_rows:
            return self
        if not has_own_ids:
            self._refuse_shifted(first, last)
        lost = [said for key, said in self.answers.items() if key not in found]
        lost_ids = [said for said in lost if said.row_id is not None]
        keys = [_text_key(said.texts) if said.texts is not None else None for said in lost_ids]
        by_texts = {key: self.by_texts[key] for key in keys if key is not None and key in found and key in self.by_texts}
        answers = {**by_texts, **self.answers}
        if not any(said.given is not None and key in found for key, said in answers.items()):
            called = f"the id {lost_ids[0].row_id}, say" if lost_ids else "other texts"
            raise DataError(
                f"{self.path}: gives no unlabeled row a label (it has {called}); give the rows' ids, or all their texts"
            )
        rescued = [said for said, key in zip(lost_ids, keys, strict=True) if key in by_texts]
        nowhere = [said for said, key in zip(lost_ids, keys, strict=True) if key not in by_texts]
        strange = [said for said in lost if said.row_id is None]
        told = list(self.findings)
        if rescued:
            told.append(
                f"{len(rescued):,} of its ids are of no unlabeled row (such as {rescued[0].row_id}); their texts name the rows"
            )
        if nowhere:
            example = nowhere[0].row_id
            told.append(f"{len(nowhere):,} of its ids name no unlabeled row (such as {example}), and count for nothing")
        if strange:
            told.append(f"{len(strange):,} of its texts are of no unlabeled row (such as {strange[0].where})")
        return replace(self, answers=answers, findings=tuple(told))

    def _refuse_shifted(self, first: int, last: int) -> None:
        """Raise DataError where the file has ids only, and they are those of rows called by their lines but for 1."""
        if any(said.row_id is None or said.texts for said in self.answers.values()):
            return
        has = {number: _id_key(number) in self.answers for number in (first - 1, first, last, last + 1)}
        over, under = has[last + 1] and not has[first], has[first - 1] and not has[last]
        if over or under:
            there, lacks, mend = (last + 1, first, "take 1 from its ids") if over else (first - 1, last, "add 1 to its ids")
            raise DataError(
                f"{self.path}: has the id {there} and not {lacks}, and the unlabeled rows, which bring no ids, are called {first} "
                f"to {last} by their lines (ids count from 0): each label would go to the wrong row; {mend}, or give texts"
            )

    def _row(self, row: TaskRow) -> FloatArray:
        names, given = labels_of(row, self.task), self._found(row)
        if given is None:
            return np.zeros(len(names))
        return np.log(np.asarray([max(float(given.get(name, 0.0)), _LEAST) for name in names]))

    def _found(self, row: TaskRow) -> Mapping[str, float] | None:
        """Return a row's probabilities by label, or None. Raises DataError where the file gives it a label that it cannot have."""
        for key in _keys(row):
            said = self.answers.get(key)
            given = None if said is None else _by_label(said, self.task, row.candidates)
            if given is not None:
                return given
        return None

    def _refuse_other_texts(self, row: TaskRow) -> None:
        said = self.answers.get(_id_key(row.id))
        if said is None or said.texts is None:
            return
        if any(_unspaced(said.texts[name]) != _unspaced(text) for name, text in row.texts.items()):
            raise DataError(
                f"{said.where}: has the id {row.id} of the unlabeled row in line {row.line}, and another text; give the "
                "rows' own ids, or texts without ids"
            )


def read_label_file(path: Path, task: TaskConfig) -> LabelFile:
    """Read a file of labels.

    Raises:
        DataError: it is missing, a line is malformed, names no row, a row twice, or a label that the task does not have; or no line
            has a label.
    """
    answers: dict[str, Said] = {}
    by_texts: dict[str, Said] = {}
    ambiguous: set[str] = set()
    unlabelled = 0
    for row in rows_of(open_rows(path, encoding=task.encoding, quotes=task.quotes)):
        where = f"{path}, {row.place}"
        row_id, own = given_id(row.record, task), _texts_of(row.record, task, where)
        if row_id is None and own is None:
            raise DataError(f"{where}: names no row; give it an id ({', '.join(task.id_paths)}) or all of {', '.join(task.fields)}")
        key = _text_key(own or {}) if row_id is None else _id_key(row_id)
        if key in answers:
            raise DataError(f"{where}: its row was named before; keep one of the two")
        said = Said(given=_given(row.record, task, where), row_id=row_id, texts=own, where=where)
        answers[key] = said
        unlabelled += said.given is None
        if own is not None and said.given is not None and by_texts.setdefault(_text_key(own), said).given != said.given:
            ambiguous.add(_text_key(own))
    if unlabelled == len(answers):
        raise DataError(f"{path}: no row of it has a label" if answers else f"{path}: has no rows")
    clear = {key: said for key, said in by_texts.items() if key not in ambiguous}
    findings = (f"{unlabelled:,} of its rows have no label, and are left out",) if unlabelled else ()
    return LabelFile(path=path, task=task, answers=answers, by_texts=clear, findings=findings)


def _texts_of(record: Mapping[str, Any], task: TaskConfig, where: str) -> Mapping[str, str] | None:
    """Return a row's texts by field: in the columns of the task's file, else under the fields' own names; None without them."""
    found = texts_in(record, task, where)
    if found is None and all(isinstance(record.get(name), str) for name in task.fields):
        return {name: record[name] for name in task.fields}
    return found


def _given(record: Mapping[str, Any], task: TaskConfig, where: str) -> Any:
    """Return a row's label or probabilities by label; None where it has neither and says so.

    What can only be said with a row's own candidates is left for `_by_label`.
    """
    given = record.get("probabilities") or record.get("label")
    if isinstance(given, dict):
        if not all(isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p <= 1 for p in given.values()):
            raise DataError(f"{where}: probabilities that are no numbers between 0 and 1")
    elif isinstance(given, list) or not ("label" in record or "probabilities" in record):
        raise DataError(f"{where}: has neither a label nor probabilities by label")
    if given is None or given != given:
        return None
    said = Said(given=given, row_id=None, texts=None, where=where)
    return given if task.candidates is not None else _by_label(said, task, None)


def _by_label(said: Said, task: TaskConfig, candidates: Sequence[str] | None) -> Mapping[str, float] | None:
    """Return what is said as probabilities by label. Raises DataError for a label that is none of the row's."""
    if said.given is None or (isinstance(said.given, dict) and candidates is None and set(said.given) <= set(task.label_words)):
        return said.given
    shares = said.given if isinstance(said.given, dict) else {said.given: 1.0}
    found = {}
    for name, share in shares.items():
        try:
            label = label_of(name, task.label_words, candidates)
        except NoLabel as error:
            raise DataError(f"{said.where}: {error}") from error
        if label is None and shares is said.given:
            raise DataError(f"{said.where}: probabilities of '{name}', which is no label")
        if label is None:
            return None
        found[label] = float(share)
    return found


def _keys(row: TaskRow) -> tuple[str, str]:
    """Return the keys by which a row is found, the surer one first."""
    return _id_key(row.id), _text_key(row.texts)


def _unspaced(text: str) -> str:
    return "".join(text.split())


def _id_key(row_id: Any) -> str:
    """Return the key of an id: a table's ids are text, a task's may be numbers, and a table in memory makes 7 to 7.0."""
    return f"id {int(row_id) if isinstance(row_id, float) and row_id.is_integer() else row_id}"


def _text_key(texts: Mapping[str, str]) -> str:
    return "texts " + json.dumps(texts, ensure_ascii=False, sort_keys=True)
