"""Which rows a task is adapted on, measured on and calibrated on: unlabeled ones without evaluation texts, and labelled ones.

A limit takes a sample over the whole file, since files sorted by class are common. Rows are ranked by a hash of the seed and their
text, and the first so many are kept, in the order of the file: the sample of a smaller limit is part of that of a larger one, and
rows that are added later push out as few as can be. A text that occurs again is taken once.
"""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapt.core.artifacts import sha256_of_file
from adapt.core.errors import DataError, counted
from adapt.core.typed import digest_of, to_plain
from adapt.text.rows.directories import files_of, is_rows
from adapt.text.rows.reading import endings_of
from pipelines.stages.contract import Files, Reads, Workshop, order_of, unkeyed
from pipelines.stages.run import Run
from pseudo_label.criteria.contract import Null
from pseudo_label.leakage import EvaluationTexts
from pseudo_label.splits import Splits
from pseudo_label.tasks import TaskConfig, TaskRow, iterate_split, read_split, row_digest, split_path

LABELLED_SPLITS = ("dev", "few")
UNLABELED = "unlabeled"
_DOMAIN_TEXTS = 64


class UndeclaredRead(AssertionError):
    """A stage read a split that it does not declare: a mistake of the program."""


@dataclass(frozen=True, kw_only=True)
class TaskData(Reads):
    """A task and those of its splits that a stage may read; texts of the splits in `exclude` are kept out of adaptation.

    Rows are sampled by `seed`.
    """

    task: TaskConfig
    files: Files
    exclude: list[str]
    seed: int
    splits: Splits | None = unkeyed("rows count, not where they are")
    declared: frozenset[str] = unkeyed("files holds those that exist")

    @classmethod
    def of(cls, run: Run, task: TaskConfig, splits: Sequence[str]) -> TaskData:
        """Declare splits of a task, which may be absent; those of `exclude_eval` belong to `unlabeled`.

        Raises:
            ConfigError: splits are read, and neither data.root nor data.files says where they are.
        """
        exclude = run.config.exclude_eval.splits if UNLABELED in splits else []
        declared = frozenset([*splits, *exclude])
        found = run.splits() if declared else None
        places = {split: split_path(found, task, split) for split in sorted(declared)} if found is not None else {}
        files = {
            # An ending other than .json is part of the name; where a file is and what else it is called are not.
            f"{task.name}/{split}{endings_of(path.name).removesuffix('.json')}{part}": file
            for split, path in places.items()
            if is_rows(path)
            for part, file in files_of(path).items()
        }
        return cls(task=task, files=Files(files), exclude=exclude, seed=run.config.seed, splits=found, declared=declared)

    def path(self, split: str) -> Path:
        """Return where a split is or would be."""
        return split_path(self._splits_for(split), self.task, split)

    def existing(self, splits: Iterable[str]) -> list[str]:
        """Return those of the splits that the task has."""
        return [split for split in splits if is_rows(self.path(split))]

    def read(self, split: str) -> list[TaskRow]:
        """Read a split. Raises DataError where it is missing or malformed."""
        return read_split(self._splits_for(split), self.task, split)

    def iterate(self, split: str) -> Iterator[TaskRow]:
        """Read a split row by row."""
        return iterate_split(self._splits_for(split), self.task, split)

    def _splits_for(self, split: str) -> Splits:
        if split not in self.declared or self.splits is None:
            raise UndeclaredRead(f"task '{self.task.name}': split '{split}' is read and not declared")
        return self.splits


@dataclass(frozen=True, kw_only=True)
class AdaptationRows:
    """Unlabeled rows that may be adapted on; how many were kept out, and how many of the kept share a passage with evaluation.

    `n_file` rows are in the file, of which `n_copies` repeat the text of an earlier one that may be adapted on.
    """

    rows: list[TaskRow]
    n_excluded: int
    n_sharing: int
    n_copies: int
    n_file: int


def adaptation_rows(shop: Workshop, data: TaskData, limit: int | None) -> AdaptationRows:
    """Read the unlabeled rows that may be adapted on, and take a sample of `limit`; how many of how many is said once.

    Rows with an evaluation row's texts are kept out, and so are copies. Memory holds the rows that are kept. A walk reads and
    screens a file once for each limit.
    """
    there = data.existing([UNLABELED, *data.exclude])
    digests = [sha256_of_file(file) for split in there for file in files_of(data.path(split)).values()]
    what = digest_of([to_plain(data.task), order_of(data.task), str(data.path(UNLABELED)), digests, data.exclude, data.seed, limit])
    found, n_distinct = shop.read_once(what, lambda: _screened(data, limit))
    _say(shop, data, found, n_distinct)
    return found


