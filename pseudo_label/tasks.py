"""Tasks as data: files of tasks (`pseudo_label/task_config.py` says what is in them), and their rows.

A task file is YAML, checked against `TaskConfig`; rows are in the CLUE layout `<root>/<folder>/<split>.json`, or in any other kind
of file that `adapt/text/rows` reads: `.jsonl`, `.csv`, `.tsv`, `.parquet`, `.xlsx`, a saved data set.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from adapt.core.errors import ConfigError, DataError
from adapt.core.typed import from_plain
from adapt.text.corpus import text_digest
from adapt.text.rows.contract import Row
from adapt.text.rows.directories import is_rows
from adapt.text.rows.reading import header_of, open_rows, rows_of
from pseudo_label.gold import NoLabel, label_of
from pseudo_label.splits import Splits, refuse_no_name
from pseudo_label.task_checks import problems_of
from pseudo_label.task_config import FieldConfig, PromptConfig, TaskConfig, TaskRow
from pseudo_label.task_yaml import read_yaml
from pseudo_label.words import word_of

__all__ = ["FieldConfig", "PromptConfig", "TaskConfig", "TaskRow"]  # with a task's rows comes what they are made of
_WITHOUT_LABELS = ("unlabeled", "test")  # splits in which nobody looks for labels
_LIKE_LABELS = ("label", "gold", "answer", "target", "correct", "标签", "答案")


def load_task(name: str, directories: list[Path]) -> TaskConfig:
    """Read `<name>.yaml` from the first directory that has it.

    Raises:
        ConfigError: there is none, or it breaks the schema; every problem is listed.
    """
    refuse_no_name("task", name)
    for directory in directories:
        path = directory / f"{name}.yaml"
        if path.is_file():
            content = read_yaml(path)
            if not isinstance(content, dict):
                raise ConfigError(f"{path}: expected a mapping of task settings")
            task: TaskConfig = from_plain(TaskConfig, {"name": name, **content}, str(path))
            problems = problems_of(task)
            if problems:
                raise ConfigError(f"{path}: " + "; ".join(problems))
            return task
    known = sorted({p.stem for d in directories if d.is_dir() for p in d.glob("*.yaml")})
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    other = next((d / f"{name}.yml" for d in directories if (d / f"{name}.yml").is_file()), None)
    hint = hint if other is None else f" (call {other} {name}.yaml)"
    raise ConfigError(f"unknown task '{name}'{hint}; there are: {', '.join(known)}")


def split_path(root: Path | Splits, task: TaskConfig, split: str) -> Path:
    """Return where a split of a task is, whether or not it exists; a plain `root` has folders of tasks.

    Raises:
        DataError: two files are this split.
    """
    splits = Splits(root=root) if isinstance(root, Path) else root
    return splits.place(task.name, task.folder or task.name, split)


def read_split(root: Path | Splits, task: TaskConfig, split: str) -> list[TaskRow]:
    """Read every row of a split.

    Raises:
        DataError: the file is missing, a line is malformed, a field is missing, a label has no word, or labels are under another
            name than `label_path`.
    """
    rows = list(iterate_split(root, task, split))
    if rows and split not in _WITHOUT_LABELS and all(row.label is None for row in rows):
        _ask_for_labels(split_path(root, task, split), task)
    return rows


def iterate_split(root: Path | Splits, task: TaskConfig, split: str) -> Iterator[TaskRow]:
    """Yield the rows of a split, one in memory at a time. Raises DataError as `read_rows` does, and where there is no file."""
    path = split_path(root, task, split)
    if not is_rows(path):
        where = f"data.root={root}" if isinstance(root, Path) else str(root)
        raise DataError(
            f"{path}: no such file (nor one with another ending of rows, such as .csv); task '{task.name}' needs split '{split}' "
            f"under {where}"
        )
    return read_rows(path, task)


def read_rows(path: Path, task: TaskConfig) -> Iterator[TaskRow]:
    """Yield the rows of one file, one in memory at a time. Raises DataError as `read_split` does."""
    for row in records_of(path, task):
        yield row_from(row.record, task, str(path), row.number, row.unit)


def records_of(path: Path, task: TaskConfig) -> Iterator[Row]:
    """Yield the rows of one file as they are.

    Raises:
        DataError: one is malformed; or there are none, under a header that lacks a field of the task, or in a table without one.
    """
    file = open_rows(path, encoding=task.encoding, quotes=task.quotes)
    row = None
    for row in rows_of(file):
        yield row
    if row is None:
        header = header_of(file)
        if file.kind.is_table and not header:
            raise DataError(f"{path}: is empty: no header line and no rows; a table without rows has its header")
        refuse_headless(header, task, str(path))


def refuse_headless(header: list[str] | None, task: TaskConfig, where: str) -> None:
    """Raise DataError where a table without rows lacks a column of the task: its first line may be a row."""
    needed = [spec.path for spec in task.fields.values() if not spec.is_optional]
    missing = next((path for path in needed if header is not None and not {path, path.split(".")[0]} & set(header)), None)
    if missing is not None:
        there = ", ".join(header or [])
        raise DataError(f"{where}: has no column '{missing}'; its first line must name the columns, and has: {there}")


def row_from(
    record: Mapping[str, Any], task: TaskConfig, where: str, line: int, unit: str = "line", *, reads_label: bool = True
) -> TaskRow:
    """Build a row from a mapping, with its label unless that is of no interest; `where`, `unit` and `line` name it in errors.

    Raises:
        DataError: a field is missing, or the label is none of the task's.
    """
    where = f"{where}, {unit} {line}"
    texts = {name: _text_at(record, spec, name, where) for name, spec in task.fields.items()}
    candidates = _candidates_of(record, task, where)
    label = _label_at(record, task, candidates, where) if reads_label else None
    row_id = _id_of(record, task)
    row_id = line - 1 if row_id is None else row_id
    return TaskRow(id=row_id, texts=texts, label=label, candidates=candidates, line=line)


def has_id(record: Mapping[str, Any], task: TaskConfig) -> bool:
    """Say whether a row brings an id of its own."""
    return _id_of(record, task) is not None


def given_id(record: Mapping[str, Any], task: TaskConfig) -> Any:
    """Return the id that a row brings, of whichever column of `id_paths`; None where it brings none."""
    return _id_of(record, task)


def texts_in(record: Mapping[str, Any], task: TaskConfig, where: str) -> dict[str, str] | None:
    """Return a row's texts by field; None where one of them is not there. Raises DataError as `row_from` does."""
    if any(_at(record, spec.path) is None for spec in task.fields.values()):
        return None
    return {name: _text_at(record, spec, name, where) for name, spec in task.fields.items()}


