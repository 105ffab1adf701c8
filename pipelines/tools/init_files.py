"""The rows of a new task, split into files, and its file of settings: complete, or not there at all.

Both are made in scratch places beside their own and take their names when all is written, rows first. Where a kill came between the
two, the same command finds the rows that it would write, and goes on.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from adapt.core.errors import ConfigError, DataError, counted
from adapt.core.faults import refuse_closed, writable
from adapt.core.runtime import generator_for
from adapt.text.rows.contract import RowsFile
from adapt.text.rows.reading import rows_of
from pipelines.stages.rows import UNLABELED
from pipelines.tools.init_answers import ID_COLUMN
from pseudo_label.columns import flat, written
from pseudo_label.leakage import EvaluationTexts
from pseudo_label.tasks import TaskConfig, TaskRow, given_id, row_from

DEV, TEST = "dev", "test"
_ENDING = ".jsonl"
_TAKEN = "is there already, and nothing is overwritten; give task=ANOTHER_NAME, or move it away"
_DEV_ROWS, _DEV_SHARE = 500, 3  # at most so many, and one in so many of all rows
_TEST_ROWS, _TEST_SHARE = 200, 10


@dataclass(frozen=True, kw_only=True)
class Written:
    """Where a task is, and how many rows went where; `numbered` says why rows do not keep ids of the file, where they do not."""

    folder: Path
    task_file: Path
    unlabeled: int
    evaluated: int
    split: str
    by_label: Mapping[str, int]
    excluded: int
    textless: int
    numbered: str | None

    @property
    def said(self) -> str:
        parts = [f"{counted(self.unlabeled, 'row')} in {UNLABELED}"]
        counts = ", ".join(f"{label}: {count:,}" for label, count in self.by_label.items())
        parts.append(f"{self.evaluated:,} in {self.split}" + (f" with their labels ({counts})" if counts else ", without labels"))
        parts += [f"{self.excluded:,} left out, whose texts are in {self.split}"] if self.excluded else []
        parts += [f"{self.textless:,} left out, without text"] if self.textless else []
        parts += [f"ids are row numbers from 1, since {self.numbered}"] if self.numbered is not None else []
        return ", ".join(parts)


def refuse_taken(root: str, task_dir: str, name: str) -> None:
    """Raise ConfigError where a task of this name is there already, or nothing can be written."""
    file = Path(task_dir) / f"{name}.yaml"
    if file.exists():
        raise ConfigError(f"{file}: {_TAKEN}")
    folder = Path(root) / name
    own = {f"{split}{_ENDING}" for split in (UNLABELED, DEV, TEST)}
    if folder.exists() and (not folder.is_dir() or any(path.name not in own for path in folder.iterdir())):
        raise ConfigError(f"{folder}: {_TAKEN}")
    refuse_closed(Path(root))
    refuse_closed(Path(task_dir))


def write_task(
    file: RowsFile, task: TaskConfig, text: str, *, root: str, task_dir: str, dev_rows: int | None, seed: int, has_labels: bool
) -> Written:
    """Split the rows of a file, and write them and the task's file. Without `has_labels` no column of the file is a label.

    Rows keep the ids that the file gives them, if all have one and none repeats; else they are numbered.

    Raises:
        ConfigError: something else is in the place of the rows, or they cannot be written.
        DataError: a row cannot be read, or none is left to adapt on.
    """
    folder, place = Path(root) / task.name, Path(task_dir) / f"{task.name}.yaml"
    with writable(folder), _scratch(Path(root), task.name) as scratch:
        counts = _write_rows(file, task, scratch, dev_rows, seed, has_labels=has_labels)
        if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
            if not _are_same(folder, scratch):
                raise ConfigError(f"{folder}: {_TAKEN}")
        else:
            scratch.replace(folder)
    with writable(place), _scratch(Path(task_dir), task.name) as scratch:
        made = scratch / place.name
        with made.open("w", encoding="utf-8") as stream:
            _finish(stream, text)
        try:
            os.link(made, place)  # which, unlike a renaming, replaces nothing
        except FileExistsError:
            raise ConfigError(f"{place}: {_TAKEN}") from None
    return Written(folder=folder, task_file=place, **counts)


def has_text(record: Mapping[str, Any], task: TaskConfig) -> bool:
    """Say whether each text of a row is there."""
    found = dict(flat(record))
    texts = (written(found.get(spec.path)) for spec in task.fields.values())
    return all(text is not None and text.strip() for text in texts)


def _write_rows(
    file: RowsFile, task: TaskConfig, place: Path, dev_rows: int | None, seed: int, *, has_labels: bool
) -> dict[str, Any]:
    labels: list[str | None] = []
    ids: list[int | str | None] = []
    for record, row in _rows(file, task, has_labels=has_labels):
        labels.append(row.label if has_text(record, task) else _TEXTLESS)
        ids.append(_own_id(record, task))
    usable = [number for number, label in enumerate(labels) if label is not _TEXTLESS]
    numbered = _why_numbered([ids[number] for number in usable])

    def rows() -> Iterator[TaskRow]:
        for number, (_, row) in enumerate(_rows(file, task, has_labels=has_labels)):
            yield row if numbered is not None else replace(row, id=ids[number])

    labelled = [number for number in usable if labels[number] is not None]
    split = DEV if labelled else TEST
    most = min(_DEV_ROWS, max(len(usable) // _DEV_SHARE, 1)) if dev_rows is None else dev_rows
    if not labelled:
        most = min(_TEST_ROWS, max(len(usable) // _TEST_SHARE, 1))
    pool = labelled or usable
    chosen = {pool[int(i)] for i in generator_for("init", seed).permutation(len(pool))[:most]}
    evaluated = [row for number, row in enumerate(rows()) if number in chosen]
    known, n_unlabeled, n_excluded = EvaluationTexts(evaluated, task), 0, 0
    with (place / f"{split}{_ENDING}").open("w", encoding="utf-8") as stream:
        _finish(stream, "".join(_line(row, task, with_label=split == DEV) for row in evaluated))
    with (place / f"{UNLABELED}{_ENDING}").open("w", encoding="utf-8") as stream:
        for number, row in enumerate(rows()):
            if number in chosen or labels[number] is _TEXTLESS:
                continue
            if known.has_row(row):
                n_excluded += 1
                continue
            stream.write(_line(row, task, with_label=False))
            n_unlabeled += 1
        _finish(stream, "")
    if not n_unlabeled:
        raise DataError(
            f"{file.name}: all of its {len(usable):,} rows with text are needed in {split}; give more rows, or fewer dev_rows"
        )
    counted = Counter(row.label for row in evaluated if row.label is not None)
    return {
        "unlabeled": n_unlabeled,
        "evaluated": len(evaluated),
        "split": split,
        "by_label": {label: counted[label] for label in task.labels} if counted else {},
        "excluded": n_excluded,
        "textless": len(labels) - len(usable),
        "numbered": numbered,
    }


_TEXTLESS = "\x00"  # in place of a row's label, which never has this sign


def _own_id(record: Mapping[str, Any], task: TaskConfig) -> int | str | None:
    """Return the id that a row brings; None where its cell is empty, or its column is one of the texts or the labels."""
    used = {task.label_path, *(spec.path for spec in task.fields.values())}
    found = given_id({name: value for name, value in record.items() if name not in used}, task)
    if isinstance(found, int) and not isinstance(found, bool):
        return found
    said = written(found)
    return said if said is not None and said.strip() else None


def _why_numbered(ids: Sequence[int | str | None]) -> str | None:
    """Return why ids cannot be kept; None where they can."""
    there = [str(one) for one in ids if one is not None]
    if not there:
        return "no row has one (column id or idx)"
    if len(there) < len(ids):
        return f"{len(ids) - len(there):,} rows have none"
    value, count = Counter(there).most_common(1)[0]
    return f"{count:,} rows have the id {value!r}" if count > 1 else None


def _rows(file: RowsFile, task: TaskConfig, *, has_labels: bool) -> Iterator[tuple[Mapping[str, Any], TaskRow]]:
    """Yield each row as it is and as the task reads it; one without text has empty texts. Ids are the rows' numbers, from 1."""
    for number, row in enumerate(rows_of(file), start=1):
        if has_text(row.record, task):
            read = row_from(row.record, task, file.name, row.number, row.unit, reads_label=has_labels)
            yield row.record, TaskRow(id=number, texts=read.texts, label=read.label, candidates=None, line=row.number)
        else:
            yield row.record, TaskRow(id=number, texts=dict.fromkeys(task.fields, ""), label=None, candidates=None, line=row.number)


def _line(row: TaskRow, task: TaskConfig, *, with_label: bool) -> str:
    record: dict[str, Any] = {ID_COLUMN: row.id}
    record |= {spec.path: row.texts[name] for name, spec in task.fields.items()}
    if with_label:
        record[task.label_path] = row.label
    return json.dumps(record, ensure_ascii=False) + "\n"


def _finish(stream: IO[str], text: str) -> None:
    stream.write(text)
    stream.flush()
    os.fsync(stream.fileno())


def _are_same(one: Path, other: Path) -> bool:
    """Say whether two directories have the same files with the same content."""
    if not one.is_dir():
        return False
    names = {path.name for path in other.iterdir()}
    if {path.name for path in one.iterdir()} != names:
        return False
    return filecmp.cmpfiles(one, other, names, shallow=False)[0] == list(names)


@contextlib.contextmanager
def _scratch(directory: Path, name: str) -> Iterator[Path]:
    """Give a directory that is gone at the end, unless it was renamed."""
    directory.mkdir(parents=True, exist_ok=True)
    place = directory / f".{name}.{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