def _screened(data: TaskData, limit: int | None) -> tuple[AdaptationRows, int]:
    task = data.task
    held = EvaluationTexts((row for split in data.existing(data.exclude) for row in data.read(split)), task)
    n_file, n_excluded = 0, 0

    def allowed() -> Iterator[TaskRow]:
        nonlocal n_file, n_excluded
        for row in data.iterate(UNLABELED):
            n_file += 1
            if held.has_row(row):
                n_excluded += 1
            else:
                yield row

    kept, n_distinct = sample_rows(allowed(), task, limit, data.seed)
    found = AdaptationRows(
        rows=kept,
        n_excluded=n_excluded,
        n_sharing=sum(held.shares_passage(row) for row in kept),
        n_copies=n_file - n_excluded - n_distinct,
        n_file=n_file,
    )
    return found, n_distinct


def sample_rows(rows: Iterable[TaskRow], task: TaskConfig, limit: int | None, seed: int) -> tuple[list[TaskRow], int]:
    """Return a sample of at most `limit` rows of distinct texts, in their order, and how many distinct texts there are."""
    ranks = array("Q")
    kept: dict[int, TaskRow] = {}
    worst: list[int] = []  # a heap of the negated ranks of what is kept
    for row in rows:
        rank = _rank(row, task, seed)
        ranks.append(rank)
        if rank in kept or limit == 0:
            continue
        if limit is not None and len(kept) == limit:
            if rank > -worst[0]:
                continue
            del kept[-heapq.heappop(worst)]
        kept[rank] = row
        if limit is not None:
            heapq.heappush(worst, -rank)
    return sorted(kept.values(), key=lambda row: row.line), len(np.unique(np.frombuffer(ranks, np.uint64))) if ranks else 0


def _rank(row: TaskRow, task: TaskConfig, seed: int) -> int:
    text = f"{seed}\x1f{row_digest(row, task)}\x1f{row.candidates}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _say(shop: Workshop, data: TaskData, found: AdaptationRows, n_distinct: int) -> None:
    notes = []
    if len(found.rows) < n_distinct:
        notes.append(f"sampled with seed {data.seed}")
    if found.n_copies:
        notes.append(f"{found.n_copies:,} are copies of others and left out")
    if notes:
        shop.say_once(f"{data.task.name}: {len(found.rows):,} of {found.n_file:,} unlabeled rows ({', '.join(notes)})")


def domain_texts(shop: Workshop, data: TaskData, nulls: Iterable[Null]) -> list[dict[str, str]]:
    """Return texts by field, evenly from a task's unlabeled rows, where one of the null contexts is its domain; else none."""
    if Null.DOMAIN not in nulls or not data.existing([UNLABELED]):
        return []
    rows = adaptation_rows(shop, data, None).rows
    count = min(len(rows), _DOMAIN_TEXTS)
    return [dict(rows[index * len(rows) // count].texts) for index in range(count)]


def labelled_rows(shop: Workshop, data: TaskData) -> dict[str, list[TaskRow]]:
    """Return the labelled rows of dev and few, as far as the task has them."""
    found = {split: data.read(split) for split in data.existing(LABELLED_SPLITS)}
    return {split: labelled_part(shop, data.task, split, rows) for split, rows in found.items() if is_labelled(rows)}


def labelled_rows_of_other(shop: Workshop, data: TaskData) -> dict[str, list[TaskRow]]:
    """Return the labelled rows of another task by split. Raises DataError where it has none."""
    found = labelled_rows(shop, data)
    if not found:
        raise DataError(f"evaluate.other_tasks: {data.task.name} has no labelled rows in dev or few; leave it out")
    return found


def labelled_part(shop: Workshop, task: TaskConfig, split: str, rows: list[TaskRow]) -> list[TaskRow]:
    """Return the rows of a split that have a label; that it is a part of them is said once."""
    part = [row for row in rows if row.label is not None]
    if 0 < len(part) < len(rows):
        have = "has" if len(part) == 1 else "have"
        shop.say_once(f"{task.name} {split}: {len(part):,} of {counted(len(rows), 'row')} {have} a label; it is measured on these")
    return part


def is_labelled(rows: list[TaskRow]) -> bool:
    """Return whether a row has a label."""
    return any(row.label is not None for row in rows)