def _id_of(record: Mapping[str, Any], task: TaskConfig) -> Any:
    """Return a row's id: of the first path with a value, else of the first column called like one in other letters (`ID`)."""
    found = next((found for path in task.id_paths if not _is_empty(found := _at(record, path))), None)
    if found is not None:
        return found
    near = (name for path in task.id_paths for name in record if _folded(name) == _folded(path))
    return next((value for name in near if not _is_empty(value := record[name])), None)


def _is_empty(value: Any) -> bool:
    """Say whether nothing is there: null, NaN (an empty cell of a table in memory) or a text of spaces."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _refuse_near(record: Mapping[str, Any], path: str, where: str) -> None:
    """Raise DataError where a column differs from one that is missing in case, spaces or width of its letters only."""
    if path in record:
        return
    near = next((name for name in record if name != path and _folded(name) == _folded(path)), None)
    if near is not None:
        raise DataError(
            f"{where}: has no '{path}', but '{near}'; give the column the name in the task's file, or the file that name"
        )


@lru_cache(maxsize=1024)
def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", str(name)).strip().casefold()


def _ask_for_labels(path: Path, task: TaskConfig) -> None:
    """Raise DataError where rows have no label, and another column holds nothing but labels of the task."""
    others: set[str] | None = None
    known = {task.label_path, *(path.split(".")[0] for path in [*task.id_paths, *(spec.path for spec in task.fields.values())])}
    for row in records_of(path, task):
        candidates = _candidates_of(row.record, task, str(path))
        fitting = {
            name
            for name, value in row.record.items()
            if name not in known and (others is None or name in others) and _is_label(value, name, task, candidates)
        }
        others = fitting
        if not others:
            return
    if others:
        name = min(others)
        raise DataError(
            f"{path}: has no '{task.label_path}', and its '{name}' holds labels of task '{task.name}'; if these are meant, add "
            f"'label_path: {name}' to the task's file, else rename the column"
        )


def _is_label(value: Any, name: str, task: TaskConfig, candidates: tuple[str, ...] | None) -> bool:
    """Say whether a value is a label; where labels are numbers of a row's own list, the column must be called like labels too."""
    if candidates is not None and not any(word in name.lower() for word in _LIKE_LABELS):
        return False
    try:
        return label_of(value, task.label_words, candidates) is not None
    except NoLabel:
        return False


