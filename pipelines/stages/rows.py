"""Which rows a task is adapted on, measured on and calibrated on: unlabeled ones without evaluation texts, and labelled ones.

A limit takes a sample over the whole file, since files sorted by class are common. Rows are ranked by a hash of the seed and their
text, and the first so many are kept, in the order of the file: the sample of a smaller limit is part of that of a larger one, and
rows that are added later push out as few as can be. A text that occurs again is taken once.
"""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.stages.contract import Walk
from pseudo_label.criteria.contract import Null
from pseudo_label.leakage import EvaluationTexts
from pseudo_label.tasks import TaskConfig, TaskRow, iterate_split, read_split, row_digest, split_path

LABELLED_SPLITS = ("dev", "few")
_DOMAIN_TEXTS = 64


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


def adaptation_rows(walk: Walk, task: TaskConfig, limit: int | None) -> AdaptationRows:
    """Read the unlabeled rows that may be adapted on, and take a sample of `limit`; how many of how many is said once.

    Rows with an evaluation row's texts are kept out, and so are copies. Memory holds the rows that are kept.
    """
    held = EvaluationTexts(
        (
            row
            for split in existing(walk, task, walk.config.exclude_eval.splits)
            for row in read_split(walk.data_root(), task, split)
        ),
        task,
    )
    n_file, n_excluded = 0, 0

    def allowed() -> Iterator[TaskRow]:
        nonlocal n_file, n_excluded
        for row in iterate_split(walk.data_root(), task, "unlabeled"):
            n_file += 1
            if held.has_row(row):
                n_excluded += 1
            else:
                yield row

    kept, n_distinct = sample_rows(allowed(), task, limit, walk.config.seed)
    found = AdaptationRows(
        rows=kept,
        n_excluded=n_excluded,
        n_sharing=sum(held.shares_passage(row) for row in kept),
        n_copies=n_file - n_excluded - n_distinct,
        n_file=n_file,
    )
    _say(walk, task, found, n_distinct)
    return found


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


def _say(walk: Walk, task: TaskConfig, found: AdaptationRows, n_distinct: int) -> None:
    notes = []
    if len(found.rows) < n_distinct:
        notes.append(f"sampled with seed {walk.config.seed}")
    if found.n_copies:
        notes.append(f"{found.n_copies:,} are copies of others and left out")
    if notes:
        walk.say_once(f"{task.name}: {len(found.rows):,} of {found.n_file:,} unlabeled rows ({', '.join(notes)})")


def domain_texts(walk: Walk, task: TaskConfig, nulls: Iterable[Null]) -> list[dict[str, str]]:
    """Return texts by field, evenly from a task's unlabeled rows, where one of the null contexts is its domain; else none."""
    if Null.DOMAIN not in nulls or not existing(walk, task, ["unlabeled"]):
        return []
    rows = adaptation_rows(walk, task, None).rows
    count = min(len(rows), _DOMAIN_TEXTS)
    return [dict(rows[index * len(rows) // count].texts) for index in range(count)]


def labelled_rows(walk: Walk, task: TaskConfig) -> dict[str, list[TaskRow]]:
    """Return the labelled rows of dev and few, as far as the task has them."""
    found = {split: read_split(walk.data_root(), task, split) for split in existing(walk, task, LABELLED_SPLITS)}
    return {split: labelled_part(walk, task, split, rows) for split, rows in found.items() if is_labelled(rows)}


def labelled_part(walk: Walk, task: TaskConfig, split: str, rows: list[TaskRow]) -> list[TaskRow]:
    """Return the rows of a split that have a label; that it is a part of them is said once."""
    part = [row for row in rows if row.label is not None]
    if 0 < len(part) < len(rows):
        walk.say_once(f"{task.name} {split}: {len(part):,} of {len(rows):,} rows have a label; it is measured on these")
    return part


def is_labelled(rows: list[TaskRow]) -> bool:
    """Return whether a row has a label."""
    return any(row.label is not None for row in rows)


def existing(walk: Walk, task: TaskConfig, splits: list[str] | tuple[str, ...]) -> list[str]:
    """Return those of the splits that the task has."""
    return [split for split in splits if split_path(walk.data_root(), task, split).is_file()]
