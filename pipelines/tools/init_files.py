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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from adapt.core.errors import ConfigError, DataError
from adapt.core.faults import refuse_closed, writable
from adapt.core.runtime import generator_for
from adapt.text.rows.contract import RowsFile
from adapt.text.rows.reading import rows_of
from pipelines.stages.rows import UNLABELED
from pseudo_label.columns import flat, written
from pseudo_label.leakage import EvaluationTexts
from pseudo_label.tasks import TaskConfig, TaskRow, row_from

DEV, TEST = "dev", "test"
_ENDING = ".jsonl"
_TAKEN = "is there already, and nothing is overwritten; give task=ANOTHER_NAME, or move it away"
_DEV_ROWS, _DEV_SHARE = 500, 3  # at most so many, and one in so many of all rows
_TEST_ROWS, _TEST_SHARE = 200, 10


@dataclass(frozen=True, kw_only=True)
class Written:
    """Where a task is, and how many rows went where."""

    folder: Path
    task_file: Path
    unlabeled: int
    evaluated: int
    split: str
    by_label: Mapping[str, int]
    excluded: int
    textless: int

    @property
    def said(self) -> str:
        parts = [f"{self.unlabeled:,} rows in {UNLABELED}"]
        counts = ", ".join(f"{label}: {count:,}" for label, count in self.by_label.items())
        parts.append(f"{self.evaluated:,} in {self.split}" + (f" with their labels ({counts})" if counts else ", without labels"))
        parts += [f"{self.excluded:,} left out, whose texts are in {self.split}"] if self.excluded else []
        parts += [f"{self.textless:,} left out, without text"] if self.textless else []
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
    file: RowsFile, task: TaskConfig, text: str, *, root: str, task_dir: str, dev_rows: int | None, seed: int
) -> Written:
    """Split the rows of a file, and write them and the task's file.

    Raises:
        ConfigError: something else is in the place of the rows, or they cannot be written.
        DataError: a row cannot be read, or none is left to adapt on.
    """
    folder, place = Path(root) / task.name, Path(task_dir) / f"{task.name}.yaml"
    with writable(folder), _scratch(Path(root), task.name) as scratch:
        counts = _write_rows(file, task, scratch, dev_rows, seed)
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


def _write_rows(file: RowsFile, task: TaskConfig, place: Path, dev_rows: int | None, seed: int) -> dict[str, Any]:
    labels = [row.label if has_text(record, task) else _TEXTLESS for record, row in _rows(file, task)]
    usable = [number for number, label in enumerate(labels) if label is not _TEXTLESS]
    labelled = [number for number in usable if labels[number] is not None]
    split = DEV if labelled else TEST
    most = min(_DEV_ROWS, max(len(usable) // _DEV_SHARE, 1)) if dev_rows is None else dev_rows
    if not labelled:
        most = min(_TEST_ROWS, max(len(usable) // _TEST_SHARE, 1))
    pool = labelled or usable
    chosen = {pool[int(i)] for i in generator_for("init", seed).permutation(len(pool))[:most]}
    evaluated = [row for number, (_, row) in enumerate(_rows(file, task)) if number in chosen]
    known, n_unlabeled, n_excluded = EvaluationTexts(evaluated, task), 0, 0
    with (place / f"{split}{_ENDING}").open("w", encoding="utf-8") as stream:
        _finish(stream, "".join(_line(row, task, with_label=split == DEV) for row in evaluated))
    with (place / f"{UNLABELED}{_ENDING}").open("w", encoding="utf-8") as stream:
        for number, (_, row) in enumerate(_rows(file, task)):
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
    }


_TEXTLESS = "\x00"  # in place of a row's label, which never has this sign


def _rows(file: RowsFile, task: TaskConfig) -> Iterator[tuple[Mapping[str, Any], TaskRow]]:
    """Yield each row as it is and as the task reads it; one without text has empty texts. Ids are the rows' numbers, from 1."""
    for number, row in enumerate(rows_of(file), start=1):
        if has_text(row.record, task):
            read = row_from(row.record, task, file.name, row.number, row.unit)
            yield row.record, TaskRow(id=number, texts=read.texts, label=read.label, candidates=None, line=row.number)
        else:
            yield row.record, TaskRow(id=number, texts=dict.fromkeys(task.fields, ""), label=None, candidates=None, line=row.number)


def _line(row: TaskRow, task: TaskConfig, *, with_label: bool) -> str:
    record: dict[str, Any] = {"id": row.id}
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