def row_digest(row: TaskRow, task: TaskConfig) -> str:
    """Return a digest of a row's texts, to find the same example in another split.

    Optional fields (keywords, say) do not count: they are there in one split and not in the other.
    """
    return text_digest("\x00".join(row.texts[name] for name, spec in task.fields.items() if not spec.is_optional))


def labels_of(row: TaskRow, task: TaskConfig) -> list[str]:
    """Return the names of a row's candidates: the task's labels, or the places in its own list."""
    return task.labels if row.candidates is None else [str(i) for i in range(len(row.candidates))]


def _label_at(record: Mapping[str, Any], task: TaskConfig, candidates: tuple[str, ...] | None, where: str) -> str | None:
    value = _at(record, task.label_path)
    if value is None:
        _refuse_near(record, task.label_path, where)
    try:
        return label_of(value, task.label_words, candidates)
    except NoLabel as error:
        mend = "" if task.candidates is not None else f"; add it under label_words of task '{task.name}', or mend the row"
        raise DataError(f"{where}: {error}{mend}") from error


def _candidates_of(record: Mapping[str, Any], task: TaskConfig, where: str) -> tuple[str, ...] | None:
    if task.candidates is None:
        return None
    found = _at(record, task.candidates)
    if not isinstance(found, list) or not found:
        raise DataError(f"{where}: has no list '{task.candidates}'")
    words = tuple(word_of(item, f"{where}: '{task.candidates}', item {place}") for place, item in enumerate(found))
    if not all(word.strip() for word in words):
        raise DataError(f"{where}: '{task.candidates}' has an empty candidate")
    return words


def _text_at(record: Mapping[str, Any], spec: FieldConfig, name: str, where: str) -> str:
    found = _at(record, spec.path)
    if found is None:
        _refuse_near(record, spec.path, where)
        if spec.is_optional:
            return spec.blank or ""
        if _is_there(record, spec.path):
            raise DataError(f"{where}: its '{spec.path}' (field '{name}') is null; give a text, which may be empty")
        raise DataError(f"{where}: has no '{spec.path}' (field '{name}'); it has: {', '.join(map(str, record)) or 'nothing'}")
    what = f"{where}: '{spec.path}'"
    if isinstance(found, list):
        text = spec.join.join(word_of(item, f"{what}, item {place}") for place, item in enumerate(found))
    else:
        text = word_of(found, what)
    text = text.replace(spec.drop, "") if spec.drop else text
    if spec.blank is not None and spec.blank not in text:
        raise DataError(f"{where}: '{spec.path}' has no blank {spec.blank}")
    if spec.blank is not None and (count := text.count(spec.blank)) > 1:
        raise DataError(f"{where}: '{spec.path}' has {count} blanks {spec.blank}, and the label fills one; make a row of each")
    return text


def _is_there(record: Mapping[str, Any], path: str) -> bool:
    """Say whether a row has a path at all, with null or anything else at it."""
    above, dot, key = path.rpartition(".")
    inner = _at(record, above) if dot else record
    return path in record or (isinstance(inner, Mapping) and key in inner)


def _at(record: Mapping[str, Any], path: str) -> Any:
    """Return what a dotted path leads to; a column of a table may be called by the whole path."""
    if path in record:
        return record[path]
    value: Any = record
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value
